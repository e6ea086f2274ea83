//! A containerd of a lab's own, with the busybox image, and its client `ctr`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Cmd, Running};
use crate::image::{self, BUSYBOX};
use crate::lab::Lab;
use crate::runtime::Kind;
use crate::{places, wait};

/// The daemon, which lives as long as this.
#[derive(Debug)]
pub struct Containerd<'lab> {
    lab: &'lab Lab,
    daemon: Running,
    log: PathBuf,
}

const SOCKET: &str = "/run/e2e-containerd/containerd.sock";

impl<'lab> Containerd<'lab> {
    /// Starts the daemon and imports the image.
    ///
    /// # Panics
    /// When it does not answer in time.
    #[track_caller]
    pub fn start(lab: &'lab Lab) -> Self {
        let dir = lab.scratch().join("containerd");
        fs::create_dir_all(&dir).expect("containerd's folder");
        let (config, log) = (dir.join("config.toml"), dir.join("log"));
        let root = dir.join("root");
        let text = format!(
            "version = 2\nroot = {root:?}\nstate = \"/run/e2e-containerd\"\ndisabled_plugins = \
             [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{SOCKET}\"\n[ttrpc]\n  address = \"{SOCKET}.ttrpc\"\n"
        );
        fs::write(&config, text).expect("containerd's configuration");
        // The shims of `--runtime io.containerd.NAME.v2` are looked for in the daemon's PATH.
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            places::bin_dir().display()
        );
        let script = r#"exec "$0" --config "$1" >"$2" 2>&1"#;
        let daemon = lab
            .command("sh")
            .args(["-c", script])
            .arg(places::tool("containerd"))
            .arg(&config)
            .arg(&log);
        let containerd = Self {
            lab,
            daemon: daemon.env("PATH", path).start(),
            log,
        };
        let answers = || containerd.ctr(["version"]).run().code() == 0;
        let up = wait::eventually(Duration::from_secs(30), || answers().then_some(()));
        assert!(
            up.is_some(),
            "containerd does not answer; its log:\n{}",
            containerd.log()
        );
        let archive = image::busybox(&dir);
        containerd.ctr(["image", "import"]).arg(archive).run().ok();
        containerd
    }

    /// The lab it runs in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// `ctr` with these arguments.
    #[track_caller]
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.lab
            .command(places::tool("ctr"))
            .args(["--address", SOCKET])
            .args(args)
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

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
    }
}
