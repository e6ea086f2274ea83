//! Feeds the kernel's random pool.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Most bytes in one call.
pub const MOST: usize = 512;

/// `_IOW('R', 3, int[2])`, from linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// `_IO('R', 7)`, from linux/random.h.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    length: libc::c_int,
    bytes: [u8; MOST],
}

/// Mixes `bytes` into the pool, credits all their bits, and has all generators begin anew from there: a copy of this machine
/// that gets other bytes draws other numbers from the next one on.
///
/// # Errors
/// `InvalidInput` for more than [`MOST`] bytes; else what opening `/dev/urandom` or a call failed with.
pub fn credit(bytes: &[u8]) -> io::Result<()> {
    let length = libc::c_int::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut info = PoolInfo {
        entropy_bits: length.saturating_mul(8),
        length,
        bytes: [0; MOST],
    };
    info.bytes
        .get_mut(..bytes.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(bytes);
    let pool = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the struct is laid out as `struct rand_pool_info` followed by as many bytes as it says, and lives through
    // the call, which only reads it.
    let result = unsafe { libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes no argument.
    if unsafe { libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The generators have not begun at all yet.
        error if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        error => Err(error),
    }
}
