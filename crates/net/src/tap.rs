//! Taps: the machine's ends of links.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use kata_netlink::{NetlinkError, Socket};

use crate::namespace;

/// Why a link of the machine was not made.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The tap itself.
    #[error("cannot make the tap {name} (/dev/net/tun)")]
    Make {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot come here.
    #[error("cannot bring the tap {name} into the pod's network namespace")]
    Carry {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was made and is not there.
    #[error("the tap {name} has vanished")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// Something about it was refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Makes a tap that is up, for `queues` queues, in the namespace of the calling thread, which must be that of `socket`.
/// Packets may be as large as `mtu`, bytes.
///
/// # Errors
/// [`TapError`]; nothing is left then.
pub fn make(socket: &Socket, name: &str, queues: u32, mtu: u32) -> Result<(), TapError> {
    kata_sys::tun::make_tap(name, queues > 1).map_err(|source| TapError::Make {
        name: name.to_owned(),
        source,
    })?;
    set_up(socket, name, mtu).inspect_err(|_| {
        let _ = socket.remove_link(name);
    })
}

fn set_up(socket: &Socket, name: &str, mtu: u32) -> Result<(), TapError> {
    // Nobody on the host talks to the guest over it. Where there is no IPv6 there is nothing to switch off.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let index = index(socket, name)?;
    socket.set_mtu(index, mtu)?;
    Ok(socket.set_up(index, true)?)
}

/// Brings a tap over from the namespace `from`, with whoever holds its other end; it is then as if it had been made here
/// by [`make`].
///
/// # Errors
/// [`TapError`]; nothing is left here then.
pub fn carry(socket: &Socket, name: &str, mtu: u32, from: &File) -> Result<(), TapError> {
    let there = Socket::open_in(Path::new(&format!("/proc/self/fd/{}", from.as_raw_fd())))?;
    let here = namespace::own().map_err(|source| TapError::Carry {
        name: name.to_owned(),
        source,
    })?;
    there.move_link(index(&there, name)?, here.as_fd())?;
    set_up(socket, name, mtu).inspect_err(|_| {
        let _ = socket.remove_link(name);
    })
}

/// Adapts a tap to a link that has shown up late or has changed: packets as large as `mtu`, bytes.
///
/// # Errors
/// [`TapError`]
pub fn resize(socket: &Socket, name: &str, mtu: u32) -> Result<(), TapError> {
    Ok(socket.set_mtu(index(socket, name)?, mtu)?)
}

fn index(socket: &Socket, name: &str) -> Result<u32, TapError> {
    let links = socket.links()?;
    let tap = links.iter().find(|link| link.name == name);
    tap.map(|link| link.index)
        .ok_or_else(|| TapError::Vanished { name: name.to_owned() })
}
