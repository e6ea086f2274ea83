//! Terminals: a pseudo-terminal for a command to run on, and the socket on which a runtime hands over a container's.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::lab::Lab;

/// How long a terminal may take to say what is expected.
const LIMIT: Duration = Duration::from_secs(30);

/// The controlling end of a terminal. Everything that comes out of it is kept.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    seen: String,
    output: Receiver<Vec<u8>>,
}

impl Terminal {
    /// A new pseudo-terminal: its controlling end, and the end for a command.
    pub fn pair() -> (Self, File) {
        let pair = nix::pty::openpty(None, None).expect("openpty");
        (Self::of(File::from(pair.master)), File::from(pair.slave))
    }

    fn of(master: File) -> Self {
        let (sender, output) = channel();
        let mut reader = master.try_clone().expect("dup");
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut block) {
                if sender.send(block[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            master,
            seen: String::new(),
            output,
        }
    }

    /// Has the shell on the terminal wait until it sees this size.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn expect_size(&mut self, rows: u16, columns: u16) {
        let wanted = format!("{rows} {columns}");
        self.type_in(&format!(
            "until [ \"$(stty size)\" = '{wanted}' ]; do sleep 0.1; done; echo si''zed {wanted}\n"
        ));
        self.expect(&format!("sized {wanted}"));
    }

    /// Has the shell on the terminal run a program that does not end, and ends that with Ctrl-C.
    ///
    /// # Panics
    /// When the shell does not see it end by SIGINT in time.
    #[track_caller]
    pub fn interrupt_a_program(&mut self) {
        // The program says itself that it runs: before, Ctrl-C would be meant for the shell.
        self.type_in("sh -c \"echo g''o; exec sleep 1000\"\n");
        self.expect("go");
        self.type_in("\x03");
        self.type_in("echo co''de=$?\n");
        self.expect("code=130");
    }

    /// Types text.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write to the terminal");
    }

    /// Sets the window's size.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        let status = stty
            .stdin(Stdio::from(self.master.try_clone().expect("dup")))
            .status()
            .expect("stty");
        assert!(status.success(), "stty: {status}");
    }

    /// Waits until `text` has come since the last call, and takes everything up to its end.
    ///
    /// # Panics
    /// When it does not come in time, with what came.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(block) => self.seen.push_str(&String::from_utf8_lossy(&block)),
                Err(error) => panic!("no {text:?} on the terminal ({error}); it showed {:?}", self.seen),
            }
        }
    }
}

/// A socket for `--console-socket`.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in the lab.
    pub fn listen(lab: &Lab, name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/{name}.sock"));
        let listener = UnixListener::bind(lab.outside(&path)).expect("bind the console socket");
        Self { listener, path }
    }

    /// The path, as the lab sees it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the runtime and takes the terminal that it sends.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    pub fn receive(&self) -> Terminal {
        readable(&self.listener, "a connection to the console socket");
        let (stream, _) = self.listener.accept().expect("accept");
        readable(&stream, "a message on the console socket");
        let mut name = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
        let message = message.expect("recvmsg");
        let fds = message
            .cmsgs()
            .expect("control messages")
            .find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
        let fd = fds.expect("the runtime sent a message without a descriptor");
        Terminal::of(File::from(
            kata_sys::process::take_fd(fd).expect("a descriptor that was just received"),
        ))
    }
}

#[track_caller]
fn readable(fd: &impl std::os::fd::AsFd, what: &str) {
    let limit = PollTimeout::try_from(LIMIT).expect("fits");
    let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit).expect("poll");
    assert!(ready > 0, "waited {LIMIT:?} in vain for {what}");
}
