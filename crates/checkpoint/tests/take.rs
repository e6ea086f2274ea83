//! A process gives memory back that it has no need of, and goes on.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
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

/// How many pages of a range of a process's memory are there. (Not what the process has in all: it goes on, and touches more.)
fn present(pid: u32, range: &Range<u64>) -> usize {
    const PRESENT: u64 = 1 << 63;
    let map = std::fs::File::open(format!("/proc/{pid}/pagemap")).expect("the process");
    let mut entries = vec![0; usize::try_from((range.end - range.start) / PAGE).expect("a count") * size_of::<u64>()];
    let at = range.start / PAGE * size_of::<u64>() as u64;
    map.read_exact_at(&mut entries, at).expect("its pages");
    let entries = entries.chunks_exact(size_of::<u64>());
    let entries = entries.map(|entry| u64::from_ne_bytes(entry.try_into().expect("eight bytes")));
    entries.filter(|entry| entry & PRESENT != 0).count()
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
    assert_eq!(present(pid, &half) as u64 * PAGE, SIZE as u64 / 2);
    take_back(pid, std::slice::from_ref(&half)).expect("taken");
    assert_eq!(present(pid, &half), 0);
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
