//! Conversations through containerd's streaming server: exec and attach with and without a terminal, forwarded ports.

use kata_e2e::against_nodes;
use kata_e2e::cri::{Node, Stream};
use kata_e2e::wait;
use serde_json::json;
use std::time::Duration;

against_nodes!(
    exec_passes_everything_through,
    exec_on_a_terminal_is_interactive,
    a_client_that_vanishes_leaves_the_container_alone,
    attach_talks_to_the_first_process,
    attach_to_a_terminal_is_interactive,
    a_port_of_a_pod_is_forwarded,
);

fn exec_passes_everything_through(node: Node) {
    let container = node.shared_pod().run_container("exec", &["sleep", "1000"], |_| ());
    let mut stream = container.exec_stream(
        &[
            "sh",
            "-c",
            "echo ready; read -r line; echo \"<$line>\"; echo err >&2; exit 7",
        ],
        false,
    );
    stream.read_until("ready\n");
    stream.write("a line\n");
    stream.finish().exit(7).stdout("ready\n<a line>\n").stderr("err\n");

    container
        .exec_stream(&["true"], false)
        .finish()
        .ok()
        .stdout("")
        .stderr("");
    let large = container
        .exec_stream(&["head", "-c", "3000000", "/dev/zero"], false)
        .finish()
        .ok();
    assert_eq!(large.stdout.len(), 3_000_000);
    container.remove();
}

/// A shell on a terminal: its size, a program that is interrupted, an exit code.
fn use_the_terminal(stream: &mut Stream) {
    for (rows, columns) in [(33, 93), (44, 104)] {
        stream.resize(rows, columns);
        stream.write(&format!(
            "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.1; done; echo si''zed {rows}\n"
        ));
        stream.read_until(&format!("sized {rows}"));
    }
    stream.write("sh -c \"echo g''o; exec sleep 1000\"\n");
    stream.read_until("go");
    stream.write("\x03");
    stream.write("echo co''de=$?\n");
    stream.read_until("code=130");
}

fn exec_on_a_terminal_is_interactive(node: Node) {
    let container = node.shared_pod().run_container("exec-tty", &["sleep", "1000"], |_| ());
    let mut stream = container.exec_stream(&["sh"], true);
    use_the_terminal(&mut stream);
    stream.write("exit 5\n");
    stream.finish().exit(5);
    container.remove();
}

fn a_client_that_vanishes_leaves_the_container_alone(node: Node) {
    let container = node.shared_pod().run_container("vanish", &["sleep", "1000"], |_| ());
    let mut stream = container.exec_stream(&["sh"], true);
    stream.write("echo he''re\n");
    stream.read_until("here");
    drop(stream);
    container.sh("echo still here").ok().stdout("still here\n");
    container
        .exec_stream(&["echo", "and talks"], false)
        .finish()
        .ok()
        .stdout("and talks\n");
    container.stop(0);
    assert_eq!(container.state(), "CONTAINER_EXITED");
    container.remove();
}

fn attach_talks_to_the_first_process(node: Node) {
    let script =
        "echo begun; while read -r line; do echo \"<$line>\"; echo err >&2; [ \"$line\" = end ] && exit 6; done";
    let container = node
        .shared_pod()
        .run_container("attach", &["sh", "-c", script], |config| config["stdin"] = json!(true));
    container.await_log("begun");
    let mut first = container.attach();
    first.write_until("one\n", "<one>\n");
    drop(first);

    // Another comes later, and sees what is said from then on.
    let mut second = container.attach();
    second.write_until("two\n", "<two>\n");
    second.write("end\n");
    second.read_until("<end>\n");
    second.finish();
    assert_eq!(container.await_exit()["exit_code"], 6);
    wait::until("all is logged", Duration::from_secs(30), || {
        let (stdout, stderr) = (container.logged("stdout"), container.logged("stderr"));
        let mut said: Vec<&str> = stdout.lines().collect();
        let answers = said.len().saturating_sub(1);
        // What was written again was answered again.
        said.dedup();
        said == ["begun", "<one>", "<two>", "<end>"] && stderr == "err\n".repeat(answers)
    });
    container.remove();
}

fn attach_to_a_terminal_is_interactive(node: Node) {
    let container = node.shared_pod().run_container("attach-tty", &["sh"], |config| {
        config["stdin"] = json!(true);
        config["tty"] = json!(true);
    });
    let mut stream = container.attach();
    stream.write_until("echo at''tached\n", "attached");
    use_the_terminal(&mut stream);
    stream.write("exit 5\n");
    assert_eq!(container.await_exit()["exit_code"], 5);
    container.remove();
}

fn a_port_of_a_pod_is_forwarded(node: Node) {
    let pod = node.shared_pod();
    let serve = |address: &str| format!("echo page >/tmp/page; exec httpd -f -p {address} -h /tmp");
    for (name, address, port) in [("everywhere", "8081", 8081), ("loopback", "127.0.0.1:8082", 8082)] {
        let container = pod.run_container(name, &["sh", "-c", &serve(address)], |_| ());
        let up = || container.sh(&format!("wget -qO- http://127.0.0.1:{port}/page")).code() == 0;
        wait::until("the server is up", Duration::from_secs(20), up);
        let answer = pod.forward(port).talk("GET /page HTTP/1.0\r\n\r\n");
        assert!(
            answer.contains(" 200 OK\r\n") && answer.ends_with("\r\n\r\npage\n"),
            "{name}: {answer:?}"
        );
        container.remove();
    }
}
