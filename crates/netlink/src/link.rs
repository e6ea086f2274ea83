//! Links: the interfaces of a namespace, from the kernel's side.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::message::{Request, attribute, attributes, text, u16_at, u32_at};
use crate::socket::{NetlinkError, Socket};

/// `struct ifinfomsg`, bytes.
const BODY: usize = 16;

/// Offset of `DEVCONF_DISABLE_IPV6` (linux/ipv6.h) in `IFLA_INET6_CONF`, bytes.
const DISABLE_IPV6: usize = 26 * 4;

/// `IFLA_INET6_CONF` (linux/if_link.h).
const INET6_CONF: u16 = 2;

/// `IFLA_PERM_ADDRESS` (linux/if_link.h).
const PERMANENT_ADDRESS: u16 = 54;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no Ethernet address")]
pub struct NoMac {
    text: String,
}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let read = || {
            let mut bytes = [0; 6];
            let mut words = text.split(':');
            for byte in &mut bytes {
                let word = words.next().filter(|word| word.len() == 2)?;
                *byte = u8::from_str_radix(word, 16).ok()?;
            }
            words.next().is_none().then_some(Self(bytes))
        };
        read().ok_or_else(|| NoMac { text: text.to_owned() })
    }
}

impl TryFrom<String> for Mac {
    type Error = NoMac;

    fn try_from(text: String) -> Result<Self, NoMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// As the kernel calls the driver (`veth`, `macvlan`, …); empty for devices that have no such word.
    pub kind: String,
    /// Its address; `None` if it is no Ethernet.
    pub mac: Option<Mac>,
    /// The address that the device was born with.
    pub born_mac: Option<Mac>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The other end is there.
    pub carrier: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// The link of the same namespace that this one is a port of.
    pub master: Option<u32>,
    /// The link of the same namespace that this one sits upon.
    pub lower: Option<u32>,
    /// IPv6 is switched off for it.
    pub ipv6_disabled: bool,
}

impl Link {
    fn read(body: &[u8]) -> Option<Self> {
        let flags = u32_at(body, 8)?.cast_signed();
        let is_ethernet = u16_at(body, 2)? == libc::ARPHRD_ETHER;
        let mut link = Self {
            index: u32_at(body, 4)?,
            name: String::new(),
            kind: String::new(),
            mac: None,
            born_mac: None,
            mtu: 0,
            up: flags & libc::IFF_UP != 0,
            carrier: flags & libc::IFF_LOWER_UP != 0,
            loopback: flags & libc::IFF_LOOPBACK != 0,
            master: None,
            lower: None,
            ipv6_disabled: false,
        };
        let mut elsewhere = false;
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS if is_ethernet => link.mac = value.try_into().ok().map(Mac),
                PERMANENT_ADDRESS if is_ethernet => link.born_mac = value.try_into().ok().map(Mac),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_MASTER => link.master = u32_at(value, 0),
                libc::IFLA_LINK => link.lower = u32_at(value, 0).filter(|index| *index != 0 && *index != link.index),
                libc::IFLA_LINK_NETNSID => elsewhere = true,
                libc::IFLA_LINKINFO => {
                    link.kind = attribute(value, libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
                }
                libc::IFLA_AF_SPEC => link.ipv6_disabled = is_ipv6_disabled(value).unwrap_or(false),
                _ => {}
            }
        }
        if elsewhere {
            link.lower = None;
        }
        Some(link)
    }
}

fn is_ipv6_disabled(families: &[u8]) -> Option<bool> {
    let family = attribute(families, u16::try_from(libc::AF_INET6).ok()?)?;
    Some(u32_at(attribute(family, INET6_CONF)?, DISABLE_IPV6)? != 0)
}

fn body(index: u32, flags: u32, change: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    body
}

/// A request about the link of this number.
fn about(kind: u16, index: u32) -> Request {
    Request::new(kind, 0, &body(index, 0, 0))
}

impl Socket {
    /// Every link.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.list("links", &about(libc::RTM_GETLINK, 0), libc::RTM_NEWLINK, Link::read)
    }

    /// Renames a link.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EEXIST` for a taken name, `EBUSY` on old kernels for a link that is up.
    pub fn rename(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let request = about(libc::RTM_NEWLINK, index).with_text(libc::IFLA_IFNAME, name);
        self.change(request, || format!("rename link {index} to {name}"))
    }

    /// Gives a link another Ethernet address.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let request = about(libc::RTM_NEWLINK, index).with(libc::IFLA_ADDRESS, &mac.0);
        self.change(request, || format!("give link {index} the address {mac}"))
    }

    /// Sets the largest packet of a link, bytes.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EINVAL` beyond what the device takes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let request = about(libc::RTM_NEWLINK, index).with_u32(libc::IFLA_MTU, mtu);
        self.change(request, || format!("set the MTU of link {index} to {mtu}"))
    }

    /// Sets a link up or down.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn set_up(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let bit = libc::IFF_UP.cast_unsigned();
        let body = body(index, if up { bit } else { 0 }, bit);
        self.change(Request::new(libc::RTM_NEWLINK, 0, &body), || {
            format!("set link {index} {}", if up { "up" } else { "down" })
        })
    }

    /// Moves a link into another network namespace, where it is down.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: `EEXIST` where there is a link of this name, `EINVAL` for one that cannot move.
    pub fn move_link(&self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let number = namespace.as_raw_fd().cast_unsigned();
        let request = about(libc::RTM_NEWLINK, index).with_u32(libc::IFLA_NET_NS_FD, number);
        self.change(request, || format!("move link {index} into another network namespace"))
    }

    /// Makes a link of `kind` on top of the link `lower`; `data` fills its driver's own attributes.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn add_link_on(
        &self,
        name: &str,
        kind: &str,
        lower: u32,
        data: impl FnOnce(Request) -> Request,
    ) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::new(libc::RTM_NEWLINK, flags, &body(0, 0, 0))
            .with_text(libc::IFLA_IFNAME, name)
            .with_u32(libc::IFLA_LINK, lower)
            .with_nested(libc::IFLA_LINKINFO, |info| {
                info.with_text(libc::IFLA_INFO_KIND, kind)
                    .with_nested(libc::IFLA_INFO_DATA, data)
            });
        self.change(request, || format!("make the {kind} link {name} on link {lower}"))
    }

    /// Removes a link by its name; that there is none is no error.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn remove_link(&self, name: &str) -> Result<(), NetlinkError> {
        let request = about(libc::RTM_DELLINK, 0).with_text(libc::IFLA_IFNAME, name);
        match self.change(request, || format!("remove the link {name}")) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "02:00:0a:ff:00:01".parse().expect("an address");
        assert_eq!(mac.to_string(), "02:00:0a:ff:00:01");
        for text in [
            "",
            "02",
            "02:00:0a:ff:00",
            "02:00:0a:ff:00:01:02",
            "2:0:a:f:0:1",
            "g2:00:0a:ff:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
