//! What may follow what: told as stories, and tried with whatever order a generator thinks of.

use super::*;
use proptest::prelude::*;

const DONE: ExitStatus = ExitStatus {
    code: 7,
    at_unix_nanos: 1,
};

fn init() -> Process {
    Process {
        container: "c".into(),
        exec: String::new(),
    }
}

fn exec() -> Process {
    Process {
        container: "c".into(),
        exec: "e".into(),
    }
}

fn running() -> Pod {
    let mut pod = Pod::default();
    pod.create("c").expect("create");
    pod.created("c", true);
    pod.start(&init()).expect("start");
    assert_eq!(pod.started(&init(), None), None);
    pod
}

#[test]
fn a_container_lives_once_through() {
    let mut pod = running();
    assert_eq!(pod.phase(&init()), Ok(Phase::Running));
    assert!(pod.exited(&init(), DONE));
    assert_eq!(pod.delete(&init()), Ok(Some(DONE)));
    pod.deleted(&init());
    assert!(pod.is_empty());
}

#[test]
fn an_exit_heard_during_the_start_is_told_after_it() {
    let mut pod = Pod::default();
    pod.create("c").expect("create");
    pod.created("c", true);
    pod.start(&init()).expect("start");
    assert!(!pod.exited(&init(), DONE), "not before the start is told");
    assert_eq!(pod.started(&init(), None), Some(DONE));
    assert_eq!(pod.phase(&init()), Ok(Phase::Stopped(DONE)));
}

#[test]
fn what_may_not_be_done_is_refused_by_name() {
    let mut pod = running();
    let cases: [(&str, Refusal); 6] = [
        ("second create", pod.create("c").expect_err("taken")),
        ("second start", pod.start(&init()).expect_err("running")),
        (
            "delete of a running container",
            pod.delete(&init()).expect_err("running"),
        ),
        ("resume of a running container", pod.resume("c").expect_err("running")),
        ("unknown container", pod.pause("x").expect_err("unknown")),
        ("unknown exec", pod.signal(&exec()).expect_err("unknown")),
    ];
    let said: Vec<String> = cases.iter().map(|(_, refusal)| refusal.to_string()).collect();
    assert_eq!(
        said,
        [
            "a container with id \"c\" exists already",
            "cannot start container \"c\" that is running",
            "cannot delete container \"c\" that is running",
            "cannot resume container \"c\" that is running",
            "container \"x\" does not exist",
            "exec \"e\" of container \"c\" does not exist",
        ]
    );
    assert!(pod.exited(&init(), DONE));
    assert!(matches!(pod.signal(&init()), Err(Refusal::Finished { .. })));
    assert_eq!(
        pod.add_exec(&exec()).expect_err("stopped").to_string(),
        "cannot exec in container \"c\" that is stopped"
    );
}

#[test]
fn a_paused_container_takes_signals_but_no_exec() {
    let mut pod = running();
    pod.pause("c").expect("pause");
    pod.paused("c");
    assert!(pod.signal(&init()).is_ok());
    assert!(pod.add_exec(&exec()).is_err());
    pod.resume("c").expect("resume");
    pod.resumed("c");
    assert!(pod.add_exec(&exec()).is_ok());
}

#[derive(Clone, Debug)]
enum Act {
    Create,
    Created(bool),
    Start(bool),
    Started(bool, bool),
    Exited(bool),
    AddExec,
    Pause,
    Resume,
    Delete(bool),
    Deleted(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        Just(Act::Create),
        any::<bool>().prop_map(Act::Created),
        any::<bool>().prop_map(Act::Start),
        (any::<bool>(), any::<bool>()).prop_map(|(p, ok)| Act::Started(p, ok)),
        any::<bool>().prop_map(Act::Exited),
        Just(Act::AddExec),
        Just(Act::Pause),
        Just(Act::Resume),
        any::<bool>().prop_map(Act::Delete),
        any::<bool>().prop_map(Act::Deleted),
    ];
    prop::collection::vec(act, 0..60)
}

proptest! {
    /// Whatever is done in whatever order: an exit is told at most once a life, and never before a start that
    /// was under way is told.
    #[test]
    fn exits_are_told_once_and_in_order(acts in acts()) {
        let mut pod = Pod::default();
        let mut told = std::collections::BTreeMap::<bool, u32>::new();
        for act in acts {
            let which = |is_exec: bool| if is_exec { exec() } else { init() };
            match act {
                Act::Create => if pod.create("c").is_ok() { told.clear(); },
                Act::Created(ok) => if pod.phase(&init()) == Ok(Phase::Creating) { pod.created("c", ok) },
                Act::Start(e) => { let _ = pod.start(&which(e)); }
                Act::Started(e, ok) => {
                    let before = pod.phase(&which(e));
                    let exit = pod.started(&which(e), (!ok).then_some(DONE));
                    if exit.is_some() {
                        prop_assert!(ok && matches!(before, Ok(Phase::Starting { exited: Some(_) })), "told after start");
                        *told.entry(e).or_default() += 1;
                    }
                }
                Act::Exited(e) => {
                    let before = pod.phase(&which(e));
                    if pod.exited(&which(e), DONE) {
                        let untold_start = matches!(before, Ok(Phase::Starting { .. }));
                        prop_assert!(!untold_start);
                        *told.entry(e).or_default() += 1;
                    }
                }
                Act::AddExec => if pod.add_exec(&exec()).is_ok() { told.remove(&true); },
                Act::Pause => if pod.pause("c").is_ok() { pod.paused("c"); },
                Act::Resume => if pod.resume("c").is_ok() { pod.resumed("c"); },
                Act::Delete(e) => { let _ = pod.delete(&which(e)); }
                Act::Deleted(e) => if matches!(pod.phase(&which(e)), Ok(Phase::Deleting(_))) { pod.deleted(&which(e)); },
            }
            prop_assert!(told.values().all(|times| *times <= 1));
        }
    }
}
