//! Compiles the seccomp section of a specification to the program that the guest's kernel runs.
//!
//! Done on the host, so that the guest needs no compiler. Refuses what needs a listener outside of the container.

use std::fs::File;
use std::io::{Read, Seek};

use kata_bundle::oci::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::PlanError;

/// Size of a `struct sock_filter`.
pub(crate) const INSTRUCTION_BYTES: usize = 8;

/// The kernel takes no longer program.
const INSTRUCTION_LIMIT: usize = 4096;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The kernel takes no larger error number in an action.
const ERRNO_LIMIT: u32 = 4095;

/// From this number on all architectures number their system calls alike; what is older is known to every profile.
const FIRST_RECENT_SYSCALL: i32 = 424;

const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// A compiled filter; the default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `struct sock_filter`s.
    pub instructions: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u64,
}

/// # Errors
/// [`PlanError::Seccomp`], [`PlanError::Unsupported`]
pub(crate) fn compile(wanted: &LinuxSeccomp) -> Result<Filter, PlanError> {
    if wanted.listener_path().is_some() {
        return Err(PlanError::Unsupported {
            what: "linux.seccomp.listenerPath".into(),
        });
    }
    let default = action(wanted.default_action(), wanted.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed("start a filter"))?;
    // A tree instead of a list: under TCG the kernel's walk through the program at its installation is felt.
    context.set_ctl_optimize(2).map_err(failed("choose a search tree"))?;
    for arch in wanted
        .architectures()
        .iter()
        .flatten()
        .filter_map(|arch| foreign_arch(*arch))
    {
        context.add_arch(arch).map_err(failed("add an architecture"))?;
    }
    for syscall in wanted.syscalls().iter().flatten() {
        add_rules(&mut context, syscall, default)?;
    }
    let mut instructions = Vec::new();
    if denies(default)
        && let Some(newest) = newest_known(wanted)
    {
        instructions = answer_enosys_above(newest);
    }
    instructions.extend(export(&context)?);
    let count = instructions.len() / INSTRUCTION_BYTES;
    if count > INSTRUCTION_LIMIT {
        return Err(wrong(format!(
            "the filter has {count} instructions, the kernel takes {INSTRUCTION_LIMIT}"
        )));
    }
    Ok(Filter {
        instructions,
        flags: flags(wanted),
    })
}

/// Architectures that the guest's kernel may execute beside its own. All others of a list have no effect.
fn foreign_arch(arch: Arch) -> Option<ScmpArch> {
    if cfg!(target_arch = "x86_64") {
        match arch {
            Arch::ScmpArchX86 => Some(ScmpArch::X86),
            Arch::ScmpArchX32 => Some(ScmpArch::X32),
            _ => None,
        }
    } else if cfg!(target_arch = "aarch64") {
        (arch == Arch::ScmpArchArm).then_some(ScmpArch::Arm)
    } else {
        None
    }
}

fn add_rules(context: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<(), PlanError> {
    let action = action(rule.action(), rule.errno_ret())?;
    let conditions = conditions(rule)?;
    if action == default {
        return Ok(());
    }
    // Names that the library does not know are of other architectures or newer: nobody can call them by name.
    for syscall in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
        let added = match conditions.as_slice() {
            [] => context.add_rule(action, syscall).map(drop),
            _ if one_index_twice(rule) => conditions
                .iter()
                .try_for_each(|condition| context.add_rule_conditional(action, syscall, &[*condition]).map(drop)),
            all => context.add_rule_conditional(action, syscall, all).map(drop),
        };
        added.map_err(failed("add a rule"))?;
    }
    Ok(())
}

/// Conditions on different arguments must all hold; several on one argument are alternatives, as in other runtimes.
fn one_index_twice(rule: &LinuxSyscall) -> bool {
    let indexes: Vec<_> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    (1..indexes.len()).any(|position| indexes[..position].contains(&indexes[position]))
}

fn conditions(rule: &LinuxSyscall) -> Result<Vec<ScmpArgCompare>, PlanError> {
    let arguments = rule.args().iter().flatten();
    arguments
        .map(|argument| match u32::try_from(argument.index()) {
            Ok(index @ 0..=5) => Ok(compare(index, argument)),
            _ => Err(wrong(format!(
                "a rule for {} asks for argument {}",
                rule.names().join(", "),
                argument.index()
            ))),
        })
        .collect()
}

fn compare(index: u32, argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let value = argument.value();
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(value),
            argument.value_two().unwrap_or_default(),
        ),
    };
    ScmpArgCompare::new(index, operator, datum)
}

fn action(wanted: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, PlanError> {
    let errno = errno.unwrap_or(EPERM);
    if errno > ERRNO_LIMIT {
        return Err(wrong(format!("{errno} is no error number")));
    }
    Ok(match wanted {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.cast_signed()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX)),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(PlanError::Unsupported {
                what: "the seccomp action SCMP_ACT_NOTIFY".into(),
            });
        }
    })
}

/// Whether a call that the profile does not name fails in another way than one that does not exist.
fn denies(action: ScmpAction) -> bool {
    use ScmpAction::{Errno, KillProcess, KillThread, Trap};
    matches!(action, Errno(_) | KillProcess | KillThread | Trap) && action != Errno(ENOSYS.cast_signed())
}

/// The highest number that the profile's author can have thought of.
fn newest_known(wanted: &LinuxSeccomp) -> Option<u32> {
    let names = wanted.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    let numbers = names
        .filter_map(|name| ScmpSyscall::from_name(name).ok())
        .map(i32::from);
    u32::try_from(numbers.max()?.max(FIRST_RECENT_SYSCALL)).ok()
}

/// The beginning of a program: system calls that are newer than the profile do not exist. Programs then fall back to older
/// ones, which they do not do if they are forbidden.
fn answer_enosys_above(newest: u32) -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_GREATER: u16 = 0x25;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const RETURN_ERRNO: u32 = 0x0005_0000;
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    // x32's calls have this bit and numbers of their own.
    const X32: u32 = 0x4000_0000;
    let Some(native) = audit_arch() else {
        return Vec::new();
    };
    [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, 4, native),
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_AT_LEAST, 2, 0, X32),
        (JUMP_IF_GREATER, 0, 1, newest),
        (RETURN, 0, 0, RETURN_ERRNO | ENOSYS),
    ]
    .into_iter()
    .flat_map(|(code, if_true, if_false, operand)| instruction(code, if_true, if_false, operand))
    .collect()
}

fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> [u8; INSTRUCTION_BYTES] {
    let [code_0, code_1] = code.to_ne_bytes();
    let [k_0, k_1, k_2, k_3] = operand.to_ne_bytes();
    [code_0, code_1, if_true, if_false, k_0, k_1, k_2, k_3]
}

/// The kernel's name (`AUDIT_ARCH_*`) of the architecture that host and guest share.
fn audit_arch() -> Option<u32> {
    if cfg!(target_arch = "x86_64") {
        Some(0xc000_003e)
    } else if cfg!(target_arch = "aarch64") {
        Some(0xc000_00b7)
    } else {
        None
    }
}

fn flags(wanted: &LinuxSeccomp) -> u64 {
    match wanted.flags() {
        // As runc: the filter alone is no reason to slow down every process of the container.
        None => FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().fold(0, |bits, flag| {
            bits | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                // The agent installs it in a process of one thread, and there is no listener.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
        }),
    }
}

/// The library (before 2.6) writes its program only into a file: one in memory.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, PlanError> {
    let no_file = |error: std::io::Error| wrong(format!("cannot take the filter over: {error}"));
    let memory = memfd_create("seccomp", MFdFlags::MFD_CLOEXEC).map_err(|error| no_file(error.into()))?;
    let mut file = File::from(memory);
    context.export_bpf(&file).map_err(failed("write the filter"))?;
    file.rewind().map_err(no_file)?;
    let mut program = Vec::new();
    file.read_to_end(&mut program).map_err(no_file)?;
    Ok(program)
}

fn wrong(reason: String) -> PlanError {
    PlanError::Seccomp { reason }
}

fn failed(act: &'static str) -> impl Fn(SeccompError) -> PlanError {
    move |error| wrong(format!("cannot {act}: {error}"))
}
