use std::path::PathBuf;

/// Why a process could not be written down or made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The kernel refused something.
    #[error("cannot {act}")]
    Kernel {
        /// What was being done.
        act: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// The process has something that cannot be written down.
    #[error("process {pid} has {what}, which cannot be written down")]
    Unknown {
        /// The process.
        pid: i32,
        /// What.
        what: String,
    },
    /// A file that the process has mapped is another now.
    #[error("{} is not the file any more that the image was made with", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no image.
    #[error("not an image of a process: {reason}")]
    Damaged {
        /// In what.
        reason: String,
    },
    /// The new process did not do what it was told.
    #[error("the new process {what}")]
    Astray {
        /// What it did.
        what: String,
    },
}

impl CheckpointError {
    pub(crate) fn kernel(act: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let act = act.into();
        move |source| Self::Kernel { act, source }
    }

    pub(crate) fn errno(act: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let act = act.into();
        move |errno| Self::Kernel {
            act,
            source: errno.into(),
        }
    }
}
