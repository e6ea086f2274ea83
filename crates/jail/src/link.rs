//! The words between the agent and a process that is being prepared, over a socket that ends when the process executes
//! its program. Each message is one packet: a letter, then text.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use kata_sys::passing;

/// Longest error text that is sent, bytes.
const LONGEST: usize = 4096;

/// What the process says.
#[derive(Debug)]
pub enum Report {
    /// Here is the terminal's master end.
    Terminal(OwnedFd),
    /// Everything is prepared; it waits for [`Word::Start`].
    Ready,
    /// It gave up; this is why.
    Failed(String),
    /// It executes its program, or has died.
    Ended,
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The ids of the user namespace are mapped.
    Mapped = b'M' as isize,
    /// Execute.
    Start = b'S' as isize,
}

/// The agent's end. Never blocks.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// The prepared process's end.
#[derive(Debug)]
pub struct ChildLink(OwnedFd);

/// Makes the two ends.
///
/// # Errors
/// What one of the calls failed with.
pub(crate) fn pair() -> io::Result<(Link, ChildLink)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((Link(ours), ChildLink(theirs)))
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link {
    /// Says a word.
    ///
    /// # Errors
    /// `EPIPE` when the process has gone.
    pub fn say(&self, word: Word) -> io::Result<()> {
        passing::send(self.0.as_fd(), &[word as u8], None)
    }

    /// The next report; `WouldBlock` when there is none yet.
    ///
    /// # Errors
    /// What receiving failed with; `InvalidData` for a message that makes no sense.
    pub fn hear(&self) -> io::Result<Report> {
        let mut buffer = [0; LONGEST + 1];
        let (length, descriptor) = match passing::receive(&self.0, &mut buffer) {
            // A process that died with words of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Report::Ended),
            other => other?,
        };
        match (buffer.get(..length).unwrap_or_default(), descriptor) {
            ([], _) => Ok(Report::Ended),
            ([b'T'], Some(master)) => Ok(Report::Terminal(master)),
            ([b'R'], _) => Ok(Report::Ready),
            ([b'E', text @ ..], _) => Ok(Report::Failed(String::from_utf8_lossy(text).into_owned())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl ChildLink {
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Waits for `word`.
    pub(crate) fn await_word(&self, word: Word) -> io::Result<()> {
        let mut letter = [0];
        loop {
            return match passing::receive(&self.0, &mut letter) {
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => continue,
                Err(error) => Err(error),
                Ok((1, _)) if letter == [word as u8] => Ok(()),
                // The agent does not want the process any more.
                Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            };
        }
    }

    pub(crate) fn terminal(&self, master: BorrowedFd<'_>) -> io::Result<()> {
        passing::send(self.0.as_fd(), b"T", Some(master))
    }

    pub(crate) fn ready(&self) -> io::Result<()> {
        passing::send(self.0.as_fd(), b"R", None)
    }

    pub(crate) fn failed(&self, text: &str) {
        let mut message = vec![b'E'];
        message.extend(text.bytes().take(LONGEST));
        // Nobody to tell that nobody listens.
        let _ = passing::send(self.0.as_fd(), &message, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_whole_and_in_order_and_end_with_the_process() {
        let (link, child) = pair().expect("pair");
        assert_eq!(link.hear().expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        child.terminal(std::io::stdin().as_fd()).expect("send");
        child.ready().expect("send");
        child.failed(&"x".repeat(9999));
        drop(child);
        assert!(matches!(link.hear().expect("1"), Report::Terminal(_)));
        assert!(matches!(link.hear().expect("2"), Report::Ready));
        assert!(matches!(link.hear().expect("3"), Report::Failed(text) if text.len() == LONGEST));
        assert!(matches!(link.hear().expect("4"), Report::Ended));
    }

    #[test]
    fn a_word_is_waited_for_and_an_agent_that_goes_is_an_error() {
        let (link, child) = pair().expect("pair");
        link.say(Word::Start).expect("say");
        child.await_word(Word::Start).expect("heard");
        drop(link);
        assert!(child.await_word(Word::Start).is_err());
    }
}
