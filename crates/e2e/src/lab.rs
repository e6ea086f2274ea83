//! A lab: a private room with its own mounts, network, processes, cgroups, `/run` and `/tmp`, in which engines and
//! runtimes run without meeting others, and after which nothing is left. Its first process ends when the test does, however
//! that happens, and takes everything in the room with it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kata_sys::process::PidFd;
use nix::sched::CloneFlags;

use crate::command::Cmd;
use crate::places;

/// How long one step of a conversation with something in a lab may take.
const TALK_LIMIT: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A private room. Dropping it ends all that runs in it.
#[derive(Debug)]
pub struct Lab {
    shell: Child,
    anchor: u32,
    name: String,
    scratch: PathBuf,
}

impl Lab {
    /// Opens a room.
    ///
    /// # Panics
    /// When namespaces or cgroups cannot be had (it needs root).
    pub fn open() -> Self {
        let name = format!(
            "kata-e2e-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let scratch = places::scratch().join(&name);
        std::fs::create_dir_all(&scratch).unwrap_or_else(|error| panic!("{}: {error}", scratch.display()));
        let mut shell = std::process::Command::new("setsid")
            .args(["bash", "-c", include_str!("lab.sh"), "lab.sh", &name])
            .arg(&scratch)
            .env("KATA_E2E_WORKSPACE", places::workspace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setsid bash");
        let mut line = String::new();
        let stdout = shell.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the lab's first line");
        let anchor = line.trim().parse();
        let anchor = anchor.unwrap_or_else(|_| panic!("the lab did not open (is this root?); it said {line:?}"));
        Self {
            shell,
            anchor,
            name,
            scratch,
        }
    }

    /// Opens a room whose machine-wide configuration of Kata is this.
    ///
    /// # Panics
    /// As above.
    pub fn configured(configuration: &str) -> Self {
        let lab = Self::open();
        let dir = lab.outside("/etc/kata-containers");
        std::fs::create_dir_all(&dir).expect("the configuration's folder");
        std::fs::write(dir.join("configuration.toml"), configuration).expect("the configuration");
        lab
    }

    /// The host's pid of the room's first process.
    pub fn anchor(&self) -> u32 {
        self.anchor
    }

    /// The lab's folder on a real file system, the same inside and outside; removed with the lab.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Where the host sees `path` of the lab.
    pub fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.anchor)).join(relative)
    }

    /// A command that will run in the lab, in its cgroups.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Cmd {
        let anchor = self.anchor.to_string();
        Cmd::new("nsenter")
            .args([
                "--target", &anchor, "--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup",
            ])
            .arg(format!("--wd={}", self.scratch.display()))
            .args([
                "--",
                "sh",
                "-c",
                r#"for c in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$c"; done; exec "$@""#,
            ])
            .arg("sh")
            .named(program.as_ref())
    }

    /// Connects to a TCP port as the lab's network has it. Reads and writes on the connection have a time limit.
    ///
    /// # Errors
    /// Whatever connecting says.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.anchor))?;
        // The thread that enters the network ends at once; the connection stays where it was made.
        let inside = move || {
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect_timeout(&address, TALK_LIMIT)
        };
        let stream = std::thread::spawn(inside).join().expect("connecting does not panic")?;
        stream.set_read_timeout(Some(TALK_LIMIT))?;
        stream.set_write_timeout(Some(TALK_LIMIT))?;
        Ok(stream)
    }

    /// Fetches `http://ADDRESS/PATH` as a process of the lab would, and answers the body.
    ///
    /// # Errors
    /// When there is no connection or no answer; an answer that is no success is one, too.
    pub fn fetch(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = self.connect(address)?;
        write!(stream, "GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let good = head.split(' ').nth(1) == Some("200");
        good.then(|| body.to_owned())
            .ok_or_else(|| io::Error::other(format!("no page: {head}")))
    }

    /// The lab's own cgroup of a v1 controller, as the host sees it.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        self.outside(format!("/sys/fs/cgroup/{controller}"))
    }

    /// CPU time, user and system, of everything that ever ran in the lab.
    pub fn cpu_time(&self) -> Duration {
        let path = self.cgroup("cpuacct").join("cpuacct.usage");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Duration::from_nanos(text.trim().parse().expect("nanoseconds"))
    }

    /// Sends SIGKILL to a process of the lab, named by the lab's pid. Whether it was there does not matter.
    pub fn kill(&self, pid: u32) {
        self.command("kill").args(["-9", &pid.to_string()]).run();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let ended = PidFd::open(self.shell.id()).and_then(|fd| fd.wait(Duration::from_secs(30)));
        if ended.is_ok_and(|ended| ended) {
            let _ = self.shell.wait();
        } else {
            eprintln!("lab {} did not close", self.name);
        }
    }
}
