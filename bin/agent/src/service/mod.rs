//! The rpcs of `agent.proto`: each is read, done in a room of its own, answered. What has begun is finished even if the
//! host stops waiting for it.

mod balloon;
mod container;
mod disk;
mod driver;
mod hardware;
mod ids;
mod memory;
mod network;
mod numbers;
mod process;
mod refusal;
mod reset;
mod rest;
mod setup;
mod tree;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_wire::proto::{self, Agent, Empty};
use ttrpc::r#async::TtrpcContext;

use crate::pod::Pod;
use crate::power;
use refusal::Refusal;

/// Time for the answer to a shutdown to leave.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// The service.
#[derive(Debug)]
pub struct Service {
    pod: Arc<Pod>,
}

impl Service {
    /// Serves this pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// Lets `work` go on to its end even if nobody waits for the answer any more.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work)
        .await
        .map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(done?)
}

#[async_trait]
impl Agent for Service {
    async fn setup(&self, _: &TtrpcContext, request: proto::SetupRequest) -> ttrpc::Result<proto::SetupResponse> {
        Ok(setup::setup(&self.pod, &request)?)
    }

    async fn update_network(&self, _: &TtrpcContext, request: proto::Network) -> ttrpc::Result<Empty> {
        network::make(&self.pod, &request)?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: proto::CreateContainerRequest,
    ) -> ttrpc::Result<proto::CreateContainerResponse> {
        finish(container::create(Arc::clone(&self.pod), request)).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<Empty> {
        finish(container::start(Arc::clone(&self.pod), request.container_id)).await
    }

    async fn delete_container(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<Empty> {
        finish(container::delete(Arc::clone(&self.pod), request.container_id)).await
    }

    async fn exec(&self, _: &TtrpcContext, request: proto::ExecRequest) -> ttrpc::Result<proto::ExecResponse> {
        finish(process::exec(Arc::clone(&self.pod), request)).await
    }

    async fn delete_process(&self, _: &TtrpcContext, request: proto::ProcessRef) -> ttrpc::Result<Empty> {
        finish(process::delete(Arc::clone(&self.pod), request)).await
    }

    async fn wait(&self, _: &TtrpcContext, request: proto::ProcessRef) -> ttrpc::Result<proto::WaitResponse> {
        Ok(process::wait(&self.pod, &request).await?)
    }

    async fn signal(&self, _: &TtrpcContext, request: proto::SignalRequest) -> ttrpc::Result<Empty> {
        Ok(process::signal(&self.pod, &request)?)
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: proto::ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        Ok(process::resize(&self.pod, &request)?)
    }

    async fn pause(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<Empty> {
        Ok(container::freeze(&self.pod, &request.container_id, true).await?)
    }

    async fn resume(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<Empty> {
        Ok(container::freeze(&self.pod, &request.container_id, false).await?)
    }

    async fn update(&self, _: &TtrpcContext, request: proto::UpdateRequest) -> ttrpc::Result<Empty> {
        Ok(container::update(&self.pod, &request)?)
    }

    async fn update_tree(&self, _: &TtrpcContext, request: proto::UpdateTreeRequest) -> ttrpc::Result<Empty> {
        Ok(tree::update(&self.pod, &request)?)
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRef,
    ) -> ttrpc::Result<proto::ProcessesResponse> {
        Ok(numbers::processes(&self.pod, &request.container_id)?)
    }

    async fn stats(&self, _: &TtrpcContext, request: proto::ContainerRef) -> ttrpc::Result<proto::StatsResponse> {
        Ok(numbers::stats(&self.pod, &request.container_id)?)
    }

    async fn online_resources(
        &self,
        _: &TtrpcContext,
        request: proto::OnlineRequest,
    ) -> ttrpc::Result<proto::OnlineResponse> {
        Ok(hardware::online(&self.pod, &request).await?)
    }

    async fn reset(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        Ok(reset::reset(&self.pod)?)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        tokio::spawn(async {
            tokio::time::sleep(LAST_WORDS).await;
            power::off();
        });
        Ok(Empty::new())
    }
}
