//! Many streams on one channel (yamux).
//!
//! Each stream has a window of its own: a reader that stops stops its own stream, after at most one window of
//! buffered bytes, and no other. The host opens every stream; a stream that the guest opens is refused by not being
//! taken from [`Incoming`].

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, Mode};

/// One stream of the channel: bytes both ways, each half closed by itself. Dropped before both are, it is reset.
#[derive(Debug)]
pub struct Stream {
    bytes: Compat<yamux::Stream>,
    channel_ended: Arc<AtomicBool>,
    /// Of those that the host opened.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// Both halves are closed; where ours was not closed by us, the peer has reset the stream.
    pub fn is_closed(&self) -> bool {
        self.bytes.get_ref().is_closed()
    }

    /// The whole channel has ended, and the stream with it.
    pub fn has_lost_channel(&self) -> bool {
        self.channel_ended.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

/// Most bytes of a frame, header included: what the guest's virtio-serial driver takes in one write.
const FRAME: usize = 32 * 1024;

const FRAME_HEADER: usize = 12;

/// Most bytes that one frame carries: who reads and writes blocks of this size fills whole frames.
pub const BLOCK: usize = FRAME - FRAME_HEADER;

/// Most streams that a host opens at once. Three a process, one a connection, and one for the requests.
pub const MAX_STREAMS: usize = 3072;

/// What ends the channel: more than the host opens, because either side hears later of what the other has dropped.
const LIMIT: usize = 4096;

/// Which side of the channel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Host,
    /// Takes streams.
    Guest,
}

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The channel has ended; no stream can be opened any more.
    #[error("the channel to the guest is closed")]
    Closed,
    /// There are too many already.
    #[error("the channel to the guest has {MAX_STREAMS} streams open, and can have no more")]
    TooMany,
}

type Wanted = oneshot::Sender<Compat<yamux::Stream>>;

/// Opens streams.
#[derive(Clone, Debug)]
pub struct Opener {
    wanted: mpsc::Sender<Wanted>,
    permits: Arc<Semaphore>,
    channel_ended: Arc<AtomicBool>,
}

impl Opener {
    /// Opens a stream. The peer hears of it with the first bytes written.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self) -> Result<Stream, OpenError> {
        let permits = Arc::clone(&self.permits);
        let permit = permits.try_acquire_owned().map_err(|_| OpenError::TooMany)?;
        let (reply, stream) = oneshot::channel();
        self.wanted.send(reply).await.map_err(|_| OpenError::Closed)?;
        Ok(Stream {
            bytes: stream.await.map_err(|_| OpenError::Closed)?,
            channel_ended: Arc::clone(&self.channel_ended),
            _permit: Some(permit),
        })
    }

    /// Resolves when the channel has ended.
    pub async fn closed(&self) {
        self.wanted.closed().await;
    }
}

/// Streams that the peer has opened, oldest first; `None` when the channel has ended.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Stream>);

impl Incoming {
    /// The next stream.
    pub async fn next(&mut self) -> Option<Stream> {
        let mut stream = self.0.recv().await?;
        // An acknowledgement travels with the first bytes that are written, and the host opens no more streams while 256
        // are without. Many never carry anything towards the host: no bytes at all are enough. That they cannot be
        // written is for whoever uses the stream to find out.
        let _ = stream.write(&[]).await;
        Some(stream)
    }
}

/// Starts to multiplex `channel` in a task of its own, which ends with the channel, or when the [`Opener`]s of a host
/// or the [`Incoming`] of a guest are gone.
pub fn start<T>(channel: T, side: Side) -> (Opener, Incoming)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut config = Config::default();
    config.set_max_num_streams(LIMIT);
    config.set_split_send_size(BLOCK);
    let mode = match side {
        Side::Host => Mode::Client,
        Side::Guest => Mode::Server,
    };
    // A frame's header and body leave in one piece: every write is a whole errand of the guest's driver and its device.
    let channel = BufWriter::with_capacity(FRAME, channel);
    let connection = Connection::new(channel.compat(), config, mode);
    let (opener, wanted) = mpsc::channel(16);
    let (found, incoming) = mpsc::channel(MAX_STREAMS);
    let channel_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&channel_ended);
    tokio::spawn(async move {
        if let Err(error) = drive(connection, wanted, found, &ended, side).await {
            tracing::debug!(%error, "channel ended");
        }
    });
    let permits = Arc::new(Semaphore::new(MAX_STREAMS));
    (
        Opener {
            wanted: opener,
            permits,
            channel_ended,
        },
        Incoming(incoming),
    )
}

async fn drive<T>(
    mut connection: Connection<Compat<T>>,
    mut wanted: mpsc::Receiver<Wanted>,
    found: mpsc::Sender<Stream>,
    ended: &Arc<AtomicBool>,
    side: Side,
) -> Result<(), ConnectionError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut waiting: Option<Wanted> = None;
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
                let _ = found.try_send(Stream {
                    bytes: stream.compat(),
                    channel_ended: Arc::clone(ended),
                    _permit: None,
                });
            }
            Some(Ok(_refused)) => {}
            Some(Err(error)) => {
                ended.store(true, Ordering::Relaxed);
                return Err(error);
            }
            None => break,
        }
    }
    ended.store(true, Ordering::Relaxed);
    poll_fn(|cx| connection.poll_close(cx)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

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
    async fn silent_streams_do_not_keep_others_from_being_opened() {
        let (opener, mut incoming) = pair();
        let taken = tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Some(stream) = incoming.next().await {
                taken.push(stream);
            }
        });
        let mut opened = Vec::new();
        let many = async {
            for _ in 0..MAX_STREAMS {
                let mut stream = opener.open().await.expect("open");
                stream.write_all(b"x").await.expect("write");
                opened.push(stream);
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(60), many).await;
        all.expect("nobody waits for what the guest never says");
        assert_eq!(opener.open().await.err(), Some(OpenError::TooMany));
        opened.clear();
        // The channel itself is as well as before.
        let mut stream = opener.open().await.expect("open");
        stream.write_all(b"x").await.expect("write");
        tokio::task::yield_now().await;
        assert!(!taken.is_finished());
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
        assert!(stream.has_lost_channel());
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
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the host resets it");
        assert!(incoming_at_host.0.try_recv().is_err());
    }
}
