//! Connections of the host to ports of the guest's own loopback.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kata_wire::mux::Stream;
use kata_wire::relay::relay;
use kata_wire::stream::{CONNECTED, Family};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a listener whose queue is full may take to make room.
const LIMIT: Duration = Duration::from_secs(30);

/// Connects `stream` to a port, until the connection ends; where nobody listens, closes it.
pub async fn connect(mut stream: Stream, family: Family, port: u16) {
    let address = match family {
        Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    let mut connection = match timeout(LIMIT, TcpStream::connect(address)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!("no connection to {address}: {error}"),
        Err(_) => return tracing::debug!("no connection to {address} in {LIMIT:?}"),
    };
    // What comes in pieces was written in pieces.
    let _ = connection.set_nodelay(true);
    let carried = async {
        stream.write_all(&[CONNECTED]).await?;
        stream.flush().await?;
        relay(&mut stream, &mut connection).await
    };
    if carried.await.is_err() {
        // What was reset on the host is reset here.
        let _ = connection.set_zero_linger();
    }
}
