use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

/// A kernel of files, and room for a throttler.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Self(dir);
        fs::create_dir(&host.places().kernel).expect("directory");
        fs::write(&host.places().memory, "AnonPages: 40000 kB\n").expect("meminfo");
        host.set([("run", "0\n"), ("pages_to_scan", "100\n"), ("sleep_millisecs", "20\n")]);
        host
    }

    fn places(&self) -> Places {
        let at = |name: &str| self.0.path().join(name);
        Places {
            kernel: at("ksm"),
            memory: at("meminfo"),
            own: at("run/throttler"),
        }
    }

    fn set(&self, settings: [(&str, &str); 3]) {
        for (name, value) in settings {
            fs::write(self.places().kernel.join(name), value).expect("setting");
        }
    }

    /// Run, pages to scan, milliseconds of sleep.
    fn settings(&self) -> [u32; 3] {
        ["run", "pages_to_scan", "sleep_millisecs"].map(|name| {
            let text = fs::read_to_string(self.places().kernel.join(name)).expect("setting");
            text.trim().parse().unwrap_or(u32::MAX)
        })
    }

    async fn expect(&self, settings: [u32; 3]) {
        for _ in 0..500 {
            if self.settings() == settings {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.settings(), settings);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(test);
}

#[test]
fn a_kick_raises_the_pace_and_the_end_restores_it() {
    run(async {
        let host = Host::new();
        let socket = host.places().own.join(SOCKET);
        assert!(kick_at(&socket).is_err(), "nobody is there");
        let throttler = Throttler::open(&host.places()).expect("opened");
        assert_eq!(host.settings(), [0, 100, 20], "nothing has happened yet");
        let taken = Throttler::open(&host.places()).expect_err("a second one").to_string();
        assert!(taken.starts_with("another throttler runs"), "{taken}");
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(throttler.run(async { drop(stopped.await) }));
        // More than the socket has room for.
        for _ in 0..5000 {
            kick_at(&socket).expect("heard, or as good as");
        }
        host.expect([1, 1000, 1]).await;
        drop(stop);
        running.await.expect("no panic").expect("ended");
        assert_eq!(host.settings(), [0, 100, 20]);
        assert!(!host.places().own.exists(), "nothing is left");
    });
}

#[test]
fn who_was_killed_leaves_what_is_to_be_restored() {
    run(async {
        let host = Host::new();
        drop(Throttler::open(&host.places()).expect("opened"));
        host.set([("run", "1"), ("pages_to_scan", "9999"), ("sleep_millisecs", "1")]);
        let next = Throttler::open(&host.places()).expect("the lock has ended with its holder");
        assert_eq!(host.settings(), [0, 100, 20]);
        next.run(async {}).await.expect("ended");

        // One that was killed before it had changed anything.
        fs::create_dir_all(host.places().own).expect("directory");
        fs::write(host.places().own.join(BEFORE), "{\"run\":").expect("half a file");
        host.set([("run", "1"), ("pages_to_scan", "7"), ("sleep_millisecs", "8")]);
        let next = Throttler::open(&host.places()).expect("opened");
        next.run(async {}).await.expect("ended");
        assert_eq!(host.settings(), [1, 7, 8]);
    });
}

#[test]
fn a_kernel_that_refuses_is_told_at_once() {
    run(async {
        let host = Host::new();
        fs::remove_file(host.places().kernel.join("sleep_millisecs")).expect("remove");
        fs::create_dir(host.places().kernel.join("sleep_millisecs")).expect("in its place");
        let error = Throttler::open(&host.places()).expect_err("it is no file").to_string();
        assert!(
            error.starts_with("cannot read ") && error.ends_with("sleep_millisecs"),
            "{error}"
        );
        assert!(!host.places().own.exists(), "nothing is left");
        fs::remove_dir_all(host.places().kernel).expect("remove");
        assert!(matches!(Throttler::open(&host.places()), Err(KsmError::Unknown { .. })));
    });
}
