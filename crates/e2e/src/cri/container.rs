//! A container of a pod.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::pod::Pod;
use super::{Refusal, Stream};
use crate::command::Outcome;
use crate::image::BUSYBOX;
use crate::wait;

/// How fast a state that is due must show.
const DUE: Duration = Duration::from_secs(30);

/// A container, which the pod owns: it goes with it.
#[derive(Debug)]
pub struct Container<'pod> {
    pod: &'pod Pod<'pod>,
    id: String,
    config: Value,
}

/// A line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line ends here (`F`) or goes on in the next (`P`).
    pub full: bool,
    /// What was written, without the newline.
    pub text: String,
}

impl<'pod> Container<'pod> {
    /// Creates it with a configuration like a kubelet's.
    #[track_caller]
    pub(super) fn create(
        pod: &'pod Pod<'_>,
        name: &str,
        command: &[&str],
        edit: impl FnOnce(&mut Value),
    ) -> Result<Self, Refusal> {
        let mut config = json!({
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": BUSYBOX},
            "command": command,
            "log_path": format!("{name}.log"),
            "labels": {"container": name},
            "linux": {"resources": {}, "security_context": {
                "namespace_options": pod.config()["linux"]["security_context"]["namespace_options"],
                "masked_paths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
                "readonly_paths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            }},
        });
        edit(&mut config);
        let request = json!({"pod_sandbox_id": pod.id(), "config": config, "sandbox_config": pod.config()});
        let answer = pod.cri().ask("CreateContainer", &request)?;
        let id = answer["container_id"].as_str().expect("an id").to_owned();
        Ok(Self { pod, id, config })
    }

    /// The id that containerd gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    #[track_caller]
    fn call(&self, method: &str, request: Value) -> Value {
        self.try_call(method, request)
            .unwrap_or_else(|refusal| panic!("{method} of {}: {refusal}", self.config["metadata"]["name"]))
    }

    #[track_caller]
    fn try_call(&self, method: &str, mut request: Value) -> Result<Value, Refusal> {
        request["container_id"] = json!(self.id);
        self.pod.cri().ask(method, &request)
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(&self) {
        self.call("StartContainer", json!({}));
    }

    /// Starts it, or says why it cannot be.
    ///
    /// # Errors
    /// What containerd says.
    #[track_caller]
    pub fn try_start(&self) -> Result<(), Refusal> {
        self.try_call("StartContainer", json!({})).map(drop)
    }

    /// Stops it: its stop signal, and after `grace_s` seconds SIGKILL.
    #[track_caller]
    pub fn stop(&self, grace_s: u32) {
        self.call("StopContainer", json!({"timeout": grace_s}));
    }

    /// Removes it; what runs is killed.
    #[track_caller]
    pub fn remove(self) {
        self.call("RemoveContainer", json!({}));
    }

    /// The `status` of ContainerStatus.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.call("ContainerStatus", json!({}))["status"].take()
    }

    /// The `state` of its status.
    #[track_caller]
    pub fn state(&self) -> String {
        self.status()["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it has ended; answers its status.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn await_exit(&self) -> Value {
        let ended = wait::eventually(DUE, || {
            let status = self.status();
            (status["state"] == "CONTAINER_EXITED").then_some(status)
        });
        ended.unwrap_or_else(|| {
            let name = &self.config["metadata"]["name"];
            panic!("{name} has not ended: {:#}\n{}", self.status(), self.seen_inside())
        })
    }

    /// What its processes are at, by itself and by the runtime's log: for messages.
    fn seen_inside(&self) -> String {
        let script = "cd /proc; for p in [0-9]*; do echo $p $(cat $p/comm $p/wchan $p/stat); ls -l $p/fd; done";
        let inside = self.try_exec(&["sh", "-c", script], 10);
        let log = "tail -n 30 /run/kata/*/sandbox.log";
        let log = self.pod.cri().lab().command("sh").args(["-c", log]).run();
        format!("inside: {inside:#?}\nlogs: {log:#?}\nwritten: {:?}", self.log())
    }

    /// The `stats` of ContainerStats.
    #[track_caller]
    pub fn stats(&self) -> Value {
        self.call("ContainerStats", json!({}))["stats"].take()
    }

    /// Changes its limits.
    ///
    /// # Panics
    /// When they cannot be changed.
    #[track_caller]
    pub fn update(&self, resources: &Value) {
        self.call("UpdateContainerResources", json!({"linux": resources}));
    }

    /// Runs a command in it to its end (ExecSync).
    ///
    /// # Panics
    /// When it cannot be run, or does not end within ExecSync's time limit.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Outcome {
        let begun = Instant::now();
        let answer = self
            .try_exec(command, 50)
            .unwrap_or_else(|refusal| panic!("exec of {command:?}: {refusal}"));
        let bytes = |field: &str| unbase64(answer[field].as_str().unwrap_or_default());
        let code = answer["exit_code"]
            .as_i64()
            .and_then(|code| code.try_into().ok())
            .expect("an exit code");
        Outcome::of(
            command.join(" "),
            code,
            bytes("stdout"),
            bytes("stderr"),
            begun.elapsed(),
        )
    }

    /// Runs `sh -c SCRIPT` in it to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        self.exec(&["sh", "-c", script])
    }

    /// ExecSync with a time limit in seconds; 0 is none.
    ///
    /// # Errors
    /// What containerd says.
    #[track_caller]
    pub fn try_exec(&self, command: &[&str], limit_s: u32) -> Result<Value, Refusal> {
        self.try_call("ExecSync", json!({"cmd": command, "timeout": limit_s}))
    }

    /// Runs a command in it and talks to it.
    ///
    /// # Panics
    /// When the conversation cannot be begun.
    #[track_caller]
    pub fn exec_stream(&self, command: &[&str], tty: bool) -> Stream {
        let request = json!({"cmd": command, "tty": tty, "stdin": true, "stdout": true, "stderr": !tty});
        let answer = self.call("Exec", request);
        self.stream(&answer, command.join(" "))
    }

    /// Talks to its first process.
    ///
    /// # Panics
    /// When the conversation cannot be begun.
    #[track_caller]
    pub fn attach(&self) -> Stream {
        let (stdin, tty) = (self.config["stdin"] == true, self.config["tty"] == true);
        let answer = self.call(
            "Attach",
            json!({"stdin": stdin, "tty": tty, "stdout": true, "stderr": !tty}),
        );
        self.stream(&answer, format!("attach to {}", self.config["metadata"]["name"]))
    }

    #[track_caller]
    fn stream(&self, answer: &Value, what: String) -> Stream {
        Stream::open(self.pod.cri().lab(), answer["url"].as_str().unwrap_or_default(), what)
    }

    /// Where its log is.
    #[track_caller]
    pub fn log_path(&self) -> PathBuf {
        self.pod.logs().join(self.config["log_path"].as_str().expect("a path"))
    }

    /// Tells containerd that the log was moved away.
    #[track_caller]
    pub fn reopen_log(&self) {
        self.call("ReopenContainerLog", json!({}));
    }

    /// The lines of its log that are whole.
    ///
    /// # Panics
    /// When one is not `TIME STREAM TAG TEXT`.
    #[track_caller]
    pub fn log(&self) -> Vec<LogLine> {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        // The last line may be half written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let line = |line: &str| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let &[time, stream, tag, text] = words.as_slice() else {
                panic!("no line of a log: {line:?}");
            };
            assert!(time.contains('T') && time.contains(':'), "no time: {line:?}");
            let (stream, full) = (stream.to_owned(), tag == "F");
            LogLine {
                stream,
                full,
                text: text.to_owned(),
            }
        };
        whole.lines().map(line).collect()
    }

    /// The texts of one stream of its log, joined by newlines.
    #[track_caller]
    pub fn logged(&self, stream: &str) -> String {
        let lines = self.log().into_iter().filter(|line| line.stream == stream);
        lines
            .map(|line| line.text + if line.full { "\n" } else { "" })
            .collect()
    }

    /// Waits until its log holds a text on stdout.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn await_log(&self, text: &str) {
        let shown = wait::eventually(DUE, || self.logged("stdout").contains(text).then_some(()));
        assert!(shown.is_some(), "no {text:?} in the log: {:#?}", self.log());
    }
}

/// Undoes base64, which is how JSON has bytes.
fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0u32, 0, Vec::new());
    for value in text
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte))
    {
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::unbase64;

    #[test]
    fn base64_is_undone() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("/+4=", b"\xff\xee"),
        ] {
            assert_eq!(unbase64(text), bytes, "{text}");
        }
    }
}
