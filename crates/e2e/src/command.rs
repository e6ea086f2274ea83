//! A command with a time limit: run to its end, or started to be talked to. It leads a process group of its own, which
//! is killed when the time is over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use kata_sys::process::PidFd;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a command may take unless it says otherwise. A VM boots in seconds even on a busy machine without KVM.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long output may stay open after its command has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(20);

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Cmd {
    argv: Vec<OsString>,
    /// How many leading words of `argv` are the lab's and not to be shown.
    hidden: usize,
    envs: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Cmd {
    /// A command without arguments yet.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let argv = vec![program.as_ref().to_os_string()];
        Self {
            argv,
            hidden: 0,
            envs: Vec::new(),
            stdin: Vec::new(),
            limit: LIMIT,
        }
    }

    /// Adds the program that the words so far lead to; messages begin with it.
    pub(crate) fn named(mut self, program: &OsStr) -> Self {
        self.hidden = self.argv.len();
        self.arg(program)
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_os_string());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.argv
            .extend(args.into_iter().map(|arg| arg.as_ref().to_os_string()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((name.as_ref().to_os_string(), value.as_ref().to_os_string()));
        self
    }

    /// What to write to stdin before it is closed; nothing unless said.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Another time limit.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command line as a person would have typed it.
    pub fn line(&self) -> String {
        let words = self.argv[self.hidden..].iter().map(|word| word.to_string_lossy());
        words.collect::<Vec<_>>().join(" ")
    }

    fn prepared(&self) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .process_group(0);
        command
    }

    /// Runs it to its end, collecting what it writes.
    ///
    /// # Panics
    /// When it cannot be started or the time is over; with what it had written until then.
    #[track_caller]
    pub fn run(&self) -> Outcome {
        self.start().finish_with(&self.stdin)
    }

    /// Starts it with pipes on stdin, stdout and stderr.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(&self) -> Running {
        let mut command = self.prepared();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command, &self.line());
        let stdin = child.stdin.take();
        let stdout = Collector::of(child.stdout.take().expect("piped"));
        let stderr = Collector::of(child.stderr.take().expect("piped"));
        Running {
            child,
            stdin,
            stdout,
            stderr,
            line: self.line(),
            limit: self.limit,
            begun: Instant::now(),
        }
    }

    /// Runs it to its end with stdout and stderr going to files, which whatever it leaves running may keep open.
    ///
    /// # Panics
    /// When it cannot be started or the time is over.
    #[track_caller]
    pub fn run_into(&self, stdout: &Path, stderr: &Path) -> Outcome {
        let file = |path: &Path| File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut command = self.prepared();
        command.stdin(Stdio::null()).stdout(file(stdout)).stderr(file(stderr));
        let begun = Instant::now();
        let mut child = spawn(&mut command, &self.line());
        let status = wait(&mut child, self.limit);
        let read = |path: &PathBuf| std::fs::read(path).unwrap_or_default();
        let (stdout, stderr) = (read(&stdout.to_path_buf()), read(&stderr.to_path_buf()));
        let took = begun.elapsed();
        Outcome {
            line: self.line(),
            status,
            stdout,
            stderr,
            took,
        }
        .in_time(self.limit)
    }

    /// Starts it with all three descriptors on `terminal`, which becomes its controlling terminal.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start_on(&self, terminal: &File) -> Running {
        let mut inner = self.clone();
        inner.argv.splice(
            self.hidden..self.hidden,
            ["setsid", "--ctty", "--wait"].map(OsString::from),
        );
        let mut command = inner.prepared();
        let dup = || terminal.try_clone().expect("dup");
        command.stdin(dup()).stdout(dup()).stderr(dup());
        let child = spawn(&mut command, &self.line());
        let (stdout, stderr) = (Collector::of(std::io::empty()), Collector::of(std::io::empty()));
        Running {
            child,
            stdin: None,
            stdout,
            stderr,
            line: self.line(),
            limit: self.limit,
            begun: Instant::now(),
        }
    }
}

#[track_caller]
fn spawn(command: &mut Command, line: &str) -> Child {
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: cannot be started: {error}"))
}

/// Waits for the end, else kills the group; `None` when the time was over.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let ended = PidFd::open(child.id()).and_then(|fd| fd.wait(limit)).unwrap_or(true);
    if !ended {
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    }
    let status = child.wait().ok();
    status.filter(|_| ended)
}

/// Reads a pipe to its end on a thread of its own.
#[derive(Debug)]
struct Collector(Mutex<mpsc::Receiver<Vec<u8>>>);

impl Collector {
    fn of(mut source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut block = vec![0; 1 << 16];
            while let Ok(count @ 1..) = source.read(&mut block) {
                if sender.send(block[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self(Mutex::new(receiver))
    }

    /// The next block, if one comes before `end`.
    fn next(&self, end: Instant) -> Option<Vec<u8>> {
        let receiver = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        receiver
            .recv_timeout(end.saturating_duration_since(Instant::now()))
            .ok()
    }

    /// All there is until the other end closes, or the time is over.
    fn rest(&self, limit: Duration) -> Vec<u8> {
        let end = Instant::now() + limit;
        let mut all = Vec::new();
        while let Some(block) = self.next(end) {
            all.extend(block);
        }
        all
    }
}

/// A command that runs. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    line: String,
    limit: Duration,
    begun: Instant,
}

impl Running {
    /// Writes to its stdin.
    ///
    /// # Panics
    /// When stdin was closed.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin
            .write_all(bytes)
            .unwrap_or_else(|error| panic!("{}: stdin: {error}", self.line));
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Reads stdout until it holds `text`; answers all that was read.
    ///
    /// # Panics
    /// When the text does not come in time.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        self.try_read_until(text, self.limit).unwrap_or_else(|all| {
            let stderr = self.stderr.rest(Duration::ZERO);
            let stderr = String::from_utf8_lossy(&stderr);
            panic!("{}: no {text:?} on stdout: {all:?}; stderr: {stderr:?}", self.line)
        })
    }

    /// The same within `limit`.
    ///
    /// # Errors
    /// All that was read, without the text.
    pub fn try_read_until(&mut self, text: &str, limit: Duration) -> Result<String, String> {
        let end = Instant::now() + limit;
        let mut all = String::new();
        while !all.contains(text) {
            match self.stdout.next(end) {
                Some(block) => all.push_str(&String::from_utf8_lossy(&block)),
                None => return Err(all),
            }
        }
        Ok(all)
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Closes stdin and waits for the end.
    ///
    /// # Panics
    /// When the time is over.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.finish_with(&[])
    }

    #[track_caller]
    fn finish_with(mut self, input: &[u8]) -> Outcome {
        let stdin = self.stdin.take();
        let status = std::thread::scope(|scope| {
            // A reader that ends early makes this write fail, which is its right.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            wait(&mut self.child, self.limit)
        });
        let took = self.begun.elapsed();
        let (stdout, stderr) = (self.stdout.rest(OUTPUT_GRACE), self.stderr.rest(OUTPUT_GRACE));
        Outcome {
            line: std::mem::take(&mut self.line),
            status,
            stdout,
            stderr,
            took,
        }
        .in_time(self.limit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub line: String,
    status: Option<ExitStatus>,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All it wrote to stderr.
    pub stderr: Vec<u8>,
    /// Wall time from start to end.
    pub took: Duration,
}

impl Outcome {
    /// The end of something that is no command of ours: `line` says what.
    pub(crate) fn of(line: String, code: i32, stdout: Vec<u8>, stderr: Vec<u8>, took: Duration) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = Some(ExitStatus::from_raw(code << 8));
        Self {
            line,
            status,
            stdout,
            stderr,
            took,
        }
    }

    #[track_caller]
    fn in_time(self, limit: Duration) -> Self {
        assert!(self.status.is_some(), "not ended after {limit:?} and killed: {self}");
        self
    }

    /// The exit code, 128 + the signal's number if it was killed.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.map_or(-1, |status| {
            status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
        })
    }

    /// Stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Stderr as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clip = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
            if bytes.len() > 4096 {
                format!("{text}… ({} bytes)", bytes.len())
            } else {
                text
            }
        };
        let (code, took) = (self.code(), self.took);
        writeln!(f, "`{}` ended with {code} after {took:?}", self.line)?;
        write!(
            f,
            "--- stdout\n{}\n--- stderr\n{}",
            clip(&self.stdout),
            clip(&self.stderr)
        )
    }
}
