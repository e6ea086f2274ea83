//! Where the programs under test and their judges lie. Nothing is skipped: what is missing fails the test that needs it.

use std::path::{Path, PathBuf};

/// Environment variable that names another directory with the built programs.
pub const BIN_DIR_ENV: &str = "KATA_BIN_DIR";

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("crates/e2e lies two below the root")
        .to_path_buf()
}

/// The directory of our built programs: `KATA_BIN_DIR`, else `target/release`.
///
/// It must not be below `/run` or `/tmp`, which every lab has for itself.
pub fn bin_dir() -> PathBuf {
    std::env::var_os(BIN_DIR_ENV).map_or_else(|| workspace().join("target/release"), PathBuf::from)
}

/// One of our programs.
///
/// # Panics
/// When it is not built.
#[track_caller]
pub fn ours(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `make build` (or set {BIN_DIR_ENV})",
        path.display()
    );
    path
}

/// A program of the machine.
///
/// # Panics
/// When it is not installed.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let dirs = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    let found = dirs
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run `scripts/setup.sh --test`"))
}

/// A program of an engine newer than the machine's, which the set-up has unpacked: `NAME/usr/(s)bin/PROGRAM`.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn unpacked(engine: &str, program: &str) -> PathBuf {
    let usr = Path::new("/opt/kata-tools/engines").join(engine).join("usr");
    let dirs = ["bin", "sbin", "libexec/docker"];
    let found = dirs
        .iter()
        .map(|dir| usr.join(dir).join(program))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{program} is not below {}: run `scripts/setup.sh --test`",
            usr.display()
        )
    })
}

/// The root file system of a Debian with real programs, which the set-up has made.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn debian_root() -> PathBuf {
    let root = PathBuf::from("/opt/kata-tools/debian/root");
    assert!(
        root.is_dir(),
        "{} is not there: run `scripts/setup.sh --test`",
        root.display()
    );
    root
}

/// The folder below which labs keep their files: on a real file system, and seen from inside and outside alike.
pub fn scratch() -> PathBuf {
    let dir = workspace().join("target/e2e");
    std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}
