use std::path::PathBuf;

/// Why a process could not be written down, made, or made to do something.
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
    /// The process has something of which nothing is known here.
    #[error("process {pid} has {what}, which is not provided for")]
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
    /// The process did not do what it was told.
    #[error("the process {what}")]
    Astray {
        /// What it did.
        what: String,
    },
}

impl CheckpointError {
    pub(crate) fn kernel<E: Into<std::io::Error>>(act: impl Into<String>) -> impl FnOnce(E) -> Self {
        let act = act.into();
        move |error| Self::Kernel {
            act,
            source: error.into(),
        }
    }
}

impl From<CheckpointError> for std::io::Error {
    fn from(error: CheckpointError) -> Self {
        Self::other(error)
    }
}
