//! Drivers of character devices that are loaded when a container is given the device: the kernel here cannot ask for them.

use oci_spec::runtime::{LinuxDeviceType, Spec};

use crate::modules::Modules;

/// A device by number, where it is bound from, and the module that drives it.
const DRIVERS: [((i64, i64), &str, &str); 2] = [((10, 229), "/dev/fuse", "fuse"), ((10, 200), "/dev/net", "tun")];

/// Loads the drivers of what the specification gives its container. One that cannot be is told in the log: the device does
/// not open then.
pub fn load(modules: &Modules, spec: &Spec) {
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
    for (number, path, module) in DRIVERS {
        let has_node = devices
            .unwrap_or_default()
            .iter()
            .any(|device| device.typ() != LinuxDeviceType::B && (device.major(), device.minor()) == number);
        let mut sources = spec
            .mounts()
            .iter()
            .flatten()
            .filter_map(|mount| mount.source().as_deref());
        if (has_node || sources.any(|source| source.starts_with(path)))
            && let Err(error) = modules.load(module)
        {
            tracing::warn!("{error}");
        }
    }
}
