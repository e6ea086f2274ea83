//! The Task API: every call in every state, and what containerd is told meanwhile. The codes are those of runc's shim, with
//! `FAILED_PRECONDITION` where that says `UNKNOWN`.

use super::Call::*;
use super::*;

#[test]
fn before_the_first_create_nothing_is_there() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Start("c", ""), Code::NOT_FOUND),
            (State("c", ""), Code::NOT_FOUND),
            (Delete("c", ""), Code::NOT_FOUND),
            (Exec("c", "e"), Code::NOT_FOUND),
            (Kill("c", "", 9), Code::NOT_FOUND),
            (Stats("c"), Code::NOT_FOUND),
            (Connect("c"), DONE),
        ])
        .await;
    });
}

#[test]
fn a_container_answers_in_every_state() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            // Created.
            (Create("c"), DONE),
            (Create("c"), Code::ALREADY_EXISTS),
            (State("c", ""), DONE),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (Update("c"), DONE),
            (Stats("c"), DONE),
            (Pids("c"), DONE),
            (Kill("c", "", 10), DONE),
            (Resize("c", ""), DONE),
            (Exec("c", "early"), DONE),
            (Start("c", "early"), Code::FAILED_PRECONDITION),
            (Delete("c", "early"), DONE),
            // Running.
            (Start("c", ""), DONE),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Create("c"), Code::ALREADY_EXISTS),
            (Delete("c", ""), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (CloseIo("c", ""), DONE),
            (CloseIo("c", ""), DONE),
            (Update("c"), DONE),
            (Checkpoint("c"), Code::UNIMPLEMENTED),
            // Paused.
            (Pause("c"), DONE),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Delete("c", ""), Code::FAILED_PRECONDITION),
            (Exec("c", "paused"), Code::FAILED_PRECONDITION),
            (Stats("c"), DONE),
            (Update("c"), DONE),
            (Resume("c"), DONE),
            (Resume("c"), Code::FAILED_PRECONDITION),
            // Stopped.
            (Ends("c", ""), DONE),
            (Wait("c", ""), DONE),
            (State("c", ""), DONE),
            (Start("c", ""), Code::FAILED_PRECONDITION),
            (Exec("c", "late"), Code::FAILED_PRECONDITION),
            (Pause("c"), Code::FAILED_PRECONDITION),
            (Resume("c"), Code::FAILED_PRECONDITION),
            (Update("c"), Code::FAILED_PRECONDITION),
            (Resize("c", ""), Code::FAILED_PRECONDITION),
            (Kill("c", "", 9), DONE),
            (Kill("c", "", 15), DONE),
            (Kill("c", "", 10), Code::NOT_FOUND),
            (KillAll("c"), DONE),
            (CloseIo("c", ""), DONE),
            (Stats("c"), Code::NOT_FOUND),
            (Pids("c"), Code::NOT_FOUND),
            (Shutdown, DONE),
            (Create("c"), Code::ALREADY_EXISTS),
            // Deleted.
            (Delete("c", ""), DONE),
            (Delete("c", ""), Code::NOT_FOUND),
            (State("c", ""), Code::NOT_FOUND),
            (Wait("c", ""), Code::NOT_FOUND),
            (Start("c", ""), Code::NOT_FOUND),
            (Kill("c", "", 9), Code::NOT_FOUND),
            (Pause("c"), Code::NOT_FOUND),
            (Update("c"), Code::NOT_FOUND),
            (CloseIo("c", ""), Code::NOT_FOUND),
            (Resize("c", ""), Code::NOT_FOUND),
        ])
        .await;
        assert_eq!(door.vmm.running(), 0);
    });
}

#[test]
fn an_exec_answers_in_every_state() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (Start("c", "e"), Code::NOT_FOUND),
            (Resize("c", "e"), Code::NOT_FOUND),
            (Kill("c", "e", 9), Code::NOT_FOUND),
            (Wait("c", "e"), Code::NOT_FOUND),
            (State("c", "e"), Code::NOT_FOUND),
            (CloseIo("c", "e"), Code::NOT_FOUND),
            (Delete("c", "e"), Code::NOT_FOUND),
            (Exec("x", "e"), Code::NOT_FOUND),
            (BadExec("c", "e"), Code::INVALID_ARGUMENT),
            (Exec("c", ""), Code::INVALID_ARGUMENT),
            (Exec("c", "../e"), Code::INVALID_ARGUMENT),
            // Added.
            (Exec("c", "e"), DONE),
            (Exec("c", "e"), Code::ALREADY_EXISTS),
            (State("c", "e"), DONE),
            (Kill("c", "e", 9), Code::FAILED_PRECONDITION),
            (CloseIo("c", "e"), DONE),
            (Resize("c", "e"), DONE),
            // Running.
            (Start("c", "e"), DONE),
            (Start("c", "e"), Code::FAILED_PRECONDITION),
            (Exec("c", "e"), Code::ALREADY_EXISTS),
            (Delete("c", "e"), Code::FAILED_PRECONDITION),
            (Kill("c", "e", 10), DONE),
            // Ended.
            (Kill("c", "e", 9), DONE),
            (Wait("c", "e"), DONE),
            (State("c", "e"), DONE),
            (Start("c", "e"), Code::FAILED_PRECONDITION),
            (Kill("c", "e", 9), DONE),
            (Kill("c", "e", 1), Code::NOT_FOUND),
            (Resize("c", "e"), Code::FAILED_PRECONDITION),
            (CloseIo("c", "e"), DONE),
            (Delete("c", "e"), DONE),
            (Delete("c", "e"), Code::NOT_FOUND),
            (Wait("c", "e"), Code::NOT_FOUND),
            (Exec("c", "e"), DONE),
        ])
        .await;
        let asked = door.vmm.agent.requests();
        let at = |word: &str| asked.iter().position(|request| request.starts_with(word));
        assert!(
            at("exec c e") < at("resize_terminal c e 80x25"),
            "the size is told after the start: {asked:?}"
        );
    });
}

#[test]
fn containerd_is_told_what_happens_in_its_order() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (Exec("c", "e"), DONE),
            (Start("c", "e"), DONE),
            (Pause("c"), DONE),
            (Resume("c"), DONE),
            (Ends("c", "e"), DONE),
            (Delete("c", "e"), DONE),
            (EndsForMemory("c", ""), DONE),
            (Delete("c", ""), DONE),
        ])
        .await;
        assert_eq!(
            door.told(10).await,
            [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exec-added e",
                "/tasks/exec-started e",
                "/tasks/paused",
                "/tasks/resumed",
                "/tasks/exit e 7",
                "/tasks/oom",
                "/tasks/exit c 137",
                "/tasks/delete",
            ]
        );
        assert!(!door.dir.path().join("c/oom").exists(), "containerd has its event");
    });
}

#[test]
fn cri_o_finds_a_file_where_memory_was_wanting() {
    run(|| async {
        let annotation = |spec: &mut serde_json::Value| {
            spec["annotations"] = serde_json::json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
        };
        let door = Door::open(annotation).await;
        door.walk(&[
            (Create("c"), DONE),
            (Start("c", ""), DONE),
            (EndsForMemory("c", ""), DONE),
        ])
        .await;
        assert!(door.dir.path().join("c/oom").exists());
    });
}

#[test]
fn the_process_ends_on_demand_but_not_under_a_container() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let ends = || tokio::time::timeout(Duration::from_millis(50), door.closing.notified());
        door.walk(&[(Create("c"), DONE), (Shutdown, DONE)]).await;
        assert!(ends().await.is_err(), "a container remains");
        door.walk(&[(Delete("c", ""), DONE), (Shutdown, DONE)]).await;
        assert!(ends().await.is_ok());
    });
}

#[test]
fn a_client_that_vanishes_leaves_nothing_half_done() {
    run(|| async {
        let door = Door::open(|_| {}).await;
        let address = format!("unix://{}", door.dir.path().join("home/task.sock").display());
        let impatient = TaskClient::new(Client::connect(&address).await.expect("connect"));
        let request = api::CreateTaskRequest {
            id: "c".into(),
            bundle: door.dir.path().join("c").display().to_string(),
            ..Default::default()
        };
        let gone = tokio::time::timeout(Duration::from_millis(1), impatient.create(bounded(), &request)).await;
        drop((gone, impatient));
        // Created completely or not at all, and told so.
        for _ in 0..1000 {
            if door.make(State("c", "")).await.is_ok() && !door.told.lines().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        door.walk(&[
            (Start("c", ""), DONE),
            (KillAll("c"), DONE),
            (Wait("c", ""), DONE),
            (Delete("c", ""), DONE),
        ])
        .await;
        assert_eq!(door.vmm.running(), 0);
    });
}
