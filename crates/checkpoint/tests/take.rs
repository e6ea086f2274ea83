//! A process gives memory back that it has no need of, and goes on.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use kata_checkpoint::{CheckpointError, made_code, take_back};

const ROLE: &str = "KATA_CHECKPOINT_TEST";
const SIZE: usize = 8 << 20;
const PAGE: u64 = 4096;

/// What the process under test does: fills memory, tells where, and whenever it is asked how much is still filled.
fn keep() {
    let kept = vec![1_u8; SIZE];
    println!("\n> {}", kept.as_ptr() as usize);
    for _line in std::io::stdin().lock().lines() {
        println!("\n> {}", kept.iter().filter(|&&byte| byte == 1).count());
    }
}

/// Private memory of a process that was written to, KiB.
fn dirty_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process");
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .expect("a number")
}

#[test]
fn what_is_taken_back_is_zeros_and_no_memory() {
    if std::env::var_os(ROLE).is_some() {
        return keep();
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "what_is_taken_back_is_zeros_and_no_memory",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, "keep")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let pid = child.id();
    let mut to = child.stdin.take().expect("piped");
    let mut from = BufReader::new(child.stdout.take().expect("piped"));
    let mut hear = || loop {
        let mut line = String::new();
        assert_ne!(from.read_line(&mut line).expect("it writes"), 0, "it ended");
        if let Some(number) = line.strip_prefix("> ") {
            return number.trim_end().parse::<u64>().expect("a number");
        }
    };
    let at = hear();
    let begin = at.next_multiple_of(PAGE);
    let half = begin..begin + SIZE as u64 / 2;
    let before = dirty_kib(pid);
    take_back(pid, std::slice::from_ref(&half)).expect("taken");
    let after = dirty_kib(pid);
    assert!(after + (SIZE >> 10) as u64 / 2 <= before, "{before} KiB, then {after}");
    for _again in 0..2 {
        writeln!(to, "how much?").expect("it reads");
        assert_eq!(hear(), SIZE as u64 / 2);
    }

    // A program that makes no code; a range that is none; a process that has ended.
    assert_eq!(made_code(pid).expect("its areas"), []);
    let error = take_back(pid, std::slice::from_ref(&(1..2))).expect_err("not at a page");
    assert!(error.to_string().contains("give memory back (0x1, 0x1)"), "{error}");
    writeln!(to, "and now?").expect("it reads");
    assert_eq!(hear(), SIZE as u64 / 2);
    child.kill().expect("killed");
    child.wait().expect("waited");
    let error = take_back(pid, std::slice::from_ref(&half)).expect_err("it has ended");
    assert!(matches!(error, CheckpointError::Kernel { .. }), "{error}");
}
