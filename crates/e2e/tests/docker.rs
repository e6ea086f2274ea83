//! Docker drives the runtime, as an OCI runtime (20.10) and as a shim (28): what a person does with it, and what is left when
//! it is done.

use std::net::SocketAddr;
use std::time::Duration;

use kata_e2e::docker::{Docker, Version};
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::runtime::Kind;
use kata_e2e::terminal::Terminal;
use kata_e2e::wait;

/// A daemon and a runtime.
#[derive(Debug, Clone, Copy)]
struct Door {
    version: Version,
    kind: Kind,
}

/// Makes of each case four tests: by both versions, with runc and with ours.
macro_rules! through_all_doors {
    ($($case:ident),* $(,)?) => {
        through_all_doors!(@ runc_20, Runc, V20, $($case),*);
        through_all_doors!(@ runc_28, Runc, V28, $($case),*);
        through_all_doors!(@ kata_20, Kata, V20, $($case),*);
        through_all_doors!(@ kata_28, Kata, V28, $($case),*);
    };
    (@ $name:ident, $kind:ident, $version:ident, $($case:ident),*) => {
        mod $name {
            const DOOR: super::Door = super::Door { kind: super::Kind::$kind, version: super::Version::$version };
            $(#[test] fn $case() { super::$case(DOOR) })*
        }
    };
}

through_all_doors!(
    a_foreground_run_passes_everything_through,
    a_run_on_a_terminal_is_interactive,
    a_detached_container_is_looked_after,
    a_container_is_stopped_killed_and_started_again,
    files_limits_and_users_are_as_asked_for,
    a_published_port_is_reached,
    nothing_is_left_after_rm,
);

impl Door {
    fn docker(self) -> &'static Docker<'static> {
        static LABS: [Shared<Lab>; 2] = [const { Shared::new() }; 2];
        static DOCKERS: [Shared<Docker>; 2] = [const { Shared::new() }; 2];
        let index = usize::from(self.version == Version::V28);
        DOCKERS[index].get(|| Docker::start(LABS[index].get(Lab::open), self.version))
    }

    fn name(self, what: &str) -> String {
        format!("{what}-{:?}", self.kind).to_lowercase()
    }
}

fn a_foreground_run_passes_everything_through(door: Door) {
    let docker = door.docker();
    let script = "read -r line; echo \"<$line>\"; ip -o link | wc -l; echo to stderr >&2; exit 7";
    let flags = ["--rm", "-i", "--network", "none"];
    let run = docker
        .run(door.kind, &flags, &["sh", "-c", script])
        .stdin("a line\n")
        .run();
    run.exit(7).stdout("<a line>\n1\n").complains("to stderr");

    let missing = docker
        .run(door.kind, &["--rm", "--network", "none"], &["no-such-program"])
        .run();
    missing.exit(127).complains("executable file not found");
}

fn a_run_on_a_terminal_is_interactive(door: Door) {
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(31, 91);
    let running = door
        .docker()
        .run(door.kind, &["--rm", "-it", "--network", "none"], &["sh"])
        .start_on(&end);
    drop(end);
    terminal.expect("#");
    terminal.expect_size(31, 91);
    terminal.interrupt_a_program();
    terminal.type_in("exit 5\n");
    running.finish().exit(5);
}

fn a_detached_container_is_looked_after(door: Door) {
    let (docker, name) = (door.docker(), door.name("looked-after"));
    let name = name.as_str();
    let script = "echo begun; while [ ! -e /tmp/stop ]; do sleep 0.1; done; echo ended >&2; exit 9";
    docker
        .run(door.kind, &["-d", "--name", name], &["sh", "-c", script])
        .run()
        .ok();

    assert_eq!(docker.inspect("{{.State.Status}}", name), "running");
    docker
        .docker(["ps", "--format", "{{.Names}} {{.Status}}"])
        .run()
        .ok()
        .says(&format!("{name} Up"));
    let begun = || docker.docker(["logs", name]).run().text() == "begun\n";
    wait::until("what it says is logged", Duration::from_secs(20), begun);
    // Docker looks for the pids that it is told among the host's: it finds those that stand for a guest's, or none.
    let top = docker.docker(["top", name]).run().ok().text();
    match door.kind {
        Kind::Runc => assert!(top.contains("sh -c"), "{top}"),
        Kind::Kata => assert!(top.lines().skip(1).all(|row| row.contains("kata")), "{top}"),
    }
    let stats = ["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", name];
    docker.docker(stats).run().ok().says("iB / ").says_not("0B / 0B");

    let exec = |args: &[&str]| docker.docker(["exec"]).args(args);
    exec(&["-i", name, "cat"])
        .stdin("through exec")
        .run()
        .ok()
        .stdout("through exec");
    let script = "echo $A; pwd; id -u; exit 3";
    let whole = ["-e", "A=1", "-w", "/home", "-u", "1000:1000", name, "sh", "-c", script];
    exec(&whole).run().exit(3).stdout("1\n/home\n1000\n");
    let missing = exec(&[name, "no-such-program"]).run().failed();
    // 20.10 says it on stdout, as the command's output.
    let said = missing.text() + &missing.errors();
    assert!(said.contains("executable file not found"), "{missing}");
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(32, 92);
    let running = exec(&["-it", name, "sh"]).start_on(&end);
    drop(end);
    terminal.expect("#");
    terminal.expect_size(32, 92);
    terminal.type_in("exit 6\n");
    running.finish().exit(6);

    let file = docker.lab().scratch().join(door.name("copied"));
    std::fs::write(&file, "copied\n").expect("file");
    let inside = format!("{name}:/tmp/copied");
    docker.docker(["cp"]).arg(&file).arg(&inside).run().ok();
    exec(&[name, "cat", "/tmp/copied"]).run().ok().stdout("copied\n");
    exec(&[name, "sh", "-c", "echo back >>/tmp/copied"]).run().ok();
    docker.docker(["cp", &inside]).arg(&file).run().ok();
    assert_eq!(std::fs::read_to_string(&file).expect("file"), "copied\nback\n");

    docker.docker(["pause", name]).run().ok();
    assert_eq!(docker.inspect("{{.State.Status}}", name), "paused");
    docker.docker(["unpause", name]).run().ok();
    exec(&["-d", name, "touch", "/tmp/stop"]).run().ok();
    docker.docker(["wait", name]).run().ok().stdout("9\n");
    docker
        .docker(["logs", name])
        .run()
        .ok()
        .stdout("begun\n")
        .complains("ended");
    docker.docker(["rm", name]).run().ok();
}

fn a_container_is_stopped_killed_and_started_again(door: Door) {
    let (docker, name) = (door.docker(), door.name("cycle"));
    let name = name.as_str();
    let script =
        "trap 'echo told to stop; exit 4' TERM; trap 'echo told USR1' USR1; echo up; while :; do sleep 0.1; done";
    docker
        .run(door.kind, &["-d", "--name", name], &["sh", "-c", script])
        .run()
        .ok();
    let logged = |text: &str, times: usize| {
        wait::until(
            &format!("{times} times {text:?} in the log"),
            Duration::from_secs(30),
            || docker.docker(["logs", name]).run().text().matches(text).count() == times,
        );
    };
    let code = || docker.inspect("{{.State.ExitCode}}", name);

    logged("up", 1);
    docker.docker(["kill", "--signal", "USR1", name]).run().ok();
    logged("told USR1", 1);
    docker.docker(["stop", "--time", "20", name]).run().ok();
    assert_eq!(code(), "4");
    logged("told to stop", 1);
    docker.docker(["start", name]).run().ok();
    logged("up", 2);
    docker.docker(["restart", "--time", "20", name]).run().ok();
    logged("up", 3);
    docker.docker(["kill", name]).run().ok();
    docker.docker(["wait", name]).run().ok().stdout("137\n");
    docker.docker(["rm", "--force", name]).run().ok();
}

fn files_limits_and_users_are_as_asked_for(door: Door) {
    let (docker, name) = (door.docker(), door.name("limits"));
    let data = docker.lab().scratch().join(door.name("volume"));
    std::fs::create_dir_all(&data).expect("volume");
    std::fs::write(data.join("in"), "from outside\n").expect("file");
    let (volume, read_only) = (
        format!("{}:/volume", data.display()),
        format!("{}:/ro:ro", data.display()),
    );
    let flags = [
        "-d",
        "--name",
        &name,
        "--network",
        "none",
        "-v",
        &volume,
        "-v",
        &read_only,
        "--read-only",
        "--tmpfs",
        "/scratch:size=2m",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "--hostname",
        "named",
        "--cap-drop",
        "all",
        "--user",
        "1000:2000",
        "--env",
        "A=b c",
        "--workdir",
        "/home",
        "--security-opt",
        "no-new-privileges",
    ];
    docker.run(door.kind, &flags, &["sleep", "1000"]).run().ok();
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    let sh = |script: &str| docker.docker(["exec", &name, "sh", "-c", script]).run();

    sh("cat /volume/in /ro/in; hostname; id -u; id -g; echo $A; pwd")
        .ok()
        .stdout("from outside\nfrom outside\nnamed\n1000\n2000\nb c\n/home\n");
    sh("echo answer >/volume/out").ok();
    assert_eq!(std::fs::read_to_string(data.join("out")).expect("answer"), "answer\n");
    sh("touch /ro/no").failed().complains("read-only");
    sh("touch /no").failed();
    sh("echo x >/scratch/x && df /scratch | grep -c 2048").ok();
    sh("grep -E '^(CapEff|NoNewPrivs)' /proc/1/status")
        .ok()
        .stdout("CapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
    let limit = |v2: &str, v1: &str| {
        let own = sh(&format!(
            "cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}"
        ))
        .ok()
        .text();
        own.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let memory = || limit("memory.max", "memory/memory.limit_in_bytes");
    let quota = || limit("cpu.max", "cpu/cpu.cfs_quota_us");
    assert_eq!((memory(), quota()), ((64 << 20).to_string(), "50000".to_owned()));
    assert_eq!(limit("pids.max", "pids/pids.max"), "50");
    docker
        .docker([
            "update",
            "--memory",
            "96m",
            "--memory-swap",
            "96m",
            "--cpus",
            "0.25",
            &name,
        ])
        .run()
        .ok();
    assert_eq!((memory(), quota()), ((96 << 20).to_string(), "25000".to_owned()));
    docker.docker(["rm", "--force", &name]).run().ok();

    // Init lives before and after: 20.10 loses the news of a container that ends with them, runc's as well.
    let eater = "sleep 1; dd if=/dev/zero of=/dev/null bs=120M count=1; echo $?; sleep 5";
    let flags = [
        "--name",
        &name,
        "--network",
        "none",
        "--memory",
        "20m",
        "--memory-swap",
        "20m",
    ];
    let eaten = docker.run(door.kind, &flags, &["sh", "-c", eater]).run();
    eaten.ok().stdout("137\n");
    // 20.10 learns it from runc's shim, which watches a cgroup of the host: the guest's are out of its sight.
    let told = door.kind == Kind::Runc || door.version == Version::V28;
    assert_eq!(docker.inspect("{{.State.OOMKilled}}", &name), told.to_string());
    docker.docker(["rm", &name]).run().ok();
}

fn a_published_port_is_reached(door: Door) {
    let (docker, name) = (door.docker(), door.name("web"));
    let port = 18070 + if door.kind == Kind::Kata { 1 } else { 0 };
    let publish = format!("{port}:80");
    let serve = "echo web >/tmp/page; exec httpd -f -p 80 -h /tmp";
    docker
        .run(
            door.kind,
            &["-d", "--name", &name, "-p", &publish],
            &["sh", "-c", serve],
        )
        .run()
        .ok();
    let ip = docker.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &name);
    let address = SocketAddr::new(ip.parse().expect("an address"), 80);
    let lab = docker.lab();
    let fetched = |address: SocketAddr| {
        let page = wait::eventually(Duration::from_secs(20), || lab.fetch(address, "page").ok());
        page.unwrap_or_else(|| panic!("{address}: {:?}", lab.fetch(address, "page")))
    };

    assert_eq!(fetched(address), "web\n");
    assert_eq!(fetched(SocketAddr::from(([127, 0, 0, 1], port))), "web\n");
    assert_eq!(fetched(SocketAddr::from(([10, 89, 0, 1], port))), "web\n");
    docker
        .docker(["port", &name])
        .run()
        .ok()
        .says(&format!("80/tcp -> 0.0.0.0:{port}"));
    let script = format!("wget -qO- http://{address}/page; ip -o address show dev eth0; ip route; cat /etc/hosts");
    let other = docker
        .run(door.kind, &["--rm", "--hostname", "other"], &["sh", "-c", &script])
        .run()
        .ok();
    other
        .says("web\n")
        .says("inet 10.89.0.")
        .says("default via 10.89.0.1")
        .says("other");

    docker.docker(["rm", "--force", &name]).run().ok();
    lab.fetch(SocketAddr::from(([127, 0, 0, 1], port)), "page")
        .expect_err("the port is free again");
}

fn nothing_is_left_after_rm(door: Door) {
    let lab = Lab::open();
    let docker = Docker::start(&lab, door.version);
    let round = |name: &str| {
        docker
            .run(door.kind, &["--rm", "-p", "18075:80"], &["false"])
            .run()
            .exit(1);
        docker
            .run(door.kind, &["-d", "--name", name], &["sleep", "1000"])
            .run()
            .ok();
        docker.docker(["exec", name, "true"]).run().ok();
        docker.docker(["rm", "--force", name]).run().ok();
    };
    round("first");
    let before = Snapshot::take(&lab);
    round("second");
    // The daemon removes names of network namespaces once a minute, and keeps its clients' connections for a while.
    let others = ["file /run/e2e-docker/exec/netns/", "socket /run/e2e-docker/docker.sock"];
    before.expect_nothing_more_but(&lab, "docker run, exec and rm", &others);
}

/// A shim needs no entry in the daemon's configuration.
#[test]
fn a_shim_is_found_by_its_name() {
    let door = Door {
        version: Version::V28,
        kind: Kind::Kata,
    };
    let run = door.docker().docker([
        "run",
        "--rm",
        "--network",
        "none",
        "--runtime",
        door.kind.containerd_name(),
    ]);
    run.args([kata_e2e::image::BUSYBOX, "echo", "found"])
        .run()
        .ok()
        .stdout("found\n");
}
