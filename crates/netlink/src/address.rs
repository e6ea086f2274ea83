//! IP addresses of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::link::Mac;
use crate::message::{Request, attributes, u32_at};
use crate::socket::{NetlinkError, Socket};

/// `struct ifaddrmsg`, bytes.
const BODY: usize = 8;

/// `IFA_PROTO` (linux/if_addr.h, Linux 5.18): who has made an address.
const PROTOCOL: u16 = 11;

/// `IFAPROT_KERNEL_RA`, `IFAPROT_KERNEL_LL`: the kernel itself.
const KERNEL_PROTOCOLS: std::ops::RangeInclusive<u8> = 2..=3;

/// An IP address of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address itself.
    pub ip: IpAddr,
    /// Bits of the network's part.
    pub prefix: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// IPv4 only.
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`
    pub scope: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An address as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The number of its link.
    pub link: u32,
    /// Itself.
    pub address: Address,
    /// The kernel has made it by itself, from a router's word or from the link's own address.
    pub made_by_kernel: bool,
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

pub(crate) fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(crate) fn family(ip: &IpAddr) -> u8 {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

/// The link-local address that follows from an Ethernet address (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl Listed {
    fn read(body: &[u8]) -> Option<Self> {
        let (prefix, scope) = (*body.get(1)?, *body.get(3)?);
        let mut flags = u32::from(*body.get(2)?);
        let (mut local, mut address, mut broadcast, mut protocol) = (None, None, None, 0);
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                libc::IFA_LOCAL => local = ip(value),
                libc::IFA_ADDRESS => address = ip(value),
                libc::IFA_BROADCAST => broadcast = value.try_into().ok().map(|four: [u8; 4]| four.into()),
                libc::IFA_FLAGS => flags = u32_at(value, 0)?,
                PROTOCOL => protocol = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        // With a peer, IFA_ADDRESS is the other end and IFA_LOCAL is ours; else IPv6 has IFA_ADDRESS only.
        let own = local.or(address)?;
        let passing = own.is_ipv6() && flags & libc::IFA_F_PERMANENT == 0;
        Some(Self {
            link: u32_at(body, 4)?,
            address: Address {
                ip: own,
                prefix,
                peer: address.filter(|address| *address != own),
                broadcast,
                scope,
            },
            made_by_kernel: KERNEL_PROTOCOLS.contains(&protocol) || passing,
        })
    }

    /// The kernel has made it by itself; `mac` is that of its link, by which older kernels' are known.
    pub fn is_made_by_kernel(&self, mac: Option<Mac>) -> bool {
        self.made_by_kernel || mac.is_some_and(|mac| self.address.ip == IpAddr::V6(link_local(mac)))
    }
}

/// Beyond what the address says: valid at once, and no route comes with it.
const FLAGS: u32 = libc::IFA_F_NODAD | libc::IFA_F_NOPREFIXROUTE | libc::IFA_F_PERMANENT;

fn about(kind: u16, flags: i32, link: u32, address: &Address) -> Request {
    let mut body = [0; BODY];
    body[0] = family(&address.ip);
    body[1] = address.prefix;
    body[3] = address.scope;
    body[4..].copy_from_slice(&link.to_ne_bytes());
    let local = octets(&address.ip);
    let other = address.peer.as_ref().map_or_else(|| local.clone(), octets);
    Request::new(kind, flags, &body)
        .with(libc::IFA_LOCAL, &local)
        .with(libc::IFA_ADDRESS, &other)
}

impl Socket {
    /// Every address.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn addresses(&self) -> Result<Vec<Listed>, NetlinkError> {
        let request = Request::new(libc::RTM_GETADDR, 0, &[0; BODY]);
        self.list("addresses", &request, libc::RTM_NEWADDR, Listed::read)
    }

    /// Gives a link an address, which holds at once (no duplicate is looked for) and brings no route with it.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EEXIST` if it has it.
    pub fn add_address(&self, link: u32, address: &Address) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = about(libc::RTM_NEWADDR, flags, link, address).with_u32(libc::IFA_FLAGS, FLAGS);
        if let Some(broadcast) = address.broadcast {
            request = request.with(libc::IFA_BROADCAST, &broadcast.octets());
        }
        self.change(request, || format!("add the address {address} to link {link}"))
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EADDRNOTAVAIL` if it has it not.
    pub fn remove_address(&self, link: u32, address: &Address) -> Result<(), NetlinkError> {
        self.change(about(libc::RTM_DELADDR, 0, link, address), || {
            format!("remove the address {address} from link {link}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, flags: u8, attributes: impl FnOnce(Request) -> Request) -> Vec<u8> {
        let body = [u8::try_from(family).expect("small"), 24, flags, 0, 7, 0, 0, 0];
        let bytes = attributes(Request::new(libc::RTM_NEWADDR, 0, &body)).finish(0, 1);
        bytes[crate::message::HEADER..].to_vec()
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let v4 = message(libc::AF_INET, 0x80, |request| {
            request
                .with(libc::IFA_ADDRESS, &[10, 0, 0, 2])
                .with(libc::IFA_LOCAL, &[10, 0, 0, 2])
                .with(libc::IFA_BROADCAST, &[10, 0, 0, 255])
        });
        let listed = Listed::read(&v4).expect("an address");
        assert_eq!((listed.link, listed.address.to_string().as_str()), (7, "10.0.0.2/24"));
        assert_eq!(listed.address.broadcast, Some(Ipv4Addr::new(10, 0, 0, 255)));
        assert!(listed.address.peer.is_none() && !listed.is_made_by_kernel(None));

        let far = message(libc::AF_INET, 0x80, |request| {
            request
                .with(libc::IFA_ADDRESS, &[10, 0, 0, 1])
                .with(libc::IFA_LOCAL, &[10, 0, 0, 2])
        });
        let listed = Listed::read(&far).expect("an address");
        assert_eq!(listed.address.peer, Some(IpAddr::from([10, 0, 0, 1])));
    }

    #[test]
    fn what_the_kernel_makes_by_itself_is_known() {
        let mac: Mac = "02:11:22:33:44:55".parse().expect("an address");
        let own = link_local(mac);
        assert_eq!(own.to_string(), "fe80::11:22ff:fe33:4455");
        let read = |flags, octets: &[u8], protocol: Option<u8>| {
            let bytes = message(libc::AF_INET6, flags, |request| {
                let request = request.with(libc::IFA_ADDRESS, octets);
                match protocol {
                    Some(protocol) => request.with(PROTOCOL, &[protocol]),
                    None => request,
                }
            });
            Listed::read(&bytes).expect("an address")
        };
        let given: Ipv6Addr = "fd00::2".parse().expect("an address");
        assert!(read(0x80, &own.octets(), None).is_made_by_kernel(Some(mac)));
        assert!(!read(0x80, &own.octets(), None).is_made_by_kernel(None));
        assert!(read(0x80, &own.octets(), Some(3)).is_made_by_kernel(None));
        assert!(
            read(0, &given.octets(), None).is_made_by_kernel(None),
            "a router's word"
        );
        assert!(!read(0x80, &given.octets(), None).is_made_by_kernel(Some(mac)));
    }
}
