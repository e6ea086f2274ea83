//! Hooks of the OCI spec that run on the host: at which moment, with which state, and what becomes of one that fails.

use std::path::Path;

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::{Kind, Runtime};
use serde_json::{Value, json};

against_both!(
    hooks_are_run_in_their_order_with_the_state,
    a_hook_that_fails_fails_the_create,
);

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

fn runtime(kind: Kind) -> Runtime<'static> {
    Runtime::new(kind, lab())
}

fn name(kind: Kind, what: &str) -> String {
    format!("hooks-{kind:?}-{what}").to_lowercase()
}

fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]})
}

/// A hook that writes a line: its moment, the status in the state, and whether the pid in it is a process.
fn trace(moment: &str, file: &Path) -> Value {
    let file = file.display();
    script(&format!(
        r#"state=$(cat)
        field() {{ echo "$state" | tr , '\n' | sed -n "s/.*\"$1\": *\"\?\([a-z0-9]*\).*/\1/p" | head -n 1; }}
        pid=$(field pid); lives=no; test "${{pid:-0}}" -gt 0 && test -d /proc/$pid && lives=yes
        echo {moment} $(field status) $lives >>{file}"#
    ))
}

fn hooked(id: &str, command: &str, hooks: impl FnOnce(&Path) -> Value) -> (Bundle, std::path::PathBuf) {
    let bundle = Bundle::script(lab(), id, command);
    let file = bundle.dir().join("trace");
    let hooks = hooks(&file);
    (bundle.edit(|spec| spec["hooks"] = hooks), file)
}

fn hooks_are_run_in_their_order_with_the_state(kind: Kind) {
    let id = name(kind, "order");
    let (bundle, file) = hooked(&id, "echo ran", |file| {
        let moments = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
        let hooks = moments.map(|moment| (moment.to_owned(), json!([trace(moment, file)])));
        Value::Object(hooks.into_iter().collect())
    });
    runtime(kind).run(&bundle, &id).run().ok().stdout("ran\n");
    let told = std::fs::read_to_string(file).expect("a trace");
    // runc is early by one step: it runs them at the end of its create.
    let after_start = if kind == Kind::Runc { "created" } else { "running" };
    let expected = format!(
        "prestart creating yes\ncreateRuntime creating yes\ncreateContainer creating yes\npoststart {after_start} \
         yes\npoststop stopped no\n"
    );
    assert_eq!(told, expected);
}

fn a_hook_that_fails_fails_the_create(kind: Kind) {
    let id = name(kind, "fails");
    let (bundle, file) = hooked(&id, "true", |file| {
        json!({
            "createRuntime": [script("echo this is why >&2; exit 3")],
            "poststop": [trace("poststop", file)],
        })
    });
    runtime(kind).create(&bundle, &id).failed();
    let said = std::fs::read_to_string(bundle.dir().join("stderr")).expect("stderr");
    assert!(said.contains("this is why") && said.contains("exit status"), "{said}");
    runtime(kind).verb("state").arg(&id).run().failed();
    runtime(kind).delete_force(&id);
    let told = std::fs::read_to_string(file).expect("the last hooks are run");
    assert_eq!(told, "poststop stopped no\n");
}

#[test]
fn the_last_hooks_of_a_sandbox_that_was_killed_are_run_by_delete() {
    let id = "hooks-killed";
    let (bundle, file) = hooked(id, "sleep 1000", |file| json!({"poststop": [trace("poststop", file)]}));
    runtime(Kind::Kata).begin(&bundle, id);
    pids::kill_part(lab(), id, Part::Shim);
    assert!(!file.exists());
    runtime(Kind::Kata).delete_force(id).ok();
    let told = std::fs::read_to_string(file).expect("the last hooks are run");
    assert_eq!(told, "poststop stopped no\n");
}
