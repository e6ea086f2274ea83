//! The network as the wire tells it, checked and handed on.

use std::net::IpAddr;

use kata_netlink::{Address, Interface, Mac, Neighbour, Route};
use kata_wire::proto;

use super::refusal::Refusal;
use crate::network::{self, Assigned, NetworkError};
use crate::pod::Pod;

/// Makes the guest's network what `wanted` says.
///
/// # Errors
/// [`Refusal::Invalid`] for a message that makes no sense, [`Refusal::Internal`] naming what could not be done.
pub fn make(pod: &Pod, wanted: &proto::Network) -> Result<(), Refusal> {
    let assigned = wanted.interfaces.iter().map(assigned).collect::<Result<Vec<_>, _>>()?;
    network::make(&pod.modules, &assigned).map_err(|error| match error {
        NetworkError::NoDevice { .. } => Refusal::Invalid(error.to_string()),
        _ => Refusal::Internal(error.to_string()),
    })?;
    tracing::info!(interfaces = assigned.len(), "the network is made");
    Ok(())
}

fn assigned(wire: &proto::Interface) -> Result<Assigned, Refusal> {
    // It becomes part of a path.
    if wire.name.is_empty() || wire.name.contains('/') || wire.name.starts_with('.') {
        return Err(Refusal::Invalid(format!("{:?} is no name of an interface", wire.name)));
    }
    let read = || {
        Some(Assigned {
            device: mac(&wire.device_mac)?,
            interface: Interface {
                name: wire.name.clone(),
                kind: String::new(),
                mac: mac(&wire.mac)?,
                mtu: wire.mtu,
                ipv6_disabled: wire.ipv6_disabled,
                addresses: wire.addresses.iter().map(address).collect::<Option<_>>()?,
                routes: wire.routes.iter().map(route).collect::<Option<_>>()?,
                neighbours: wire.neighbours.iter().map(neighbour).collect::<Option<_>>()?,
            },
        })
    };
    read().ok_or_else(|| Refusal::Invalid(format!("an address of the interface {} is none", wire.name)))
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Outer `None`: wrong; inner `None`: none is told.
#[expect(clippy::option_option, reason = "both kinds of nothing mean something")]
fn maybe_ip(bytes: &[u8]) -> Option<Option<IpAddr>> {
    if bytes.is_empty() {
        Some(None)
    } else {
        ip(bytes).map(Some)
    }
}

fn address(wire: &proto::Address) -> Option<Address> {
    Some(Address {
        ip: ip(&wire.ip)?,
        prefix: u8::try_from(wire.prefix).ok()?,
        peer: maybe_ip(&wire.peer)?,
        broadcast: match maybe_ip(&wire.broadcast)? {
            Some(IpAddr::V4(ip)) => Some(ip),
            Some(IpAddr::V6(_)) => return None,
            None => None,
        },
        scope: u8::try_from(wire.scope).ok()?,
    })
}

fn route(wire: &proto::Route) -> Option<Route> {
    Some(Route {
        destination: ip(&wire.destination)?,
        prefix: u8::try_from(wire.prefix).ok()?,
        gateway: maybe_ip(&wire.gateway)?,
        source: maybe_ip(&wire.source)?,
        metric: wire.metric,
        scope: u8::try_from(wire.scope).ok()?,
        protocol: u8::try_from(wire.protocol).ok()?,
        on_link: wire.on_link,
        mtu: wire.mtu,
    })
}

fn neighbour(wire: &proto::Neighbour) -> Option<Neighbour> {
    Some(Neighbour {
        ip: ip(&wire.ip)?,
        mac: mac(&wire.mac)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> proto::Interface {
        proto::Interface {
            device_mac: vec![2, 0, 0, 0, 0, 0],
            name: "eth0".into(),
            mac: vec![2, 1, 1, 1, 1, 1],
            mtu: 1500,
            addresses: vec![proto::Address {
                ip: vec![10, 0, 0, 2],
                prefix: 24,
                ..Default::default()
            }],
            routes: vec![proto::Route {
                destination: vec![0; 16],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn what_makes_sense_is_taken_as_it_is() {
        let read = assigned(&sample()).expect("it makes sense");
        assert_eq!(read.device.to_string(), "02:00:00:00:00:00");
        assert_eq!(read.interface.addresses[0].to_string(), "10.0.0.2/24");
        assert_eq!(read.interface.addresses[0].peer, None);
        assert_eq!(read.interface.routes[0].to_string(), "::/0");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut wrong = vec![sample(); 5];
        wrong[0].name = "../all".into();
        wrong[1].device_mac.pop();
        wrong[2].addresses[0].ip = vec![1, 2, 3];
        wrong[3].addresses[0].prefix = 256;
        wrong[4].routes[0].gateway = vec![1];
        for interface in wrong {
            assert!(matches!(assigned(&interface), Err(Refusal::Invalid(_))), "{interface}");
        }
    }
}
