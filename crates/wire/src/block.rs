//! Reading in blocks without keeping one: a stream that is silent, as most are most of the time, costs no memory.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::mux::BLOCK;

thread_local! {
    /// Filled and emptied within one poll.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BLOCK].into());
}

/// Waits for the next bytes, at most [`BLOCK`] of them; none at the end.
///
/// # Errors
/// What reading failed with.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    poll_fn(|cx| poll_read(cx, reader)).await
}

/// As [`read`], for those who poll.
///
/// # Errors
/// What reading failed with.
pub fn poll_read<R: AsyncRead + Unpin>(cx: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<Vec<u8>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut space = ReadBuf::new(scratch);
        ready!(Pin::new(reader).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().to_vec()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_follow_one_another_to_the_end() {
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut reader = sent.as_slice();
        let mut got = Vec::new();
        loop {
            let block = read(&mut reader).await.expect("memory");
            assert!(block.len() <= BLOCK);
            if block.is_empty() {
                break;
            }
            got.extend(block);
        }
        assert!(got == sent);
    }
}
