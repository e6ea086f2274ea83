//! The guest's network, made what the host says it is. It can be told again: what is right already is left alone.
//!
//! The pod's containers share the guest's own network namespace, so everything here happens in it.

use std::net::IpAddr;
use std::path::Path;

use kata_netlink::{Interface, Link, Mac, NetlinkError, Socket};
use nix::errno::Errno;

use crate::modules::{ModuleError, Modules};

/// Of a device that nobody has touched, bytes.
const USUAL_MTU: u32 = 1500;

/// A link of the pod, and the device that is to become it.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// The address that the device was born with.
    pub device: Mac,
    /// What it becomes.
    pub interface: Interface,
}

/// Why the network is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No driver.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// No such device.
    #[error("there is no network device with the address {mac} to become {name}")]
    NoDevice {
        /// The address it was to be born with.
        mac: Mac,
        /// What it was to become.
        name: String,
    },
    /// The kernel refused.
    #[error("{name}: {source}{}", source.errno().map(|errno| format!(": {}", errno.desc())).unwrap_or_default())]
    Refused {
        /// Of the interface.
        name: String,
        /// What.
        source: NetlinkError,
    },
}

/// Makes the network of these interfaces and no others.
///
/// # Errors
/// [`NetworkError`]; what was done until then stays.
pub fn make(modules: &Modules, wanted: &[Assigned]) -> Result<(), NetworkError> {
    if wanted.is_empty() && !has_driver() {
        return Ok(());
    }
    modules.load("virtio_net")?;
    let socket = Socket::open().map_err(all)?;
    let mut links = socket.links().map_err(all)?;
    let chosen = choose(&links, wanted)?;
    for link in links.iter().filter(|link| link.up && is_device(link)) {
        if !chosen.iter().any(|(index, _)| *index == link.index) {
            socket.set_up(link.index, false).map_err(all)?;
        }
    }
    for (index, interface) in &chosen {
        shape(&socket, &mut links, *index, interface).map_err(|source| refused(interface, source))?;
    }
    for (index, interface) in &chosen {
        set_addresses(&socket, *index, interface).map_err(|source| refused(interface, source))?;
    }
    // Gateways are reached over other routes: those first, whatever interface they lead through.
    set_routes(&socket, &chosen, false)?;
    set_routes(&socket, &chosen, true)?;
    for (index, interface) in &chosen {
        for neighbour in &interface.neighbours {
            let set = socket.set_neighbour(*index, neighbour);
            set.map_err(|source| refused(interface, source))?;
        }
    }
    Ok(())
}

/// Makes of the devices what they were before they became links of a pod; only their names stay.
///
/// # Errors
/// [`NetworkError::Refused`]; what was done until then stays.
pub fn reset() -> Result<(), NetworkError> {
    if !has_driver() {
        return Ok(());
    }
    let socket = Socket::open().map_err(all)?;
    for link in socket.links().map_err(all)?.iter().filter(|link| is_device(link)) {
        let put_back = || {
            // What leads over it goes with it, but for its own IPv4 addresses.
            socket.set_up(link.index, false)?;
            for listed in socket.addresses()?.iter().filter(|listed| listed.link == link.index) {
                or(socket.remove_address(link.index, &listed.address), Errno::EADDRNOTAVAIL)?;
            }
            if let Some(mac) = link.born_mac.filter(|mac| link.mac != Some(*mac)) {
                socket.set_mac(link.index, mac)?;
            }
            socket.set_mtu(link.index, USUAL_MTU)
        };
        put_back().map_err(|source| NetworkError::Refused {
            name: link.name.clone(),
            source,
        })?;
        set_ipv6(&link.name, true, false);
    }
    Ok(())
}

fn has_driver() -> bool {
    Path::new("/sys/module/virtio_net").exists()
}

fn all(source: NetlinkError) -> NetworkError {
    NetworkError::Refused {
        name: "the guest's network".into(),
        source,
    }
}

fn refused(interface: &Interface, source: NetlinkError) -> NetworkError {
    NetworkError::Refused {
        name: interface.name.clone(),
        source,
    }
}

/// Not what containers have made.
fn is_device(link: &Link) -> bool {
    !link.loopback && link.kind.is_empty() && link.mac.is_some()
}

fn choose<'a>(links: &[Link], wanted: &'a [Assigned]) -> Result<Vec<(u32, &'a Interface)>, NetworkError> {
    let find = |assigned: &'a Assigned| {
        let link = links
            .iter()
            .find(|link| is_device(link) && link.born_mac.or(link.mac) == Some(assigned.device));
        let link = link.ok_or_else(|| NetworkError::NoDevice {
            mac: assigned.device,
            name: assigned.interface.name.clone(),
        })?;
        Ok((link.index, &assigned.interface))
    };
    wanted.iter().map(find).collect()
}

/// Name, address, size, up.
fn shape(socket: &Socket, links: &mut [Link], index: u32, interface: &Interface) -> Result<(), NetlinkError> {
    let name = &interface.name;
    if let Some(other) = links.iter_mut().find(|link| link.name == *name && link.index != index) {
        // It gets its own name in its turn.
        rename(socket, other, &format!("kata{}", other.index))?;
    }
    let Some(link) = links.iter_mut().find(|link| link.index == index) else {
        return Ok(());
    };
    if link.name != *name {
        rename(socket, link, name)?;
    }
    if link.mac != Some(interface.mac) {
        socket.set_mac(index, interface.mac)?;
    }
    if link.mtu != interface.mtu {
        socket.set_mtu(index, interface.mtu)?;
    }
    // The addresses are in use on the host already; nobody has to be asked.
    set_ipv6(name, false, interface.ipv6_disabled);
    if !link.up {
        socket.set_up(index, true)?;
        link.up = true;
    }
    Ok(())
}

/// Kernels before 6.2 rename no link that is up.
fn rename(socket: &Socket, link: &mut Link, name: &str) -> Result<(), NetlinkError> {
    if link.up {
        socket.set_up(link.index, false)?;
        link.up = false;
    }
    socket.rename(link.index, name)?;
    name.clone_into(&mut link.name);
    Ok(())
}

/// A kernel without IPv6 has nothing to be set.
fn set_ipv6(name: &str, asks: bool, disabled: bool) {
    let set = |key: &str, value: bool| {
        let _ = std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{name}/{key}"),
            u8::from(value).to_string(),
        );
    };
    set("accept_dad", asks);
    set("disable_ipv6", disabled);
}

fn set_addresses(socket: &Socket, index: u32, interface: &Interface) -> Result<(), NetlinkError> {
    let listed = socket.addresses()?;
    let there: Vec<_> = listed
        .into_iter()
        .filter(|listed| listed.link == index && !listed.is_made_by_kernel(Some(interface.mac)))
        .map(|listed| listed.address)
        .collect();
    for address in there.iter().filter(|address| !interface.addresses.contains(address)) {
        or(socket.remove_address(index, address), Errno::EADDRNOTAVAIL)?;
    }
    for address in interface.addresses.iter().filter(|address| !there.contains(address)) {
        if interface.ipv6_disabled && matches!(address.ip, IpAddr::V6(_)) {
            continue;
        }
        or(socket.add_address(index, address), Errno::EEXIST)?;
    }
    Ok(())
}

/// Those with a gateway or those without; what should not be is removed with those without, which come first.
fn set_routes(socket: &Socket, chosen: &[(u32, &Interface)], with_gateway: bool) -> Result<(), NetworkError> {
    for (index, interface) in chosen {
        let set = || {
            let listed = socket.routes()?;
            let there: Vec<_> = listed
                .into_iter()
                .filter(|listed| listed.link == *index && !listed.route.is_made_by_kernel())
                .map(|listed| listed.route)
                .collect();
            if !with_gateway {
                for route in there.iter().filter(|route| !interface.routes.contains(route)) {
                    or(socket.remove_route(*index, route), Errno::ESRCH)?;
                }
            }
            let missing = interface.routes.iter().filter(|route| !there.contains(route));
            for route in missing.filter(|route| route.gateway.is_some() == with_gateway) {
                or(socket.add_route(*index, route), Errno::EEXIST)?;
            }
            Ok(())
        };
        set().map_err(|source| refused(interface, source))?;
    }
    Ok(())
}

/// Done, or done before.
fn or(done: Result<(), NetlinkError>, done_before: Errno) -> Result<(), NetlinkError> {
    match done {
        Err(error) if error.errno() == Some(done_before) => Ok(()),
        other => other,
    }
}
