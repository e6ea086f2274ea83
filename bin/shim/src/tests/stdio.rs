//! Where output goes: files, programs that log it, and what is refused.

use super::*;

/// Logs what it is given: its arguments and environment, both streams, and that it has ended.
const LOGGER: &str = "#!/bin/sh
exec >>\"$LOG\"
echo \"$CONTAINER_ID of $CONTAINER_NAMESPACE: $*\"
exec 5>&-
cat <&3
cat <&4
echo end
";

impl Door {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A program that logs into `log`; answers how a client names it.
    fn program(&self, text: &str) -> String {
        let file = self.dir.path().join("logger");
        kata_testkit::program::write(&file, text);
        format!("binary://{}?env.LOG={}&--tag=a+b", file.display(), self.path("log"))
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        path
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    async fn create_with(&self, stdin: &str, stdout: &str, stderr: &str) -> ttrpc::Result<()> {
        let request = api::CreateTaskRequest {
            id: "c".into(),
            bundle: self.path("c"),
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ..Default::default()
        };
        self.client.create(bounded(), &request).await.map(drop)
    }

    /// Lets the process `exec` of `c`, which has this stdin, echo a text, and ends and deletes it.
    async fn live_through(&self, exec: &'static str, stdin: &str, text: &str) {
        self.walk(&[(Call::Start("c", exec), DONE)]).await;
        let input = std::fs::OpenOptions::new().write(true).open(stdin).expect("open");
        std::io::Write::write_all(&mut &input, text.as_bytes()).expect("write");
        drop(input);
        self.walk(&[
            (Call::CloseIo("c", exec), DONE),
            (Call::Ends("c", exec), DONE),
            (Call::Delete("c", exec), DONE),
        ])
        .await;
    }
}

#[test]
fn a_program_logs_all_output_and_has_ended_before_the_delete() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let (stdin, logger) = (door.fifo("in"), door.program(LOGGER));
        door.create_with(&stdin, &logger, &logger).await.expect("create");
        let state = api::StateRequest {
            id: "c".into(),
            ..Default::default()
        };
        let state = door.client.state(bounded(), &state).await.expect("state");
        assert_eq!((&state.stdout, &state.stderr), (&logger, &logger), "as it was given");
        assert_eq!(door.log(), "c of ns: --tag a b\n", "it has been waited for");

        door.live_through("", &stdin, "what it says\n").await;

        assert_eq!(door.log(), "c of ns: --tag a b\nwhat it says\nend\n");
    });
}

#[test]
fn an_exec_has_a_log_program_of_its_own() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let (stdin, logger) = (door.fifo("in"), door.program(LOGGER));
        door.walk(&[(Call::Create("c"), DONE), (Call::Start("c", ""), DONE)])
            .await;
        let request = api::ExecProcessRequest {
            stdin: stdin.clone(),
            stdout: logger,
            ..exec_request("c", "e", GOOD)
        };
        door.client.exec(bounded(), &request).await.expect("exec");

        door.live_through("e", &stdin, "said by the exec\n").await;

        assert_eq!(door.log(), "e of ns: --tag a b\nsaid by the exec\nend\n");
    });
}

#[test]
fn a_file_is_made_and_appended_to() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let (stdin, file) = (door.fifo("in"), door.path("new directory/log"));
        let uri = format!("file://{}", file.replace(' ', "%20"));
        for text in ["once\n", "twice\n"] {
            door.create_with(&stdin, &uri, &uri).await.expect("create");
            door.live_through("", &stdin, text).await;
        }
        assert_eq!(std::fs::read_to_string(&file).expect("the file"), "once\ntwice\n");
    });
}

#[test]
fn what_cannot_be_had_is_named_and_nothing_is_booted() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let missing = door.path("missing");
        let regular = door.path("vmlinux");
        for (stdin, stdout, named) in [
            ("", "http://x/y", "http://x/y".to_owned()),
            ("", "binary://relative", "binary://relative".to_owned()),
            ("file:///x", "", "file:///x".to_owned()),
            ("", &format!("binary://{missing}"), missing.clone()),
            ("", &format!("fifo://{missing}"), missing.clone()),
            ("", &regular, regular.clone()),
        ] {
            let refused = door
                .create_with(stdin, stdout, "")
                .await
                .expect_err("no place for output");
            let ttrpc::Error::RpcStatus(status) = refused else {
                panic!("{refused}")
            };
            assert_eq!(status.code(), Code::INVALID_ARGUMENT, "{}", status.message);
            assert!(status.message.contains(&named), "{}", status.message);
        }
        assert!(door.vmm.agent.requests().is_empty());
    });
}

#[test]
fn a_log_program_ends_with_the_creation_that_failed() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let logger = door.program("#!/bin/sh\nexec 5>&-\necho $$ >$LOG\nexec sleep 1000\n");
        door.vmm.agent.fail("create_container", Code::INTERNAL, "no");
        door.create_with("", &logger, "")
            .await
            .expect_err("refused by the agent");
        let gone = async {
            while std::path::Path::new("/proc")
                .join(door.log().trim())
                .join("fd")
                .exists()
                || door.log().is_empty()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .expect("the program is killed");
    });
}
