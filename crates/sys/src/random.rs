//! Random bytes of the host's kernel.

/// Fresh random bytes (`getrandom(2)`), at most 256. Waits, once after the host's boot, until its pool is ready.
pub fn bytes(count: usize) -> Vec<u8> {
    let mut buffer = vec![0; count.min(256)];
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes to memory that we own exclusively.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        // It fails only when interrupted by a signal while waiting for the pool; then it is asked again.
        filled += usize::try_from(got).unwrap_or(0);
    }
    buffer
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_differ() {
        assert_ne!(super::bytes(32), super::bytes(32));
        assert_eq!(super::bytes(1000).len(), 256);
    }
}
