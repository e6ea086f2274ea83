//! What the tests of this crate share: a sandbox with a fake machine and a fake agent, and real steps on the host: mounts (so
//! these tests need root), fifos, records.

#![allow(dead_code, reason = "each test file uses its part")]

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kata_cgroup::{Hierarchies, Hierarchy};
use kata_config::{Config, SharedFs};
use kata_netlink::Socket;
use kata_sandbox::record::{Home, Record};
use kata_sandbox::spare::{Needs, Spare};
use kata_sandbox::stdio::Stdio;
use kata_sandbox::step::Faults;
use kata_sandbox::{Event, NewContainer, Process, Sandbox, SandboxError, Surroundings, network};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_testkit::machine::FakeVmm;
use tokio::sync::mpsc;

/// A pod's surroundings in a directory of its own.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub vmm: FakeVmm,
    pub faults: Faults,
    pub events: mpsc::UnboundedReceiver<Event>,
    pub sandbox: Sandbox,
    pub config: Config,
    /// A socket of the host that the container gets, and its number.
    pub service: (UnixListener, u32),
}

impl Lab {
    pub fn new(vmm: FakeVmm, faults: Faults) -> Self {
        Self::configured(vmm, faults, |_| {})
    }

    pub fn configured(vmm: FakeVmm, faults: Faults, configure: impl FnOnce(&mut Config)) -> Self {
        Ground::prepare(configure).build(vmm, faults, None)
    }

    /// One in which a machine waits that was started for this configuration.
    pub async fn waiting(vmm: FakeVmm, faults: Faults, configure: impl FnOnce(&mut Config)) -> Self {
        let ground = Ground::prepare(|_| {});
        let mut config = ground.config.clone();
        configure(&mut config);
        let needs = Needs {
            home: &ground.home,
            config: &config,
            vmm: &vmm,
            origin: &Origin::here().expect("origin"),
            maker: None,
        };
        let spare = Spare::start(&needs).await.expect("a machine that waits");
        ground.build(vmm, faults, Some(spare))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        path
    }

    pub async fn create(&self) -> Result<(), SandboxError> {
        self.sandbox.create(self.container(Stdio::default())).await
    }

    pub fn container(&self, stdio: Stdio) -> NewContainer {
        NewContainer {
            id: "c".into(),
            bundle: self.path("bundle"),
            rootfs: Vec::new(),
            stdio,
        }
    }

    /// Expects nothing on the host of what a sandbox makes; `when` says in messages after what.
    pub fn expect_no_traces(&self, when: &str) {
        assert!(self.mounts().is_empty(), "{when} left {:?}", self.mounts());
        assert_eq!(self.vmm.running(), 0, "{when} left a machine");
        assert!(self.cgroups().is_empty(), "{when} left {:?}", self.cgroups());
    }

    /// The names of the links in the pod's network namespace.
    pub fn links(&self) -> Vec<String> {
        let links = Socket::open().and_then(|socket| socket.links()).expect("links");
        links.into_iter().map(|link| link.name).collect()
    }

    /// The names of the cgroups at the root of the host's only hierarchy.
    pub fn cgroups(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("cgroup")).expect("the hierarchy");
        entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect()
    }

    pub fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let prefix = self.dir.path().to_str().expect("UTF-8");
        let points = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        points.filter(|point| point.starts_with(prefix)).collect()
    }

    pub fn events(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            words.push(match event {
                Event::Created { container, .. } => format!("created {container}"),
                Event::ExecAdded(process) => format!("exec-added {}", process.exec),
                Event::Started(process) => format!("started {}{}", process.container, process.exec),
                Event::Exited(process, status) => {
                    format!("exited {}{} {}", process.container, process.exec, status.code)
                }
                Event::Deleted(process, status) => {
                    format!("deleted {}{} {}", process.container, process.exec, status.code)
                }
                other => format!("{other:?}"),
            });
        }
        words
    }
}

/// What a lab is built on.
struct Ground {
    dir: tempfile::TempDir,
    home: Home,
    record: Record,
    bundle: kata_bundle::Bundle,
    config: Config,
    service: (UnixListener, u32),
}

impl Ground {
    fn prepare(configure: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let bundle = dir.path().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).expect("mkdir");
        std::fs::create_dir_all(dir.path().join("volume")).expect("mkdir");
        std::fs::create_dir(dir.path().join("cgroup")).expect("mkdir");
        for asset in ["vmlinux", "initrd.img"] {
            std::fs::write(dir.path().join(asset), "x").expect("write");
        }
        let mut spec = serde_json::to_value(kata_bundle::default_spec()).expect("json");
        spec["process"]["terminal"] = false.into();
        let volume = serde_json::json!({
            "destination": "/data", "type": "bind", "source": dir.path().join("volume"), "options": ["rbind", "ro"],
        });
        let service = dir.path().join("service");
        let listener = UnixListener::bind(&service).expect("bind");
        listener.set_nonblocking(true).expect("set");
        let socket = serde_json::json!({"destination": "/s", "type": "bind", "source": service, "options": ["bind"]});
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        let number = u32::try_from(mounts.len() + 1).expect("few");
        mounts.extend([volume, socket]);
        std::fs::write(bundle.join("config.json"), spec.to_string()).expect("write");

        let loaded = kata_bundle::Bundle::load(&bundle).expect("bundle");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let record = Record::new("c".into(), "test".into(), bundle);
        home.write(&record).expect("record");
        let mut config = Config::default();
        config.qemu.kernel = Some(dir.path().join("vmlinux"));
        config.qemu.initrd = Some(dir.path().join("initrd.img"));
        config.qemu.shared_fs = Some(SharedFs::Virtio9p);
        config.agent.dial_timeout = Duration::from_secs(30);
        configure(&mut config);
        Self {
            dir,
            home,
            record,
            bundle: loaded,
            config,
            service: (listener, number),
        }
    }

    fn build(self, vmm: FakeVmm, faults: Faults, spare: Option<Spare>) -> Lab {
        let Self {
            dir,
            home,
            record,
            bundle,
            config,
            service,
        } = self;
        let network = network::enter(&bundle, &config).expect("a network namespace");
        let (sender, events) = mpsc::unbounded_channel();
        let sandbox = Sandbox::new(Surroundings {
            home,
            record,
            config: Arc::new(config.clone()),
            vmm: Arc::new(vmm.clone()),
            network,
            origin: Arc::new(Origin::here().expect("origin")),
            // A plain directory, in which cgroups can be made, but nobody can be put into them.
            hierarchies: Hierarchies(vec![Hierarchy {
                root: dir.path().join("cgroup"),
                controllers: vec!["memory".into()],
                unified: false,
                own: PathBuf::new(),
            }]),
            events: sender,
            maker: None,
            spare,
            faults: faults.clone(),
        });
        Lab {
            dir,
            vmm,
            faults,
            events,
            sandbox,
            config,
            service,
        }
    }
}

pub fn init() -> Process {
    Process {
        container: "c".into(),
        exec: String::new(),
    }
}

pub fn exec(id: &str) -> Process {
    Process {
        container: "c".into(),
        exec: id.into(),
    }
}

/// Runs a test on a thread with its own mount and network namespaces and its own small runtime.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let enter = || namespace::enter().map(drop).expect("these tests need root");
    kata_testkit::thread::run(Duration::from_secs(30), enter, test);
}

pub fn process_json() -> kata_bundle::oci::Process {
    kata_bundle::parse_process(br#"{"args": ["true"], "cwd": "/"}"#).expect("process")
}
