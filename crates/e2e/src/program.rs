//! Small programs for containers that have no libc.

use std::path::Path;

use crate::command::Cmd;
use crate::places;

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
