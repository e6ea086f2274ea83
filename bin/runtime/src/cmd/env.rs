//! `kata-runtime env`: versions, paths and the configuration in force, under the names of Kata's `kata-env`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use kata_config::{Config, RootAsset, SEARCH};
use kata_machine::Accelerator;
use serde::Serialize;

use crate::check::SHIM;
use crate::cli::Globals;
use crate::cmd::version::{COMMIT, OCI_VERSION, VERSION};
use crate::report;
use crate::settings;

/// Version of this shape: the one of Kata's that its names are taken from.
const FORMAT: &str = "1.0.24";

/// How to tell it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

/// Tells.
///
/// # Errors
/// A configuration that cannot be used; stdout is gone.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let config = settings::load(globals)?;
    let environment = gather(&config)?;
    let text = if args.json {
        format!(
            "{}\n",
            serde_json::to_string_pretty(&environment).context("cannot write it as JSON")?
        )
    } else {
        toml::to_string(&environment).context("cannot write it as TOML")?
    };
    report::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints where a configuration file is looked for.
///
/// # Errors
/// When stdout is gone.
pub fn show_config_paths() -> anyhow::Result<ExitCode> {
    report::print(&SEARCH.map(|path| format!("{path}\n")).concat())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Environment {
    meta: Meta,
    runtime: Runtime,
    hypervisor: Hypervisor,
    accelerator: Executor,
    kernel: Kernel,
    initrd: File,
    image: File,
    agent: Agent,
    shim: Shim,
    host: Host,
    configuration: toml::Table,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Runtime {
    path: String,
    debug: bool,
    disable_guest_seccomp: bool,
    experimental: Vec<String>,
    version: RuntimeVersion,
    config: ConfigFiles,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuntimeVersion {
    #[serde(rename = "OCI")]
    oci: &'static str,
    version: Version,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    semver: &'static str,
    major: u64,
    minor: u64,
    patch: u64,
    commit: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFiles {
    /// Empty: there is no file.
    path: String,
    drop_ins: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Hypervisor {
    machine_type: String,
    version: String,
    path: String,
    entropy_source: String,
    #[serde(rename = "SharedFS")]
    shared_fs: &'static str,
    #[serde(rename = "VirtioFSDaemon")]
    virtio_fs_daemon: String,
    msize9p: u32,
    debug: bool,
    use_v_sock: bool,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Executor {
    name: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kernel {
    path: String,
    parameters: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    path: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Agent {
    #[serde(rename = "Type")]
    kind: &'static str,
    debug: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shim {
    #[serde(rename = "Type")]
    kind: &'static str,
    version: &'static str,
    path: String,
    debug: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Host {
    kernel: String,
    architecture: &'static str,
    #[serde(rename = "VMContainerCapable")]
    vm_container_capable: bool,
    #[serde(rename = "SupportVSocks")]
    support_vsocks: bool,
    distro: Distro,
    #[serde(rename = "CPU")]
    cpu: Cpu,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Distro {
    name: String,
    version: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cpu {
    vendor: String,
    model: String,
    #[serde(rename = "CPUs")]
    cpus: usize,
}

fn gather(config: &Config) -> anyhow::Result<Environment> {
    // A file that was named on the command line may be relative; the reader may be elsewhere.
    let text = |path: &Path| {
        std::path::absolute(path)
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string()
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let choice = kata_qemu::probe();
    let accelerator: Accelerator = choice.accelerator;
    let vmm_version = kata_qemu::version(&config.qemu.path);
    if let Err(error) = &vmm_version {
        tracing::warn!("{error}");
    }
    let assets = settings::assets(config);
    let (initrd, image) = match &assets.root {
        RootAsset::Initrd(path) => (text(path), String::new()),
        RootAsset::Image(path) => (String::new(), text(path)),
    };
    let mut number = VERSION.split('.').map(|part| part.parse().unwrap_or(0));
    let mut number = || number.next().unwrap_or(0);
    Ok(Environment {
        meta: Meta { version: FORMAT },
        runtime: Runtime {
            path: text(&program),
            debug: config.runtime.enable_debug,
            disable_guest_seccomp: config.runtime.disable_guest_seccomp,
            experimental: config.runtime.experimental.clone(),
            version: RuntimeVersion {
                oci: OCI_VERSION,
                version: Version {
                    semver: VERSION,
                    major: number(),
                    minor: number(),
                    patch: number(),
                    commit: COMMIT,
                },
            },
            config: ConfigFiles {
                path: config.base_file().map(text).unwrap_or_default(),
                drop_ins: config.files.iter().skip(1).map(|file| text(file)).collect(),
            },
        },
        hypervisor: Hypervisor {
            machine_type: config.qemu.machine_type.clone(),
            path: text(&config.qemu.path),
            entropy_source: text(&config.qemu.entropy_source),
            shared_fs: settings::shared_fs(config).as_str(),
            virtio_fs_daemon: settings::virtio_fs_daemon(config)
                .as_deref()
                .map(text)
                .unwrap_or_default(),
            msize9p: config.qemu.msize_9p,
            debug: config.qemu.enable_debug,
            use_v_sock: config.qemu.use_vsock.unwrap_or(false),
            memory_mib: settings::guest_memory_mib(config, accelerator),
            version: vmm_version.as_ref().cloned().unwrap_or_default(),
        },
        accelerator: Executor {
            name: accelerator.to_string(),
            reason: choice.reason,
        },
        kernel: Kernel {
            path: text(&assets.kernel),
            parameters: config.qemu.kernel_params.join(" "),
        },
        initrd: File { path: initrd },
        image: File { path: image },
        agent: Agent {
            kind: "kata",
            debug: config.agent.enable_debug,
        },
        shim: Shim {
            kind: "kata-v2",
            version: VERSION,
            path: text(&program.with_file_name(SHIM)),
            debug: config.runtime.enable_debug,
        },
        host: Host {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: "amd64",
            vm_container_capable: vmm_version.is_ok(),
            support_vsocks: Path::new("/dev/vhost-vsock").exists(),
            distro: distro(&read("/etc/os-release")),
            cpu: cpu(&read("/proc/cpuinfo")),
        },
        configuration: config
            .to_toml()
            .parse()
            .context("the configuration in force is not TOML")?,
    })
}

fn distro(os_release: &str) -> Distro {
    let field = |name: &str| {
        let value = os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    Distro {
        name: field("NAME"),
        version: field("VERSION_ID"),
    }
}

fn cpu(cpuinfo: &str) -> Cpu {
    let fields: Vec<(&str, &str)> = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let first = |name: &str| {
        let found = fields.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned()).unwrap_or_default()
    };
    Cpu {
        vendor: first("vendor_id"),
        model: first("model name"),
        cpus: fields.iter().filter(|(key, _)| *key == "processor").count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_read() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n";
        assert_eq!(
            distro(text),
            Distro {
                name: "Debian GNU/Linux".into(),
                version: "12".into()
            }
        );
        assert_eq!(
            distro(""),
            Distro {
                name: String::new(),
                version: String::new()
            }
        );
    }

    #[test]
    fn processors_are_counted() {
        let text =
            "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon @ 2:5\n\nprocessor\t: 1\nvendor_id\t: X\n";
        let expected = Cpu {
            vendor: "GenuineIntel".into(),
            model: "Xeon @ 2:5".into(),
            cpus: 2,
        };
        assert_eq!(cpu(text), expected);
    }

    #[test]
    fn names_are_those_of_kata_in_both_forms() {
        let environment = gather(&Config::default()).unwrap();
        let json = serde_json::to_value(&environment).unwrap();
        for pointer in [
            "/Meta/Version",
            "/Runtime/Version/Version/Semver",
            "/Runtime/Version/OCI",
            "/Runtime/Config/Path",
            "/Hypervisor/MachineType",
            "/Hypervisor/SharedFS",
            "/Hypervisor/VirtioFSDaemon",
            "/Hypervisor/Msize9p",
            "/Hypervisor/UseVSock",
            "/Initrd/Path",
            "/Kernel/Parameters",
            "/Agent/Type",
            "/Shim/Path",
            "/Host/VMContainerCapable",
            "/Host/SupportVSocks",
            "/Host/CPU/CPUs",
            "/Accelerator/Reason",
            "/Configuration/hypervisor/qemu/machine_type",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer} is missing in {json:#}");
        }
        let text = toml::to_string(&environment).unwrap();
        assert!(
            text.contains("[Runtime.Version.Version]") && text.parse::<toml::Table>().is_ok(),
            "{text}"
        );
    }
}
