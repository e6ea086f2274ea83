//! Programs that the engine wants run on the host.

use serde_json::{Value, json};

use super::*;

/// A hook that runs a script of the shell, in the bundle.
fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["a-hook", "-c", text], "env": ["PATH=/bin:/usr/bin", "GREETING=hello"]})
}

/// A hook that writes its moment, the namespace of its mounts and its stdin down.
fn trace(moment: &str) -> Value {
    script(&format!("echo {moment} $(readlink /proc/self/ns/mnt) $(cat) >>trace"))
}

impl Door {
    async fn hooked(hooks: Value) -> Self {
        Self::open(|spec| {
            spec["hooks"] = hooks;
            spec["annotations"] = json!({"a": "b"});
        })
        .await
    }

    /// Moment, namespace and state, of each hook that has been run.
    fn trace(&self) -> Vec<(String, String, Value)> {
        let text = std::fs::read_to_string(self.dir.path().join("c/trace")).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut word = || words.next().expect("a word");
            let (moment, namespace) = (word(), word());
            (moment, namespace, serde_json::from_str(&word()).expect("a state"))
        };
        text.lines().map(parse).collect()
    }

    fn moments(&self) -> Vec<String> {
        self.trace().into_iter().map(|(moment, ..)| moment).collect()
    }

    async fn refused(&self, call: Call) -> String {
        match self.make(call).await.expect_err("a hook fails") {
            ttrpc::Error::RpcStatus(status) => status.message,
            error => panic!("{error}"),
        }
    }
}

#[test]
fn each_hook_is_run_at_its_moment_with_the_state_where_it_belongs() {
    run(|| async {
        let door = Door::hooked(json!({
            "prestart": [trace("prestart")],
            "createRuntime": [trace("createRuntime"), script("test ! -e ../home/share && test $GREETING = hello")],
            "createContainer": [trace("createContainer")],
            "poststart": [trace("poststart")],
            "poststop": [script("echo no >&2; exit 1"), trace("poststop")],
        }))
        .await;
        door.walk(&[(Call::Create("c"), DONE)]).await;
        assert_eq!(door.moments(), ["prestart", "createRuntime", "createContainer"]);
        door.walk(&[(Call::Start("c", ""), DONE)]).await;
        assert_eq!(door.moments().last().map(String::as_str), Some("poststart"));
        door.walk(&[(Call::Ends("c", ""), DONE)]).await;
        assert_eq!(door.moments().len(), 4);
        door.walk(&[(Call::Delete("c", ""), DONE)]).await;

        let trace = door.trace();
        let here = std::fs::read_link("/proc/thread-self/ns/mnt").expect("a namespace");
        let here = here.to_str().expect("UTF-8");
        let told: Vec<_> = trace
            .iter()
            .map(|(moment, namespace, state)| {
                let pid = state["pid"].as_u64() == Some(std::process::id().into());
                (
                    moment.as_str(),
                    namespace == here,
                    state["status"].as_str().expect("a status"),
                    pid,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("prestart", false, "creating", true),
                ("createRuntime", false, "creating", true),
                ("createContainer", true, "creating", true),
                ("poststart", false, "running", true),
                ("poststop", false, "stopped", false),
            ]
        );
        let state = &trace[0].2;
        assert_eq!((&state["id"], &state["annotations"]), (&json!("c"), &json!({"a": "b"})));
        assert_eq!(state["bundle"], json!(door.dir.path().join("c")));
    });
}

#[test]
fn a_hook_that_fails_ends_the_creation_and_the_last_hooks_are_run() {
    run(|| async {
        let door = Door::hooked(json!({
            "createRuntime": [script("echo on its stdout; echo why >&2; exit 3"), trace("never")],
            "poststop": [trace("poststop")],
        }))
        .await;
        let error = door.refused(Call::Create("c")).await;
        assert_eq!(
            error,
            "createRuntime hook /bin/sh has failed (exit status: 3); it said: on its stdout\nwhy"
        );
        assert_eq!(door.moments(), ["poststop"]);
        assert!(door.vmm.agent.requests().is_empty(), "nothing was booted");
        door.walk(&[(Call::State("c", ""), Code::NOT_FOUND)]).await;
        assert!(door.told.lines().is_empty());
    });
}

#[test]
fn a_hook_without_a_program_is_named() {
    run(|| async {
        let door = Door::hooked(json!({"prestart": [{"path": "/no/such/program"}]})).await;
        let error = door.refused(Call::Create("c")).await;
        assert!(
            error.contains("prestart hook /no/such/program cannot be run: No such file"),
            "{error}"
        );
        let door = Door::hooked(json!({"prestart": [{"path": "relative"}]})).await;
        door.walk(&[(Call::Create("c"), Code::INVALID_ARGUMENT)]).await;
    });
}

#[test]
fn a_hook_has_its_time_and_what_it_started_ends_with_it() {
    run(|| async {
        let mut endless = script("echo $$ >pids; sleep 1000 & echo $! >>pids; wait");
        endless["timeout"] = 5.into();
        let door = Door::hooked(json!({"createRuntime": [endless]})).await;
        let error = door.refused(Call::Create("c")).await;
        assert!(error.contains("has not ended within its 5s"), "{error}");
        let pids = std::fs::read_to_string(door.dir.path().join("c/pids")).expect("pids");
        for pid in pids.lines() {
            let exe = Path::new("/proc").join(pid).join("exe");
            // A killed process takes its time. Then it is a zombie of somebody else's at most.
            for _ in 0..1000 {
                if !exe.exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!exe.exists(), "{pid} goes on");
        }
    });
}

#[test]
fn a_daemon_that_a_hook_leaves_behind_holds_nothing_up() {
    run(|| async {
        let door = Door::hooked(json!({"createRuntime": [script("sleep 1000 & echo $! >daemon")]})).await;
        door.walk(&[(Call::Create("c"), DONE)]).await;
        let daemon = std::fs::read_to_string(door.dir.path().join("c/daemon")).expect("its pid");
        let daemon = nix::unistd::Pid::from_raw(daemon.trim().parse().expect("a pid"));
        nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).expect("it goes on");
    });
}

#[test]
fn a_poststart_hook_that_fails_stops_the_container() {
    run(|| async {
        let door = Door::hooked(json!({"poststart": [script("exit 1")]})).await;
        door.walk(&[(Call::Create("c"), DONE)]).await;
        let error = door.refused(Call::Start("c", "")).await;
        assert!(error.starts_with("poststart hook /bin/sh has failed"), "{error}");
        assert!(door.vmm.agent.requests().contains(&"signal c  9".to_owned()));
        door.walk(&[
            (Call::Start("c", ""), Code::FAILED_PRECONDITION),
            (Call::Wait("c", ""), DONE),
            (Call::Delete("c", ""), DONE),
        ])
        .await;
        assert_eq!(door.vmm.running(), 0);
    });
}
