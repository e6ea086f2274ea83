//! Connections of a container to sockets of the host. For each socket one stream always waits in the guest; when
//! somebody connects there, the stream becomes the connection and the next one begins to wait.

use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::{Agent, AgentError};
use kata_storage::socket::HostSocket;
use kata_wire::mux::Stream;
use kata_wire::proto;
use kata_wire::relay::relay;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// Most connections to one socket at a time. The guest's next one waits until one of them has ended.
const MOST: usize = 128;

/// Pause before the guest is asked again after it, or the channel, could not give a stream.
const PAUSE: Duration = Duration::from_secs(1);

/// The sockets of one container, each with the number that names it.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(u32, Arc<HostSocket>)>);

impl Sockets {
    /// Adds one.
    pub fn add(&mut self, number: u32, socket: HostSocket) {
        self.0.push((number, Arc::new(socket)));
    }

    /// What the agent is asked to make.
    pub fn announce(&self) -> Vec<proto::Socket> {
        let announced = self.0.iter().map(|(number, socket)| {
            let (uid, gid) = socket.owner();
            proto::Socket {
                number: *number,
                mode: socket.mode(),
                uid,
                gid,
                ..Default::default()
            }
        });
        announced.collect()
    }

    /// Serves the container's connections from now on, until the answer is dropped.
    pub fn serve(self, agent: &Agent, container: &str) -> Serving {
        let tasks = self.0.into_iter().map(|(number, socket)| {
            let (agent, container) = (agent.clone(), container.to_owned());
            tokio::spawn(serve(agent, container, number, socket))
        });
        Serving(tasks.collect())
    }
}

/// Connections under way. Dropping it breaks them.
#[derive(Debug)]
pub struct Serving(Vec<JoinHandle<()>>);

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn serve(agent: Agent, container: String, number: u32, socket: Arc<HostSocket>) {
    // All end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match agent.accept(&container, number).await {
            Ok(stream) => {
                connections.spawn(connect(stream, Arc::clone(&socket)));
            }
            Err(AgentError::Lost) => return,
            Err(error) => {
                tracing::warn!(container, socket = %socket.path().display(), %error, "no connection from the guest");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn connect(mut stream: Stream, socket: Arc<HostSocket>) {
    match socket.connect().await {
        Ok(mut connection) => {
            // However it ended, dropping both ends it on both sides.
            let _ = relay(&mut stream, &mut connection).await;
        }
        Err(error) => tracing::warn!(socket = %socket.path().display(), %error, "cannot connect for the guest"),
    }
}
