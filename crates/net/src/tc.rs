//! Joins two links by the kernel's traffic control: whatever comes in at one goes out at the other, both ways, and nobody
//! in the namespace sees it. The classifier is `u32` with a mask that lets everything match: unlike `matchall` and
//! `flower` it is in every kernel that has traffic control at all.

use kata_netlink::message::Request;
use kata_netlink::{Link, NetlinkError, Socket};
use nix::errno::Errno;

/// Attributes and numbers of linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARAMETERS: u16 = 2;
const ACTION_STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;
const TERMINAL: u8 = 1;

/// `struct tcmsg`, bytes.
const BODY: usize = 20;

/// Why links were not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A link that is not there.
    #[error("there is no link {name} in the pod's network namespace")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// Somebody else redirects what comes in at the link.
    #[error("the link {name} has an ingress qdisc already: another machine uses it, or a plugin shapes its traffic")]
    Taken {
        /// Its name.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot join the links {link} and {tap}")]
    Refused {
        /// The pod's link.
        link: String,
        /// The machine's.
        tap: String,
        /// What was refused.
        #[source]
        source: NetlinkError,
    },
}

/// Joins the pod's `link` with the machine's `tap`.
///
/// # Errors
/// [`JoinError`]; the link is as it was then.
pub fn join(socket: &Socket, link: &str, tap: &str) -> Result<(), JoinError> {
    let refused = |source| JoinError::Refused {
        link: link.to_owned(),
        tap: tap.to_owned(),
        source,
    };
    let links = socket.links().map_err(refused)?;
    let (outer, inner) = (find(&links, link)?, find(&links, tap)?);
    add_ingress(socket, outer).map_err(|error| match error.errno() {
        Some(Errno::EEXIST) => JoinError::Taken { name: link.to_owned() },
        _ => refused(error),
    })?;
    add_ingress(socket, inner)
        .and_then(|()| redirect(socket, outer, inner))
        .and_then(|()| redirect(socket, inner, outer))
        .map_err(|error| {
            let _ = remove_ingress(socket, outer);
            let _ = remove_ingress(socket, inner);
            refused(error)
        })
}

/// Takes back [`join`], as far as links are there that it has changed.
///
/// # Errors
/// [`JoinError::Refused`]
pub fn part(socket: &Socket, link: &str, tap: &str) -> Result<(), JoinError> {
    let refused = |source| JoinError::Refused {
        link: link.to_owned(),
        tap: tap.to_owned(),
        source,
    };
    let links = socket.links().map_err(refused)?;
    for name in [link, tap] {
        if let Ok(link) = find(&links, name) {
            remove_ingress(socket, link).map_err(refused)?;
        }
    }
    Ok(())
}

fn find(links: &[Link], name: &str) -> Result<u32, JoinError> {
    let link = links.iter().find(|link| link.name == name);
    link.map(|link| link.index)
        .ok_or_else(|| JoinError::NoLink { name: name.to_owned() })
}

fn body(link: u32, handle: u32, parent: u32, info: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    for (at, number) in [(4, link), (8, handle), (12, parent), (16, info)] {
        body[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    body
}

fn add_ingress(socket: &Socket, link: u32) -> Result<(), NetlinkError> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let request = Request::new(
        libc::RTM_NEWQDISC,
        flags,
        &body(link, INGRESS_HANDLE, INGRESS_PARENT, 0),
    )
    .with_text(libc::TCA_KIND, "ingress");
    socket.change(request, || format!("add an ingress qdisc to link {link}"))
}

/// Its filters go with it.
fn remove_ingress(socket: &Socket, link: u32) -> Result<(), NetlinkError> {
    let request = Request::new(libc::RTM_DELQDISC, 0, &body(link, INGRESS_HANDLE, INGRESS_PARENT, 0));
    let removed = socket.change(request, || format!("remove the ingress qdisc of link {link}"));
    match removed {
        // No such qdisc, or no such link any more.
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOENT | Errno::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Lets what comes in at link `from` go out at link `to`.
fn redirect(socket: &Socket, from: u32, to: u32) -> Result<(), NetlinkError> {
    const PRIORITY: u32 = 1;
    let every_protocol = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be());
    let body = body(from, 0, INGRESS_HANDLE, PRIORITY << 16 | every_protocol);
    let request = Request::new(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body)
        .with_text(libc::TCA_KIND, "u32")
        .with_nested(libc::TCA_OPTIONS, |options| {
            options
                .with(U32_SELECTOR, &everything())
                .with_nested(U32_ACTIONS, |actions| {
                    actions.with_nested(1, |action| {
                        action
                            .with_text(ACTION_KIND, "mirred")
                            .with_nested(ACTION_OPTIONS, |options| options.with(MIRRED_PARAMETERS, &mirred(to)))
                    })
                })
        });
    socket.change(request, || format!("redirect link {from} to link {to}"))
}

/// `struct tc_u32_sel` with one key whose mask and value are 0, which every packet matches.
fn everything() -> [u8; 32] {
    let mut selector = [0; 32];
    selector[0] = TERMINAL;
    // Number of keys.
    selector[2] = 1;
    selector
}

/// `struct tc_mirred`: index, capabilities, action, two counters, what to do, and where.
fn mirred(to: u32) -> Vec<u8> {
    [0, 0, ACTION_STOLEN, 0, 0, EGRESS_REDIRECT, to]
        .iter()
        .flat_map(|number: &u32| number.to_ne_bytes())
        .collect()
}
