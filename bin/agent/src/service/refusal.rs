//! Why a request is refused, and the code that goes with it. The only place that knows ttrpc's codes.

use kata_jail::cgroup::CgroupError;
use kata_jail::container::ContainerError;
use kata_jail::fault::Fault;
use ttrpc::Code;

/// A refusal, in words for the host.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    Exists(String),
    /// It cannot be done in this state.
    #[error("{0}")]
    State(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It could not be done.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// There is no such container.
    pub fn no_container(id: &str) -> Self {
        Self::NotFound(format!("container {id} does not exist"))
    }

    /// There is no such process.
    pub fn no_process(container: &str, exec: &str) -> Self {
        Self::NotFound(format!("process {exec} of container {container} does not exist"))
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Internal(_) => Code::INTERNAL,
        }
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        tracing::debug!("refused: {refusal}");
        Self::RpcStatus(ttrpc::get_status(refusal.code(), refusal.to_string()))
    }
}

impl From<CgroupError> for Refusal {
    fn from(error: CgroupError) -> Self {
        match error {
            CgroupError::Limit(_) | CgroupError::Rule(_) => Self::Invalid(error.to_string()),
            CgroupError::InUse { .. } => Self::State(error.to_string()),
            CgroupError::File { .. } => Self::Internal(error.to_string()),
        }
    }
}

impl From<ContainerError> for Refusal {
    fn from(error: ContainerError) -> Self {
        match error {
            ContainerError::Cgroup(error) => error.into(),
            ContainerError::Spec { .. }
            | ContainerError::Namespaces {
                source: Fault::Value { .. },
                ..
            } => Self::Invalid(error.to_string()),
            _ => Self::Internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_input_is_told_from_what_went_wrong() {
        let spec = ContainerError::Spec {
            id: "c".into(),
            what: "root is missing".into(),
        };
        let refusal = Refusal::from(spec);
        assert_eq!(refusal.to_string(), "the spec of container c: root is missing");
        assert_eq!(refusal.code(), Code::INVALID_ARGUMENT);
        let call = ContainerError::Call {
            id: "c".into(),
            act: "x",
            source: std::io::ErrorKind::OutOfMemory.into(),
        };
        assert_eq!(Refusal::from(call).code(), Code::INTERNAL);
    }
}
