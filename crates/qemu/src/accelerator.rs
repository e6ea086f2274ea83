//! Is KVM usable? Found out, not assumed.
//!
//! `/dev/kvm` may be missing or closed to us; it may open, and even create virtual machines, on hosts that run none. So
//! a tiny guest is run. Where the CPU shows no virtualization, its success is not trusted either: some paravirtual
//! KVMs run that guest, but none with an ordinary kernel.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use kata_machine::Accelerator;
use kata_sys::kvm::{KvmError, run_tiny_guest};

const DEVICE: &str = "/dev/kvm";

/// Longest wait for the tiny guest, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(1);

/// What to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceleratorChoice {
    /// What to use.
    pub accelerator: Accelerator,
    /// Why, as a phrase for people.
    pub reason: String,
}

/// Finds out what this host can do. Takes milliseconds, at most a second.
#[must_use]
pub fn probe() -> AcceleratorChoice {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    decide(shows_virtualization(&cpuinfo), run_tiny_guest(Path::new(DEVICE), LIMIT))
}

fn shows_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

fn decide(cpu_virtualizes: bool, guest: Result<(), KvmError>) -> AcceleratorChoice {
    let (accelerator, reason) = match (cpu_virtualizes, guest) {
        (true, Ok(())) => (Accelerator::Kvm, format!("{DEVICE} has run a test guest")),
        (false, Ok(())) => {
            let reason = format!(
                "{DEVICE} has run a test guest of a few instructions, but the CPU shows neither vmx nor svm, which \
                 ordinary guests need"
            );
            (Accelerator::Tcg, reason)
        }
        (_, Err(KvmError::Open { source, .. })) if source.kind() == std::io::ErrorKind::NotFound => {
            (Accelerator::Tcg, format!("{DEVICE} is missing"))
        }
        (_, Err(error @ KvmError::Open { .. })) => (Accelerator::Tcg, with_causes(&error)),
        (true, Err(error)) => (
            Accelerator::Tcg,
            format!("{DEVICE} opens, but runs no guest: {}", with_causes(&error)),
        ),
        (false, Err(error)) => {
            let reason = format!(
                "{DEVICE} opens, but the CPU shows neither vmx nor svm, and a test guest did not run: {}",
                with_causes(&error)
            );
            (Accelerator::Tcg, reason)
        }
    };
    AcceleratorChoice { accelerator, reason }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        for (cpuinfo, expected) in [
            ("processor\t: 0\nflags\t\t: fpu vmx sse\n", true),
            ("flags\t\t: fpu svm\n", true),
            ("flags\t\t: fpu vmx_ept svm2\nmodel name\t: vmx\n", false),
            ("vmx flags\t: vnmi vmx\n", false),
            ("", false),
        ] {
            assert_eq!(shows_virtualization(cpuinfo), expected, "{cpuinfo:?}");
        }
    }

    #[test]
    fn kvm_needs_flags_and_a_guest() {
        let open = |errno| KvmError::Open {
            device: DEVICE.into(),
            source: io::Error::from_raw_os_error(errno),
        };
        let hung = || KvmError::Hung { limit: LIMIT };
        let run = || KvmError::Call {
            call: "KVM_RUN",
            source: io::Error::from_raw_os_error(libc::EFAULT),
        };
        for (flags, guest, accelerator, part) in [
            (true, Ok(()), Accelerator::Kvm, "has run a test guest"),
            (false, Ok(()), Accelerator::Tcg, "neither vmx nor svm"),
            (false, Err(run()), Accelerator::Tcg, "KVM_RUN failed: Bad address"),
            (true, Err(hung()), Accelerator::Tcg, "did not come back within 1s"),
            (true, Err(open(libc::ENOENT)), Accelerator::Tcg, "/dev/kvm is missing"),
            (
                true,
                Err(open(libc::EACCES)),
                Accelerator::Tcg,
                "/dev/kvm cannot be opened: Permission denied",
            ),
        ] {
            let choice = decide(flags, guest);
            assert_eq!(choice.accelerator, accelerator, "{choice:?}");
            assert!(choice.reason.contains(part), "{choice:?}");
        }
    }

    #[test]
    fn this_host_gets_an_answer_with_a_reason() {
        let choice = probe();
        assert!(!choice.reason.is_empty());
    }
}
