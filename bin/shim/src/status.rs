//! Errors become ttrpc statuses: the only place.

use kata_agent_client::AgentError;
use kata_sandbox::lifecycle::Refusal;
use kata_sandbox::{SandboxError, describe};
use ttrpc::Code;

/// The status that containerd understands, with the whole chain of the error in its message.
pub fn from_sandbox(error: SandboxError) -> ttrpc::Error {
    let code = match &error {
        SandboxError::Refused(refusal) => match refusal {
            Refusal::NoContainer { .. } | Refusal::NoExec { .. } | Refusal::Finished { .. } => Code::NOT_FOUND,
            Refusal::Exists { .. } => Code::ALREADY_EXISTS,
            Refusal::WrongState { .. } => Code::FAILED_PRECONDITION,
        },
        SandboxError::Agent(agent) => match agent {
            AgentError::NotFound(_) => Code::NOT_FOUND,
            AgentError::AlreadyExists(_) => Code::ALREADY_EXISTS,
            AgentError::WrongState(_) => Code::FAILED_PRECONDITION,
            AgentError::Invalid(_) => Code::INVALID_ARGUMENT,
            AgentError::Silent { .. } => Code::DEADLINE_EXCEEDED,
            AgentError::Failed(_) => Code::INTERNAL,
            AgentError::Lost => Code::UNAVAILABLE,
        },
        SandboxError::Bundle(_) | SandboxError::Plan(_) | SandboxError::Config(_) | SandboxError::Stdio(_) => {
            Code::INVALID_ARGUMENT
        }
        SandboxError::NoMachine { .. } => Code::FAILED_PRECONDITION,
        SandboxError::Closing => Code::UNAVAILABLE,
        _ => Code::INTERNAL,
    };
    with(code, describe(&error))
}

/// A status made by hand.
pub fn with(code: Code, message: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.into()))
}
