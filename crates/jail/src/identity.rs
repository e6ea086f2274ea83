//! Who a process is and what it may do, set in the order in which the kernel still permits it; then its execution.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};
use oci_spec::runtime::{LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};

use crate::capabilities::Sets;
use crate::fault::{Fault, Naming};
use crate::{lookup, passwd, stdio};

/// A system call filter as it came: instructions of 8 bytes, and `SECCOMP_FILTER_FLAG_*` bits. No bytes, no filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Array of `struct sock_filter`, little endian.
    pub instructions: Vec<u8>,
    /// Flags of `seccomp(2)`.
    pub flags: u64,
}

impl Filter {
    fn install(&self) -> Result<(), Fault> {
        if self.instructions.is_empty() {
            return Ok(());
        }
        kata_sys::seccomp::install(&self.instructions, self.flags).when("install the seccomp filter")
    }
}

/// What a process falls back to where its own description is silent: that of the container's init.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// Of the spec's `process.capabilities`.
    pub capabilities: Option<LinuxCapabilities>,
    /// Of the spec's `process.rlimits`.
    pub rlimits: Option<Vec<PosixRlimit>>,
    /// Of the container; every process of it gets it.
    pub filter: Filter,
}

/// A process that is everything it is to be, except executed.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    late_filter: Option<&'a Filter>,
}

/// Sets limits and the score for the out-of-memory killer, which need the guest's `/proc`.
pub(crate) fn limit(process: &Process, defaults: &Defaults) -> Result<(), Fault> {
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).on("write", "/proc/self/oom_score_adj")?;
    }
    for rlimit in process
        .rlimits()
        .as_ref()
        .or(defaults.rlimits.as_ref())
        .into_iter()
        .flatten()
    {
        setrlimit(resource(rlimit.typ()), rlimit.soft(), rlimit.hard()).map_err(|errno| Fault::Value {
            what: "process.rlimits",
            value: format!("{} {}:{}: {}", rlimit.typ(), rlimit.soft(), rlimit.hard(), errno.desc()),
            expected: "was refused",
        })?;
    }
    Ok(())
}

/// Becomes the process's user, in the container's root, with its capabilities.
pub(crate) fn assume<'a>(process: &'a Process, defaults: &'a Defaults) -> Result<Prepared<'a>, Fault> {
    let user = process.user();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    let capabilities = Sets::read(process.capabilities().as_ref().or(defaults.capabilities.as_ref()))?;
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();

    stdio::give_to(uid);
    if !no_new_privileges {
        // Without no_new_privs only CAP_SYS_ADMIN may install a filter, so before it is gone.
        defaults.filter.install()?;
    }
    // As root first, then as the user: each may be the only one who may enter.
    let entered = chdir(process.cwd());
    capabilities.lower_bounding()?;
    prctl::set_keepcaps(true).when("keep capabilities")?;
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    match setgroups(&groups) {
        // A user namespace may forbid it; there is nothing to lose then if nothing was asked for.
        Err(nix::errno::Errno::EPERM) if groups.is_empty() => {}
        other => other.when("set additional groups")?,
    }
    setresgid(gid, gid, gid).when("set the group")?;
    setresuid(uid, uid, uid).when("set the user")?;
    prctl::set_keepcaps(false).when("keep capabilities")?;
    if entered.is_err() {
        chdir(process.cwd()).on("chdir to cwd", process.cwd())?;
    }
    check_cwd()?;
    capabilities.apply()?;
    if no_new_privileges {
        prctl::set_no_new_privs().when("set no_new_privs")?;
    }
    umask(Mode::from_bits_truncate(user.umask().unwrap_or(0o022)));

    let mut environment = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", passwd::home(&passwd, user.uid())));
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    let arguments = process.args().clone().unwrap_or_default();
    let name = arguments.first().map(String::as_str).unwrap_or_default();
    let program = lookup::find(name, path)?;
    Ok(Prepared {
        program: text("process.args", &program.to_string_lossy())?,
        arguments: arguments
            .iter()
            .map(|argument| text("process.args", argument))
            .collect::<Result<_, _>>()?,
        environment: environment
            .iter()
            .map(|variable| text("process.env", variable))
            .collect::<Result<_, _>>()?,
        late_filter: no_new_privileges.then_some(&defaults.filter),
    })
}

impl Prepared<'_> {
    /// Executes the program; comes back only with an error.
    pub(crate) fn execute(self) -> Fault {
        if let Some(filter) = self.late_filter
            && let Err(fault) = filter.install()
        {
            return fault;
        }
        let Err(errno) = nix::unistd::execve(&self.program, &self.arguments, &self.environment);
        Fault::Path {
            act: "exec",
            path: self.program.to_string_lossy().into_owned().into(),
            source: errno.into(),
        }
    }
}

/// A working directory outside the root would be a way out of it.
fn check_cwd() -> Result<(), Fault> {
    let cwd = nix::unistd::getcwd().when("find the working directory")?;
    if cwd.is_absolute() {
        return Ok(());
    }
    Err(Fault::Value {
        what: "process.cwd",
        value: cwd.display().to_string(),
        expected: "is outside the container",
    })
}

fn text(what: &'static str, value: &str) -> Result<CString, Fault> {
    CString::new(value).map_err(|_| Fault::Value {
        what,
        value: value.to_owned(),
        expected: "has a zero byte in it",
    })
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// Makes the working directory of one more process, as far as that is possible; entering it says what is wrong.
pub(crate) fn make_cwd(cwd: &Path) {
    let _ = fs::DirBuilder::new().recursive(true).mode(0o755).create(cwd);
}
