//! The cache of machines: what its keeper, the sandbox processes that wait in it and those who want one say to each other.
//!
//! The keeper is one process, which has as many sandbox processes wait as are configured and starts another when one was taken.
//! Who starts a pod asks it; it passes the very connection on to one that waits, and is out of the way. Nothing is taken before
//! who asked has said, knowing by whom, that it shall be (`Offer`, then what the program makes of it); so a connection that ends
//! early means that nothing has happened. All of them are root's.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record::{Home, Mark, RUN_ROOT};

/// What the sandbox program is told to be the keeper. It finds its listening socket as descriptor 3.
pub const KEEPER_ACTION: &str = "keep";

/// What it is told to wait in the cache. Only the keeper asks for this.
pub const SPARE_ACTION: &str = "wait";

/// The longest message, bytes.
const MESSAGE_LIMIT: usize = 64 << 10;

/// How the names of directories of waiting sandboxes begin.
const SPARE: &str = ".spare-";

/// What the keeper is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A sandbox with a machine of this recipe, for who stands there.
    Take {
        /// See [`crate::spare::recipe`].
        recipe: String,
        /// Where the asker is.
        standpoint: Standpoint,
    },
    /// To look at the configuration again, and to answer when all wait that are to wait, or one could not be started.
    Fill,
    /// How it stands.
    Status,
}

/// What the keeper answers, unless another process does ([`Offer`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nobody waits that could be taken now.
    Empty,
    /// Those who wait are not for the asker, and why.
    Misfit(String),
    /// How it stands.
    Status(Status),
    /// From one that waits.
    Offer(Offer),
}

/// A sandbox process that can be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The process.
    pub sandbox: Mark,
}

/// How the cache stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How many are to wait.
    pub wanted: u32,
    /// The processes that wait.
    pub ready: Vec<u32>,
    /// Those that are being started.
    pub starting: Vec<u32>,
    /// Why the last one that was started does not wait.
    pub trouble: Option<String>,
}

/// The namespaces and the root of a process: what paths, addresses and pids mean to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standpoint(Vec<(u64, u64)>);

impl Standpoint {
    /// That of this thread.
    ///
    /// # Errors
    /// What looking at a namespace failed with.
    pub fn here() -> io::Result<Self> {
        let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
        let files = namespaces.map(|name| PathBuf::from(format!("/proc/thread-self/ns/{name}")));
        let all = files.into_iter().chain(["/".into()]).map(|file| {
            let data = std::fs::metadata(file)?;
            Ok((data.dev(), data.ino()))
        });
        Ok(Self(all.collect::<io::Result<_>>()?))
    }
}

/// The directory of the keeper. There is one at a time.
pub fn keeper_home() -> Home {
    Home::at(Path::new(RUN_ROOT).join(".keeper"))
}

/// The directory of a sandbox process that waits, the `number`th of this keeper.
pub fn spare_home(keeper: u32, number: u64) -> Home {
    Home::at(Path::new(RUN_ROOT).join(format!("{SPARE}{keeper}-{number}")))
}

/// All directories of sandbox processes that wait, or have waited.
///
/// # Errors
/// What reading [`RUN_ROOT`] failed with; that it is not there is no error.
pub fn spare_homes() -> io::Result<Vec<Home>> {
    let entries = match std::fs::read_dir(RUN_ROOT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.flatten().filter_map(|entry| {
        let is_spare = entry.file_name().as_encoded_bytes().starts_with(SPARE.as_bytes());
        is_spare.then(|| Home::at(entry.path()))
    });
    Ok(paths.collect())
}

/// Connects to the keeper.
///
/// # Errors
/// `NotFound`, `ConnectionRefused` when there is none; `PermissionDenied` when it is another user's process.
pub fn connect(endpoint: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(endpoint)?;
    let theirs = getsockopt(&stream, PeerCredentials)?.uid();
    if theirs != nix::unistd::geteuid().as_raw() {
        let message = format!("who listens on {} is user {theirs}", endpoint.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(stream)
}

/// A message as it is on a connection: one line.
///
/// # Errors
/// None that can happen with messages of ours.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Says something.
///
/// # Errors
/// What writing failed with.
pub fn say(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&line(message)?)
}

/// Hears the next message; the other side says no more before it has heard an answer.
///
/// # Errors
/// `UnexpectedEof` when the connection has ended, `InvalidData` for what is no message; what reading failed with.
pub fn hear<T: DeserializeOwned>(mut stream: &UnixStream) -> io::Result<T> {
    let mut heard = Heard::default();
    let mut block = [0; 4096];
    loop {
        let length = stream.read(&mut block)?;
        if let Some(message) = heard.add(&block[..length])? {
            return Ok(message);
        }
    }
}

/// The part of a message that has been heard.
#[derive(Debug, Default)]
pub struct Heard(Vec<u8>);

impl Heard {
    /// Adds what was read (nothing is the end); answers the message if it is whole.
    ///
    /// # Errors
    /// As [`hear`].
    pub fn add<T: DeserializeOwned>(&mut self, read: &[u8]) -> io::Result<Option<T>> {
        if read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.extend_from_slice(read);
        if self.0.len() > MESSAGE_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without end"));
        }
        match self.0.strip_suffix(b"\n") {
            Some(whole) => Ok(Some(serde_json::from_slice(whole)?)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_whole_and_others_do_not() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let request = Request::Take {
            recipe: "r".repeat(10_000),
            standpoint: Standpoint::here().expect("I am somewhere"),
        };
        say(&ours, &request).expect("said");
        assert_eq!(hear::<Request>(&theirs).expect("heard"), request);
        (&ours).write_all(b"\"weather\"\n").expect("said");
        assert_eq!(
            hear::<Request>(&theirs).expect_err("no such request").kind(),
            io::ErrorKind::InvalidData
        );
        (&ours).write_all(b"\"status").expect("said");
        drop(ours);
        assert_eq!(
            hear::<Request>(&theirs).expect_err("cut off").kind(),
            io::ErrorKind::UnexpectedEof
        );
        let endless = Heard::default().add::<Request>(&vec![b'x'; MESSAGE_LIMIT + 1]);
        assert_eq!(endless.expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn standpoints_differ_by_their_namespaces() {
        let here = Standpoint::here().expect("here");
        assert_eq!(Standpoint::here().expect("here"), here);
        let there = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            Standpoint::here().expect("there")
        });
        assert_ne!(there.join().expect("joined"), here);
    }

    #[test]
    fn only_who_listens_is_connected_to() {
        let place = tempfile::tempdir().expect("tempdir");
        let endpoint = place.path().join("cache.sock");
        assert_eq!(connect(&endpoint).expect_err("nobody").kind(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(&endpoint).expect("bind");
        connect(&endpoint).expect("ourselves");
        drop(listener);
        assert_eq!(
            connect(&endpoint).expect_err("gone").kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
