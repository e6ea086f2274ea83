//! Moves the bytes of one standard stream between a process and the host, a block at a time: who reads slowly slows down
//! who writes, and nothing is kept in between.
//!
//! The host may bring its stream late, lose it and bring another. Before the first one comes, a process that writes
//! waits. After the host has reset one, a process that writes to a pipe finds it broken; after one was lost with its channel,
//! or on a terminal, what it writes is thrown away, or it would wait for ever for a host that has gone.

use kata_wire::block;
use kata_wire::mux::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::descriptor::Descriptor;

/// The host's streams for one standard stream of a process, in the order of their coming.
pub type Streams = mpsc::Receiver<Stream>;

/// What happens when the host sends or takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// The process finds its pipe at its end, or broken.
    Close,
    /// Nothing: a terminal has no end.
    Stay,
}

/// From the process to the host, to the end; then the host reads the end too.
pub async fn outward(mut process: Descriptor, mut streams: Streams, at_end: AtEnd) {
    let Some(mut first) = streams.recv().await else { return };
    let mut host = Some(&mut first);
    let mut replacement;
    loop {
        let block = tokio::select! {
            Some(next) = streams.recv() => {
                replacement = next;
                host = Some(&mut replacement);
                continue;
            }
            read = block::read(&mut process) => read.unwrap_or_default(),
        };
        if block.is_empty() {
            break;
        }
        if let Some(stream) = &mut host
            && stream.write_all(&block).await.is_err()
        {
            if at_end == AtEnd::Close && !stream.has_lost_channel() {
                return;
            }
            host = None;
        }
    }
    if let Some(stream) = host
        && stream.shutdown().await.is_ok()
    {
        // Dropped before the host has closed its half, the stream would look reset to it.
        let mut rest = [0; 64];
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    }
}

/// From the host to the process.
pub async fn inward(mut process: Descriptor, mut streams: Streams, at_end: AtEnd) {
    while let Some(mut stream) = streams.recv().await {
        loop {
            let block = block::read(&mut stream).await.unwrap_or_default();
            if block.is_empty() {
                break;
            }
            if process.write_all(&block).await.is_err() {
                // The process does not read any more; the host learns it by the reset.
                return;
            }
        }
        if at_end == AtEnd::Close {
            return;
        }
    }
}

/// Throws away what a process writes that nobody wants to read.
pub async fn nowhere(mut process: Descriptor) {
    while block::read(&mut process).await.is_ok_and(|block| !block.is_empty()) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_wire::mux::{self, Opener, Side};
    use nix::fcntl::OFlag;
    use std::time::Duration;
    use tokio::time::timeout;

    struct Ends {
        opener: Opener,
        incoming: mux::Incoming,
        _refused: mux::Incoming,
    }

    impl Ends {
        fn new() -> Self {
            let (a, b) = tokio::io::duplex(4096);
            let (opener, refused) = mux::start(a, Side::Host);
            let (_none, incoming) = mux::start(b, Side::Guest);
            Self {
                opener,
                incoming,
                _refused: refused,
            }
        }

        /// A stream seen from both sides.
        async fn stream(&mut self) -> (Stream, Stream) {
            let mut host = self.opener.open().await.expect("open");
            host.write_all(b"!").await.expect("write");
            let mut guest = self.incoming.next().await.expect("stream");
            guest.read_u8().await.expect("read");
            (host, guest)
        }
    }

    fn pipe() -> (Descriptor, Descriptor) {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe");
        (
            Descriptor::new(reader).expect("watch"),
            Descriptor::new(writer).expect("watch"),
        )
    }

    #[tokio::test]
    async fn what_was_written_before_the_stream_came_arrives_with_its_end() {
        let mut ends = Ends::new();
        let (reader, mut process) = pipe();
        let (bring, streams) = mpsc::channel(1);
        tokio::spawn(outward(reader, streams, AtEnd::Close));
        process.write_all(b"early").await.expect("write");
        drop(process);
        let (mut host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"early");
    }

    #[tokio::test]
    async fn a_host_that_does_not_read_stops_the_process() {
        let mut ends = Ends::new();
        let (reader, mut process) = pipe();
        let (bring, streams) = mpsc::channel(1);
        tokio::spawn(outward(reader, streams, AtEnd::Close));
        let (mut host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        let mut accepted = 0;
        while let Ok(Ok(())) = timeout(Duration::from_millis(300), process.write_all(&[1; 4096])).await {
            accepted += 4096;
        }
        assert!(
            accepted < 2 << 20,
            "{accepted} bytes were taken for a reader that never reads"
        );
        tokio::spawn(async move { tokio::io::copy(&mut host, &mut tokio::io::sink()).await });
        timeout(Duration::from_secs(30), process.write_all(&[1; 4096]))
            .await
            .expect("it goes on")
            .expect("write");
    }

    #[tokio::test]
    async fn a_host_that_takes_no_more_breaks_the_pipe() {
        let mut ends = Ends::new();
        let (reader, mut process) = pipe();
        let (bring, streams) = mpsc::channel(1);
        tokio::spawn(outward(reader, streams, AtEnd::Close));
        let (host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        drop(host);
        let flood = timeout(Duration::from_secs(20), process.write_all(&vec![7; 4 << 20])).await;
        let error = flood.expect("nobody blocks").expect_err("broken");
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn after_a_broken_stream_a_terminal_goes_on_and_another_stream_can_come() {
        let mut ends = Ends::new();
        let (reader, mut process) = pipe();
        let (bring, streams) = mpsc::channel(1);
        tokio::spawn(outward(reader, streams, AtEnd::Stay));
        let (host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        drop(host);
        let flood = timeout(Duration::from_secs(20), process.write_all(&vec![7; 4 << 20])).await;
        flood.expect("nobody blocks").expect("write");
        let (mut host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        tokio::task::yield_now().await;
        process.write_all(b"after").await.expect("write");
        drop(process);
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.expect("read");
        assert!(got.ends_with(b"after"));
    }

    #[tokio::test]
    async fn the_end_of_stdin_is_read_by_the_process() {
        let mut ends = Ends::new();
        let (mut process, writer) = pipe();
        let (bring, streams) = mpsc::channel(1);
        tokio::spawn(inward(writer, streams, AtEnd::Close));
        let (mut host, guest) = ends.stream().await;
        bring.send(guest).await.expect("bring");
        host.write_all(b"question").await.expect("write");
        host.shutdown().await.expect("half close");
        let mut got = Vec::new();
        process.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"question");
    }
}
