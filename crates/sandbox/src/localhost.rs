//! What the pod's loopback is on the host: engines that forward a port enter the pod's network namespace there and connect
//! to `localhost`, but the pod's programs listen in the guest. So every connection to a loopback address of this
//! process's namespace is carried to the same port of the guest's, unless somebody does listen here.
//!
//! The kernel undoes it with the process. A namespace that is not the pod's alone must not be served.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::Agent;
use kata_sys::steering::Steering;
use kata_wire::relay::relay;
use kata_wire::stream::Family;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Most connections at a time, of each family. Further ones wait in the kernel.
const MOST: usize = 256;

/// How long somebody who listens here may take to answer.
const NEAR_LIMIT: Duration = Duration::from_secs(10);

/// Pause before the next connection is taken when the last one could not be.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections under way. Dropping it breaks them and takes no more.
#[derive(Debug)]
pub struct Localhost(Vec<JoinHandle<()>>);

impl Drop for Localhost {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Carries connections to the loopback of this thread's network namespace to the guest's.
///
/// # Errors
/// When there is no loopback, or the kernel cannot steer (it is older than 5.9, or forbids BPF).
pub fn serve(agent: &Agent) -> io::Result<Localhost> {
    let v4 = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // Where IPv6 is off nobody connects by it either.
    let v6 = listen(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).ok();
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let steering = Steering::begin(namespace.as_fd(), v4.as_fd(), v6.as_ref().map(AsFd::as_fd))?;
    let steering = Arc::new(steering);
    let tasks = [Some(v4), v6].into_iter().flatten().map(|listener| {
        let listener = TcpListener::from_std(listener)?;
        let near = Near {
            own_port: listener.local_addr()?.port(),
            steering: Arc::clone(&steering),
        };
        Ok(tokio::spawn(take(listener, Arc::new(near), agent.clone())))
    });
    Ok(Localhost(tasks.collect::<io::Result<_>>()?))
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn take(listener: TcpListener, near: Arc<Near>, agent: Agent) {
    // All end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST => match accepted {
                Ok((client, _)) => {
                    connections.spawn(carry(client, Arc::clone(&near), agent.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the pod's loopback takes no connection");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end. What breaks it there, or refuses it, resets it here.
async fn carry(mut client: TcpStream, near: Arc<Near>, agent: Agent) {
    // What comes in pieces was written in pieces.
    let _ = client.set_nodelay(true);
    let whole = match client.local_addr() {
        Ok(wanted) => match near.connect(wanted).await {
            Some(mut listener) => tokio::io::copy_bidirectional(&mut client, &mut listener).await.is_ok(),
            None => carry_to_guest(&mut client, wanted, &agent).await,
        },
        Err(_) => false,
    };
    if !whole {
        let _ = client.set_zero_linger();
    }
}

async fn carry_to_guest(client: &mut TcpStream, wanted: SocketAddr, agent: &Agent) -> bool {
    let family = if wanted.is_ipv4() { Family::V4 } else { Family::V6 };
    match agent.connect(family, wanted.port()).await {
        Ok(Some(mut stream)) => relay(&mut stream, client).await.is_ok(),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(%wanted, %error, "no connection to the guest's loopback");
            false
        }
    }
}

/// Who listens in this namespace itself.
struct Near {
    own_port: u16,
    steering: Arc<Steering>,
}

impl Near {
    /// Connects to whoever listens at `wanted` here, if somebody does.
    async fn connect(&self, wanted: SocketAddr) -> Option<TcpStream> {
        if wanted.port() == self.own_port {
            return None;
        }
        let (socket, any_port) = match wanted {
            SocketAddr::V4(_) => (TcpSocket::new_v4(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            SocketAddr::V6(_) => (TcpSocket::new_v6(), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
        };
        let socket = socket.ok()?;
        socket.bind(any_port).ok()?;
        let _exempt = Exempt::new(&self.steering, socket.local_addr().ok()?.port())?;
        timeout(NEAR_LIMIT, socket.connect(wanted)).await.ok()?.ok()
    }
}

/// A port that is not steered while this lives.
struct Exempt<'s> {
    steering: &'s Steering,
    port: u16,
}

impl<'s> Exempt<'s> {
    fn new(steering: &'s Steering, port: u16) -> Option<Self> {
        steering.exempt(port).ok()?;
        Some(Self { steering, port })
    }
}

impl Drop for Exempt<'_> {
    fn drop(&mut self) {
        // Fails only where it was not exempt.
        let _ = self.steering.steer_again(self.port);
    }
}
