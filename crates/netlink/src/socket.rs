//! The way to the kernel: one request, its answer, and nothing else in between.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, socket,
};

use crate::message::{Reply, Request, replies, u32_at};

/// As much as the kernel puts into one answer, bytes.
const ANSWER_LIMIT: usize = 32 << 10;

/// How often a list is read again that changed while it was read.
const TRIES: u32 = 5;

/// `NLM_F_DUMP_INTR` (linux/netlink.h): the list changed while it was told.
const INTERRUPTED: u16 = 0x10;

/// Why something of the network was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no way to the kernel's network.
    #[error("cannot open a netlink socket")]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A namespace that cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {act}")]
    Refused {
        /// What was tried, with names and numbers.
        act: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } | Self::Open { source } | Self::Namespace { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
        }
    }
}

/// A socket to the rtnetlink of one network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

impl Socket {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> nix::Result<OwnedFd> {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| NetlinkError::Open { source: errno.into() })?;
        Ok(Self {
            fd,
            sequence: Cell::new(0),
            buffer: RefCell::new(vec![0; ANSWER_LIMIT]),
        })
    }

    /// A socket in the namespace that the file at `path` stands for. The calling thread is there for a moment.
    ///
    /// # Errors
    /// [`NetlinkError::Namespace`], [`NetlinkError::Open`]
    pub fn open_in(path: &Path) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Namespace {
            path: path.to_owned(),
            source,
        };
        let there = File::open(path).map_err(failed)?;
        let back = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        setns(&there, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        let opened = Self::open();
        setns(&back, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        opened
    }

    /// Has the kernel do something, described by `act` for the error.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn change(&self, request: Request, act: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        self.exchange(request, libc::NLM_F_ACK, &mut |_| ())
            .map_err(|source| NetlinkError::Refused { act: act(), source })
    }

    /// Reads a list, one row out of each message of type `kind` that `read` makes one of.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`], naming `what`.
    pub(crate) fn list<T>(
        &self,
        what: &str,
        request: &Request,
        kind: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..TRIES {
            let mut rows = Vec::new();
            let mut changed = false;
            self.exchange(request.clone(), libc::NLM_F_DUMP, &mut |reply| {
                changed |= reply.flags & INTERRUPTED != 0;
                if reply.kind == kind {
                    rows.extend(read(reply.body));
                }
            })
            .map_err(|source| refused(what, source))?;
            if !changed {
                return Ok(rows);
            }
        }
        Err(refused(
            what,
            io::Error::new(io::ErrorKind::Interrupted, "it changes all the time"),
        ))
    }

    fn exchange(&self, request: Request, flags: i32, each: &mut dyn FnMut(Reply<'_>)) -> io::Result<()> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let bytes = request.finish(flags, sequence);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
        let mut buffer = self.buffer.borrow_mut();
        loop {
            let (length, from) = match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            // Any process may send to the socket; only the kernel is believed.
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            for reply in replies(&buffer[..length]).filter(|reply| reply.sequence == sequence) {
                match i32::from(reply.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(reply.body),
                    _ => each(reply),
                }
            }
        }
    }
}

fn refused(what: &str, source: io::Error) -> NetlinkError {
    NetlinkError::Refused {
        act: format!("read the {what}"),
        source,
    }
}

/// An error message begins with the negated error number; 0 is success.
fn outcome(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
