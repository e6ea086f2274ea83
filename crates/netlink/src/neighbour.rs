//! Neighbours that somebody has written down for good; those that the kernel has found out are nobody's business.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::{family, ip, octets};
use crate::link::Mac;
use crate::message::{Request, attributes, u16_at, u32_at};
use crate::socket::{NetlinkError, Socket};

/// `struct ndmsg`, bytes.
const BODY: usize = 12;

/// A static neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its IP address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.ip, self.mac)
    }
}

/// A neighbour as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The number of its link.
    pub link: u32,
    /// Itself.
    pub neighbour: Neighbour,
}

impl Listed {
    fn read(body: &[u8]) -> Option<Self> {
        let is_proxy = *body.get(10)? & libc::NTF_PROXY != 0;
        if u16_at(body, 8)? & libc::NUD_PERMANENT == 0 || is_proxy {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                libc::NDA_DST => address = ip(value),
                libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Self {
            link: u32_at(body, 4)?,
            neighbour: Neighbour {
                ip: address?,
                mac: mac?,
            },
        })
    }
}

impl Socket {
    /// Every static neighbour.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn neighbours(&self) -> Result<Vec<Listed>, NetlinkError> {
        let request = Request::new(libc::RTM_GETNEIGH, 0, &[0; BODY]);
        self.list("neighbours", &request, libc::RTM_NEWNEIGH, Listed::read)
    }

    /// Writes a neighbour of a link down for good, instead of what was known of it.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]
    pub fn set_neighbour(&self, link: u32, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let mut body = [0; BODY];
        body[0] = family(&neighbour.ip);
        body[4..8].copy_from_slice(&link.to_ne_bytes());
        body[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let request = Request::new(libc::RTM_NEWNEIGH, flags, &body)
            .with(libc::NDA_DST, &octets(&neighbour.ip))
            .with(libc::NDA_LLADDR, &neighbour.mac.0);
        self.change(request, || format!("set the neighbour {neighbour} of link {link}"))
    }
}
