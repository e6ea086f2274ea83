//! Pods through CRI: their life, what is told of them, what their containers share, and what is refused.

use std::time::Duration;

use kata_e2e::against_nodes;
use kata_e2e::cri::{Cri, Node};
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::runtime::Kind;
use kata_e2e::wait;
use serde_json::json;

against_nodes!(
    a_pod_lives_and_is_told_of,
    containers_of_a_pod_share_what_they_should,
    a_pod_may_share_its_processes,
    init_containers_run_one_after_the_other,
    the_network_of_the_host_is_given_or_refused,
    an_unknown_runtime_class_is_refused,
    nothing_is_left_of_pods,
);

fn a_pod_lives_and_is_told_of(node: Node) {
    let cri = node.cri();
    let name = node.named("life");
    let pod = node.pod("life", |_| ());
    let listed = |filter| {
        let answer = cri.call("ListPodSandbox", &json!({"filter": filter}));
        answer["items"].as_array().expect("items").clone()
    };

    let status = pod.status();
    assert_eq!(status["id"], pod.id());
    assert_eq!(status["state"], "SANDBOX_READY");
    assert_eq!(status["metadata"], pod.config()["metadata"]);
    assert_eq!(status["labels"], json!({"app": name}));
    assert_eq!(status["annotations"], json!({"e2e/note": "kept"}));
    assert_eq!(status["runtime_handler"], node.kind.cri_handler());
    assert_eq!(status["linux"]["namespaces"]["options"]["network"], "POD");
    assert!(pod.ip().to_string().starts_with(kata_e2e::cri::subnet_prefix()));
    for filter in [
        json!({"id": pod.id()}),
        json!({"label_selector": {"app": name}}),
        json!({"id": pod.id(), "state": {"state": "SANDBOX_READY"}}),
    ] {
        let found = listed(filter.clone());
        assert_eq!(found.len(), 1, "{filter}: {found:#?}");
        assert_eq!(found[0]["id"], pod.id());
    }
    assert!(listed(json!({"id": pod.id(), "state": {"state": "SANDBOX_NOTREADY"}})).is_empty());
    assert!(listed(json!({"label_selector": {"app": "another"}})).is_empty());

    // The same name a second time is refused for as long as the pod is there.
    let again = cri
        .try_pod(node.kind.cri_handler(), &name, |_| ())
        .expect_err("the name is taken");
    assert!(again.message.contains("is reserved for"), "{again}");

    let container = pod.run_container("inside", &["sleep", "1000"], |_| ());
    pod.stop();
    assert_eq!(pod.status()["state"], "SANDBOX_NOTREADY");
    assert_eq!(container.state(), "CONTAINER_EXITED");
    // containerd 2 refuses it only when it is to start.
    pod.try_container("late", &["true"], |_| ())
        .and_then(|late| late.try_start())
        .expect_err("the pod is stopped");
    pod.stop();
    let id = pod.id().to_owned();
    pod.remove();
    assert!(listed(json!({"id": id})).is_empty());
    let gone = cri
        .ask("PodSandboxStatus", &json!({"pod_sandbox_id": id}))
        .expect_err("it is gone");
    assert_eq!(gone.code, 5, "{gone}");
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": id}));
}

fn containers_of_a_pod_share_what_they_should(node: Node) {
    let pod = node.shared_pod();
    let serve = "mkdir /tmp/www; echo page >/tmp/www/page; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www";
    let one = pod.run_container("share-one", &["sh", "-c", serve], |_| ());
    let two = pod.run_container("share-two", &["sleep", "1000"], |_| ());

    let page = "until wget -qO- http://127.0.0.1:8080/page; do sleep 0.1; done";
    two.sh(page).ok().stdout("page\n");
    one.sh("echo in memory >/dev/shm/note").ok();
    two.sh("cat /dev/shm/note").ok().stdout("in memory\n");
    let hostname = format!("{}\n", node.named("shared"));
    two.sh("hostname").ok().stdout(&hostname);
    two.sh("cat /etc/hostname").ok().stdout(&hostname);
    for (namespace, shared) in [
        ("net", true),
        ("ipc", true),
        ("uts", true),
        ("pid", false),
        ("mnt", false),
    ] {
        let of = |container: &kata_e2e::cri::Container| {
            container.sh(&format!("readlink /proc/self/ns/{namespace}")).ok().text()
        };
        assert_eq!(of(&one) == of(&two), shared, "{namespace} namespace");
    }
    two.sh("ls /tmp/www").failed();
    two.sh("ps -o comm").ok().says("sleep").says_not("httpd");
    one.remove();
    two.sh("cat /dev/shm/note").ok().stdout("in memory\n");
    two.remove();
}

fn a_pod_may_share_its_processes(node: Node) {
    let options = json!({"network": "POD", "pid": "POD", "ipc": "POD"});
    let pod = node.pod("processes", |config| {
        config["linux"]["security_context"]["namespace_options"] = options;
        config["linux"]["sysctls"] =
            json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65000"});
    });
    let one = pod.run_container("one", &["sleep", "1111"], |_| ());
    let two = pod.run_container("two", &["sleep", "2222"], |_| ());

    // `runc start` answers before the first process has become its program.
    wait::until("all processes are seen", Duration::from_secs(15), || {
        let seen = two.sh("ps -o args").ok().text();
        ["sleep 1111", "sleep 2222", "/pause"]
            .iter()
            .all(|line| seen.contains(line))
    });
    two.sh("cat /proc/1/comm").ok().stdout("pause\n");
    // A process that loses its parent is reaped by the pod's first.
    one.sh("(sleep 0.2 &) ; true").ok();
    let reaped =
        "for i in $(seq 150); do ps -o stat,args | grep -Eq '^Z|[s]leep 0.2' || exit 0; sleep 0.1; done; exit 1";
    two.sh(reaped).ok();
    two.sh("kill -9 $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 1111 /proc/$p/cmdline && echo $p; done)")
        .ok();
    assert_eq!(one.await_exit()["exit_code"], 137);
    assert_eq!(two.state(), "CONTAINER_RUNNING");

    two.sh("cat /proc/sys/kernel/shm_rmid_forced").ok().stdout("1\n");
    two.sh("cat /proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .stdout("1024\t65000\n");
    pod.remove();
}

fn init_containers_run_one_after_the_other(node: Node) {
    let pod = node.shared_pod();
    let folder = node.lab().scratch().join(node.named("init"));
    let volume = json!([{"container_path": "/work", "host_path": folder}]);
    for step in ["first", "second"] {
        let init = pod.run_container(step, &["sh", "-c", &format!("echo {step} >>/work/steps")], |config| {
            config["mounts"] = volume.clone();
        });
        let status = init.await_exit();
        assert_eq!(
            (&status["exit_code"], &status["reason"]),
            (&json!(0), &json!("Completed")),
            "{status:#}"
        );
        init.remove();
    }
    let main = pod.run_container("main", &["sleep", "1000"], |config| config["mounts"] = volume);
    main.sh("cat /work/steps").ok().stdout("first\nsecond\n");
    main.remove();
}

fn the_network_of_the_host_is_given_or_refused(node: Node) {
    let lab = Lab::open();
    let cri = Cri::start(&lab, node.release);
    let mark = ["link", "add", "name", "mark0", "type", "bridge"];
    lab.command("ip").args(mark).run().ok();
    let ask = || {
        cri.try_pod(node.kind.cri_handler(), "host-network", |config| {
            config["linux"]["security_context"]["namespace_options"]["network"] = json!("NODE");
            // Such a pod has the host's name, too.
            config["hostname"] = json!("");
        })
    };
    match node.kind {
        Kind::Runc => {
            let pod = ask().expect("runc shares the host's network");
            let container = pod.run_container("in", &["sleep", "1000"], |_| ());
            container.sh("ip link").ok().says("mark0");
            pod.remove();
        }
        Kind::Kata => {
            let refused = || {
                let refusal = ask().map(|_| ()).expect_err("a VM has a network of its own");
                assert!(refusal.message.contains("host's network"), "{refusal}");
            };
            refused();
            // containerd has made its folders.
            let before = Snapshot::take(&lab);
            refused();
            before.expect_nothing_more(&lab, "a pod that is refused");
        }
    }
}

fn an_unknown_runtime_class_is_refused(node: Node) {
    let refusal = node
        .cri()
        .try_pod("no-such-handler", &node.named("class"), |_| ())
        .expect_err("no such handler");
    assert!(
        refusal
            .message
            .contains("no runtime for \"no-such-handler\" is configured"),
        "{refusal}"
    );
}

fn nothing_is_left_of_pods(node: Node) {
    let lab = Lab::open();
    let cri = Cri::start(&lab, node.release);
    let before = cri.snapshot(node.kind);

    let pod = cri.pod(node.kind, "leak", |config| {
        config["port_mappings"] = json!([{"container_port": 80, "host_port": 12080}]);
    });
    let one = pod.run_container("one", &["sleep", "1000"], |_| ());
    one.sh("true").ok();
    pod.container("created-only", &["true"], |_| ());
    pod.run_container("ended", &["false"], |_| ()).await_exit();
    pod.remove();

    before.expect_nothing_more(&lab, "a pod with a network, a published port and three containers");
}
