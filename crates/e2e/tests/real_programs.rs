//! Programs that people run, in a Debian made by debootstrap, reached by their own clients: Redis in a pod on a network of
//! real CNI plug-ins, from the host and from a second pod; nginx with a page of the host's, through published ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_e2e::against_both;
use kata_e2e::containerd::Release;
use kata_e2e::cri::{Container, Cri, Node, Pod};
use kata_e2e::fixture::Shared;
use kata_e2e::image::{self, DEBIAN};
use kata_e2e::lab::Lab;
use kata_e2e::podman::Podman;
use kata_e2e::program;
use kata_e2e::runtime::Kind;
use kata_e2e::wait;
use serde_json::{Value, json};

against_both!(
    redis_serves_the_host_and_a_second_pod,
    nginx_serves_a_page_of_the_host,
    nginx_serves_through_podman,
);

/// How long a server may take until it answers.
const UP: Duration = Duration::from_secs(30);

/// A node whose containerd has the image of Debian.
#[track_caller]
fn node(kind: Kind) -> Node {
    static IMPORTED: Shared<()> = Shared::new();
    let node = Node {
        kind,
        release: Release::V2,
    };
    IMPORTED.get(|| {
        let cri: &Cri = node.cri();
        cri.import(&image::debian(&cri.lab().scratch().join("images")));
    });
    node
}

/// Makes of a container's configuration one of Debian with `source` at `target`.
fn debian(config: &mut Value, source: &Path, target: &str) {
    config["image"]["image"] = json!(DEBIAN);
    config["mounts"] = json!([{"container_path": target, "host_path": source}]);
}

/// Starts Redis with its data in `folder` and waits until it answers.
#[track_caller]
fn redis<'pod>(pod: &'pod Pod<'_>, name: &str, folder: &Path) -> Container<'pod> {
    let command = "redis-server --bind 0.0.0.0 --protected-mode no --dir /data --save 3600 1";
    let command: Vec<_> = command.split(' ').collect();
    let redis = pod.run_container(name, &command, |config| debian(config, folder, "/data"));
    let up = || redis.exec(&["redis-cli", "ping"]).text() == "PONG\n";
    wait::until("redis answers", UP, up);
    redis
}

/// What redis-benchmark is to do, and the names it reports it under.
const BENCHMARK: &[&str] = &[
    "-n",
    "500",
    "-c",
    "8",
    "-t",
    "ping_inline,set,get,incr,lpush,lrange_100,mset",
    "--csv",
];
const REPORTED: &[&str] = &[
    "PING_INLINE",
    "SET",
    "GET",
    "INCR",
    "LPUSH",
    "LRANGE_100 (first 100 elements)",
    "MSET (10 keys)",
];

/// All that was to be measured was measured.
#[track_caller]
fn expect_report(csv: &str) {
    for name in REPORTED {
        let row = csv.lines().find(|line| line.starts_with(&format!("\"{name}\",\"")));
        let row = row.unwrap_or_else(|| panic!("no {name}: {csv}"));
        let rate = row.split('"').nth(3).and_then(|rate| rate.parse::<f64>().ok());
        assert!(rate.is_some_and(|rate| rate > 0.0), "{row}");
    }
}

fn redis_serves_the_host_and_a_second_pod(kind: Kind) {
    let (node, data) = (node(kind), node(kind).named("redis-data"));
    let (lab, data) = (node.lab(), node.lab().scratch().join(data));
    fs::create_dir(&data).expect("a folder for the data");
    let pod = node.pod("redis", |_| ());
    let client_pod = node.pod("redis-client", |_| ());
    let server = redis(&pod, "redis", &data);
    let client = client_pod.run_container("client", &["sleep", "1000"], |config| debian(config, &data, "/unused"));
    let address = pod.ip().to_string();
    let from_host = |tool: &str, args: &[&str]| {
        let tool = program::of_debian(lab, tool).args(["-h", &address]);
        tool.args(args).run().ok()
    };
    let from_pod = |tool: &str, args: &[&str]| client.exec(&[&[tool, "-h", &address], args].concat()).ok();

    expect_report(&from_host("redis-benchmark", BENCHMARK).text());
    expect_report(&from_pod("redis-benchmark", BENCHMARK).text());
    // Many requests in a packet, and values that are many packets.
    let pipelined = ["-n", "5000", "-P", "50", "-t", "set,get", "-r", "1000", "-q"];
    from_host("redis-benchmark", &pipelined).says("GET: ");
    let large = ["-n", "20", "-c", "2", "-d", "300000", "-t", "set,get", "-q"];
    from_pod("redis-benchmark", &large).says("GET: ");

    from_host("redis-cli", &["SET", "from", "the host"]).stdout("OK\n");
    from_pod("redis-cli", &["GET", "from"]).stdout("the host\n");
    from_pod("redis-cli", &["RPUSH", "list", "one", "two"]).stdout("2\n");
    from_host("redis-cli", &["LRANGE", "list", "0", "-1"]).stdout("one\ntwo\n");
    from_host("redis-cli", &["STRLEN", "key:__rand_int__"]).stdout("300000\n");

    // At its end it saves, into a folder of the host, what the next one finds there.
    server.stop(20);
    assert_eq!(server.await_exit()["exit_code"], 0);
    assert!(data.join("dump.rdb").is_file(), "nothing was saved");
    let _next = redis(&pod, "redis-again", &data);
    from_pod("redis-cli", &["GET", "from"]).stdout("the host\n");
    from_host("redis-cli", &["LRANGE", "list", "0", "-1"]).stdout("one\ntwo\n");
    client_pod.remove();
    pod.remove();
}

/// A folder with a page of the host's.
fn folder_with_page(folder: PathBuf) -> PathBuf {
    fs::create_dir(&folder).expect("a folder for the page");
    fs::write(folder.join("index.html"), "the first page\n").expect("a page");
    folder
}

/// The page is served, and when it changes on the host, the change is.
#[track_caller]
fn expect_served(lab: &Lab, port: u16, folder: &Path) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let page = wait::eventually(UP, || lab.fetch(address, "").ok());
    assert_eq!(page.as_deref(), Some("the first page\n"));
    fs::write(folder.join("index.html"), "another page, which is longer\n").expect("another page");
    fs::write(folder.join("large"), "0123456789abcde\n".repeat(1 << 16)).expect("a large page");
    let changed = || {
        lab.fetch(address, "index.html")
            .is_ok_and(|page| page == "another page, which is longer\n")
    };
    wait::until(
        "the page of the host is served as it is now",
        Duration::from_secs(10),
        changed,
    );
    let large = lab.fetch(address, "large").expect("a large page");
    assert!(large == "0123456789abcde\n".repeat(1 << 16), "{} bytes", large.len());
    lab.fetch(address, "no-such-page").expect_err("there is no such page");
}

const NGINX: [&str; 3] = ["nginx", "-g", "daemon off;"];

fn nginx_serves_a_page_of_the_host(kind: Kind) {
    let (node, host_port) = (node(kind), if kind == Kind::Kata { 12081 } else { 12080 });
    let folder = folder_with_page(node.lab().scratch().join(node.named("page")));
    let pod = node.pod("nginx", |config| {
        config["port_mappings"] = json!([{"protocol": "TCP", "container_port": 80, "host_port": host_port}]);
    });
    let server = pod.run_container("nginx", &NGINX, |config| debian(config, &folder, "/var/www/html"));

    expect_served(node.lab(), host_port, &folder);
    server.sh("cat /var/log/nginx/access.log").ok().says("GET /large ");
    server.stop(20);
    assert_eq!(server.await_exit()["exit_code"], 0);
    pod.remove();
}

fn nginx_serves_through_podman(kind: Kind) {
    let lab = Lab::open();
    let podman = Podman::start(&lab, kind);
    podman.load(&image::debian(podman.dir()));
    let folder = folder_with_page(lab.scratch().join("page"));
    let volume = format!("{}:/var/www/html:ro", folder.display());
    let run = podman.podman(["run", "-d", "--name", "nginx", "-p", "18082:80", "-v", &volume, DEBIAN]);
    run.args(NGINX).run().ok();

    expect_served(&lab, 18082, &folder);
    podman.podman(["rm", "--force", "--time", "20", "nginx"]).run().ok();
}
