//! The pod's network: which namespace the sandbox lives in, and how its links reach the machine.
//!
//! Every interface of the machine is born with an address of ours and without a meaning; the agent is told which of them
//! has become which link. So one that is there from the start and one whose link appears later are made the same way.

use std::path::PathBuf;

use kata_bundle::NetworkNamespace;
use kata_config::{Config, Internetworking};
use kata_machine::{Device, Wire};
use kata_netlink::{Interface, Mac, tap_name};
use serde::Serialize;

use crate::{Facts, PlanError};

/// Interfaces that wait for links, if there are none yet: engines may add them between create and start.
const SPARES: usize = 2;

/// What a tap takes until its link says more, bytes.
const USUAL_MTU: u32 = 1500;

/// Which network namespace a sandbox lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespacePlan {
    /// That in which it is started.
    Stay,
    /// A new one.
    Make,
    /// One that is there.
    Enter(PathBuf),
}

/// The interfaces of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkPlan {
    /// In the order in which the guest finds them.
    pub nics: Vec<NicPlan>,
}

/// An interface of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NicPlan {
    /// Name of its end on the host, in the pod's namespace.
    pub tap: String,
    /// Where its packets go.
    pub wire: Wire,
    /// The address that the guest finds it with. Nobody outside sees it.
    pub mac: Mac,
    /// Pairs of queues.
    pub queues: u32,
    /// Largest packet at first, bytes.
    pub mtu: u32,
    /// The link of the pod that it stands for; `None` for one that waits for a link.
    pub interface: Option<Interface>,
}

/// Decides where the sandbox of a pod that asks for `wanted` lives. `is_engines`: what it asks for by path is the namespace
/// of whoever asks.
///
/// # Errors
/// [`PlanError::HostNetwork`], [`PlanError::NewNetns`]
pub fn namespace(wanted: NetworkNamespace, is_engines: bool, config: &Config) -> Result<NamespacePlan, PlanError> {
    if config.runtime.disable_new_netns {
        return match config.runtime.internetworking_model {
            Internetworking::None => Ok(NamespacePlan::Stay),
            model => Err(PlanError::NewNetns { model: model.as_str() }),
        };
    }
    match wanted {
        NetworkNamespace::Host => Err(PlanError::HostNetwork { path: None }),
        NetworkNamespace::At(path) if is_engines => Err(PlanError::HostNetwork { path: Some(path) }),
        NetworkNamespace::At(path) => Ok(NamespacePlan::Enter(path)),
        NetworkNamespace::New => Ok(NamespacePlan::Make),
    }
}

/// Decides on the interfaces of a machine with `vcpus`, and says it for people. `is_clone`: it has as many as any other.
pub(crate) fn decide(config: &Config, facts: &Facts, vcpus: u32, is_clone: bool) -> (NetworkPlan, Vec<String>) {
    let model = config.runtime.internetworking_model;
    let network = facts.network.as_ref().filter(|_| model != Internetworking::None);
    let Some(network) = network else {
        let note = format!(
            "network: the guest's loopback only (internetworking_model is {:?})",
            model.as_str()
        );
        return (NetworkPlan::default(), vec![note]);
    };
    let wish = config.qemu.network_queues.unwrap_or(vcpus);
    let nic = |number: usize, interface: Option<&Interface>| NicPlan {
        tap: tap_name(number),
        wire: match (model, interface) {
            // A macvtap needs a link to sit upon.
            (Internetworking::Macvtap, Some(_)) => Wire::Macvtap {
                node: facts.run_dir.join(tap_name(number)).join("node"),
            },
            _ => Wire::Tap { name: tap_name(number) },
        },
        mac: born_mac(number),
        queues: match (model, interface) {
            // The guest serves one queue a CPU, and what a macvtap puts into another is lost.
            (Internetworking::Macvtap, Some(_)) => wish.min(vcpus),
            _ => wish,
        },
        mtu: interface.map_or(USUAL_MTU, |interface| interface.mtu),
        interface: interface.cloned(),
    };
    let interfaces = &network.interfaces;
    let mut notes: Vec<String> = interfaces.iter().map(|one| describe(one, model)).collect();
    notes.extend(network.left_out.iter().map(|why| format!("network: without {why}")));
    if interfaces.is_empty() {
        notes.push(format!("network: no links yet; {SPARES} interfaces wait for some"));
    }
    let count = match interfaces.len() {
        0 => SPARES,
        some if is_clone => some.max(SPARES),
        some => some,
    };
    let nics = (0..count).map(|number| nic(number, interfaces.get(number))).collect();
    (NetworkPlan { nics }, notes)
}

/// Locally administered, and different within the machine; that is all it has to be.
fn born_mac(number: usize) -> Mac {
    let [.., high, low] = number.to_be_bytes();
    Mac([0x02, 0, 0, 0, high, low])
}

fn describe(interface: &Interface, model: Internetworking) -> String {
    let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
    let addresses = match addresses.as_slice() {
        [] => "without addresses".to_owned(),
        some => some.join(", "),
    };
    format!("network: {} by {}, {addresses}", interface.name, model.as_str())
}

impl NetworkPlan {
    /// As the machine has them.
    pub(crate) fn devices(&self, config: &Config, facts: &Facts) -> impl Iterator<Item = Device> {
        let vhost = facts.vhost_net && !config.qemu.disable_vhost_net;
        self.nics.iter().map(move |nic| Device::Nic {
            wire: nic.wire.clone(),
            mac: nic.mac,
            queues: nic.queues,
            vhost,
        })
    }
}
