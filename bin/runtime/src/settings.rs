//! The configuration in force, and what this host has of the things that it names. For the verbs that only look.

use std::path::PathBuf;

use kata_config::{Assets, Config, SharedFs};
use kata_machine::Accelerator;

use crate::cli::Globals;

/// Guest memory without a configured one under KVM, MiB; as the planner decides.
const KVM_MEMORY_MIB: u32 = 2048;
/// The same under TCG.
const TCG_MEMORY_MIB: u32 = 256;

/// The configuration that the flags and the environment lead to. What has no effect in it is a warning in the log.
///
/// # Errors
/// A file that cannot be read, is not TOML or holds a wrong value.
pub fn load(globals: &Globals) -> anyhow::Result<Config> {
    let (config, warnings) = Config::find(globals.kata_config.as_deref())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// The guest's kernel and its root: the first pair that is whole, or else the one that `image build` would make.
pub fn assets(config: &Config) -> Assets {
    let mut candidates = config.asset_candidates();
    let whole = candidates
        .iter()
        .position(|assets| assets.kernel.exists() && assets.root.path().exists());
    // There is always one, and the last is the store of `image build` unless both files are configured.
    candidates.swap_remove(whole.unwrap_or(candidates.len().saturating_sub(1)))
}

/// The virtio-fs daemon, if there is one.
pub fn virtio_fs_daemon(config: &Config) -> Option<PathBuf> {
    config
        .virtio_fs_daemon_candidates()
        .into_iter()
        .find(|path| path.exists())
}

/// How the guest will see directories of the host.
pub fn shared_fs(config: &Config) -> SharedFs {
    match (config.qemu.shared_fs, virtio_fs_daemon(config)) {
        (Some(configured), _) => configured,
        (None, Some(_)) => SharedFs::VirtioFs,
        (None, None) => SharedFs::Virtio9p,
    }
}

/// Memory of a guest that asks for nothing else, MiB.
pub fn guest_memory_mib(config: &Config, accelerator: Accelerator) -> u32 {
    config.qemu.default_memory.unwrap_or(match accelerator {
        Accelerator::Kvm => KVM_MEMORY_MIB,
        Accelerator::Tcg => TCG_MEMORY_MIB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_pair_is_preferred_to_half_a_one() {
        let place = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.qemu.kernel = Some(place.path().join("vmlinux"));
        config.qemu.initrd = Some(place.path().join("initrd"));
        assert_eq!(assets(&config).kernel, place.path().join("vmlinux"));
    }

    #[test]
    fn what_is_configured_wins_over_what_is_found() {
        let mut config = Config::default();
        config.qemu.virtio_fs_daemon = Some("/no/such/daemon".into());
        assert_eq!(shared_fs(&config), SharedFs::Virtio9p);
        config.qemu.shared_fs = Some(SharedFs::VirtioFs);
        assert_eq!(shared_fs(&config), SharedFs::VirtioFs);
        assert_eq!(guest_memory_mib(&config, Accelerator::Tcg), TCG_MEMORY_MIB);
        config.qemu.default_memory = Some(512);
        assert_eq!(guest_memory_mib(&config, Accelerator::Kvm), 512);
    }
}
