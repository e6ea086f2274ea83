//! The pod's network on the host's side: the namespace that the sandbox process lives in, what is made in it for the
//! machine, and how all of it is taken back.
//!
//! The namespace is read when the machine is planned and again before a container starts, because engines may set links up
//! between create and start. It refuses the engine's own namespace: a machine would take the host's links away.

use std::fs::File;
use std::path::{Path, PathBuf};

use kata_agent_client::Agent;
use kata_bundle::{Bundle, NetworkNamespace};
use kata_config::{Config, Internetworking};
use kata_machine::Wire;
use kata_net::namespace::{self, Identity};
use kata_net::{macvtap, scan, tap, tc};
use kata_netlink::{Interface, Network, Socket};
use kata_plan::{NamespacePlan, NetworkPlan, NicPlan};
use kata_wire::proto;
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::sandbox::{Sandbox, State};
use crate::step::Steps;

/// The network namespace of a pod, which this process has entered. Without one, nothing of any network is touched.
#[derive(Clone, Debug)]
pub struct PodNamespace {
    /// The file that stands for it; `None` if it was made here and lives no longer than its processes.
    path: Option<PathBuf>,
    identity: Identity,
}

/// What outlives this process of a network: enough to take it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    namespace: PathBuf,
    identity: Identity,
    links: Vec<RecordedLink>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedLink {
    /// Ours.
    tap: String,
    /// The pod's link that it is joined to.
    joined: Option<String>,
}

/// The network of a machine.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    namespace: PodNamespace,
    nics: Vec<NicPlan>,
    /// What the guest has not been told yet.
    news: bool,
}

/// Where the sandbox of this pod has to live.
///
/// # Errors
/// [`SandboxError::Plan`] for the network of whoever asks, [`SandboxError::Host`] for a namespace that is not there.
pub fn decide(bundle: &Bundle, config: &Config) -> Result<NamespacePlan, SandboxError> {
    let wanted = bundle.network_namespace();
    let is_engines = match &wanted {
        NetworkNamespace::At(path) => {
            let looked = |path| Ok(Identity::of(path)? == Identity::own()?);
            looked(path).map_err(host_error("look at the network namespace", path))?
        }
        _ => false,
    };
    Ok(kata_plan::namespace(wanted, is_engines, config)?)
}

/// Takes this process where the sandbox of this pod has to live. `None`: it stays where it is.
///
/// # Errors
/// As [`decide`]; [`SandboxError::Host`] for a namespace that cannot be entered.
pub fn enter(bundle: &Bundle, config: &Config) -> Result<Option<PodNamespace>, SandboxError> {
    let own = Path::new("/proc/thread-self/ns/net");
    let path = match decide(bundle, config)? {
        NamespacePlan::Stay => return Ok(None),
        NamespacePlan::Make => {
            namespace::enter_new().map_err(host_error("make another network namespace than", own))?;
            None
        }
        NamespacePlan::Enter(path) => {
            namespace::enter(&path).map_err(host_error("enter the network namespace", &path))?;
            Some(path)
        }
    };
    let identity = Identity::own().map_err(host_error("look at the network namespace", own))?;
    Ok(Some(PodNamespace { path, identity }))
}

fn host_error(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError::Host { act, path, source }
}

/// What a pod that is not running would find in its namespace; `None` if it gets no network.
///
/// # Errors
/// As [`decide`]; [`SandboxError::Netlink`]
pub fn preview(bundle: &Bundle, config: &Config) -> Result<Option<Network>, SandboxError> {
    match decide(bundle, config)? {
        NamespacePlan::Stay => Ok(None),
        NamespacePlan::Make => Ok(Some(Network::default())),
        NamespacePlan::Enter(path) => Ok(Some(scan::scan(&Socket::open_in(&path)?)?)),
    }
}

/// Takes back what a sandbox that is gone has made in its pod's namespace. A namespace that is gone has taken it along.
///
/// # Errors
/// What could not be removed.
pub(crate) fn take_back(record: &NetworkRecord) -> Result<(), SandboxError> {
    // Another pod's namespace may have the name by now.
    if !Identity::of(&record.namespace).is_ok_and(|identity| identity == record.identity) {
        return Ok(());
    }
    let socket = Socket::open_in(&record.namespace)?;
    for link in &record.links {
        if let Some(joined) = &link.joined {
            tc::part(&socket, joined, &link.tap)?;
        }
        socket.remove_link(&link.tap)?;
    }
    Ok(())
}

impl Sandbox {
    /// What the pod has of its namespace now.
    pub(crate) fn look_at_network(&self) -> Result<Option<Network>, SandboxError> {
        if self.network.is_none() || self.config.runtime.internetworking_model == Internetworking::None {
            return Ok(None);
        }
        Ok(Some(scan::scan(&Socket::open()?)?))
    }

    /// Makes the host's ends of the machine's interfaces and joins them to the pod's links.
    /// They are brought over from the network namespace `from` if the machine has them already.
    pub(crate) async fn make_network(
        &self,
        plan: &NetworkPlan,
        from: Option<&File>,
        steps: &mut Steps,
    ) -> Result<(), SandboxError> {
        let Some(namespace) = self.network.clone() else {
            return Ok(());
        };
        let network = PodNetwork {
            namespace,
            nics: plan.nics.clone(),
            news: false,
        };
        self.ask(move |state| {
            state.network = Some(network);
            state.record_network()
        })
        .await??;
        let socket = Socket::open()?;
        for nic in &plan.nics {
            match (&nic.wire, &nic.interface) {
                (Wire::Tap { .. }, None) => make_tap(&socket, nic, from, steps)?,
                (Wire::Tap { .. }, Some(interface)) => {
                    make_tap(&socket, nic, from, steps)?;
                    join(&socket, &interface.name, nic, steps)?;
                }
                (Wire::Macvtap { node }, Some(interface)) => {
                    make_macvtap(&socket, nic, &interface.name, node, steps)?;
                }
                // A macvtap is never planned without a link.
                (Wire::Macvtap { .. }, None) => {}
            }
        }
        Ok(())
    }

    /// Tells the guest what has changed in the pod's namespace since it was last read.
    pub(crate) async fn refresh_network(&self, guest: &Agent) -> Result<(), SandboxError> {
        let news = self.ask(State::refresh_network).await??;
        if let Some(network) = news {
            guest.update_network(network).await?;
            self.ask(|state| {
                if let Some(network) = &mut state.network {
                    network.news = false;
                }
            })
            .await?;
        }
        Ok(())
    }
}

fn make_tap(socket: &Socket, nic: &NicPlan, from: Option<&File>, steps: &mut Steps) -> Result<(), SandboxError> {
    let name = nic.tap.clone();
    steps.next("tap")?;
    match from {
        None => tap::make(socket, &name, nic.queues, nic.mtu)?,
        Some(from) => tap::carry(socket, &name, nic.mtu, from)?,
    }
    steps.done("tap", move || async move {
        let removed = Socket::open().and_then(|socket| socket.remove_link(&name));
        removed.map_err(|error| crate::describe(&error))
    });
    Ok(())
}

fn make_macvtap(
    socket: &Socket,
    nic: &NicPlan,
    link: &str,
    node: &Path,
    steps: &mut Steps,
) -> Result<(), SandboxError> {
    let (name, node) = (nic.tap.clone(), node.to_owned());
    steps.next("macvtap")?;
    macvtap::make(socket, &name, link, &node)?;
    steps.done("macvtap", move || async move {
        let socket = Socket::open().map_err(|error| crate::describe(&error))?;
        macvtap::remove(&socket, &name, &node).map_err(|error| crate::describe(&error))
    });
    Ok(())
}

fn join(socket: &Socket, link: &str, nic: &NicPlan, steps: &mut Steps) -> Result<(), SandboxError> {
    let (link, tap) = (link.to_owned(), nic.tap.clone());
    steps.next("join links")?;
    tc::join(socket, &link, &tap)?;
    steps.done("join links", move || async move {
        let socket = Socket::open().map_err(|error| crate::describe(&error))?;
        tc::part(&socket, &link, &tap).map_err(|error| crate::describe(&error))
    });
    Ok(())
}

impl State {
    /// Writes down what is about to be in the pod's namespace.
    fn record_network(&mut self) -> Result<(), SandboxError> {
        let Some(network) = &self.network else { return Ok(()) };
        self.record.network = network.record();
        Ok(self.home.write(&self.record)?)
    }

    /// Follows the pod's namespace; answers what the guest has to be told.
    fn refresh_network(&mut self) -> Result<Option<proto::Network>, SandboxError> {
        let Some(network) = self.network.as_mut().filter(|network| !network.nics.is_empty()) else {
            return Ok(None);
        };
        let socket = Socket::open()?;
        let now = scan::scan(&socket)?.interfaces;
        if network.follow(&socket, &now)? {
            network.news = true;
            self.record_network()?;
        }
        self.join_newcomers(&socket, now)?;
        let news = self.network.as_ref().filter(|network| network.news);
        Ok(news.map(|network| for_guest(&network.nics)))
    }

    /// Gives each link that has none an interface of the machine.
    fn join_newcomers(&mut self, socket: &Socket, now: Vec<Interface>) -> Result<(), SandboxError> {
        for interface in now {
            let Some(network) = &mut self.network else {
                return Ok(());
            };
            if network.nics.iter().any(|nic| is_for(nic, &interface)) {
                continue;
            }
            let spare = network.nics.iter_mut().find(|nic| is_spare(nic));
            let nic = spare.ok_or_else(|| SandboxError::NoSpareInterface {
                name: interface.name.clone(),
            })?;
            tap::resize(socket, &nic.tap, interface.mtu)?;
            let name = interface.name.clone();
            nic.interface = Some(interface);
            let nic = nic.clone();
            network.news = true;
            // Before it is done, as ever: what is recorded and was not done is no harm.
            self.record_network()?;
            if let Some(steps) = &mut self.steps {
                join(socket, &name, &nic, steps)?;
            }
        }
        Ok(())
    }
}

/// The pod's link that a tap is joined to.
fn joined_to(nic: &NicPlan) -> Option<&str> {
    let is_tap = matches!(nic.wire, Wire::Tap { .. });
    let interface = nic.interface.as_ref().filter(|_| is_tap)?;
    Some(&interface.name)
}

/// A macvtap has gone with its link.
fn is_spare(nic: &NicPlan) -> bool {
    nic.interface.is_none() && matches!(nic.wire, Wire::Tap { .. })
}

fn is_for(nic: &NicPlan, interface: &Interface) -> bool {
    nic.interface.as_ref().is_some_and(|own| own.name == interface.name)
}

impl PodNetwork {
    fn record(&self) -> Option<NetworkRecord> {
        let links = self.nics.iter().map(|nic| RecordedLink {
            tap: nic.tap.clone(),
            joined: joined_to(nic).map(str::to_owned),
        });
        Some(NetworkRecord {
            namespace: self.namespace.path.clone()?,
            identity: self.namespace.identity,
            links: links.collect(),
        })
    }

    /// Takes over what has changed of links that have an interface, and gives those free whose link has gone; answers
    /// whether there was anything.
    fn follow(&mut self, socket: &Socket, now: &[Interface]) -> Result<bool, SandboxError> {
        let mut changed = false;
        for nic in &mut self.nics {
            let Some(own) = &nic.interface else { continue };
            match now.iter().find(|interface| interface.name == own.name) {
                Some(interface) if interface == own => continue,
                Some(interface) => {
                    if interface.mtu != own.mtu {
                        tap::resize(socket, &nic.tap, interface.mtu)?;
                    }
                    nic.interface = Some(interface.clone());
                }
                None => {
                    if let Some(link) = joined_to(nic) {
                        tc::part(socket, link, &nic.tap)?;
                    }
                    nic.interface = None;
                }
            }
            changed = true;
        }
        Ok(changed)
    }
}

/// The network as the guest is told.
pub(crate) fn for_guest(nics: &[NicPlan]) -> proto::Network {
    let interfaces = nics.iter().filter_map(|nic| {
        let interface = nic.interface.as_ref()?;
        Some(proto::Interface {
            device_mac: nic.mac.0.to_vec(),
            name: interface.name.clone(),
            mac: interface.mac.0.to_vec(),
            mtu: interface.mtu,
            ipv6_disabled: interface.ipv6_disabled,
            addresses: interface.addresses.iter().map(address).collect(),
            routes: interface.routes.iter().map(route).collect(),
            neighbours: interface.neighbours.iter().map(neighbour).collect(),
            ..Default::default()
        })
    });
    proto::Network {
        interfaces: interfaces.collect(),
        ..Default::default()
    }
}

fn octets(ip: impl Into<std::net::IpAddr>) -> Vec<u8> {
    match ip.into() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(address: &kata_netlink::Address) -> proto::Address {
    proto::Address {
        ip: octets(address.ip),
        prefix: address.prefix.into(),
        peer: address.peer.map(octets).unwrap_or_default(),
        broadcast: address.broadcast.map(octets).unwrap_or_default(),
        scope: address.scope.into(),
        ..Default::default()
    }
}

fn route(route: &kata_netlink::Route) -> proto::Route {
    proto::Route {
        destination: octets(route.destination),
        prefix: route.prefix.into(),
        gateway: route.gateway.map(octets).unwrap_or_default(),
        source: route.source.map(octets).unwrap_or_default(),
        metric: route.metric,
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        on_link: route.on_link,
        mtu: route.mtu,
        ..Default::default()
    }
}

fn neighbour(neighbour: &kata_netlink::Neighbour) -> proto::Neighbour {
    proto::Neighbour {
        ip: octets(neighbour.ip),
        mac: neighbour.mac.0.to_vec(),
        ..Default::default()
    }
}
