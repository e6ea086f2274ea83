//! Routes of the main table.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::{family, ip, octets};
use crate::message::{Request, attribute, attributes, u32_at};
use crate::socket::{NetlinkError, Socket};

/// `struct rtmsg`, bytes.
const BODY: usize = 12;

/// `RTA_METRICS`: nested attributes of the path.
const METRICS: u16 = 8;

/// `RTAX_MTU` within them.
const METRIC_MTU: u16 = 2;

/// `RTNH_F_ONLINK` (linux/rtnetlink.h).
const ON_LINK: u32 = 4;

/// `RTPROT_RA`: a router's word.
const ROUTER_PROTOCOL: u8 = 9;

/// A unicast route with one next hop. What link it leads through is said by whoever holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads; all zeroes with prefix 0 is everywhere.
    pub destination: IpAddr,
    /// Bits of the destination that count.
    pub prefix: u8,
    /// The next hop; `None` for neighbours on the link.
    pub gateway: Option<IpAddr>,
    /// The address that packets get that have none yet.
    pub source: Option<IpAddr>,
    /// The lower, the better.
    pub metric: u32,
    /// `RT_SCOPE_*`
    pub scope: u8,
    /// `RTPROT_*`: who has made it.
    pub protocol: u8,
    /// The gateway is on the link, whatever the addresses say.
    pub on_link: bool,
    /// Largest packet of the path, bytes; 0 is the link's.
    pub mtu: u32,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        Ok(())
    }
}

/// A route as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The number of its link.
    pub link: u32,
    /// Itself.
    pub route: Route,
}

impl Route {
    /// Every namespace makes it by itself for a link: what IPv6 needs on the link, and what a router has said.
    pub fn is_made_by_kernel(&self) -> bool {
        let IpAddr::V6(destination) = self.destination else {
            return false;
        };
        let links_own = destination.is_unicast_link_local() || destination.is_multicast();
        links_own && self.gateway.is_none() || self.protocol == ROUTER_PROTOCOL
    }
}

impl Listed {
    /// Reads a unicast route of the main table.
    fn read(body: &[u8]) -> Option<Self> {
        let family = i32::from(*body.first()?);
        let unspecified: IpAddr = match family {
            libc::AF_INET => [0; 4].into(),
            libc::AF_INET6 => [0; 16].into(),
            _ => return None,
        };
        if *body.get(7)? != libc::RTN_UNICAST {
            return None;
        }
        let mut table = u32::from(*body.get(4)?);
        let mut link = None;
        let mut route = Route {
            destination: unspecified,
            prefix: *body.get(1)?,
            gateway: None,
            source: None,
            metric: 0,
            scope: *body.get(6)?,
            protocol: *body.get(5)?,
            on_link: u32_at(body, 8)? & ON_LINK != 0,
            mtu: 0,
        };
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                libc::RTA_TABLE => table = u32_at(value, 0)?,
                libc::RTA_DST => route.destination = ip(value)?,
                libc::RTA_GATEWAY => route.gateway = ip(value),
                // An IPv6 next hop of an IPv4 route: family, then the address.
                libc::RTA_VIA => route.gateway = ip(value.get(2..)?),
                libc::RTA_PREFSRC => route.source = ip(value),
                libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                libc::RTA_OIF => link = u32_at(value, 0),
                METRICS => route.mtu = attribute(value, METRIC_MTU).and_then(|mtu| u32_at(mtu, 0)).unwrap_or(0),
                _ => {}
            }
        }
        (table == u32::from(libc::RT_TABLE_MAIN)).then_some(Self { link: link?, route })
    }
}

fn about(kind: u16, flags: i32, link: u32, route: &Route) -> Request {
    let mut body = [0; BODY];
    body[0] = family(&route.destination);
    body[1] = route.prefix;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = route.protocol;
    body[6] = route.scope;
    body[7] = libc::RTN_UNICAST;
    if route.on_link {
        body[8..].copy_from_slice(&ON_LINK.to_ne_bytes());
    }
    let mut request = Request::new(kind, flags, &body)
        .with(libc::RTA_DST, &octets(&route.destination))
        .with_u32(libc::RTA_OIF, link);
    match &route.gateway {
        Some(gateway) if gateway.is_ipv4() == route.destination.is_ipv4() => {
            request = request.with(libc::RTA_GATEWAY, &octets(gateway));
        }
        Some(gateway) => {
            let via = [vec![family(gateway), 0], octets(gateway)].concat();
            request = request.with(libc::RTA_VIA, &via);
        }
        None => {}
    }
    if let Some(source) = &route.source {
        request = request.with(libc::RTA_PREFSRC, &octets(source));
    }
    if route.metric != 0 {
        request = request.with_u32(libc::RTA_PRIORITY, route.metric);
    }
    if route.mtu != 0 {
        request = request.with_nested(METRICS, |metrics| metrics.with_u32(METRIC_MTU, route.mtu));
    }
    request
}

impl Socket {
    /// Every unicast route of the main table that has one next hop.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn routes(&self) -> Result<Vec<Listed>, NetlinkError> {
        let request = Request::new(libc::RTM_GETROUTE, 0, &[0; BODY]);
        self.list("routes", &request, libc::RTM_NEWROUTE, Listed::read)
    }

    /// Adds a route through a link.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EEXIST` if there is one, `ENETUNREACH` for a gateway that cannot be reached.
    pub fn add_route(&self, link: u32, route: &Route) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.change(about(libc::RTM_NEWROUTE, flags, link, route), || {
            format!("add the route {route} through link {link}")
        })
    }

    /// Removes a route.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `ESRCH` if there is none.
    pub fn remove_route(&self, link: u32, route: &Route) -> Result<(), NetlinkError> {
        self.change(about(libc::RTM_DELROUTE, 0, link, route), || {
            format!("remove the route {route} through link {link}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, prefix: u8) -> Route {
        Route {
            destination: destination.parse().expect("an address"),
            prefix,
            gateway: None,
            source: None,
            metric: 0,
            scope: 0,
            protocol: libc::RTPROT_BOOT,
            on_link: false,
            mtu: 0,
        }
    }

    #[test]
    fn a_route_is_read_as_it_is_written() {
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let routes = [
            route("10.1.0.0", 16),
            Route {
                gateway: ip("169.254.1.1"),
                source: ip("10.1.0.2"),
                metric: 100,
                on_link: true,
                mtu: 1400,
                ..route("0.0.0.0", 0)
            },
            Route {
                gateway: ip("fd00::1"),
                ..route("::", 0)
            },
            Route {
                gateway: ip("fe80::1"),
                ..route("10.2.0.0", 24)
            },
        ];
        for route in routes {
            let bytes = about(libc::RTM_NEWROUTE, 0, 3, &route).finish(0, 1);
            let listed = Listed::read(&bytes[crate::message::HEADER..]).expect("a route");
            assert_eq!(listed, Listed { link: 3, route });
        }
    }

    #[test]
    fn other_tables_and_kinds_are_passed_over() {
        let bytes = about(libc::RTM_NEWROUTE, 0, 3, &route("10.1.0.0", 16)).finish(0, 1);
        let body = &bytes[crate::message::HEADER..];
        for (offset, value) in [(4, libc::RT_TABLE_LOCAL), (7, libc::RTN_BLACKHOLE), (0, 28)] {
            let mut other = body.to_vec();
            other[offset] = value;
            assert_eq!(Listed::read(&other), None, "{offset}");
        }
    }

    #[test]
    fn what_every_link_has_by_itself_is_known() {
        let router = Route {
            protocol: ROUTER_PROTOCOL,
            gateway: Some("fe80::1".parse().expect("an address")),
            ..route("::", 0)
        };
        assert!(route("fe80::", 64).is_made_by_kernel() && route("ff00::", 8).is_made_by_kernel());
        assert!(router.is_made_by_kernel());
        assert!(!route("fd00::", 64).is_made_by_kernel() && !route("169.254.0.0", 16).is_made_by_kernel());
    }
}
