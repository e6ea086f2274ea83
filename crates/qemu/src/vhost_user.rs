//! The beginning of a conversation with a vhost-user daemon (the vhost-user protocol of QEMU's documentation, "Vhost-user
//! Protocol"), had on behalf of a QEMU that believes to have had it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use kata_sys::passing;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

/// Requests, by their numbers.
const GET_FEATURES: u32 = 1;
const SET_OWNER: u32 = 3;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_BACKEND_REQ_FD: u32 = 21;
const ADD_MEM_REG: u32 = 37;

/// What is in the flags of each message.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The protocol's features that a QEMU which can save such a device (8.2) uses if they are offered: several queues, a log
/// in shared memory, acknowledged requests, requests of the daemon, descriptors with them, resets, memory piece by piece,
/// transfer of the device's state.
const USED_FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 19;

/// How long a daemon may take for an answer: it may have been started just now.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The guest's memory.
pub(crate) struct Region<'a> {
    pub file: &'a File,
    /// Bytes.
    pub size: u64,
    /// Where QEMU has it mapped.
    pub address: u64,
}

impl Region<'_> {
    /// It begins where the guest's addresses do.
    fn description(&self) -> Vec<u8> {
        let words = [0, 0, self.size, self.address, 0];
        words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
    }
}

/// Connects to the daemon at `socket` and says what QEMU says first; the daemon's own requests come by `requests`.
///
/// # Errors
/// What the connection failed with; `InvalidData` for a daemon that answers otherwise than is expected.
pub(crate) async fn greet(socket: &Path, requests: OwnedFd, memory: &Region<'_>) -> io::Result<UnixStream> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER_LIMIT:?}"));
    let greeted = async {
        let mut stream = UnixStream::connect(socket).await?;
        ask(&mut stream, GET_FEATURES).await?;
        let offered = ask(&mut stream, GET_PROTOCOL_FEATURES).await?;
        if offered & !USED_FEATURES != 0 {
            return Err(unexpected(format!("it offers the features {offered:#x}")));
        }
        send(&stream, SET_PROTOCOL_FEATURES, 0, &offered.to_le_bytes(), None).await?;
        ask(&mut stream, GET_QUEUE_NUM).await?;
        send(&stream, SET_BACKEND_REQ_FD, NEED_REPLY, &[], Some(requests)).await?;
        match answer(&mut stream, SET_BACKEND_REQ_FD).await? {
            0 => {}
            error => return Err(unexpected(format!("it refuses to make requests: {error}"))),
        }
        send(&stream, SET_OWNER, 0, &[], None).await?;
        let file = memory.file.try_clone()?.into();
        send(&stream, ADD_MEM_REG, NEED_REPLY, &memory.description(), Some(file)).await?;
        match answer(&mut stream, ADD_MEM_REG).await? {
            0 => {}
            error => return Err(unexpected(format!("it refuses the guest's memory: {error}"))),
        }
        Ok(stream)
    };
    tokio::time::timeout(ANSWER_LIMIT, greeted).await.map_err(|_| late())?
}

fn unexpected(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn ask(stream: &mut UnixStream, request: u32) -> io::Result<u64> {
    send(stream, request, 0, &[], None).await?;
    answer(stream, request).await
}

async fn send(stream: &UnixStream, request: u32, flags: u32, body: &[u8], with: Option<OwnedFd>) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or_default();
    let mut message = Vec::with_capacity(12 + body.len());
    for word in [request, VERSION | flags, length] {
        message.extend(word.to_le_bytes());
    }
    message.extend(body);
    // A few bytes in a fresh socket: all or nothing is written.
    let write = || passing::send(stream.as_fd(), &message, with.as_ref().map(AsFd::as_fd));
    stream.async_io(Interest::WRITABLE, write).await
}

async fn answer(stream: &mut UnixStream, request: u32) -> io::Result<u64> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let [of, flags, length] =
        [0, 4, 8].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    if of != request || flags & REPLY == 0 || length != 8 {
        return Err(unexpected(format!(
            "its answer to request {request} begins with {head:02x?}"
        )));
    }
    let mut body = [0; 8];
    stream.read_exact(&mut body).await?;
    Ok(u64::from_le_bytes(body))
}
