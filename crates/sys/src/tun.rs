//! Taps: network interfaces whose other end is a descriptor of a process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `TUNSETIFF` and `TUNSETPERSIST` (linux/if_tun.h).
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
const SET_PERSISTENT: libc::c_ulong = 0x4004_54cb;

/// `TUNSETVNETHDRSZ` and `TUNSETOFFLOAD`,
const SET_HEADER_SIZE: libc::c_ulong = 0x4004_54d8;
const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;

/// and what the latter takes: `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`.
const CHECKSUM: libc::c_ulong = 0x01;
const TCP4: libc::c_ulong = 0x02;
const TCP6: libc::c_ulong = 0x04;
const TCP_ECN: libc::c_ulong = 0x08;

/// `IFF_TUN_EXCL`: fail if there is one of this name.
const EXCLUSIVE: libc::c_int = 0x8000;

/// Makes a tap in the network namespace of the calling thread. It stays until it is removed as a link; whoever opens it holds
/// its other end. With `multi_queue` several may, each a queue.
///
/// # Errors
/// `EBUSY` when there is a link of this name, `InvalidInput` for a name that is empty or has more than 15 bytes; what
/// opening `/dev/net/tun` failed with.
pub fn make_tap(name: &str, multi_queue: bool) -> io::Result<()> {
    let device = attach(name, multi_queue, EXCLUSIVE)?;
    // SAFETY: takes integers only.
    if unsafe { libc::ioctl(device.as_raw_fd(), SET_PERSISTENT, 1 as libc::c_ulong) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The other end of a tap, or of one more of its queues, that [`make_tap`] has made with the same `multi_queue`.
///
/// # Errors
/// As [`make_tap`]; `EBUSY` when somebody holds it, `EINVAL` when the link is no such tap.
pub fn open_tap(name: &str, multi_queue: bool) -> io::Result<File> {
    attach(name, multi_queue, 0)
}

/// Makes the end of a tap that [`open_tap`] has opened one for a driver of virtio network devices: `header` bytes stand in front of
/// each packet (VIRTIO 1.2, section 5.1.6), and packets may come without checksums, and TCP's in larger pieces than the link takes.
/// Reads do not block.
///
/// # Errors
/// What ioctl(2) or fcntl(2) failed with.
pub fn frame(tap: &File, header: libc::c_int) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    // SAFETY: reads one integer that lives through the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), SET_HEADER_SIZE, &raw const header) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes integers only.
    if unsafe { libc::ioctl(tap.as_raw_fd(), SET_OFFLOAD, CHECKSUM | TCP4 | TCP6 | TCP_ECN) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = OFlag::from_bits_retain(fcntl(tap, FcntlArg::F_GETFL)?);
    fcntl(tap, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn attach(name: &str, multi_queue: bool, more: libc::c_int) -> io::Result<File> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is integers, arrays and a union of such, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: reads and writes one ifreq that lives through the call; the name in it ends with a NUL, being shorter.
    if unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}
