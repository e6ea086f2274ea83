//! The balloon device, by which the host gets back memory that the guest has used and does not need any more: at first what its
//! boot has left behind, later what containers free.
//!
//! The kernel looks for free memory two seconds after the driver has been loaded, and whenever more has become free.

use crate::channel::has_device;
use crate::pod::Pod;

/// Its kind of virtio device (VIRTIO 1.2, section 5).
const BALLOON: &str = "0x0005";

/// The smallest free block that is reported, as a power of two of pages, and its value: half a MiB. The kernel's own, 2
/// MiB, finds a third of what a boot has left (docs/memory.md). Kernels before 6.3 take it only when the driver is there.
const ORDER: (&str, &str) = ("/sys/module/page_reporting/parameters/page_reporting_order", "7");

/// Has a driver that is built in, whose first look is still to come, look for small blocks, too.
pub fn prepare() {
    let _ = set_order();
}

/// Loads the driver, if there is a device.
pub fn begin(pod: &Pod) {
    if !has_device(BALLOON) {
        return;
    }
    let begun = pod.modules.load("virtio_balloon").map_err(std::io::Error::other);
    if let Err(error) = begun.and_then(|()| set_order()) {
        tracing::warn!("free memory is not given back to the host as it should be: {error}");
    }
}

fn set_order() -> std::io::Result<()> {
    let (parameter, value) = ORDER;
    std::fs::write(parameter, value)
}
