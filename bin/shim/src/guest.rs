//! Questions about the guest that the Task API has no words for: the agent's own service, on the sandbox's socket, with
//! those of its methods that only look. `kata-runtime` asks them.

use std::sync::Arc;

use async_trait::async_trait;
use kata_wire::proto::{Agent, ContainerRef, ProcessesResponse, StatsResponse};
use ttrpc::asynchronous::TtrpcContext;

use crate::status;
use crate::task::TaskService;

/// The service.
pub struct GuestQuestions(Arc<TaskService>);

impl GuestQuestions {
    /// Asks the sandbox that `tasks` has opened.
    pub fn new(tasks: Arc<TaskService>) -> Self {
        Self(tasks)
    }
}

#[async_trait]
impl Agent for GuestQuestions {
    async fn processes(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<ProcessesResponse> {
        let processes = self.0.sandbox().await?.processes(&request.container_id).await;
        processes.map_err(status::from_sandbox)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<StatsResponse> {
        let stats = self.0.sandbox().await?.stats(&request.container_id).await;
        stats.map_err(status::from_sandbox)
    }
}
