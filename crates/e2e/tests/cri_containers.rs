//! Containers through CRI: their life, logs, commands run in them, volumes, limits and numbers.

use std::time::{Duration, Instant};

use kata_e2e::against_nodes;
use kata_e2e::cri::Node;
use kata_e2e::wait;
use serde_json::{Value, json};

against_nodes!(
    a_container_lives_and_is_told_of,
    how_a_container_ended_is_told,
    a_container_is_run_again_and_its_predecessor_stays_known,
    what_cannot_be_started_is_told,
    a_command_is_run_in_a_container,
    what_a_container_writes_is_logged,
    volumes_are_seen_as_asked_for,
    limits_hold_and_can_be_changed,
    numbers_are_told,
    a_container_without_memory_is_killed,
);

fn a_container_lives_and_is_told_of(node: Node) {
    let (cri, pod) = (node.cri(), node.shared_pod());
    let container = pod.container("life", &["sleep", "1000"], |config| {
        config["envs"] = json!([{"key": "A", "value": "b c"}]);
        config["working_dir"] = json!("/home");
        config["annotations"] = json!({"e2e/container": "yes"});
    });
    let listed = |filter: Value| {
        let answer = cri.call("ListContainers", &json!({"filter": filter}));
        answer["containers"].as_array().expect("containers").len()
    };

    assert_eq!(container.state(), "CONTAINER_CREATED");
    container.start();
    let status = container.status();
    assert_eq!(status["state"], "CONTAINER_RUNNING");
    assert_eq!(status["metadata"]["name"], "life");
    assert_eq!(status["labels"], json!({"container": "life"}));
    assert_eq!(status["annotations"], json!({"e2e/container": "yes"}));
    assert_eq!(status["log_path"], container.log_path().display().to_string());
    let time = |field: &str| {
        status[field]
            .as_str()
            .and_then(|time| time.parse::<u64>().ok())
            .expect("a time")
    };
    assert!(time("created_at") > 0 && time("started_at") >= time("created_at") && time("finished_at") == 0);
    container.sh("echo $A; pwd").ok().stdout("b c\n/home\n");

    let by_id = |state: &str| listed(json!({"id": container.id(), "state": {"state": state}}));
    assert_eq!((by_id("CONTAINER_RUNNING"), by_id("CONTAINER_EXITED")), (1, 0));
    assert_eq!(
        listed(json!({"pod_sandbox_id": pod.id(), "label_selector": {"container": "life"}})),
        1
    );

    let begun = Instant::now();
    container.stop(1);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "stopped after {:?}",
        begun.elapsed()
    );
    // `sleep` as a first process ignores SIGTERM, so it was killed.
    assert_eq!(container.status()["exit_code"], 137);
    assert_eq!((by_id("CONTAINER_RUNNING"), by_id("CONTAINER_EXITED")), (0, 1));
    container.stop(1);
    let id = container.id().to_owned();
    container.remove();
    let gone = cri
        .ask("ContainerStatus", &json!({"container_id": id}))
        .expect_err("it is gone");
    assert_eq!(gone.code, 5, "{gone}");
    cri.call("RemoveContainer", &json!({"container_id": id}));

    let running = pod.run_container("removed-running", &["sleep", "1000"], |_| ());
    running.remove();
}

fn how_a_container_ended_is_told(node: Node) {
    let pod = node.shared_pod();
    let polite = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    for (name, script, stop, code, reason) in [
        ("well", "exit 0", false, 0, "Completed"),
        ("badly", "exit 7", false, 7, "Error"),
        // A first process has no default signals, so another is killed.
        ("killed", "sh -c 'kill -SEGV $$; sleep 9'; exit $?", false, 139, "Error"),
        ("asked", polite, true, 3, "Error"),
    ] {
        let container = pod.run_container(name, &["sh", "-c", script], |_| ());
        if stop {
            container.await_log("up");
            container.stop(20);
            wait::until("its last word is logged", Duration::from_secs(30), || {
                container.logged("stdout") == "up\nasked\n"
            });
        }
        let status = container.await_exit();
        assert_eq!(
            (&status["exit_code"], &status["reason"]),
            (&json!(code), &json!(reason)),
            "{name}: {status:#}"
        );
        let time = |field: &str| {
            status[field]
                .as_str()
                .and_then(|time| time.parse::<u64>().ok())
                .expect("a time")
        };
        assert!(
            time("finished_at") > time("created_at") && time("started_at") > time("created_at"),
            "{status:#}"
        );
        container.remove();
    }
}

fn a_container_is_run_again_and_its_predecessor_stays_known(node: Node) {
    let pod = node.shared_pod();
    let attempt = |number: u32| {
        let container = pod.run_container("again", &["sh", "-c", "touch /mark || exit 9; exit 4"], |config| {
            config["metadata"]["attempt"] = json!(number);
            config["log_path"] = json!(format!("again/{number}.log"));
        });
        assert_eq!(container.await_exit()["exit_code"], 4);
        container
    };
    std::fs::create_dir_all(
        node.lab()
            .scratch()
            .join("logs")
            .join(node.named("shared"))
            .join("again"),
    )
    .expect("folder");
    let first = attempt(0);
    let second = attempt(1);
    assert_eq!(first.status()["metadata"]["attempt"], 0);
    assert_eq!(second.status()["metadata"]["attempt"], 1);
    first.remove();
    second.remove();
}

fn what_cannot_be_started_is_told(node: Node) {
    let pod = node.shared_pod();
    let missing = pod.container("missing", &["no-such-program"], |_| ());
    let refusal = missing.try_start().expect_err("there is no such program");
    assert!(refusal.message.contains("executable file not found"), "{refusal}");
    let status = missing.status();
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("CONTAINER_EXITED"), &json!("StartError")),
        "{status:#}"
    );
    assert_eq!(status["exit_code"], 128);
    missing.remove();

    let cri = node.cri();
    for method in ["StartContainer", "ContainerStatus"] {
        let refusal = cri
            .ask(method, &json!({"container_id": "no-such-container"}))
            .expect_err("there is none");
        assert_eq!(refusal.code, 5, "{method}: {refusal}");
    }
    let image = json!({"image": "docker.io/library/no-such-image:1"});
    let refusal = pod
        .try_container("imageless", &["true"], |config| config["image"] = image)
        .map(|_| ());
    let refusal = refusal.expect_err("there is no such image");
    assert!(refusal.message.contains("no-such-image"), "{refusal}");
}

fn a_command_is_run_in_a_container(node: Node) {
    let pod = node.shared_pod();
    let container = pod.run_container("exec", &["sleep", "1000"], |_| ());
    container
        .sh("echo out; echo err >&2; exit 5")
        .exit(5)
        .stdout("out\n")
        .stderr("err\n");
    container.exec(&["true"]).ok().stdout("").stderr("");
    let large = container.exec(&["head", "-c", "1000000", "/dev/zero"]).ok();
    assert_eq!(large.stdout.len(), 1_000_000);

    let begun = Instant::now();
    let refusal = container
        .try_exec(&["sleep", "1000"], 1)
        .expect_err("it takes too long");
    assert!(refusal.message.contains("timeout 1s exceeded"), "{refusal}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    container.sh("ps -o args | grep -c '[s]leep 1000'").stdout("1\n");

    let refusal = container
        .try_exec(&["no-such-program"], 10)
        .expect_err("there is no such program");
    assert!(refusal.message.contains("executable file not found"), "{refusal}");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let container = &container;
            scope.spawn(move || {
                container
                    .sh(&format!("echo {number}; exit {number}"))
                    .exit(number)
                    .stdout(&format!("{number}\n"))
            });
        }
    });
    container.stop(0);
    let refusal = container.try_exec(&["true"], 10).expect_err("it has ended");
    assert!(
        refusal.message.contains("not running") || refusal.message.contains("state"),
        "{refusal}"
    );
    container.remove();
}

fn what_a_container_writes_is_logged(node: Node) {
    let pod = node.shared_pod();
    let script = "echo one; echo two >&2; printf 'no newline'; head -c 40000 /dev/zero | tr '\\0' x >&2";
    let container = pod.run_container("log", &["sh", "-c", script], |_| ());
    container.await_exit();
    let expected = ("one\nno newline".to_owned(), format!("two\n{}", "x".repeat(40_000)));
    let logged = || (container.logged("stdout"), container.logged("stderr"));
    wait::eventually(Duration::from_secs(30), || (logged() == expected).then_some(()));
    assert_eq!(logged(), expected);
    assert!(
        container.log().iter().any(|line| !line.full),
        "a long line comes in parts"
    );
    container.remove();

    // On a terminal there is one stream; containerd takes the terminal's line ends for lines' ends.
    let terminal = pod.run_container("log-tty", &["sh", "-c", "tty; echo err >&2"], |config| {
        config["tty"] = json!(true)
    });
    terminal.await_exit();
    terminal.await_log("err");
    assert_eq!(terminal.logged("stdout"), "/dev/pts/0\nerr\n");
    terminal.remove();

    // A log that was moved away is begun anew.
    let rotated = pod.run_container(
        "log-moved",
        &["sh", "-c", "while :; do echo tick; sleep 0.1; done"],
        |_| (),
    );
    rotated.await_log("tick");
    let old = rotated.log_path().with_extension("old");
    std::fs::rename(rotated.log_path(), &old).expect("rename");
    rotated.reopen_log();
    rotated.await_log("tick");
    assert!(old.exists());
    rotated.remove();
}

fn volumes_are_seen_as_asked_for(node: Node) {
    let pod = node.shared_pod();
    let host = node.lab().scratch().join(node.named("volumes"));
    std::fs::create_dir_all(host.join("real")).expect("folder");
    std::fs::write(host.join("real/file"), "from the host\n").expect("file");
    std::fs::write(host.join("single"), "single\n").expect("file");
    std::os::unix::fs::symlink("real", host.join("link")).expect("link");
    let mount = |inside: &str, outside: &str, readonly: bool| json!({"container_path": inside, "host_path": host.join(outside), "readonly": readonly});
    let container = pod.run_container("volumes", &["sleep", "1000"], |config| {
        config["mounts"] = json!([
            mount("/rw", "real", false),
            mount("/ro", "real", true),
            mount("/through-link", "link", false),
            mount("/etc/single", "single", true),
            mount("/made", "not/there/yet", false),
        ]);
    });

    container
        .sh("cat /rw/file /ro/file /through-link/file /etc/single")
        .ok()
        .stdout("from the host\nfrom the host\nfrom the host\nsingle\n");
    container.sh("echo answer >/rw/answer").ok();
    assert_eq!(
        std::fs::read_to_string(host.join("real/answer")).expect("answer"),
        "answer\n"
    );
    container.sh("touch /ro/no").failed().complains("read-only");
    container.sh("echo no >/etc/single").failed();
    container.sh("touch /made/here").ok();
    assert!(
        host.join("not/there/yet/here").is_file(),
        "a path that was not there is made, as a folder"
    );
    std::fs::write(host.join("real/file"), "changed\n").expect("file");
    container.sh("cat /ro/file").ok().stdout("changed\n");

    // Mounts of one side stay there, unless asked for otherwise.
    let later = host.join("real/later");
    std::fs::create_dir(&later).expect("folder");
    node.lab()
        .command("mount")
        .args(["-t", "tmpfs", "later"])
        .arg(&later)
        .run()
        .ok();
    node.lab().command("touch").arg(later.join("hidden")).run().ok();
    container.sh("ls /rw/later").ok().stdout("");
    node.lab().command("umount").arg(&later).run().ok();
    container.remove();
}

/// A limit as the container sees it: cgroup v2, or v1.
fn limit(container: &kata_e2e::cri::Container, v2: &str, v1: &str) -> String {
    let script = format!("cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}");
    container.sh(&script).ok().text().trim().to_owned()
}

fn limits_hold_and_can_be_changed(node: Node) {
    let pod = node.shared_pod();
    let container = pod.run_container("limits", &["sleep", "1000"], |config| {
        config["linux"]["resources"] = json!({
            "cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512, "memory_limit_in_bytes": 64 << 20,
        });
    });
    let memory = || limit(&container, "memory.max", "memory/memory.limit_in_bytes");
    let quota = || {
        limit(&container, "cpu.max", "cpu/cpu.cfs_quota_us")
            .split(' ')
            .next()
            .expect("a word")
            .to_owned()
    };

    assert_eq!((memory(), quota()), ((64 << 20).to_string(), "50000".to_owned()));
    container.update(&json!({"cpu_period": 100_000, "cpu_quota": 25_000, "memory_limit_in_bytes": 96 << 20}));
    assert_eq!((memory(), quota()), ((96 << 20).to_string(), "25000".to_owned()));
    container.update(&json!({"memory_limit_in_bytes": 48 << 20}));
    assert_eq!((memory(), quota()), ((48 << 20).to_string(), "25000".to_owned()));
    container.remove();
}

fn number(value: &Value) -> u64 {
    value["value"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

fn numbers_are_told(node: Node) {
    let pod = node.shared_pod();
    let busy = pod.run_container("busy", &["sh", "-c", "while :; do :; done"], |_| ());
    busy.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").ok();

    let stats = busy.stats();
    assert_eq!(stats["attributes"]["id"], busy.id());
    let used = number(&stats["cpu"]["usage_core_nano_seconds"]);
    assert!(used > 10_000_000, "{stats:#}");
    let memory = number(&stats["memory"]["working_set_bytes"]);
    assert!((50_000..100_000_000).contains(&memory), "{stats:#}");
    let grown = || number(&busy.stats()["cpu"]["usage_core_nano_seconds"]) > used;
    wait::until("the CPU time grows", Duration::from_secs(20), grown);
    // By its id, too: those of other tests may go while they are asked.
    let listed = node.cri().call(
        "ListContainerStats",
        &json!({"filter": {"id": busy.id(), "pod_sandbox_id": pod.id()}}),
    );
    let listed = listed["stats"].as_array().expect("stats").clone();
    assert!(
        listed.iter().any(|stats| stats["attributes"]["id"] == busy.id()),
        "{listed:#?}"
    );

    let whole = pod.stats();
    assert_eq!(whole["attributes"]["id"], pod.id());
    let linux = &whole["linux"];
    assert!(number(&linux["cpu"]["usage_core_nano_seconds"]) > 0, "{whole:#}");
    assert!(number(&linux["memory"]["working_set_bytes"]) > 0, "{whole:#}");
    assert!(number(&linux["process"]["process_count"]) > 0, "{whole:#}");
    assert_eq!(linux["network"]["default_interface"]["name"], "eth0", "{whole:#}");
    busy.remove();
}

fn a_container_without_memory_is_killed(node: Node) {
    let pod = node.shared_pod();
    let neighbour = pod.run_container("neighbour", &["sleep", "1000"], |_| ());
    // runc's shim watches for the event only once the container runs.
    let eater = ["sh", "-c", "sleep 1; exec dd if=/dev/zero of=/dev/null bs=120M count=1"];
    let container = pod.run_container("oom", &eater, |config| {
        config["linux"]["resources"] =
            json!({"memory_limit_in_bytes": 20 << 20, "memory_swap_limit_in_bytes": 20 << 20});
    });
    // The exit and its reason come by two events.
    let reason = || (container.status()["reason"] == "OOMKilled").then_some(());
    wait::eventually(Duration::from_secs(30), reason);
    let status = container.await_exit();
    assert_eq!(
        (&status["exit_code"], &status["reason"]),
        (&json!(137), &json!("OOMKilled")),
        "{status:#}"
    );
    neighbour.sh("echo unharmed").ok().stdout("unharmed\n");
    container.remove();
    neighbour.remove();
}
