//! The VMM: who executes the guest, QEMU itself, its firmware, the share and the channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_config::{Config, SharedFs};
use kata_machine::Accelerator;
use kata_qemu::AcceleratorChoice;

use crate::check::{Finding, Subject};
use crate::command;
use crate::settings;

/// The oldest QEMU that the driver is meant for.
const OLDEST_MAJOR: u32 = 7;
/// The firmware that the driver asks for unless another one is configured.
const FIRMWARE: &str = "qboot.rom";
/// How long a program may take to name its version or its directories.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn accelerator(choice: &AcceleratorChoice) -> Finding {
    let subject = Subject {
        name: "accelerator",
        purpose: "executing the guest's instructions",
    };
    let detail = format!("{}: {}", choice.accelerator, choice.reason);
    match choice.accelerator {
        Accelerator::Kvm => subject.ok(detail),
        Accelerator::Tcg => subject.degraded(
            detail,
            "turn on virtualization (VT-x, AMD-V; on a cloud: nested virtualization) and `modprobe kvm_intel` or `kvm_amd`; without it guests run, many times slower",
        ),
    }
}

pub(super) fn vmm(config: &Config) -> Finding {
    let subject = Subject {
        name: "vmm",
        purpose: "the virtual machines",
    };
    let path = &config.qemu.path;
    let install = "apt-get install --no-install-recommends qemu-system-x86 qemu-system-data";
    match kata_qemu::version(path) {
        Err(error) => subject.missing(format!("{:#}", anyhow::Error::new(error)), install),
        Ok(version) => match major(&version) {
            Some(major) if major >= OLDEST_MAJOR => subject.ok(format!("{} {version}", path.display())),
            Some(_) => {
                let detail = format!("{} {version} is older than {OLDEST_MAJOR}", path.display());
                subject.missing(detail, install)
            }
            None => subject.degraded(format!("{} calls its version {version:?}", path.display()), install),
        },
    }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.trim().parse().ok()
}

pub(super) fn firmware(config: &Config) -> Finding {
    let subject = Subject {
        name: "firmware",
        purpose: "starting the guest's kernel",
    };
    if let Some(path) = &config.qemu.firmware {
        return if path.is_file() {
            subject.ok(path.display().to_string())
        } else {
            let remedy = "correct `firmware` in the configuration, or leave it out";
            subject.missing(format!("{} is configured and is no file", path.display()), remedy)
        };
    }
    let directories = data_directories(&config.qemu.path);
    match directories
        .iter()
        .map(|directory| directory.join(FIRMWARE))
        .find(|path| path.is_file())
    {
        Some(path) => subject.ok(path.display().to_string()),
        None => {
            let places: Vec<String> = directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            let detail = format!("no {FIRMWARE} in {}", places.join(", "));
            subject.missing(detail, "apt-get install --no-install-recommends qemu-system-data")
        }
    }
}

/// Where this QEMU looks for firmware, as it says itself.
fn data_directories(vmm: &Path) -> Vec<PathBuf> {
    let said = command::run(&vmm.to_string_lossy(), &["-L", "help"], None, LIMIT).unwrap_or_default();
    let directories: Vec<PathBuf> = String::from_utf8_lossy(&said)
        .lines()
        .map(|line| line.trim().into())
        .collect();
    if directories.is_empty() {
        vec!["/usr/share/qemu".into()]
    } else {
        directories
    }
}

/// The guest's view of its root file system. `guest_has_9p` is `None` where that is not known.
pub(super) fn share(config: &Config, guest_has_9p: Option<bool>) -> Finding {
    let subject = Subject {
        name: "share",
        purpose: "the containers' root file systems in the guest",
    };
    let daemon = settings::virtio_fs_daemon(config);
    let usable = daemon
        .as_ref()
        .map(|path| version_of(path).map(|version| format!("{} {version}", path.display())));
    let kind = settings::shared_fs(config);
    decide_share(&subject, config.qemu.shared_fs, kind, usable, guest_has_9p)
}

fn decide_share(
    subject: &Subject,
    configured: Option<SharedFs>,
    kind: SharedFs,
    daemon: Option<Result<String, String>>,
    guest_has_9p: Option<bool>,
) -> Finding {
    const INSTALL: &str = "cargo install virtiofsd --version 1.14.0 --locked --root /opt/kata-tools";
    match (kind, daemon) {
        (SharedFs::None, _) => subject.missing(
            "shared_fs is configured as none, and there is no other way to a root file system yet",
            "leave shared_fs out of the configuration",
        ),
        (SharedFs::VirtioFs, Some(Ok(daemon))) => subject.ok(format!("virtio-fs by {daemon}")),
        (SharedFs::VirtioFs, Some(Err(error))) => subject.missing(format!("virtio-fs, but {error}"), INSTALL),
        (SharedFs::VirtioFs, None) => subject.missing("virtio-fs is configured, but virtiofsd is nowhere", INSTALL),
        (SharedFs::Virtio9p, _) if guest_has_9p == Some(false) => subject.missing(
            "virtio-9p, which the guest's kernel does not have",
            if configured.is_some() {
                "kata-runtime image build --kernel-package linux-image-amd64, or leave shared_fs out of the configuration"
            } else {
                INSTALL
            },
        ),
        (SharedFs::Virtio9p, _) if configured.is_some() => subject.ok("virtio-9p, as configured"),
        (SharedFs::Virtio9p, _) => subject.degraded("virtio-9p, which is slow: virtiofsd is nowhere", INSTALL),
    }
}

/// Runs the daemon to see that it can run: what it is linked with may be missing.
fn version_of(daemon: &Path) -> Result<String, String> {
    let said = command::run(&daemon.to_string_lossy(), &["--version"], None, LIMIT);
    let said = said.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let line = String::from_utf8_lossy(&said)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    Ok(line.strip_prefix("virtiofsd ").map(str::to_owned).unwrap_or(line))
}

pub(super) fn vsock(config: &Config) -> Finding {
    let subject = Subject {
        name: "channel",
        purpose: "talking to the agent",
    };
    let device = Path::new("/dev/vhost-vsock");
    match (config.qemu.use_vsock, device.exists()) {
        (Some(true), true) => subject.ok(format!("vsock, {} is there", device.display())),
        (Some(true), false) => subject.missing(
            format!("use_vsock is configured, but there is no {}", device.display()),
            "modprobe vhost_vsock, or leave use_vsock out of the configuration",
        ),
        (_, true) => subject.ok(format!("serial port ({} is there too)", device.display())),
        (_, false) => subject.ok(format!(
            "serial port (there is no {}, and no need of it)",
            device.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn the_accelerator_is_named_with_its_reason() {
        let choice = AcceleratorChoice {
            accelerator: Accelerator::Tcg,
            reason: "/dev/kvm is missing".into(),
        };
        let finding = accelerator(&choice);
        assert_eq!(
            (finding.state, finding.detail.as_str()),
            (State::Degraded, "tcg: /dev/kvm is missing")
        );
    }

    #[test]
    fn a_missing_vmm_is_missing() {
        let mut config = Config::default();
        config.qemu.path = "/no/such/qemu".into();
        let finding = vmm(&config);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.detail.contains("/no/such/qemu"), "{}", finding.detail);
        config.qemu.firmware = Some("/no/such/bios".into());
        assert_eq!(firmware(&config).state, State::Missing);
    }

    #[test]
    fn versions_begin_with_a_number() {
        for (version, expected) in [
            ("10.0.2 (Debian 1:10.0.2+ds-2)", Some(10)),
            ("7.2.22", Some(7)),
            ("git", None),
        ] {
            assert_eq!(major(version), expected, "{version}");
        }
    }

    #[test]
    fn the_share_stands_as_daemon_configuration_and_guest_allow() {
        use SharedFs::{None as Nothing, Virtio9p, VirtioFs};
        let subject = Subject {
            name: "share",
            purpose: "",
        };
        let works = || Some(Ok("/v 1.14".to_owned()));
        let fails = || Some(Err("/v does not run".to_owned()));
        for (configured, kind, daemon, guest_has_9p, expected) in [
            (None, VirtioFs, works(), Some(false), State::Ok),
            (None, VirtioFs, fails(), Some(true), State::Missing),
            (Some(VirtioFs), VirtioFs, None, Some(true), State::Missing),
            (None, Virtio9p, None, Some(true), State::Degraded),
            (None, Virtio9p, None, None, State::Degraded),
            (None, Virtio9p, None, Some(false), State::Missing),
            (Some(Virtio9p), Virtio9p, works(), Some(true), State::Ok),
            (Some(Nothing), Nothing, works(), None, State::Missing),
        ] {
            let finding = decide_share(&subject, configured, kind, daemon, guest_has_9p);
            assert_eq!(finding.state, expected, "{finding:?}");
        }
    }
}
