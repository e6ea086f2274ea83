//! The network of a sandbox with a fake machine: real namespaces, links and taps, made by these tests (so they need root).

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kata_bundle::Bundle;
use kata_config::{Config, Internetworking, SharedFs};
use kata_sandbox::record::{Home, Record};
use kata_sandbox::stdio::Stdio;
use kata_sandbox::step::Faults;
use kata_sandbox::{NewContainer, Process, Sandbox, SandboxError, Surroundings, describe, network, recover};
use kata_testkit::machine::FakeVmm;
use tokio::sync::mpsc;

struct Lab {
    dir: tempfile::TempDir,
    vmm: FakeVmm,
    sandbox: Sandbox,
}

impl Lab {
    /// A sandbox in a new network namespace, unless the configuration says otherwise.
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::at(None, change)
    }

    /// A sandbox in the network namespace at `path`.
    fn at(path: Option<&Path>, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("bundle");
        std::fs::create_dir_all(place.join("rootfs")).expect("mkdir");
        for asset in ["vmlinux", "initrd.img"] {
            std::fs::write(dir.path().join(asset), "x").expect("write");
        }
        let mut spec = serde_json::to_value(kata_bundle::default_spec()).expect("json");
        spec["process"]["terminal"] = false.into();
        spec["linux"]["namespaces"] =
            serde_json::json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": path}]);
        std::fs::write(place.join("config.json"), spec.to_string()).expect("write");
        let bundle = Bundle::load(&place).expect("bundle");
        let home = Home::at(dir.path().join("home"));
        std::fs::create_dir(home.path()).expect("mkdir");
        let record = Record::new("c".into(), "test".into(), place);
        home.write(&record).expect("record");
        let mut config = Config::default();
        config.qemu.kernel = Some(dir.path().join("vmlinux"));
        config.qemu.initrd = Some(dir.path().join("initrd.img"));
        config.qemu.shared_fs = Some(SharedFs::Virtio9p);
        change(&mut config);
        let vmm = FakeVmm::default();
        let (events, _) = mpsc::unbounded_channel();
        let sandbox = Sandbox::new(Surroundings {
            home,
            record,
            network: network::enter(&bundle, &config).expect("a namespace"),
            origin: Arc::new(kata_storage::origin::Origin::here().expect("origin")),
            config: Arc::new(config),
            vmm: Arc::new(vmm.clone()),
            events,
            hierarchies: kata_cgroup::Hierarchies::default(),
            maker: None,
            spare: None,
            faults: Faults::none(),
        });
        Self { dir, vmm, sandbox }
    }

    async fn create(&self) -> Result<(), SandboxError> {
        let container = NewContainer {
            id: "c".into(),
            bundle: self.dir.path().join("bundle"),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
        };
        self.sandbox.create(container).await
    }

    async fn start(&self) -> Result<(), SandboxError> {
        self.sandbox.start(&Process::init("c")).await
    }

    /// Names and addresses of the interfaces that the guest was told of.
    fn told(&self) -> Vec<String> {
        let network = self.vmm.agent.network();
        let describe = |one: &kata_wire::proto::Interface| {
            let ips: Vec<String> = one.addresses.iter().map(|ip| format!(" {:?}", ip.ip)).collect();
            format!("{} {}{}", one.device_mac.last().unwrap_or(&99), one.name, ips.concat())
        };
        network.interfaces.iter().map(describe).collect()
    }
}

#[track_caller]
fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn add_link(name: &str) {
    run(&format!("ip link add {name} type bridge"));
    run(&format!("ip link set {name} up"));
}

/// Runs a test on a thread with its own mount namespace and its own small runtime; the sandbox takes it elsewhere.
fn in_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let enter = || {
        kata_storage::namespace::enter()
            .map(drop)
            .expect("these tests need root")
    };
    kata_testkit::thread::run(Duration::from_secs(30), enter, test);
}

#[test]
fn links_are_carried_from_the_start_or_later_and_followed() {
    in_thread(|| async {
        let lab = Lab::new(|_| {});
        add_link("net0");
        run("ip addr add 10.1.0.2/24 dev net0");
        let before = run("tc qdisc show");
        lab.create().await.expect("create");
        assert_eq!(lab.told(), ["0 net0 [10, 1, 0, 2]"]);
        assert!(run("tc filter show dev net0 ingress").contains("Redirect to device tap0_kata"));

        run("ip addr add 10.1.0.3/24 dev net0");
        run("ip link set net0 mtu 1400");
        lab.start().await.expect("start");
        assert_eq!(lab.told(), ["0 net0 [10, 1, 0, 2] [10, 1, 0, 3]"]);
        assert!(run("ip link show tap0_kata").contains("mtu 1400"));

        lab.sandbox.shut_down().await;
        assert_eq!(run("tc qdisc show"), before);
    });
}

#[test]
fn spare_interfaces_take_late_links_as_long_as_there_are_some() {
    in_thread(|| async {
        let lab = Lab::new(|_| {});
        lab.create().await.expect("create");
        assert_eq!(lab.told(), [""; 0]);
        let before = run("ip -o link");
        for name in ["late0", "late1"] {
            add_link(name);
            run(&format!("ip link set {name} mtu 1300"));
        }
        lab.start().await.expect("start");
        assert_eq!(lab.told(), ["0 late0", "1 late1"]);
        assert!(run("ip link show tap1_kata").contains("mtu 1300"));
        assert!(run("tc filter show dev tap1_kata ingress").contains("Redirect to device late1"));

        lab.sandbox.shut_down().await;
        run("ip link del late0");
        run("ip link del late1");
        assert!(before.contains("tap1_kata") && !run("ip -o link").contains("kata"));
        assert_eq!(run("tc qdisc show").matches("ingress").count(), 0);
    });
}

#[test]
fn one_link_too_many_is_an_error_that_names_it() {
    in_thread(|| async {
        let lab = Lab::new(|_| {});
        lab.create().await.expect("create");
        for number in 0..9 {
            add_link(&format!("late{number}"));
        }
        let error = describe(&lab.start().await.expect_err("too many"));
        assert!(error.contains("has no interface left for it"), "{error}");
        lab.sandbox.shut_down().await;
        assert!(!run("ip -o link").contains("kata"));
        assert_eq!(run("tc qdisc show").matches("ingress").count(), 0);
    });
}

#[test]
fn a_link_that_has_gone_leaves_its_interface_to_another() {
    in_thread(|| async {
        let lab = Lab::new(|_| {});
        add_link("first");
        lab.create().await.expect("create");
        run("ip link del first");
        add_link("second");
        lab.start().await.expect("start");
        assert_eq!(lab.told(), ["0 second"]);
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn a_link_that_somebody_else_redirects_stays_theirs() {
    in_thread(|| async {
        let lab = Lab::new(|_| {});
        add_link("net0");
        run("tc qdisc add dev net0 ingress");
        let before = (run("tc qdisc show"), run("ip -o link"));
        let error = describe(&lab.create().await.expect_err("taken"));
        assert!(error.contains("the link net0 has an ingress qdisc already"), "{error}");
        assert_eq!((run("tc qdisc show"), run("ip -o link")), before);
    });
}

#[test]
fn without_a_namespace_of_its_own_nothing_is_looked_at() {
    in_thread(|| async {
        // As if it were the engine's.
        kata_net::namespace::enter_new().expect("these tests need root");
        add_link("host0");
        let before = (run("tc qdisc show"), run("ip -o link"));
        let lab = Lab::new(|config| {
            config.runtime.disable_new_netns = true;
            config.runtime.internetworking_model = Internetworking::None;
        });
        lab.create().await.expect("create");
        lab.start().await.expect("start");
        assert_eq!(lab.told(), [""; 0]);
        assert_eq!((run("tc qdisc show"), run("ip -o link")), before);
        lab.sandbox.shut_down().await;
    });
}

#[test]
fn what_a_killed_sandbox_has_made_is_found_by_its_record() {
    in_thread(|| async {
        kata_net::namespace::enter_new().expect("these tests need root");
        add_link("net0");
        let before = (run("tc qdisc show"), run("ip -o link"));
        // The namespace outlives the sandbox, because somebody keeps it by a file.
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("pod");
        std::fs::write(&file, "").expect("file");
        let bind = nix::mount::MsFlags::MS_BIND;
        let own = Some("/proc/thread-self/ns/net");
        nix::mount::mount(own, &file, None::<&str>, bind, None::<&str>).expect("bind");
        kata_net::namespace::enter_new().expect("these tests need root");

        let lab = Lab::at(Some(&file), |_| {});
        lab.create().await.expect("create");
        let home = Home::at(lab.dir.path().join("home"));
        assert!(home.read().expect("record").network.is_some());
        assert_ne!(run("ip -o link"), before.1);

        // Its process is gone, and its mounts with it; nothing was undone.
        kata_storage::namespace::drop_share(&home.share()).expect("umount");
        let mut record = home.read().expect("record");
        record.helpers.clear();
        home.write(&record).expect("write");
        recover::clean(&home).expect("clean");

        assert_eq!((run("tc qdisc show"), run("ip -o link")), before);
        nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH).expect("umount");
    });
}
