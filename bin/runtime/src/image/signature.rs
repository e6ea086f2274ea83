//! Takes the signature off a kernel module.
//!
//! The distribution signs its modules, and a kernel that finds a signature verifies it: hashing and RSA for every module at
//! every boot, which is dear where instructions are translated. The initramfs as a whole is pinned by its manifest, so
//! nothing is lost. It refuses to touch what does not look like a signed module from end to end.

/// What a signed module ends with.
const MAGIC: &[u8] = b"~Module signature appended~\n";

/// Bytes of the kernel's `struct module_signature`, whose last four are the length of the signature, big endian.
const TRAILER: usize = 12;

/// The module without its signature; the very same if it has none.
pub fn strip(mut module: Vec<u8>) -> Vec<u8> {
    if let Some(length) = unsigned_length(&module) {
        module.truncate(length);
    }
    module
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let trailer_end = module.strip_suffix(MAGIC)?;
    let (before, trailer) = trailer_end.split_at_checked(trailer_end.len().checked_sub(TRAILER)?)?;
    let length = u32::from_be_bytes(trailer.last_chunk::<4>().copied()?);
    before.len().checked_sub(usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(signature: &[u8], claimed: u32) -> Vec<u8> {
        let mut bytes = b"\x7fELF module".to_vec();
        bytes.extend_from_slice(signature);
        bytes.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&claimed.to_be_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes
    }

    #[test]
    fn only_the_signature_is_taken_off() {
        assert_eq!(strip(signed(&[7; 300], 300)), b"\x7fELF module");
        assert_eq!(strip(b"\x7fELF module".to_vec()), b"\x7fELF module", "not signed");
        let lying = signed(&[7; 3], 3000);
        assert_eq!(strip(lying.clone()), lying, "longer than the module");
        assert_eq!(strip(MAGIC.to_vec()), MAGIC, "nothing but the end");
    }
}
