//! Reads what a pod has of its network namespace.
//!
//! Left out is what every namespace has by itself (loopback, addresses and routes that a kernel makes for a link), what is
//! a sandbox's own, links that are down and carry nothing, and ports of bridges, whose bridge speaks for them. What is
//! there and cannot be carried is named.

use kata_netlink::{Interface, Link, NetlinkError, Network, Socket, is_tap_name};

/// Reads the namespace that `socket` is in.
///
/// # Errors
/// [`NetlinkError::Refused`]
pub fn scan(socket: &Socket) -> Result<Network, NetlinkError> {
    let links = socket.links()?;
    let mut network = Network::default();
    let mut carried: Vec<(u32, Interface)> = Vec::new();
    for link in links.iter().filter(|link| concerns_pod(link)) {
        match interface(link, &links) {
            Ok(interface) => carried.push((link.index, interface)),
            Err(why) => network.left_out.push(format!("{}: {why}", link.name)),
        }
    }
    if carried.is_empty() {
        return Ok(network);
    }
    for listed in socket.addresses()? {
        if let Some(interface) = of(&mut carried, listed.link)
            && !listed.is_made_by_kernel(Some(interface.mac))
        {
            interface.addresses.push(listed.address);
        }
    }
    for listed in socket.routes()? {
        if let Some(interface) = of(&mut carried, listed.link)
            && !listed.route.is_made_by_kernel()
        {
            interface.routes.push(listed.route);
        }
    }
    for listed in socket.neighbours()? {
        if let Some(interface) = of(&mut carried, listed.link) {
            interface.neighbours.push(listed.neighbour);
        }
    }
    network.interfaces = carried.into_iter().map(|(_, interface)| interface).collect();
    Ok(network)
}

fn of(carried: &mut [(u32, Interface)], link: u32) -> Option<&mut Interface> {
    let found = carried.iter_mut().find(|(index, _)| *index == link);
    found.map(|(_, interface)| interface)
}

fn concerns_pod(link: &Link) -> bool {
    link.up && !link.loopback && link.master.is_none() && !is_tap_name(&link.name)
}

/// An interface without what belongs to it yet, or why it cannot be one.
fn interface(link: &Link, links: &[Link]) -> Result<Interface, String> {
    let Some(mac) = link.mac else {
        return Err("it is no Ethernet, and the machine has no other links".into());
    };
    // A pair whose ends are both here is two links, each of which sits upon the other.
    let lower = link.lower.filter(|_| link.kind != "veth");
    if let Some(lower) = lower.and_then(|index| links.iter().find(|link| link.index == index)) {
        return Err(format!(
            "it sits upon {}, which goes to the machine as a whole",
            lower.name
        ));
    }
    Ok(Interface {
        name: link.name.clone(),
        kind: link.kind.clone(),
        mac,
        mtu: link.mtu,
        ipv6_disabled: link.ipv6_disabled,
        addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
    })
}
