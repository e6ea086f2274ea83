//! Many streams on one channel (yamux).
//!
//! Each stream has a window of its own: a reader that stops stops its own stream, after at most one window of
//! buffered bytes, and no other. The host opens every stream; a stream that the guest opens is refused by not being
//! taken from [`Incoming`].

use std::future::poll_fn;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, Mode};

/// One stream of the channel: bytes both ways, each half closed by itself.
pub type Stream = Compat<yamux::Stream>;

/// Most streams open at once. Three a process, and one for the requests.
pub const MAX_STREAMS: usize = 3072;

/// Which side of the channel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Host,
    /// Takes streams.
    Guest,
}

/// The channel has ended; no stream can be opened any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the channel to the guest is closed")]
pub struct Closed;

/// Opens streams.
#[derive(Clone, Debug)]
pub struct Opener(mpsc::Sender<oneshot::Sender<Stream>>);

impl Opener {
    /// Opens a stream. The peer hears of it with the first bytes written.
    ///
    /// # Errors
    /// [`Closed`] when the channel has ended.
    pub async fn open(&self) -> Result<Stream, Closed> {
        let (reply, stream) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| Closed)?;
        stream.await.map_err(|_| Closed)
    }

    /// Resolves when the channel has ended.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Streams that the peer has opened, oldest first; `None` when the channel has ended.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Stream>);

impl Incoming {
    /// The next stream.
    pub async fn next(&mut self) -> Option<Stream> {
        self.0.recv().await
    }
}

/// Starts to multiplex `channel` in a task of its own, which ends with the channel, or when the [`Opener`]s of a host
/// or the [`Incoming`] of a guest are gone.
pub fn start<T>(channel: T, side: Side) -> (Opener, Incoming)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut config = Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    let mode = match side {
        Side::Host => Mode::Client,
        Side::Guest => Mode::Server,
    };
    let connection = Connection::new(channel.compat(), config, mode);
    let (opener, wanted) = mpsc::channel(16);
    let (found, incoming) = mpsc::channel(MAX_STREAMS);
    tokio::spawn(async move {
        if let Err(error) = drive(connection, wanted, found, side).await {
            tracing::debug!(%error, "channel ended");
        }
    });
    (Opener(opener), Incoming(incoming))
}

async fn drive<T>(
    mut connection: Connection<Compat<T>>,
    mut wanted: mpsc::Receiver<oneshot::Sender<Stream>>,
    found: mpsc::Sender<Stream>,
    side: Side,
) -> Result<(), ConnectionError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut waiting: Option<oneshot::Sender<Stream>> = None;
    loop {
        // One turn: whatever the connection has to do is done inside poll_next_inbound, so that is always polled;
        // a wanted stream is opened as soon as the connection allows it.
        let turn = poll_fn(|cx| {
            loop {
                if waiting.is_none() {
                    match wanted.poll_recv(cx) {
                        Poll::Ready(Some(reply)) => waiting = Some(reply),
                        Poll::Ready(None) if side == Side::Host => return Poll::Ready(None),
                        _ => break,
                    }
                }
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(reply) = waiting.take() {
                            // A caller that has gone drops the stream, which resets it.
                            let _ = reply.send(stream.compat());
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Poll::Pending => break,
                }
            }
            connection.poll_next_inbound(cx)
        });
        let inbound = tokio::select! {
            inbound = turn => inbound,
            () = found.closed(), if side == Side::Guest => break,
        };
        match inbound {
            Some(Ok(stream)) if side == Side::Guest => {
                // Never waits: a guest takes its streams at once; where it does not, the stream is reset.
                let _ = found.try_send(stream.compat());
            }
            Some(Ok(_refused)) => {}
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    poll_fn(|cx| connection.poll_close(cx)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Opener, Incoming) {
        let (a, b) = tokio::io::duplex(4096);
        let (opener, _refused) = start(a, Side::Host);
        let (_unused, incoming) = start(b, Side::Guest);
        (opener, incoming)
    }

    #[tokio::test]
    async fn half_close_is_end_of_file_and_the_other_half_goes_on() {
        let (opener, mut incoming) = pair();
        let mut host = opener.open().await.expect("open");
        host.write_all(b"question").await.expect("write");
        host.shutdown().await.expect("half close");
        let mut guest = incoming.next().await.expect("stream");
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.expect("read to the half close");
        assert_eq!(got, b"question");
        guest
            .write_all(b"answer")
            .await
            .expect("write after the peer's half close");
        guest.shutdown().await.expect("close");
        let mut back = Vec::new();
        host.read_to_end(&mut back).await.expect("read");
        assert_eq!(back, b"answer");
    }

    #[tokio::test]
    async fn a_stuck_reader_stalls_neither_other_streams_nor_memory() {
        let (opener, mut incoming) = pair();
        let mut stuck = opener.open().await.expect("open");
        stuck.write_all(b"s").await.expect("write");
        let mut writer_of_stuck = incoming.next().await.expect("stream");
        let mut lively = opener.open().await.expect("open");
        lively.write_all(b"l").await.expect("write");
        let mut writer_of_lively = incoming.next().await.expect("stream");

        let flood = tokio::spawn(async move {
            let block = [7; 4096];
            let mut accepted = 0;
            while let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_millis(300), writer_of_stuck.write_all(&block)).await
            {
                accepted += block.len();
            }
            accepted
        });
        let pour = tokio::spawn(async move {
            for _ in 0..4096 {
                writer_of_lively
                    .write_all(&[9; 1024])
                    .await
                    .expect("lively stream accepts");
            }
            writer_of_lively.shutdown().await.expect("close");
        });
        let mut lively_bytes = Vec::new();
        lively
            .read_to_end(&mut lively_bytes)
            .await
            .expect("lively stream flows");
        assert_eq!(lively_bytes.len(), 4096 * 1024);
        pour.await.expect("pour");
        let accepted = flood.await.expect("flood");
        assert!(
            accepted <= 1024 * 1024,
            "{accepted} bytes were taken for a reader that never reads"
        );
        drop(stuck);
    }

    #[tokio::test]
    async fn the_end_of_the_channel_is_seen_by_everyone() {
        let (a, b) = tokio::io::duplex(4096);
        let (opener, _refused) = start(a, Side::Host);
        let mut stream = opener.open().await.expect("open");
        stream.write_all(b"x").await.expect("write");
        drop(b);
        opener.closed().await;
        assert!(opener.open().await.is_err());
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn streams_opened_by_the_guest_are_refused() {
        let (a, b) = tokio::io::duplex(4096);
        let (_opener, mut incoming_at_host) = start(a, Side::Host);
        let (guest_opener, _incoming) = start(b, Side::Guest);
        let mut stream = guest_opener.open().await.expect("the guest's own side opens it");
        stream.write_all(b"let me in").await.expect("into its window");
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the host resets it");
        assert!(incoming_at_host.0.try_recv().is_err());
    }
}
