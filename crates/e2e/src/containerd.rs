//! A containerd of a lab's own, with the busybox image, and its client `ctr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{Cmd, Running};
use crate::image::{self, BUSYBOX};
use crate::lab::Lab;
use crate::runtime::Kind;
use crate::{pids, places, wait};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The machine's own, 1.6.
    V1,
    /// The newest that the set-up could get, 2.1 or later.
    V2,
}

impl Release {
    /// One of its programs.
    #[track_caller]
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Self::V1 => places::tool(name),
            Self::V2 => places::unpacked("containerd-2", name),
        }
    }

    /// The first lines of its configuration file.
    fn heading(self) -> &'static str {
        match self {
            Self::V1 => "version = 2",
            Self::V2 => "version = 3",
        }
    }
}

/// What containerd grants its shims is 2 s and 5 s by default, after which it lists a task as unknown or gives a shim up.
const TIMEOUTS: &str = r#"[timeouts]
  "io.containerd.timeout.task.state" = "30s"
  "io.containerd.timeout.shim.cleanup" = "30s"
  "io.containerd.timeout.shim.load" = "30s"
"#;

/// The daemon, which lives as long as this.
#[derive(Debug)]
pub struct Containerd<'lab> {
    lab: &'lab Lab,
    release: Release,
    daemon: Running,
    config: PathBuf,
    log: PathBuf,
}

/// Where the daemon listens, as the lab sees it.
pub const SOCKET: &str = "/run/e2e-containerd/containerd.sock";

impl<'lab> Containerd<'lab> {
    /// Starts the daemon without CRI and imports the image.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn start(lab: &'lab Lab) -> Self {
        let containerd = Self::launch(
            lab,
            Release::V1,
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]",
            "",
        );
        let archive = image::busybox(&lab.scratch().join("containerd"));
        containerd.ctr(["image", "import"]).arg(archive).run().ok();
        containerd
    }

    /// Starts the daemon with these settings and sections in its configuration.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn launch(lab: &'lab Lab, release: Release, settings: &str, sections: &str) -> Self {
        let dir = lab.scratch().join("containerd");
        fs::create_dir_all(&dir).expect("containerd's folder");
        let (config, log) = (dir.join("config.toml"), dir.join("log"));
        let root = dir.join("root");
        let text = format!(
            "{}\nroot = {root:?}\nstate = \"/run/e2e-containerd\"\n{settings}\n[grpc]\n  address = \"{SOCKET}\"\n[ttrpc]\n  \
             address = \"{SOCKET}.ttrpc\"\n{TIMEOUTS}{sections}",
            release.heading()
        );
        fs::write(&config, text).expect("containerd's configuration");
        let daemon = begin(lab, release, &config, &log);
        let containerd = Self {
            lab,
            release,
            daemon,
            config,
            log,
        };
        containerd.await_answer();
        containerd
    }

    /// Kills the daemon, as if it had crashed.
    pub fn crash(&self) {
        let line = format!("containerd --config {}", self.config.display());
        let running = || {
            let daemon = pids::all(self.lab).into_iter().find(|one| one.line.contains(&line));
            daemon.filter(|daemon| daemon.state != 'Z')
        };
        self.lab.kill(running().expect("containerd runs").pid);
        wait::until("containerd has ended", Duration::from_secs(30), || running().is_none());
    }

    /// Starts the daemon again, on what the one before has left.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.daemon = begin(self.lab, self.release, &self.config, &self.log);
        self.await_answer();
    }

    #[track_caller]
    fn await_answer(&self) {
        let answers = || self.ctr(["version"]).run().code() == 0;
        let up = wait::eventually(Duration::from_secs(30), || answers().then_some(()));
        assert!(up.is_some(), "containerd does not answer; its log:\n{}", self.log());
    }

    /// The lab it runs in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// `ctr` with these arguments.
    #[track_caller]
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.lab
            .command(self.release.program("ctr"))
            .args(["--address", SOCKET])
            .args(args)
    }

    /// `ctr events`, which hears all that happens from now on.
    ///
    /// # Panics
    /// When it hears nothing in time.
    #[track_caller]
    pub fn events(&self) -> Running {
        let mut events = self.ctr(["events"]).start();
        let mut count = 0;
        // It does not say when it has subscribed, so harmless events are made until it hears one.
        wait::until("ctr hears of events", Duration::from_secs(30), || {
            count += 1;
            let label = format!("probe={count}");
            self.ctr(["namespace", "label", "default", &label]).run().ok();
            let heard = events.try_read_until("/namespaces/update", Duration::from_millis(200));
            heard.is_ok()
        });
        events
    }

    /// `ctr run FLAGS --runtime … IMAGE ID COMMAND`.
    #[track_caller]
    pub fn run(&self, kind: Kind, flags: &[&str], id: &str, command: &[&str]) -> Cmd {
        let run = self.ctr(["run", "--runtime", kind.containerd_name()]);
        run.args(flags).args([BUSYBOX, id]).args(command)
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The status of a task, as `ctr task ls` has it; empty if it is not listed.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let listed = self.ctr(["task", "ls"]).run().ok().text();
        let row = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = row.into_iter().find(|words| words.first() == Some(&id));
        row.and_then(|words| words.get(2).map(|word| (*word).to_owned()))
            .unwrap_or_default()
    }

    /// Waits until a task has this status.
    #[track_caller]
    pub fn await_status(&self, id: &str, status: &str, limit: Duration) {
        wait::until(&format!("task {id} is {status}"), limit, || self.status(id) == status);
    }
}

fn begin(lab: &Lab, release: Release, config: &Path, log: &Path) -> Running {
    // The shims of `--runtime io.containerd.NAME.v2` are looked for in the daemon's PATH: runc's is the daemon's own.
    let program = release.program("containerd");
    let beside = program.parent().expect("a program in a folder").display();
    let path = format!(
        "{}:{beside}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        places::bin_dir().display()
    );
    let script = r#"exec "$0" --config "$1" >>"$2" 2>&1"#;
    let daemon = lab.command("sh").args(["-c", script]).arg(&program);
    daemon.arg(config).arg(log).env("PATH", path).start()
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
    }
}
