//! The end of the guest.

use std::path::Path;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Writes what is unwritten, kills everything, and switches the machine off. Comes back only if the kernel refuses.
pub fn off() {
    // Everybody but ourselves.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    // Without ACPI there is no power switch, and the kernel would stop and wait for one; but such machines end when
    // they are restarted.
    let how = if Path::new("/sys/firmware/acpi").exists() {
        RebootMode::RB_POWER_OFF
    } else {
        RebootMode::RB_AUTOBOOT
    };
    let Err(errno) = reboot(how);
    tracing::error!("the kernel does not switch off: {errno}");
}
