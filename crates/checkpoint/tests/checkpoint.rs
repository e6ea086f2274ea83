//! A process with threads is written down while it waits, and two others go on where it was.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;

use kata_checkpoint::{CheckpointError, Image, Kind, Needs, Source, begin, capture, restore};
use kata_sys::process::give_fds;

const ROLE: &str = "KATA_CHECKPOINT_TEST";

/// What the process under test does: a thread counts lines, the first one reads them and prints what it is told.
fn count_lines() {
    let (to_thread, from_first) = mpsc::channel::<String>();
    let (to_first, from_thread) = mpsc::channel::<String>();
    let counter = std::thread::Builder::new().name("counter".into()).spawn(move || {
        let mut seen = Vec::new();
        while let Ok(line) = from_first.recv() {
            seen.push(line);
            let told = format!("{} {}", seen.len(), seen.join(" "));
            to_first.send(told).expect("the first one listens");
        }
    });
    for line in std::io::stdin().lock().lines() {
        to_thread.send(line.expect("a line")).expect("the thread listens");
        println!("\n> {}", from_thread.recv().expect("an answer"));
    }
    drop(to_thread);
    counter.expect("a thread").join().expect("it ended well");
}

fn program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([
            "--exact",
            "the_others_go_on_where_it_was",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, "count")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

struct Spoken {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Spoken {
    fn new(mut child: Child) -> Self {
        let to = child.stdin.take().expect("piped");
        let from = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, to, from }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").expect("it reads");
        loop {
            let mut told = String::new();
            assert_ne!(self.from.read_line(&mut told).expect("it writes"), 0, "it ended");
            // The test harness has a few words of its own.
            if let Some(answer) = told.strip_prefix("> ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    fn end(mut self) {
        drop(self.to);
        // Its output until the end, which nobody wants.
        let _ = std::io::copy(&mut self.from, &mut std::io::sink());
        assert!(self.child.wait().expect("waited").success());
    }
}

#[test]
fn the_others_go_on_where_it_was() {
    if std::env::var_os(ROLE).is_some() {
        return count_lines();
    }
    let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let path = place.path().join("image");
    let outside = File::open("/proc/self/status").expect("a file that it has not");

    let mut first = Spoken::new(program().spawn().expect("started"));
    assert_eq!(first.ask("one"), "1 one");
    assert_eq!(first.ask("two"), "2 one two");
    let image = capture(first.child.id(), &outside, &File::create(&path).expect("a file")).expect("written down");
    first.child.kill().expect("killed");
    first.child.wait().expect("waited");

    let file = File::open(&path).expect("the image");
    let (read, pages_at) = Image::read(&file).expect("an image");
    assert_eq!(read, image);
    // The first one, the harness's thread for the test, and the counter.
    assert!(
        read.threads.iter().any(|thread| thread.name == "counter"),
        "{:?}",
        read.threads
    );
    assert!(read.descriptors.iter().all(|it| !matches!(it.kind, Kind::Outside)));

    // A file that is another now: nothing is made, and the child can be waited for.
    let mut changed = read.clone();
    let own = std::env::current_exe().expect("this program");
    for area in &mut changed.areas {
        if let Source::File { path, mark, .. } = &mut area.source
            && *path == own
        {
            mark.changed += 1;
        }
    }
    let needs = Needs {
        pages: 100,
        outside: 101,
        outside_shared: false,
        outside_mergeable: true,
    };
    let start = || {
        let mut command = program();
        begin(&mut command);
        give_fds(&mut command, vec![(file.as_raw_fd(), 100), (outside.as_raw_fd(), 101)]);
        command.spawn().expect("started")
    };
    let mut child = start();
    let error = restore(child.id(), &changed, pages_at, needs).expect_err("changed");
    assert!(
        matches!(&error, CheckpointError::Changed { path } if *path == own),
        "{error}"
    );
    assert_eq!(child.wait().expect("waited").signal(), Some(9));
    // As late as can be: when all threads have begun.
    let mut other = read.clone();
    other.areas.retain(|area| !matches!(area.source, Source::Kernel { .. }));
    let mut child = start();
    restore(child.id(), &other, pages_at, needs).expect_err("it has no place to call the kernel from");
    assert_eq!(child.wait().expect("waited").signal(), Some(9));

    let make = || {
        let child = start();
        let restored = restore(child.id(), &read, pages_at, needs).expect("restored");
        assert_eq!(restored.threads.len(), read.threads.len());
        assert_eq!(restored.threads[0].1, child.id().cast_signed());
        Spoken::new(child)
    };
    let (mut second, mut third) = (make(), make());
    assert_eq!(second.ask("three"), "3 one two three");
    assert_eq!(third.ask("drei"), "3 one two drei");
    assert_eq!(second.ask("four"), "4 one two three four");
    assert_eq!(third.ask("vier"), "4 one two drei vier");
    second.end();
    third.end();
}
