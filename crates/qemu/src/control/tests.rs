use std::sync::PoisonError;

use kata_testkit::qmp::{self, Act};
use proptest::prelude::*;

use super::*;
use crate::news::{EVENTS_KEPT, News};

const LIMIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

/// Opens a conversation with a fake that agrees on capabilities and then does as `acts` says.
async fn with_fake(acts: impl Fn(&str) -> Vec<Act> + Send + 'static) -> (Control, LastWords) {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    tokio::spawn(qmp::serve(theirs, qmp::greeting(), move |command| match command {
        "qmp_capabilities" => vec![Act::Return(json!({}))],
        command => acts(command),
    }));
    let last_words = LastWords::default();
    let control = Control::open(ours, last_words.clone(), LIMIT).await.expect("greeted");
    (control, last_words)
}

/// Opens a conversation with one who says only this, and then closes or stays silent.
async fn with_greeting(said: &[u8], close: bool) -> Result<Control, ControlError> {
    let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
    theirs.write_all(said).await.expect("write");
    let _open = (!close).then_some(theirs);
    Control::open(ours, LastWords::default(), SHORT).await
}

#[tokio::test]
async fn commands_are_answered_among_events() {
    let event = Act::Event("STOP".into(), json!({}));
    let (control, _) =
        with_fake(move |_| vec![event.clone(), Act::Return(json!({ "running": false })), event.clone()]).await;
    let answer = control.execute("query-status", LIMIT).await;
    assert_eq!(answer, Ok(json!({ "running": false })));
    assert_eq!(control.execute("query-status", LIMIT).await, answer);
}

#[tokio::test]
async fn a_refusal_keeps_the_words() {
    let (control, _) = with_fake(|_| vec![Act::Refuse("not now".into())]).await;
    let error = control.execute("cont", LIMIT).await.expect_err("refused");
    assert_eq!(
        error,
        ControlError::Refused {
            reason: "not now".into()
        }
    );
}

#[tokio::test]
async fn a_late_answer_does_not_answer_the_next_command() {
    let (control, _) = with_fake(|command| match command {
        "stop" => vec![],
        _ => vec![
            Act::Write(b"{\"return\": \"late\", \"id\": 2}\n".to_vec()),
            Act::Return(json!("mine")),
        ],
    })
    .await;
    assert_eq!(
        control.execute("stop", SHORT).await,
        Err(ControlError::Silent { limit: SHORT })
    );
    assert_eq!(control.execute("cont", LIMIT).await, Ok(json!("mine")));
}

#[tokio::test]
async fn closing_ends_this_and_all_later_commands() {
    let (control, _) = with_fake(|_| vec![Act::Close]).await;
    assert_eq!(control.execute("quit", LIMIT).await, Err(ControlError::Closed));
    assert_eq!(control.execute("quit", LIMIT).await, Err(ControlError::Closed));
}

#[tokio::test]
async fn the_reason_of_the_end_is_remembered() {
    let shutdown = Act::Event("SHUTDOWN".into(), json!({ "guest": true, "reason": "guest-shutdown" }));
    let (control, last_words) = with_fake(move |_| vec![shutdown.clone(), Act::Return(json!({}))]).await;
    control.execute("query-status", LIMIT).await.expect("answer");
    let words = last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(words.as_deref(), Some("the guest powered itself off"));
}

#[tokio::test]
async fn garbage_ends_the_conversation() {
    for said in [
        &b"\x7fELF\x00\xff\n"[..],
        b"[]\n",
        b"{}\n",
        b"{\"return\": {}, \"id\": -1}\n",
        b"{\"event\": 3}\n",
    ] {
        let said = said.to_vec();
        let (control, _) = with_fake(move |_| vec![Act::Write(said.clone())]).await;
        let error = control.execute("stop", LIMIT).await.expect_err("garbage");
        assert!(
            matches!(error, ControlError::Garbage { .. } | ControlError::Closed),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_line_without_end_is_bounded() {
    let (control, _) = with_fake(|_| vec![Act::Write(vec![b'x'; LINE_LIMIT + 4096])]).await;
    let error = control.execute("stop", LIMIT).await.expect_err("too long");
    assert!(error.to_string().contains("1048576 bytes"), "{error}");
}

#[tokio::test]
async fn greetings_are_bounded_and_checked() {
    let silent = with_greeting(b"", false).await.expect_err("silent");
    assert_eq!(silent, ControlError::Silent { limit: SHORT });
    let half = with_greeting(&qmp::greeting()[..9], false).await.expect_err("half");
    assert_eq!(half, ControlError::Silent { limit: SHORT });
    let closed = with_greeting(b"", true).await.expect_err("closed");
    assert_eq!(closed, ControlError::Closed);
    let http = with_greeting(b"HTTP/1.1 200 OK\r\n", false).await.expect_err("not QMP");
    assert!(http.to_string().contains("HTTP/1.1 200 OK"), "{http}");
}

proptest! {
    #[test]
    fn any_line_is_read_without_panic(line: Vec<u8>) {
        let _ = parse(&line);
    }

    #[test]
    fn almost_json_is_read_without_panic(key in "(QMP|id|return|error|event|data)", value in "[0-9nul{}\"\\[\\]:,-]{0,12}") {
        let _ = parse(format!("{{\"{key}\": {value}}}").as_bytes());
    }
}

#[tokio::test]
async fn events_are_heard_by_who_listened_before() {
    let event = |name: &str, data: Value| Act::Event(name.into(), data);
    let (control, _) = with_fake(move |_| {
        vec![
            event("VSERPORT_CHANGE", json!({ "open": false, "id": "p" })),
            event("MIGRATION", json!({ "status": "active" })),
            event("VSERPORT_CHANGE", json!({ "open": true, "id": "p" })),
            event("MIGRATION", json!({ "status": "completed" })),
            Act::Return(json!({})),
        ]
    })
    .await;
    let mut first = control.listen();
    control.execute("cont", LIMIT).await.expect("answered");
    let mut heard = Vec::new();
    let all = first.hear(
        |news| {
            heard.push(news);
            (heard.len() == 3).then_some(())
        },
        LIMIT,
    );
    all.await.expect("all of them");
    let migration = |status: &str| News::Migration(status.into());
    assert_eq!(
        heard,
        [
            migration("active"),
            News::PortOpened("p".into()),
            migration("completed")
        ]
    );
    let silent = control.listen().hear(|_| Some(()), SHORT).await;
    assert_eq!(silent, Err(ControlError::Silent { limit: SHORT }));
}

#[tokio::test]
async fn of_too_many_events_the_last_are_heard() {
    let (control, _) = with_fake(|_| {
        let active = |number: usize| Act::Event("MIGRATION".into(), json!({ "status": number.to_string() }));
        (0..5 * EVENTS_KEPT)
            .map(active)
            .chain([Act::Return(json!({}))])
            .collect()
    })
    .await;
    let mut listening = control.listen();
    control.execute("migrate", LIMIT).await.expect("answered");
    let last = (5 * EVENTS_KEPT - 1).to_string();
    let heard = listening.hear(|news| (news == News::Migration(last.clone())).then_some(()), LIMIT);
    heard.await.expect("the last one");
}
