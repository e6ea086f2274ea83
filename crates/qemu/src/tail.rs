//! The last bytes of a stream that may never end, as text that is safe to show.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the task that reads a stream and whoever asks what it said last.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    limit: usize,
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl Tail {
    /// Keeps at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Arc::default(),
        }
    }

    /// Appends, and forgets what is too old.
    pub(crate) fn push(&self, new: &[u8]) {
        let new = &new[new.len().saturating_sub(self.limit)..];
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = (bytes.len() + new.len()).saturating_sub(self.limit);
        bytes.drain(..excess);
        bytes.extend(new);
    }

    /// What is kept, at most `limit` bytes of text. The guest chooses these bytes and people read them on terminals:
    /// control characters become dots.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = self
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|&c| c != '\r')
            .map(|c| {
                if c.is_control() && c != '\n' && c != '\t' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        // A byte that is no text takes three as U+FFFD.
        let excess = text.len().saturating_sub(self.limit);
        let start = (excess..=text.len())
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(text.len());
        text[start..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let tail = Tail::new(8);
        tail.push(b"abcdef");
        tail.push(b"ghij");
        assert_eq!(tail.text(), "cdefghij");
        tail.push(b"0123456789");
        assert_eq!(tail.text(), "23456789");
    }

    #[test]
    fn terminals_are_safe() {
        let tail = Tail::new(100);
        tail.push(b"\x1b[2Jboot\r\n\tok\x07");
        assert_eq!(tail.text(), ".[2Jboot\n\tok.");
    }

    proptest! {
        #[test]
        fn no_bytes_make_more_than_the_limit(pieces: Vec<Vec<u8>>, limit in 0usize..64) {
            let tail = Tail::new(limit);
            for piece in &pieces {
                tail.push(piece);
            }
            prop_assert!(tail.text().len() <= limit);
        }
    }
}
