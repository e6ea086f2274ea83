//! From a byte transport to an [`Agent`]: handshake, multiplexer, stream of requests.

use std::time::Duration;

use kata_wire::handshake::{self, HandshakeError};
use kata_wire::mux;
use kata_wire::proto::AgentClient;
use kata_wire::stream::{Header, HeaderError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::client::Agent;

/// Why no agent could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing was heard in time.
    #[error("the guest's agent did not answer within {limit:?}")]
    Silent {
        /// How long was waited.
        limit: Duration,
    },
    /// The two sides do not speak the same protocol.
    #[error("the guest's agent and this program cannot talk")]
    Handshake(#[from] HandshakeError),
    /// The channel broke right after the handshake.
    #[error("the channel to the guest's agent broke")]
    Broken(#[source] HeaderError),
    /// The channel broke right after the handshake.
    #[error(transparent)]
    Closed(#[from] mux::OpenError),
}

/// Shakes hands with the agent at the other end of `transport` and takes at most `limit` for it.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect<T>(mut transport: T, limit: Duration) -> Result<Agent, ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let version = timeout(limit, handshake::host(&mut transport, handshake::OURS))
        .await
        .map_err(|_| ConnectError::Silent { limit })??;
    // The guest opens no stream: whatever would come in is refused by the multiplexer.
    let (opener, _refused) = mux::start(transport, mux::Side::Host);
    let mut requests = opener.open().await?;
    Header::Requests
        .send(&mut requests)
        .await
        .map_err(ConnectError::Broken)?;
    tracing::debug!(version, "agent reached");
    let client = AgentClient::new(Client::new(Socket::new(requests)));
    Ok(Agent::new(client, opener))
}
