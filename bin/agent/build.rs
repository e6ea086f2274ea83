//! Has the linker pack the relocations of the agent: 10,000 that all say the same are 280 KiB of memory in each guest, and
//! 8 KiB packed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
