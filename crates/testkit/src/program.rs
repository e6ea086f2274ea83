//! Programs that tests write and have run at once.

use std::path::Path;
use std::process::Command;

/// Writes a script that can be run. A process of its own writes it: a child that another test is just starting would have
/// this one's descriptor until its exec, and what is open for writing cannot be run ("text file busy").
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, text: &str) {
    let write = r#"printf %s "$1" >"$0" && chmod 755 "$0""#;
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(text).status();
    assert!(status.expect("sh").success(), "{}", path.display());
}
