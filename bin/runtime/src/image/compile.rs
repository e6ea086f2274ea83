//! Compiles a kernel out of its source and demands on its configuration, outside of the source tree.
//!
//! Equal source, demands and compiler make equal bytes: the tools get an environment of ours, and the kernel names no
//! time, user or host of its build. It refuses to go on with a configuration that does not hold what was demanded.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{self, CommandError};
use crate::image::fragment::{self, Demands, FragmentError};

/// Why no kernel was compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Tools or headers that are not installed.
    #[error("to compile a kernel, {} missing: run `apt-get install {}`", list(what), packages.join(" "))]
    Missing {
        /// What is not there.
        what: Vec<String>,
        /// The packages that bring it.
        packages: Vec<String>,
    },
    /// A tool failed.
    #[error("cannot {what}")]
    Tool {
        /// What was being done.
        what: &'static str,
        /// What the tool said.
        #[source]
        source: CommandError,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not the one that was demanded.
    #[error("the kernel's configuration is not what its fragments say")]
    Fragment(#[from] FragmentError),
}

/// What compiles a kernel, and the package that brings it.
const TOOLS: [(&str, &str); 13] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("cmp", "diffutils"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];
/// A header that its own tools need, and the package that brings it.
const HEADER: (&str, &str) = ("gelf.h", "libelf-dev");

/// What every kernel says of its build.
const ORIGIN: [&str; 5] = [
    "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER=kata",
    "KBUILD_BUILD_HOST=kata",
    "KBUILD_BUILD_VERSION=1",
    // Nothing after the release, whatever version control says of the tree.
    "LOCALVERSION=",
];

const SHORT: Duration = Duration::from_secs(60);
/// Time to build the configurator and run it.
const CONFIGURING: Duration = Duration::from_secs(900);
/// Time to compile everything with one slow CPU.
const COMPILING: Duration = Duration::from_secs(6 * 3600);
/// How many of a failed tool's last lines are shown.
const LINES: usize = 20;

/// A kernel as it was compiled.
#[derive(Debug)]
pub struct Compiled {
    /// The ELF kernel, without symbols.
    pub vmlinux: Vec<u8>,
    /// Its configuration.
    pub config: String,
}

/// The compiler and the linker, as they call themselves.
///
/// # Errors
/// [`CompileError::Missing`] naming everything that is missing, or [`CompileError::Tool`].
pub fn toolchain() -> Result<String, CompileError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut absent: Vec<_> = TOOLS.into_iter().filter(|(tool, _)| !is_in(&path, tool)).collect();
    let asks = ["-E", "-x", "c", "-include", HEADER.0, "/dev/null"];
    if is_in(&path, "gcc") && command::run("gcc", &asks, None, SHORT).is_err() {
        absent.push(HEADER);
    }
    if !absent.is_empty() {
        let mut packages: Vec<String> = absent.iter().map(|(_, package)| (*package).to_owned()).collect();
        packages.dedup();
        return Err(CompileError::Missing {
            what: absent.iter().map(|(tool, _)| (*tool).to_owned()).collect(),
            packages,
        });
    }
    let mut lines = Vec::new();
    for tool in ["gcc", "ld"] {
        let text = command::run(tool, &["--version"], None, SHORT).map_err(|source| CompileError::Tool {
            what: "ask the compiler for its version",
            source,
        })?;
        lines.extend(String::from_utf8_lossy(&text).lines().next().map(str::to_owned));
    }
    Ok(lines.join(", "))
}

fn is_in(path: &OsStr, tool: &str) -> bool {
    std::env::split_paths(path).any(|directory| directory.join(tool).is_file())
}

fn list(what: &[String]) -> String {
    let verb = if what.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", what.join(", "))
}

/// Compiles the kernel whose source is `tree`. `place` is an empty directory to do it in.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(tree: &Path, place: &Path, demands: &Demands) -> Result<Compiled, CompileError> {
    let config = configure(tree, place, demands)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    tracing::info!("compiling the kernel, {jobs} at a time: this takes a quarter of an hour and more");
    make(tree, place, COMPILING, &[&format!("-j{jobs}"), "vmlinux"]).map_err(|source| CompileError::Tool {
        what: "compile the kernel",
        source: shorten(source),
    })?;
    let kernel = place.join("vmlinux");
    // The VMM reads all of the file for each machine; symbols are half of it.
    command::run("strip", &[OsStr::new("--strip-all"), kernel.as_os_str()], None, SHORT).map_err(|source| {
        CompileError::Tool {
            what: "strip the kernel",
            source,
        }
    })?;
    let vmlinux = std::fs::read(&kernel).map_err(|source| CompileError::File { path: kernel, source })?;
    Ok(Compiled { vmlinux, config })
}

/// Makes the configuration: what `demands` say, nothing else. Answers it.
fn configure(tree: &Path, place: &Path, demands: &Demands) -> Result<String, CompileError> {
    let file = |path: PathBuf| move |source| CompileError::File { path, source };
    let fragment = place.join("fragment.config");
    std::fs::write(&fragment, demands.render()).map_err(file(fragment.clone()))?;
    let asked = OsString::from_iter([OsStr::new("KCONFIG_ALLCONFIG="), fragment.as_os_str()]);
    make(
        tree,
        place,
        CONFIGURING,
        &[asked.as_os_str(), OsStr::new("allnoconfig")],
    )
    .map_err(|source| CompileError::Tool {
        what: "configure the kernel",
        source: shorten(source),
    })?;
    let path = place.join(".config");
    let config = std::fs::read_to_string(&path).map_err(file(path.clone()))?;
    demands.check(&config, &fragment::known_options(tree)?)?;
    Ok(config)
}

/// Runs `make` for the tree, with results in `place`, as the first process of a namespace: with this process, or when its time
/// is over, everything ends that it has started.
fn make(tree: &Path, place: &Path, limit: Duration, arguments: &[impl AsRef<OsStr>]) -> Result<Vec<u8>, CommandError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<OsString> = ["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL"]
        .map(Into::into)
        .into();
    if !nix::unistd::geteuid().is_root() {
        all.extend(["--user", "--map-current-user"].map(Into::into));
    }
    all.extend(["env", "-i", "LC_ALL=C"].map(Into::into));
    all.push(OsString::from_iter([OsStr::new("PATH="), &path]));
    all.extend(["make", "-s", "-C"].map(Into::into));
    all.push(tree.into());
    all.push(OsString::from_iter([OsStr::new("O="), place.as_os_str()]));
    all.extend(ORIGIN.map(Into::into));
    all.extend(arguments.iter().map(|argument| argument.as_ref().to_owned()));
    command::run("setpriv", &all, None, limit)
}

/// The end of what a tool said, which tells why it failed.
fn shorten(error: CommandError) -> CommandError {
    match error {
        CommandError::Failed { status, messages, .. } => {
            let lines: Vec<&str> = messages.lines().collect();
            CommandError::Failed {
                program: "make".into(),
                status,
                messages: lines[lines.len().saturating_sub(LINES)..].join("\n"),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::bzimage;

    /// As much of a kernel's source as its builder sees: options, of which one depends on another, and a kernel with the
    /// entry that VMMs look for, which says what it was told of its build.
    const MAKEFILE: &str = "\
allnoconfig:
\tsed -e '/CONFIG_LOST=/d' $(KCONFIG_ALLCONFIG) >$(O)/.config
vmlinux:
\tgrep -q CONFIG_BROKEN=y $(O)/.config && { echo 'x.c:7: error: broken' >&2; exit 1; } || true
\tcp $(CURDIR)/kernel.S $(O)/kernel.S
\techo '.asciz \"Linux version 6.99$(LOCALVERSION)-kata ($(KBUILD_BUILD_USER)@$(KBUILD_BUILD_HOST)) #$(KBUILD_BUILD_VERSION) $(KBUILD_BUILD_TIMESTAMP)\"' >>$(O)/kernel.S
\techo '.asciz \"[$(CFLAGS)$(HOME)]\"' >>$(O)/kernel.S
\tgcc -nostdlib -static -Wl,--build-id=none -o $(O)/vmlinux $(O)/kernel.S
";
    const ENTRY: &str = "\
.section .note.Xen, \"a\", @note
.long 4, 4, 18
.asciz \"Xen\"
.long _start
.text
.globl _start
_start: hlt
.section .rodata, \"a\"
";

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let options = "config GOOD\nconfig LOST\nconfig BROKEN\n";
        for (name, text) in [("Makefile", MAKEFILE), ("Kconfig", options), ("kernel.S", ENTRY)] {
            std::fs::write(tree.path().join(name), text).unwrap();
        }
        tree
    }

    fn build(tree: &Path, fragment: &str) -> Result<Compiled, CompileError> {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("f.config");
        std::fs::write(&file, fragment).unwrap();
        let demands = Demands::read(&[file.to_str().unwrap().to_owned()]).unwrap();
        let build = place.path().join("build");
        std::fs::create_dir(&build).unwrap();
        compile(tree, &build, &demands)
    }

    #[test]
    fn equal_input_makes_equal_kernels_that_tell_nothing_of_their_build() {
        let tree = tree();
        let (one, two) = (
            build(tree.path(), "CONFIG_GOOD=y\n").unwrap(),
            build(tree.path(), "# the same\nCONFIG_GOOD=y\n").unwrap(),
        );

        assert_eq!((&one.config, &one.vmlinux), (&two.config, &two.vmlinux));
        assert_eq!(one.config, "CONFIG_GOOD=y\n");
        assert_eq!(bzimage::release(&one.vmlinux).as_deref(), Some("6.99-kata"));
        let kernel = bzimage::extract(&one.vmlinux).unwrap();
        let text = String::from_utf8_lossy(&kernel).into_owned();
        assert!(text.contains("(kata@kata) #1 Thu Jan  1 00:00:00 UTC 1970"));
        // Nothing of our environment reaches the tools.
        assert!(text.contains("[]"));
    }

    #[test]
    fn a_configuration_that_does_not_hold_is_not_compiled() {
        let error = build(tree().path(), "CONFIG_GOOD=y\nCONFIG_LOST=y\nCONFIG_ODD=y\n").unwrap_err();
        let CompileError::Fragment(error) = error else {
            panic!("{error}");
        };
        let message = error.to_string();
        assert!(
            message.contains("f.config:2: CONFIG_LOST is to be y and came out as not set"),
            "{message}"
        );
        assert!(
            message.contains("f.config:3: this kernel has no option CONFIG_ODD"),
            "{message}"
        );
        assert!(!message.contains("CONFIG_GOOD"), "{message}");
    }

    #[test]
    fn what_the_compiler_said_is_passed_on() {
        let error = build(tree().path(), "CONFIG_BROKEN=y\n").unwrap_err();
        let message = format!("{:#}", anyhow::Error::from(error));
        assert!(
            message.starts_with("cannot compile the kernel: make failed") && message.contains("x.c:7: error: broken"),
            "{message}"
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_packages() {
        let error = CompileError::Missing {
            what: vec!["flex".into(), "gelf.h".into()],
            packages: vec!["flex".into(), "libelf-dev".into()],
        };
        let expected = "to compile a kernel, flex, gelf.h are missing: run `apt-get install flex libelf-dev`";
        assert_eq!(error.to_string(), expected);

        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("make"), "").unwrap();
        assert!(is_in(place.path().as_os_str(), "make") && !is_in(place.path().as_os_str(), "gcc"));
    }
}
