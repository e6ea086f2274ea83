//! Reaping takes any child of the process, so these are the only ones here.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use kata_sys::child;

#[test]
fn every_end_is_told_that_of_a_nameless_signal_too() {
    assert_eq!(child::reap().expect("nobody to wait for"), None);
    let (mut children, mut expected) = (Vec::new(), BTreeMap::new());
    for (script, code) in [("exit 3", 3), ("kill -KILL $$", 137), ("kill -34 $$", 162)] {
        let child = Command::new("sh").args(["-c", script]).spawn().expect("sh");
        expected.insert(child.id(), code);
        children.push(child);
    }
    let mut ended = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(20);
    while ended.len() < expected.len() && Instant::now() < end {
        match child::reap().expect("children") {
            Some(child) => drop(ended.insert(child.pid, child.code)),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    assert_eq!(ended, expected);
    for mut child in children {
        child.wait().expect_err("it was waited for");
    }
}
