//! Programs for tests: small ones for containers that have no libc, and real ones that the machine need not have.

use std::path::Path;

use crate::command::Cmd;
use crate::lab::Lab;
use crate::places;

/// A program of the Debian with real programs, as a process of the lab: the other end of one that runs in a pod.
///
/// # Panics
/// When the set-up has not made that Debian.
#[track_caller]
pub fn of_debian(lab: &Lab, program: &str) -> Cmd {
    let root = places::debian_root();
    lab.command(places::tool("chroot")).arg(root).arg(program)
}

/// Compiles C to a static program.
///
/// # Panics
/// When there is no compiler or the source is wrong.
pub fn compile(source: &str, program: &Path) {
    let file = program.with_extension("c");
    std::fs::write(&file, source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let compiler = Cmd::new(places::tool("musl-gcc")).args(["-static", "-Os", "-o"]);
    compiler.arg(program).arg(&file).run().ok();
    std::fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
