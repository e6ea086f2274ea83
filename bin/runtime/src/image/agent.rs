//! Finds the guest's agent and sees to it that it can run where there are no libraries.

use std::path::{Path, PathBuf};

use crate::image::elf::{Elf, ElfError};

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file cannot be read.
    #[error("cannot read the agent {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file that the guest could not run.
    #[error("the agent {} cannot run in a guest", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ElfError,
    },
    /// None anywhere.
    #[error("no static kata-agent found; looked at {}; give one with --agent", listed(looked_at))]
    NotFound {
        /// Where was looked.
        looked_at: Vec<PathBuf>,
    },
}

fn listed(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Where the build puts the static agent, from the directory that the programs are built into.
const BUILT: &str = "../guest/x86_64-unknown-linux-gnu/release/kata-agent";
/// Where an installation puts it, from the programs' directory.
const INSTALLED: &str = "../libexec/kata-agent";
/// Where packages put it.
const PACKAGED: &str = "/usr/libexec/kata-agent";

/// An agent, read.
#[derive(Debug)]
pub struct Agent {
    /// Where it was found; the message of a build names it.
    pub path: PathBuf,
    /// The program.
    pub bytes: Vec<u8>,
}

/// The agent in `given`, or else the first fit one beside this program, in its build tree, or on the system.
///
/// # Errors
/// See [`AgentError`].
pub fn find(given: Option<&Path>) -> Result<Agent, AgentError> {
    match given {
        Some(path) => read(path),
        None => first_fit(places()),
    }
}

fn places() -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new("/"));
    vec![
        beside.join("kata-agent"),
        beside.join(BUILT),
        beside.join(INSTALLED),
        PathBuf::from(PACKAGED),
    ]
}

/// A build tree may hold an agent for the host beside the one for the guest: what is unfit is passed over.
fn first_fit(places: Vec<PathBuf>) -> Result<Agent, AgentError> {
    let mut unfit = None;
    for path in &places {
        match read(path) {
            Ok(agent) => return Ok(agent),
            Err(AgentError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => unfit = unfit.or(Some(error)),
        }
    }
    Err(unfit.unwrap_or(AgentError::NotFound { looked_at: places }))
}

fn read(path: &Path) -> Result<Agent, AgentError> {
    let bytes = std::fs::read(path).map_err(|source| AgentError::Read {
        path: path.to_owned(),
        source,
    })?;
    let unfit = |source| AgentError::Unfit {
        path: path.to_owned(),
        source,
    };
    Elf::parse(&bytes).map_err(unfit)?.check_static().map_err(unfit)?;
    Ok(Agent {
        path: path.to_owned(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::elf::tests::synthetic;

    #[test]
    fn an_unfit_agent_is_passed_over_for_a_fit_one() {
        let place = tempfile::tempdir().unwrap();
        let (dynamic, fit) = (place.path().join("dynamic"), place.path().join("fit"));
        std::fs::write(&dynamic, synthetic(&[(3, b"/lib/ld.so\0")], &[])).unwrap();
        std::fs::write(&fit, synthetic(&[(1, b"code")], &[])).unwrap();
        let found = first_fit(vec![place.path().join("absent"), dynamic.clone(), fit.clone()]).unwrap();
        assert_eq!(found.path, fit);
        assert!(matches!(first_fit(vec![dynamic]), Err(AgentError::Unfit { .. })));
    }

    #[test]
    fn where_was_looked_is_said() {
        let message = first_fit(vec!["/none/a".into(), "/none/b".into()])
            .unwrap_err()
            .to_string();
        assert!(message.contains("/none/a, /none/b; give one with --agent"), "{message}");
    }

    #[test]
    fn a_script_is_no_agent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
        assert!(matches!(
            find(Some(file.path())),
            Err(AgentError::Unfit {
                source: ElfError::NotElf,
                ..
            })
        ));
    }
}
