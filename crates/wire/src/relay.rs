//! A connection through the machine's wall: bytes both ways between a stream of the channel and a socket of this side.
//!
//! Each direction ends by itself, and its end is passed on; who reads slowly slows down who writes, and at most one
//! block is kept in between. What breaks on one side breaks the other: no end is made up for what had none.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::block;
use crate::mux::Stream;

/// Carries bytes until both directions have ended.
///
/// A socket whose peer takes nothing any more may still have something to say: that is carried to its end first.
///
/// # Errors
/// When the connection has broken on either side. Whoever drops the stream then breaks it on the other; whoever drops a
/// TCP socket should reset it.
pub async fn relay<S>(stream: &mut Stream, socket: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut inward, mut outward) = (Direction::new(), Direction::new());
    // Why the socket takes nothing any more.
    let mut refused = None;
    std::future::poll_fn(|cx| {
        let inward_done = loop {
            match inward.poll(cx, stream, socket) {
                Poll::Ready(Err(Failure::Write(error))) if refused.is_none() => {
                    refused = Some(error);
                    inward.discards = true;
                }
                other => break other.map_err(Failure::into_inner)?,
            }
        };
        if inward.at_end && !outward.closed && stream.is_closed() {
            // The end of the peer's half leaves ours open; only a reset closes both.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !outward.closed {
            ready!(outward.poll_to_end(cx, socket, stream)).map_err(Failure::into_inner)?;
            if let Some(error) = refused.take() {
                return Poll::Ready(Err(error));
            }
            // From here on it cannot be reset any more: what still comes inward is carried or discarded to its end.
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
            outward.closed = true;
        }
        ready!(inward_done);
        Poll::Ready(Ok(()))
    })
    .await
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl Failure {
    fn into_inner(self) -> io::Error {
        let (Self::Read(error) | Self::Write(error)) = self;
        error
    }
}

struct Direction {
    block: Vec<u8>,
    written: usize,
    /// The reader has ended.
    at_end: bool,
    /// The writer was told so.
    closed: bool,
    /// What is read is thrown away.
    discards: bool,
}

impl Direction {
    fn new() -> Self {
        Self {
            block: Vec::new(),
            written: 0,
            at_end: false,
            closed: false,
            discards: false,
        }
    }

    /// Carries everything, and the end.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if !self.closed {
            ready!(self.poll_to_end(cx, reader, writer))?;
            if !self.discards {
                ready!(Pin::new(writer).poll_shutdown(cx)).map_err(Failure::Write)?;
            }
            self.closed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Carries everything but the end.
    fn poll_to_end<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.block.get(self.written..) {
                Some(rest @ [_, ..]) if !self.discards => {
                    match ready!(Pin::new(&mut *writer).poll_write(cx, rest)).map_err(Failure::Write)? {
                        0 => return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero.into()))),
                        length => self.written += length,
                    }
                }
                _ if self.at_end => return Poll::Ready(Ok(())),
                _ => {
                    // What is written already is not kept while there is nothing to follow it.
                    self.block = Vec::new();
                    self.written = 0;
                    self.block = ready!(block::poll_read(cx, reader)).map_err(Failure::Read)?;
                    self.at_end = self.block.is_empty();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::{self, Side};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    /// One stream, seen from both sides.
    async fn stream() -> (Stream, Stream) {
        let (a, b) = duplex(4096);
        let (opener, _) = mux::start(a, Side::Host);
        let (_, mut incoming) = mux::start(b, Side::Guest);
        let mut host = opener.open().await.expect("open");
        host.write_all(b"!").await.expect("write");
        let mut guest = incoming.next().await.expect("stream");
        guest.read_u8().await.expect("read");
        // The channel lives as long as these, and the test no longer.
        std::mem::forget((opener, incoming));
        (host, guest)
    }

    /// Two local ends with the channel between them, and the relays of both sides.
    async fn crossing() -> (DuplexStream, DuplexStream, [JoinHandle<io::Result<()>>; 2]) {
        let (mut host, mut guest) = stream().await;
        let (near, mut near_relayed) = duplex(4096);
        let (far, mut far_relayed) = duplex(4096);
        let at_host = tokio::spawn(async move { relay(&mut host, &mut near_relayed).await });
        let at_guest = tokio::spawn(async move { relay(&mut guest, &mut far_relayed).await });
        (near, far, [at_host, at_guest])
    }

    #[tokio::test]
    async fn each_half_ends_by_itself() {
        let (mut near, mut far, relays) = crossing().await;
        near.write_all(b"question").await.expect("write");
        near.shutdown().await.expect("half close");
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"question");
        far.write_all(&[7; 100_000]).await.expect("write after the peer's end");
        far.shutdown().await.expect("half close");
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.expect("read");
        assert_eq!(got.len(), 100_000);
        for relay in relays {
            relay.await.expect("task").expect("a whole connection");
        }
    }

    #[tokio::test]
    async fn what_breaks_here_breaks_there() {
        let (near, mut far, [at_host, at_guest]) = crossing().await;
        at_host.abort();
        let broken = timeout(Duration::from_secs(30), at_guest).await.expect("it is noticed");
        assert!(broken.expect("task").is_err(), "an end was made up");
        assert_eq!(far.read(&mut [0; 8]).await.expect("read"), 0);
        drop(near);
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_writer() {
        let (mut near, mut far, _relays) = crossing().await;
        let mut accepted = 0;
        while let Ok(Ok(())) = timeout(Duration::from_millis(300), near.write_all(&[1; 4096])).await {
            accepted += 4096;
        }
        assert!(
            accepted < 1 << 20,
            "{accepted} bytes were taken for a reader that never reads"
        );
        tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
        timeout(Duration::from_secs(30), near.write_all(&[1; 4096]))
            .await
            .expect("it goes on")
            .expect("write");
    }

    #[tokio::test]
    async fn the_last_words_of_a_peer_that_listens_no_more_arrive() {
        let (mut near, far, relays) = crossing().await;
        let (mut far_reads, mut far_writes) = tokio::io::split(far);
        far_reads.read_exact(&mut []).await.expect("nothing");
        far_writes.write_all(b"enough").await.expect("write");
        drop((far_reads, far_writes));
        let sender = async {
            // Far more than fits: it would hang if nobody took or refused it.
            let sent = near.write_all(&vec![1; 4 << 20]).await;
            let mut got = Vec::new();
            let read = near.read_to_end(&mut got).await;
            (sent, got, read)
        };
        let (_, got, _) = timeout(Duration::from_secs(10), sender).await.expect("no hang");
        assert_eq!(got, b"enough");
        for relay in relays {
            relay.abort();
        }
    }

    #[tokio::test]
    async fn a_reset_of_a_socket_is_no_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let client = TcpStream::connect(address).await.expect("connect");
        let (mut served, _) = listener.accept().await.expect("accept");
        let (mut host, mut guest) = stream().await;
        client.set_zero_linger().expect("linger");
        drop(client);
        relay(&mut host, &mut served).await.expect_err("reset");
        drop(host);
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.expect("read");
        assert!(guest.is_closed(), "the other side sees a reset");
    }
}
