//! Takes connections of the host on the channel, one after the other, and hands each stream to whoever it is for.
//! Containers do not notice that a connection ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::stream::unfold;
use kata_wire::mux::{self, Side, Stream};
use kata_wire::proto::create_agent;
use kata_wire::stream::Header;
use kata_wire::{handshake, names};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::channel::Channel;
use crate::descriptor::Descriptor;
use crate::loopback;
use crate::pod::Pod;
use crate::service::Service;

/// How long the host may take for the first bytes of a connection, and of a stream.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(30);

/// Pause before a channel that failed is tried again, so that a broken one does not cost a whole processor.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves for ever.
///
/// # Errors
/// When there is no channel.
pub async fn run(pod: Arc<Pod>) -> anyhow::Result<()> {
    let (requests, connections) = mpsc::channel::<Stream>(16);
    let listener = Listener::new(unfold(connections, |mut connections| async {
        let stream = connections.recv().await?;
        Some((io::Result::Ok(stream), connections))
    }));
    let service = create_agent(Arc::new(Service::new(Arc::clone(&pod))));
    let mut server = Server::new().register_service(service).add_listener(listener);
    server.start().await.context("start the server")?;

    let channel = Channel::find(&pod.modules).await?;
    pod.boot.mark_ready();
    tracing::info!(usecs = pod.boot.ready_usecs(), "ready for {}", names::CHANNEL_PORT);
    loop {
        match channel.accept().await {
            Ok(connection) => serve(connection, &pod, &requests).await,
            Err(error) => {
                tracing::warn!("the channel takes no connection: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(mut connection: Descriptor, pod: &Arc<Pod>, requests: &mpsc::Sender<Stream>) {
    match timeout(FIRST_BYTES_LIMIT, handshake::guest(&mut connection, handshake::OURS)).await {
        Ok(Ok(version)) => tracing::info!(version, "the host is there"),
        Ok(Err(error)) => {
            tracing::warn!("no agreement with the host: {error}");
            return sleep(PAUSE).await;
        }
        Err(_) => return tracing::warn!("the host connected and said nothing"),
    }
    let (_opener, mut incoming) = mux::start(connection, Side::Guest);
    while let Some(stream) = incoming.next().await {
        tokio::spawn(dispatch(stream, Arc::clone(pod), requests.clone()));
    }
    tracing::info!("the host has gone");
}

async fn dispatch(mut stream: Stream, pod: Arc<Pod>, requests: mpsc::Sender<Stream>) {
    let header = match timeout(FIRST_BYTES_LIMIT, Header::receive(&mut stream)).await {
        Ok(Ok(header)) => header,
        Ok(Err(error)) => return tracing::warn!("a stream that says not what it is: {error}"),
        Err(_) => return tracing::warn!("a stream that says nothing"),
    };
    match header {
        Header::Requests => {
            // The server lives as long as the agent.
            let _ = requests.send(stream).await;
        }
        Header::Connect { family, port } => loopback::connect(stream, family, port).await,
        Header::Stdio { .. } | Header::Accept { .. } => pod.with(|state| state.streams.arrive(header, stream)),
    }
}
