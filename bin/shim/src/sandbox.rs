//! The Sandbox API of containerd ≥ 2: a pod is the machine itself, without a first container. Its containers come by the Task
//! API of the same process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox as SandboxApi;
use containerd_shim_protos::types::platform;
use kata_bundle::Bundle;
use kata_sandbox::lifecycle::Phase;
use kata_sandbox::{Sandbox, describe};
use kata_wire::proto::StatsResponse;
use tokio::sync::{Mutex, Notify};
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use crate::event::timestamp;
use crate::task::{TaskService, whole};
use crate::{metrics, pod, status};

/// How long a client has to hear that the pod is shut down before the connection ends: containerd's takes the answer and the end, when
/// it sees both at once, for either, and then the pod for one that cannot be removed (2.1, `ttrpc: closed`).
const FAREWELL: Duration = Duration::from_millis(200);

/// The service.
pub struct SandboxService {
    tasks: Arc<TaskService>,
    closing: Arc<Notify>,
    /// The pod that was created, and when.
    pod: Mutex<Option<Created>>,
}

#[derive(Clone)]
struct Created {
    bundle: Bundle,
    at: Timestamp,
}

impl SandboxService {
    /// A service for the sandbox of `tasks`. `closing` is notified when the process may end.
    pub fn new(tasks: Arc<TaskService>, closing: Arc<Notify>) -> Self {
        Self {
            tasks,
            closing,
            pod: Mutex::default(),
        }
    }

    /// The sandbox, if it has this id.
    async fn sandbox(&self, id: &str) -> ttrpc::Result<Sandbox> {
        match self.tasks.opened().await {
            Some(sandbox) if sandbox.id() == id && self.pod.lock().await.is_some() => Ok(sandbox),
            _ => Err(status::with(
                Code::NOT_FOUND,
                format!("sandbox \"{id}\" does not exist"),
            )),
        }
    }

    async fn created(&self, id: &str) -> ttrpc::Result<Created> {
        let pod = self.pod.lock().await.clone();
        pod.ok_or_else(|| status::with(Code::NOT_FOUND, format!("sandbox \"{id}\" does not exist")))
    }
}

/// CRI's words.
fn state_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "SANDBOX_READY",
        _ => "SANDBOX_NOTREADY",
    }
}

/// The name that Go has for the machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        tracing::info!(id = request.sandbox_id, bundle = request.bundle_path, "create the pod");
        let bundle = self.tasks.abroad(|| pod::bundle_of(&request))??;
        let mut pod = self.pod.lock().await;
        let sandbox = self.tasks.open(&bundle, None).await?;
        if sandbox.id() != request.sandbox_id {
            let reason = format!("this is the process of sandbox \"{}\"", sandbox.id());
            return Err(status::with(Code::INVALID_ARGUMENT, reason));
        }
        sandbox.open_pod().await.map_err(status::from_sandbox)?;
        *pod = Some(Created {
            bundle,
            at: Timestamp::now(),
        });
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        let Created { bundle, at } = self.created(&request.sandbox_id).await?;
        whole(async move { sandbox.start_pod(&bundle).await }).await?;
        Ok(api::StartSandboxResponse {
            pid: std::process::id(),
            created_at: MessageField::some(at),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: api::PlatformRequest) -> ttrpc::Result<api::PlatformResponse> {
        let platform = platform::Platform {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            ..Default::default()
        };
        Ok(api::PlatformResponse {
            platform: MessageField::some(platform),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        tracing::info!(id = request.sandbox_id, "stop the pod");
        whole(async move { sandbox.stop_pod().await }).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        let exit = sandbox.wait_pod().await.map_err(status::from_sandbox)?;
        Ok(api::WaitSandboxResponse {
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        let created = self.created(&request.sandbox_id).await?;
        let phase = sandbox.pod_phase().await.map_err(status::from_sandbox)?;
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("phase".to_owned(), phase.word().to_owned());
        }
        Ok(api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: std::process::id(),
            state: state_of(phase).to_owned(),
            info,
            created_at: MessageField::some(created.at),
            exited_at: phase.exit().map(timestamp).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: api::PingRequest) -> ttrpc::Result<api::PingResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        sandbox.ping_pod().await.map_err(|error| {
            let reason = describe(&error);
            status::with(Code::UNAVAILABLE, reason)
        })?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        tracing::info!(id = request.sandbox_id, "shut the pod down");
        // Taken back by whoever is notified, before the process ends.
        let closing = self.closing.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            closing.notify_one();
        });
        Ok(api::ShutdownSandboxResponse::new())
    }

    /// What the pod's containers have used together.
    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).await?;
        let mut sum = StatsResponse::default();
        for id in sandbox.containers().await {
            // Those that do not run use nothing; the pod itself is no container of the guest.
            if let Ok(stats) = sandbox.stats(&id).await {
                metrics::add(&mut sum, &stats);
            }
        }
        let mut answer = api::SandboxMetricsResponse::new();
        let metric = answer.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(Timestamp::now());
        metric.id = request.sandbox_id;
        metric.data = MessageField::some(metrics::encode(&sum, metrics::Version::of_host()));
        Ok(answer)
    }
}
