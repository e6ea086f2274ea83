//! Conversations through containerd's streaming server: with a process (exec, attach) and with a port of a pod. Each message
//! is led by the number of its channel.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::websocket::WebSocket;
use crate::command::Outcome;
use crate::lab::Lab;

/// How long the other side may take to say what is expected.
const LIMIT: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// A conversation with a process.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket,
    messages: Receiver<io::Result<Vec<u8>>>,
    stdout: Vec<u8>,
    /// How much of `stdout` the tests have taken.
    taken: usize,
    stderr: Vec<u8>,
    status: Option<Value>,
    what: String,
    begun: Instant,
}

impl Stream {
    #[track_caller]
    pub(super) fn open(lab: &Lab, url: &str, what: String) -> Self {
        let socket = WebSocket::open(lab, url, "v4.channel.k8s.io").unwrap_or_else(|error| panic!("{what}: {error}"));
        let messages = received(&socket);
        Self {
            socket,
            messages,
            stdout: Vec::new(),
            taken: 0,
            stderr: Vec::new(),
            status: None,
            what,
            begun: Instant::now(),
        }
    }

    /// Writes to stdin.
    ///
    /// # Panics
    /// When the conversation has ended.
    #[track_caller]
    pub fn write(&mut self, text: &str) {
        let message = [&[STDIN], text.as_bytes()].concat();
        self.socket
            .send(&message)
            .unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// Sets the terminal's size.
    ///
    /// # Panics
    /// When the conversation has ended.
    #[track_caller]
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        let message = [&[RESIZE], size.as_bytes()].concat();
        self.socket
            .send(&message)
            .unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// Writes `text` again and again until stdout has said `answer`: containerd passes on what is written to a container
    /// before it takes what the container says for this conversation.
    ///
    /// # Panics
    /// When it does not in time, with what was said.
    #[track_caller]
    pub fn write_until(&mut self, text: &str, answer: &str) {
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            self.write(text);
            if self.hear(answer, Instant::now() + Duration::from_secs(1)).is_some() {
                return;
            }
        }
        self.read_until(answer);
    }

    /// Waits until stdout has said `text` since the last call, and takes everything up to its end.
    ///
    /// # Panics
    /// When it does not in time, with what was said.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        self.hear(text, Instant::now() + LIMIT).unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&self.stdout[self.taken..]);
            panic!(
                "{}: no {text:?} on stdout: {said:?}; stderr: {:?}",
                self.what,
                self.errors()
            )
        })
    }

    #[track_caller]
    fn hear(&mut self, text: &str, end: Instant) -> Option<String> {
        loop {
            let fresh = String::from_utf8_lossy(&self.stdout[self.taken..]).into_owned();
            if let Some(at) = fresh.find(text) {
                let part = fresh[..at + text.len()].to_owned();
                self.taken += part.len();
                return Some(part);
            }
            if !self.listen(end) {
                return None;
            }
        }
    }

    /// Waits for the end; the exit code is what the server tells of it.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let end = Instant::now() + LIMIT;
        while self.listen(end) {}
        assert!(
            Instant::now() < end,
            "{}: no end; stdout: {:?}",
            self.what,
            String::from_utf8_lossy(&self.stdout)
        );
        let code = self.status.as_ref().map_or(-1, exit_code);
        let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
        Outcome::of(
            std::mem::take(&mut self.what),
            code,
            stdout,
            stderr,
            self.begun.elapsed(),
        )
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Takes the next message; says whether one came.
    #[track_caller]
    fn listen(&mut self, end: Instant) -> bool {
        let Some(message) = next(&self.messages, end, &self.what) else {
            return false;
        };
        match message.split_first() {
            Some((&STDOUT, data)) => self.stdout.extend(data),
            Some((&STDERR, data)) => self.stderr.extend(data),
            Some((&STATUS, data)) if !data.is_empty() => {
                let status = serde_json::from_slice(data);
                self.status =
                    Some(status.unwrap_or_else(|_| panic!("{}: {}", self.what, String::from_utf8_lossy(data))));
            }
            // The server opens each channel with an empty message.
            _ => {}
        }
        true
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.socket.close();
    }
}

/// The exit code in a `Status` of Kubernetes.
fn exit_code(status: &Value) -> i32 {
    if status["status"] == "Success" {
        return 0;
    }
    let causes = status["details"]["causes"].as_array();
    let cause = causes.and_then(|causes| causes.iter().find(|cause| cause["reason"] == "ExitCode"));
    let code = cause.and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.unwrap_or_else(|| panic!("the conversation failed: {status}"))
}

/// A connection to a port of a pod.
#[derive(Debug)]
pub struct Forward {
    socket: WebSocket,
    messages: Receiver<io::Result<Vec<u8>>>,
}

impl Forward {
    #[track_caller]
    pub(super) fn open(lab: &Lab, url: &str, port: u16) -> Self {
        // Only the URL of a WebSocket says which port is meant.
        let url = format!("{url}?port={port}");
        let socket = WebSocket::open(lab, &url, "v4.channel.k8s.io").unwrap_or_else(|error| panic!("{error}"));
        let messages = received(&socket);
        Self { socket, messages }
    }

    /// Sends a text and reads until the pod closes the connection.
    ///
    /// # Panics
    /// When the pod cannot be reached, or does not close in time.
    #[track_caller]
    pub fn talk(mut self, text: &str) -> String {
        let message = [&[0], text.as_bytes()].concat();
        self.socket.send(&message).expect("the forwarded port");
        let end = Instant::now() + LIMIT;
        // Both channels, 0 for data and 1 for errors, begin with the port's number.
        let (mut said, mut opening) = ([Vec::new(), Vec::new()], VecDeque::from([0u8, 1]));
        while let Some(message) = next(&self.messages, end, "port-forward") {
            let (&channel, data) = message.split_first().expect("a channel's number");
            if let Some(at) = opening.iter().position(|one| *one == channel) {
                opening.remove(at);
            } else {
                said[usize::from(channel.min(1))].extend(data);
            }
        }
        let [data, errors] = said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(errors.is_empty(), "port-forward: {errors}");
        data
    }
}

/// Reads messages on a thread of their own until the connection ends.
#[track_caller]
fn received(socket: &WebSocket) -> Receiver<io::Result<Vec<u8>>> {
    let mut reader = socket.try_clone().expect("dup");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while let Some(message) = reader.receive().transpose() {
            let failed = message.is_err();
            if sender.send(message).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// The next message, if one comes before the end of the conversation and of the time.
#[track_caller]
fn next(messages: &Receiver<io::Result<Vec<u8>>>, end: Instant, what: &str) -> Option<Vec<u8>> {
    match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(message) => Some(message.unwrap_or_else(|error| panic!("{what}: {error}"))),
        Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => None,
    }
}
