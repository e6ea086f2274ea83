//! Pairs the host's streams with the processes and sockets they belong to, whichever comes first. What comes too early is kept,
//! within bounds: the oldest goes first.

use std::collections::{HashMap, VecDeque};

use kata_wire::mux;
use kata_wire::stream::Header;
use tokio::sync::mpsc;

/// Most streams kept for processes that are not there yet: no fewer than there can be, for what is lost here is output.
const MOST_EARLY: usize = mux::MAX_STREAMS;

/// The pairing.
#[derive(Debug)]
pub struct Table<S> {
    waiting: HashMap<Header, mpsc::Sender<S>>,
    early: VecDeque<(Header, S)>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            early: VecDeque::new(),
        }
    }
}

impl<S> Table<S> {
    /// From here on streams with this header go to the receiver, the one that came early included.
    pub fn expect(&mut self, header: Header) -> mpsc::Receiver<S> {
        let (sender, receiver) = mpsc::channel(1);
        if let Some(index) = self.early.iter().position(|(early, _)| *early == header)
            && let Some((_, stream)) = self.early.remove(index)
        {
            // The channel is empty and holds one.
            let _ = sender.try_send(stream);
        }
        self.waiting.insert(header, sender);
        receiver
    }

    /// A stream has come. One that nobody can take is dropped, which resets it.
    pub fn arrive(&mut self, header: Header, stream: S) {
        if let Some(sender) = self.waiting.get(&header) {
            if sender.try_send(stream).is_err() {
                tracing::debug!(?header, "a stream that nobody takes");
            }
            return;
        }
        if self.early.len() >= MOST_EARLY {
            self.early.pop_front();
        }
        self.early.push_back((header, stream));
    }

    /// Forgets a process: its streams, and that any were waited for.
    pub fn forget(&mut self, container: &str, exec: &str) {
        let is_its = |header: &Header| matches!(header, Header::Stdio { container: c, exec: e, .. } if c == container && e == exec);
        self.waiting.retain(|header, _| !is_its(header));
        self.early.retain(|(header, _)| !is_its(header));
    }

    /// Forgets a container with all its processes.
    pub fn forget_container(&mut self, container: &str) {
        self.waiting.retain(|header, _| header.container() != Some(container));
        self.early.retain(|(header, _)| header.container() != Some(container));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_wire::stream::Kind;

    fn header(kind: Kind, container: &str) -> Header {
        Header::Stdio {
            kind,
            container: container.into(),
            exec: String::new(),
        }
    }

    #[test]
    fn early_or_late_a_stream_finds_its_process() {
        let mut table = Table::default();
        table.arrive(header(Kind::Stdout, "a"), 1);
        table.arrive(header(Kind::Stdin, "a"), 2);
        let mut early = table.expect(header(Kind::Stdout, "a"));
        assert_eq!(early.try_recv(), Ok(1));
        table.arrive(header(Kind::Stdout, "a"), 3);
        assert_eq!(early.try_recv(), Ok(3), "another one later");
        assert!(table.expect(header(Kind::Stdout, "b")).try_recv().is_err());
        table.forget("a", "");
        assert!(table.expect(header(Kind::Stdin, "a")).try_recv().is_err(), "forgotten");
    }

    #[test]
    fn what_nobody_wants_does_not_pile_up() {
        let mut table = Table::default();
        for number in 0..MOST_EARLY + 10 {
            table.arrive(header(Kind::Stdin, &number.to_string()), number);
        }
        assert_eq!(table.early.len(), MOST_EARLY);
        assert!(table.expect(header(Kind::Stdin, "0")).try_recv().is_err());
        assert!(table.expect(header(Kind::Stdin, "20")).try_recv().is_ok());
    }
}
