//! The Task API of containerd's shim v2: one short method a call, each a translation and a question to the sandbox.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::shim_async::Task;
use kata_bundle::Bundle;
use kata_sandbox::lifecycle::{ExitStatus, Phase, Refusal};
use kata_sandbox::stdio::Stdio;
use kata_sandbox::{NewContainer, Process, Sandbox, SandboxError};
use kata_storage::mount::EngineMount;
use tokio::sync::{Mutex, Notify};
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use crate::event::timestamp;
use crate::serve::Opening;
use crate::{info, metrics, status, words};

/// The service. The sandbox is opened by the first create, because that is what says which configuration it has.
pub struct TaskService {
    opening: Opening,
    sandbox: Mutex<Option<Sandbox>>,
    closing: Arc<Notify>,
}

impl TaskService {
    /// A service with nothing open. `closing` is notified when the process may end.
    pub fn new(opening: Opening, closing: Arc<Notify>) -> Self {
        Self {
            opening,
            sandbox: Mutex::new(None),
            closing,
        }
    }

    /// The sandbox, which must have been opened.
    ///
    /// # Errors
    /// `NOT_FOUND` before the first create.
    pub async fn sandbox(&self) -> ttrpc::Result<Sandbox> {
        self.opened()
            .await
            .ok_or_else(|| status::with(Code::NOT_FOUND, "no container has been created yet"))
    }

    async fn sandbox_for_create(&self, request: &api::CreateTaskRequest) -> ttrpc::Result<Sandbox> {
        if let Some(sandbox) = self.opened().await {
            return Ok(sandbox);
        }
        let bundle = self.abroad(|| Bundle::load(Path::new(&request.bundle)))?;
        let bundle = bundle.map_err(|error| status::from_sandbox(error.into()))?;
        let config = request.options.as_ref().and_then(words::config_path);
        self.open(&bundle, config).await
    }

    /// Opens the sandbox for the pod of `bundle`, unless it is open.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub async fn open(&self, bundle: &Bundle, config: Option<PathBuf>) -> ttrpc::Result<Sandbox> {
        let mut open = self.sandbox.lock().await;
        if let Some(sandbox) = &*open {
            return Ok(sandbox.clone());
        }
        let sandbox = self.opening.open(bundle, config).map_err(status::from_sandbox)?;
        *open = Some(sandbox.clone());
        Ok(sandbox)
    }

    /// Does `act` where the engine's paths mean something.
    ///
    /// # Errors
    /// As [`Opening::abroad`].
    pub fn abroad<T>(&self, act: impl FnOnce() -> T) -> ttrpc::Result<T> {
        self.opening.abroad(act).map_err(status::from_sandbox)
    }

    /// Ends whatever runs for the pod.
    pub async fn close(&self) {
        match self.opened().await {
            Some(sandbox) => sandbox.shut_down().await,
            None => self.opening.close().await,
        }
    }

    /// The sandbox, if one was opened.
    pub async fn opened(&self) -> Option<Sandbox> {
        self.sandbox.lock().await.clone()
    }
}

fn process(container: &str, exec: &str) -> Process {
    Process {
        container: container.to_owned(),
        exec: exec.to_owned(),
    }
}

/// What a client says of stdio, the same words in two messages.
macro_rules! stdio_of {
    ($request:ident) => {
        Stdio::parse($request.terminal, &$request.stdin, &$request.stdout, &$request.stderr)
            .map_err(|error| status::from_sandbox(error.into()))
    };
}

fn exited_at(
    exit: Option<ExitStatus>,
) -> MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp> {
    exit.map(timestamp).into()
}

fn status_of(phase: Phase) -> api::Status {
    match phase {
        Phase::Creating => api::Status::UNKNOWN,
        Phase::Created | Phase::Starting { .. } => api::Status::CREATED,
        Phase::Running => api::Status::RUNNING,
        Phase::Paused => api::Status::PAUSED,
        Phase::Stopped(_) | Phase::Deleting(_) => api::Status::STOPPED,
    }
}

/// What containerd's clients know to print of an exec; nothing of other processes.
fn details(exec_id: String) -> Option<Any> {
    if exec_id.is_empty() {
        return None;
    }
    let details = oci::ProcessDetails {
        exec_id,
        ..Default::default()
    };
    let value = details.write_to_bytes().ok()?;
    Some(Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        value,
        ..Default::default()
    })
}

/// SIGKILL and SIGTERM: a process that they come too late for has what they were sent for.
const ENDING: [u32; 2] = [9, 15];

/// Answers and errors of a call whose answer is empty.
type Done = ttrpc::Result<api::Empty>;

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        tracing::info!(
            id = request.id,
            bundle = request.bundle,
            terminal = request.terminal,
            "create"
        );
        if !request.checkpoint.is_empty() {
            return Err(status::with(Code::UNIMPLEMENTED, "checkpoints are not supported"));
        }
        let stdio = stdio_of!(request)?;
        let sandbox = self.sandbox_for_create(&request).await?;
        let rootfs = request.rootfs.into_iter().map(|mount| EngineMount {
            fs_type: mount.type_,
            source: mount.source,
            options: mount.options,
        });
        let container = NewContainer {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: rootfs.collect(),
            stdio,
        };
        whole(async move { sandbox.create(container).await }).await?;
        Ok(api::CreateTaskResponse {
            pid: std::process::id(),
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let sandbox = self.sandbox().await?;
        let target = process(&request.id, &request.exec_id);
        whole(async move { sandbox.start(&target).await }).await?;
        Ok(api::StartResponse {
            pid: std::process::id(),
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        let sandbox = self.sandbox().await?;
        let target = process(&request.id, &request.exec_id);
        let exit = whole(async move { sandbox.delete(&target).await }).await?;
        Ok(api::DeleteResponse {
            pid: std::process::id(),
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Done {
        let spec = request
            .spec
            .as_ref()
            .map(|any| any.value.as_slice())
            .unwrap_or_default();
        let spec = kata_bundle::parse_process(spec)
            .map_err(|error| status::with(Code::INVALID_ARGUMENT, kata_sandbox::describe(&error)))?;
        let stdio = stdio_of!(request)?;
        let target = process(&request.id, &request.exec_id);
        let added = self.sandbox().await?.add_exec(&target, &spec, stdio).await;
        added.map_err(status::from_sandbox)?;
        Ok(api::Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let target = process(&request.id, &request.exec_id);
        let state = self
            .sandbox()
            .await?
            .state(&target)
            .await
            .map_err(status::from_sandbox)?;
        let exit = state.phase.exit();
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: state.bundle.display().to_string(),
            pid: std::process::id(),
            status: EnumOrUnknown::new(status_of(state.phase)),
            stdin: state
                .stdio
                .stdin
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            stdout: state.stdio.stdout.map(|place| place.to_string()).unwrap_or_default(),
            stderr: state.stdio.stderr.map(|place| place.to_string()).unwrap_or_default(),
            terminal: state.stdio.terminal,
            exit_status: exit.map(|exit| exit.code).unwrap_or_default(),
            exited_at: exited_at(exit),
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let target = process(&request.id, &request.exec_id);
        let exit = self
            .sandbox()
            .await?
            .wait(&target)
            .await
            .map_err(status::from_sandbox)?;
        Ok(api::WaitResponse {
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Done {
        let target = process(&request.id, &request.exec_id);
        let sent = self.sandbox().await?.signal(&target, request.signal, request.all).await;
        match sent {
            // As runc's shim: what was to end has ended.
            Err(SandboxError::Refused(Refusal::Finished { .. })) if ENDING.contains(&request.signal) => {}
            other => other.map_err(status::from_sandbox)?,
        }
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Done {
        let target = process(&request.id, &request.exec_id);
        let sandbox = self.sandbox().await?;
        sandbox
            .resize(&target, request.width, request.height)
            .await
            .map_err(status::from_sandbox)?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Done {
        if request.stdin {
            let target = process(&request.id, &request.exec_id);
            let closed = self.sandbox().await?.close_stdin(&target).await;
            closed.map_err(status::from_sandbox)?;
        }
        Ok(api::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Done {
        let sandbox = self.sandbox().await?;
        whole(async move { sandbox.pause(&request.id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Done {
        let sandbox = self.sandbox().await?;
        whole(async move { sandbox.resume(&request.id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Done {
        let resources = request.resources.into_option().map(|any| any.value);
        // None is no change.
        let resources = resources.unwrap_or_else(|| b"{}".to_vec());
        let sandbox = self.sandbox().await?;
        whole(async move { sandbox.update(&request.id, &resources).await }).await?;
        Ok(api::Empty::new())
    }

    /// One entry a process of the container, each with the pid that a host can use: that of the sandbox process. Those of
    /// the guest mean nothing here, or worse, somebody else; `kata-runtime ps` shows them.
    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let processes = self.sandbox().await?.processes(&request.id).await;
        let processes = processes.map_err(status::from_sandbox)?.processes;
        let entries = processes.into_iter().map(|process| api::ProcessInfo {
            pid: std::process::id(),
            info: details(process.exec_id).into(),
            ..Default::default()
        });
        Ok(api::PidsResponse {
            processes: entries.collect(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let stats = self
            .sandbox()
            .await?
            .stats(&request.id)
            .await
            .map_err(status::from_sandbox)?;
        Ok(api::StatsResponse {
            stats: MessageField::some(metrics::encode(&stats, metrics::Version::of_host())),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, _: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: std::process::id(),
            version: info::VERSION.to_owned(),
            ..Default::default()
        })
    }

    /// Ends the process, unless containers remain.
    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> Done {
        let remaining = match self.opened().await {
            Some(sandbox) => sandbox.containers().await.len(),
            None => 0,
        };
        tracing::info!(remaining, now = request.now, "shutdown");
        if remaining == 0 || request.now {
            self.closing.notify_one();
        }
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Done {
        Err(status::with(Code::UNIMPLEMENTED, "checkpoints are not supported"))
    }
}

/// Does `work` in a task of its own: a client that goes away in the middle must not leave it half done.
pub async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, SandboxError>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(|error| {
            let error = status::from_sandbox(error);
            tracing::info!(%error, "failed");
            error
        }),
        Err(error) => Err(status::with(
            Code::INTERNAL,
            format!("a bug in the sandbox process: {error}"),
        )),
    }
}
