//! Installs a ready-made system call filter. Compiles none.

use std::io;

/// Size of one filter instruction, bytes.
pub const INSTRUCTION_LENGTH: usize = 8;

const SET_MODE_FILTER: libc::c_uint = 1;

/// Installs `filter`, an array of `struct sock_filter` as little-endian bytes, for this thread and its future children.
/// `flags` are `SECCOMP_FILTER_FLAG_*` bits.
///
/// # Errors
/// `InvalidInput` when the length is not that of 1 to 65535 instructions; `EACCES` without no_new_privs and
/// CAP_SYS_ADMIN; `EINVAL` for a filter or flag that the kernel refuses.
pub fn install(filter: &[u8], flags: u64) -> io::Result<()> {
    let (instructions, rest) = filter.as_chunks::<INSTRUCTION_LENGTH>();
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if length == 0 || !rest.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|[code_low, code_high, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_le_bytes([*code_low, *code_high]),
            jt: *jt,
            jf: *jf,
            k: u32::from_le_bytes(*k),
        })
        .collect();
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the struct points to as many instructions as it says; both live through the call, which copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_are_no_filter_are_refused() {
        for length in [0, 7, 9, INSTRUCTION_LENGTH * 65536] {
            let error = install(&vec![0; length], 0).expect_err("no filter");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{length} bytes");
        }
    }
}
