//! The QMP client: commands with numbers, answers, events.
//!
//! One task owns the socket. QEMU is what a hostile guest reaches first, so that nothing it says is trusted: lines are
//! bounded, and the first one that is not QMP ends the conversation for good.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kata_sys::passing;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::news::{Deletions, Events, Listening};

/// The longest line that is listened to, bytes.
const LINE_LIMIT: usize = 1 << 20;

/// Longest wait for room in the socket; QEMU reads commands one at a time, but reads.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ControlError {
    /// QEMU closed the socket.
    #[error("QEMU closed its control socket")]
    Closed,
    /// No answer in time.
    #[error("no answer within {limit:?}")]
    Silent {
        /// How long was waited.
        limit: Duration,
    },
    /// QEMU answered with an error.
    #[error("{reason}")]
    Refused {
        /// QEMU's words.
        reason: String,
    },
    /// What came is not QMP.
    #[error("what came on QEMU's control socket is not QMP: {what}")]
    Garbage {
        /// What came, shortened.
        what: String,
    },
    /// The socket failed.
    #[error("QEMU's control socket: {reason}")]
    Socket {
        /// What the system said.
        reason: String,
    },
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Socket {
                reason: error.to_string(),
            },
        }
    }
}

/// A conversation with QEMU. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    requests: mpsc::Sender<Request>,
    events: Events,
}

/// What QEMU has said about the guest's end, once it has.
pub(crate) type LastWords = Arc<Mutex<Option<String>>>;

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, ControlError>>,
}

impl Control {
    /// Waits for the greeting and agrees on capabilities.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Silent`] when all of it takes longer than `limit`.
    pub(crate) async fn open(stream: UnixStream, last_words: LastWords, limit: Duration) -> Result<Self, ControlError> {
        let (reader, writer) = stream.into_split();
        let mut lines = Lines::of(reader);
        let greeting = timeout(limit, lines.next())
            .await
            .map_err(|_| ControlError::Silent { limit })??;
        match parse(&greeting)? {
            Line::Greeting { version } => tracing::debug!(%version, "QMP greeting"),
            _ => return Err(garbage(&greeting)),
        }
        let control = Self::converse(lines, writer, last_words);
        control.execute("qmp_capabilities", limit).await?;
        Ok(control)
    }

    /// Goes on with a QEMU that takes us for whom it has greeted before.
    pub(crate) fn go_on(stream: UnixStream, last_words: LastWords) -> Self {
        let (reader, writer) = stream.into_split();
        Self::converse(Lines::of(reader), writer, last_words)
    }

    fn converse(lines: Lines, writer: OwnedWriteHalf, last_words: LastWords) -> Self {
        let (requests, received) = mpsc::channel(8);
        let events = Events::default();
        tokio::spawn(converse(lines, writer, received, last_words, events.clone()));
        Self { requests, events }
    }

    /// Runs a command that takes no arguments.
    ///
    /// # Errors
    /// [`ControlError`]; after [`ControlError::Silent`] the answer, should it come, is dropped.
    pub(crate) async fn execute(&self, command: &'static str, limit: Duration) -> Result<Value, ControlError> {
        self.execute_with(command, Value::Null, None, limit).await
    }

    /// Listens from now on for devices that leave the machine.
    pub(crate) fn deletions(&self) -> Deletions {
        self.events.deletions()
    }

    /// Listens from now on for other events.
    pub(crate) fn listen(&self) -> Listening {
        self.events.listen()
    }

    /// Runs a command with its arguments (an object, or null for none), and a descriptor that is handed over with it.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(crate) async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, ControlError> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            arguments,
            descriptor,
            reply,
        };
        let exchange = async {
            self.requests.send(request).await.map_err(|_| ControlError::Closed)?;
            answer.await.map_err(|_| ControlError::Closed)?
        };
        timeout(limit, exchange)
            .await
            .map_err(|_| ControlError::Silent { limit })?
    }
}

/// The task that owns the socket, until one of its ends closes or says what is not QMP.
async fn converse(
    mut lines: Lines,
    mut writer: OwnedWriteHalf,
    mut requests: mpsc::Receiver<Request>,
    last_words: LastWords,
    events: Events,
) {
    let mut waiting: HashMap<u64, Request> = HashMap::new();
    let mut number = 0;
    let end = loop {
        tokio::select! {
            line = lines.next() => match line.and_then(|line| parse(&line)) {
                Ok(Line::Answer { id, result }) => match waiting.remove(&id) {
                    // The asker may have given up.
                    Some(request) => drop(request.reply.send(result)),
                    None => tracing::warn!(id, "QMP answer to no command"),
                },
                Ok(Line::Event { name, data }) => {
                    note_event(&name, &data, &last_words);
                    events.tell(&name, &data);
                }
                Ok(Line::Greeting { .. }) => break ControlError::Garbage { what: "a second greeting".into() },
                Err(error) => break error,
            },
            request = requests.recv() => {
                let Some(mut request) = request else { return };
                number += 1;
                let mut line = json!({ "execute": request.command, "id": number });
                if !request.arguments.is_null() {
                    line["arguments"] = request.arguments.take();
                }
                let line = format!("{line}\n");
                let descriptor = request.descriptor.take();
                waiting.retain(|_, waiting| !waiting.reply.is_closed());
                waiting.insert(number, request);
                match timeout(WRITE_LIMIT, write(&mut writer, line.as_bytes(), descriptor)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break error.into(),
                    Err(_) => break ControlError::Silent { limit: WRITE_LIMIT },
                }
            }
        }
    };
    if end != ControlError::Closed {
        tracing::warn!(%end, "the conversation with QEMU ends");
    }
    requests.close();
    for (_, request) in waiting {
        let _ = request.reply.send(Err(end.clone()));
    }
    while let Some(request) = requests.recv().await {
        let _ = request.reply.send(Err(end.clone()));
    }
}

/// Writes all of `bytes`, and the descriptor with the first of them.
async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let Some(descriptor) = descriptor else {
        return writer.write_all(bytes).await;
    };
    let (first, rest) = bytes.split_at(1);
    let socket: &UnixStream = writer.as_ref();
    socket
        .async_io(Interest::WRITABLE, || {
            passing::send(socket.as_fd(), first, Some(descriptor.as_fd()))
        })
        .await?;
    writer.write_all(rest).await
}

fn note_event(name: &str, data: &Value, last_words: &LastWords) {
    tracing::debug!(event = name, %data, "QMP event");
    let words = match name {
        "SHUTDOWN" => match data.get("reason").and_then(Value::as_str) {
            Some("guest-shutdown") => "the guest powered itself off",
            Some("guest-reset") => "the guest rebooted, or fell",
            Some("guest-panic") => "the guest's kernel panicked",
            Some("host-qmp-quit") => "QEMU was told to quit",
            Some("host-signal") => "QEMU was told to end by a signal",
            _ => "the guest was shut down",
        },
        "GUEST_PANICKED" => "the guest's kernel panicked",
        _ => return,
    };
    *last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.to_owned());
}

/// A line of QMP, checked.
enum Line {
    Greeting {
        version: Value,
    },
    Answer {
        id: u64,
        result: Result<Value, ControlError>,
    },
    Event {
        name: String,
        data: Value,
    },
}

#[derive(Deserialize)]
struct RawLine {
    #[serde(rename = "QMP")]
    greeting: Option<RawGreeting>,
    id: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    r#return: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RawGreeting {
    #[serde(default)]
    version: Value,
}

#[derive(Deserialize)]
struct RawError {
    desc: String,
}

/// A `null` is an answer, too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn parse(line: &[u8]) -> Result<Line, ControlError> {
    let raw: RawLine = serde_json::from_slice(line).map_err(|_| garbage(line))?;
    match raw {
        RawLine {
            greeting: Some(greeting),
            ..
        } => Ok(Line::Greeting {
            version: greeting.version,
        }),
        RawLine {
            event: Some(name),
            data,
            ..
        } => Ok(Line::Event { name, data }),
        RawLine {
            id: Some(id),
            r#return: Some(value),
            ..
        } => Ok(Line::Answer { id, result: Ok(value) }),
        RawLine {
            id: Some(id),
            error: Some(error),
            ..
        } => Ok(Line::Answer {
            id,
            result: Err(ControlError::Refused { reason: error.desc }),
        }),
        // An error without a number: QEMU could not read the command. Every command of ours is readable.
        _ => Err(garbage(line)),
    }
}

fn garbage(line: &[u8]) -> ControlError {
    let shown = &line[..line.len().min(80)];
    ControlError::Garbage {
        what: String::from_utf8_lossy(shown).escape_debug().to_string(),
    }
}

/// Bounded lines; waiting for one may be cancelled without losing any of it.
struct Lines {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    fn of(reader: OwnedReadHalf) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    async fn next(&mut self) -> Result<Vec<u8>, ControlError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_LIMIT {
                return Err(ControlError::Garbage {
                    what: format!("a line of more than {LINE_LIMIT} bytes"),
                });
            }
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Err(ControlError::Closed),
                Ok(0) => return Err(garbage(&self.buffer)),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
