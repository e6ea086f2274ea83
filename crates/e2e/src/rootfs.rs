//! A root file system for containers: one static busybox under all its names, and the few files that programs expect.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;

use crate::command::Cmd;
use crate::places;

const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nworker:x:1000:1000::/home/worker:/bin/sh\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nworker:x:1000:\ncrew:x:2000:worker\n";

/// Makes a root file system in `dir`, which must not exist.
///
/// # Panics
/// When busybox is missing or a file cannot be made.
pub fn make(dir: &Path) {
    try_make(dir).unwrap_or_else(|error| panic!("root file system {}: {error}", dir.display()));
}

fn try_make(dir: &Path) -> io::Result<()> {
    for sub in ["bin", "dev", "etc", "home/worker", "proc", "root", "sys", "tmp", "var"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(dir.join("etc/passwd"), PASSWD)?;
    fs::write(dir.join("etc/group"), GROUP)?;
    fs::copy(places::tool("busybox"), dir.join("bin/busybox"))?;
    for applet in applets().iter().filter(|applet| *applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet))?;
    }
    Ok(())
}

fn applets() -> &'static [String] {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    APPLETS.get_or_init(|| {
        let listed = Cmd::new(places::tool("busybox")).arg("--list").run().ok();
        listed.text().lines().map(str::to_owned).collect()
    })
}
