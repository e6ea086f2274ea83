//! One more process in a running container, from its birth to its execution. Runs in the child.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sched::setns;
use nix::unistd::setsid;
use oci_spec::runtime::Process;

use crate::fault::{Fault, Naming};
use crate::identity::{self, Defaults};
use crate::init::become_root;
use crate::link::ChildLink;
use crate::namespaces::Namespaces;
use crate::stdio::Stdio;

/// What the child has to know.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) process: &'a Process,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) stdio: &'a Stdio,
    pub(crate) defaults: &'a Defaults,
    pub(crate) link: &'a ChildLink,
}

impl Exec<'_> {
    /// Everything, in order. Comes back only if it failed; the link has been told then.
    pub(crate) fn run(&self) -> i32 {
        if let Err(fault) = self.live() {
            self.link.failed(&fault.to_string());
        }
        1
    }

    fn live(&self) -> Result<(), Fault> {
        let mut keep = self.stdio.numbers();
        keep.extend([self.link.number(), self.init.as_raw_fd()]);
        kata_sys::child::close_all_but(&keep).when("close the agent's files")?;
        self.stdio.take()?;
        identity::limit(self.process, self.defaults)?;
        setns(self.init, self.namespaces.all()).when("join the container's namespaces")?;
        if self.namespaces.has(libc::CLONE_NEWUSER as u64) {
            become_root()?;
        }
        setsid().when("begin a session")?;
        self.stdio.open_terminal(self.link)?;
        identity::make_cwd(self.process.cwd());
        let prepared = identity::assume(self.process, self.defaults)?;
        Err(prepared.execute())
    }
}
