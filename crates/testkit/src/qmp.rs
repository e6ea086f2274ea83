//! A fake QEMU, as its control socket shows it: greets, answers commands, tells events. It checks that what it hears is
//! QMP, and can be told to misbehave.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// What the fake does when it has heard a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Returns a value.
    Return(Value),
    /// Answers with an error.
    Refuse(String),
    /// Tells an event.
    Event(String, Value),
    /// Writes bytes, whatever they are.
    Write(Vec<u8>),
    /// Closes the socket.
    Close,
}

/// The line that QEMU 10 greets with.
#[must_use]
pub fn greeting() -> Vec<u8> {
    let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "fake" });
    format!(
        "{}\r\n",
        json!({ "QMP": { "version": version, "capabilities": ["oob"] } })
    )
    .into_bytes()
}

/// Greets with `greeting`, then does for each command what `acts` says, until the other side closes; returns the
/// commands that it has heard. An empty list leaves a command unanswered.
///
/// # Panics
/// When it hears what is not QMP, or a command before the capabilities were agreed on: the test is wrong, or the client.
pub async fn serve(stream: UnixStream, greeting: Vec<u8>, mut acts: impl FnMut(&str) -> Vec<Act>) -> Vec<String> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut heard: Vec<String> = Vec::new();
    if writer.write_all(&greeting).await.is_err() {
        return heard;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        let request: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON: {line}: {error}"));
        let Some(command) = request["execute"].as_str() else {
            panic!("no command: {line}")
        };
        assert_eq!(heard.is_empty(), command == "qmp_capabilities", "out of order: {line}");
        heard.push(command.to_owned());
        for act in acts(command) {
            let reply = match act {
                Act::Return(value) => line_of(&json!({ "return": value, "id": request["id"] })),
                Act::Refuse(desc) => {
                    line_of(&json!({ "error": { "class": "GenericError", "desc": desc }, "id": request["id"] }))
                }
                Act::Event(name, data) => {
                    line_of(&json!({ "timestamp": { "seconds": 0, "microseconds": 0 }, "event": name, "data": data }))
                }
                Act::Write(bytes) => bytes,
                Act::Close => return heard,
            };
            if writer.write_all(&reply).await.is_err() {
                return heard;
            }
        }
    }
    heard
}

fn line_of(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}
