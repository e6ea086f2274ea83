//! Macvtaps: character devices on top of a link, to which all of the link's packets go, past the namespace's own network.
//!
//! The device's node is made where only this process's mount namespace sees it: `/dev` knows nothing of other network
//! namespaces, and `/run`, where the sandbox has its directory, may refuse device nodes.

use std::io;
use std::path::{Path, PathBuf};

use kata_netlink::{NetlinkError, Socket};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// `IFLA_MACVLAN_MODE` and `MACVLAN_MODE_PASSTHRU` (linux/if_link.h): the link's own address, whatever the guest makes of
/// it.
const MODE: u16 = 1;
const PASSTHROUGH: u32 = 8;

/// Why there is no macvtap.
#[derive(Debug, thiserror::Error)]
pub enum MacvtapError {
    /// The link is not there, or the one just made has vanished.
    #[error("there is no link {name} in the pod's network namespace")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Its node was not made.
    #[error("cannot make the device node {} of a macvtap: {act}", node.display())]
    Node {
        /// The node.
        node: PathBuf,
        /// What was tried.
        act: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes the macvtap `name` on top of `link`, for packets as large as the link's, and its device's `node`, in a directory
/// of its own that is made for it. The calling thread is in the namespace of `socket`, and its mount namespace is private.
///
/// # Errors
/// [`MacvtapError`]; nothing is left then.
pub fn make(socket: &Socket, name: &str, link: &str, node: &Path) -> Result<(), MacvtapError> {
    let lower = index(socket, link)?;
    socket.add_link_on(name, "macvtap", lower, |data| data.with_u32(MODE, PASSTHROUGH))?;
    let finish = || {
        let index = index(socket, name)?;
        socket.set_up(index, true)?;
        make_node(name, index, node)
    };
    finish().inspect_err(|_| {
        let _ = remove(socket, name, node);
    })
}

/// Takes back [`make`], as far as anything of it is there.
///
/// # Errors
/// [`MacvtapError`]
pub fn remove(socket: &Socket, name: &str, node: &Path) -> Result<(), MacvtapError> {
    socket.remove_link(name)?;
    if let Some(directory) = node.parent() {
        // Mounted or not, made or not.
        let _ = umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

fn index(socket: &Socket, name: &str) -> Result<u32, MacvtapError> {
    let links = socket.links()?;
    let link = links.iter().find(|link| link.name == name);
    link.map(|link| link.index)
        .ok_or_else(|| MacvtapError::NoLink { name: name.to_owned() })
}

fn make_node(name: &str, index: u32, node: &Path) -> Result<(), MacvtapError> {
    let failed = |act| {
        let node = node.to_owned();
        move |source: io::Error| MacvtapError::Node { node, act, source }
    };
    let directory = node.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(failed("make its directory"))?;
    let mounted = |kind, target: &Path, options| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some(kind), target, Some(kind), flags, Some(options)).map_err(io::Error::from)
    };
    mounted("tmpfs", directory, "mode=0700,size=16k").map_err(failed("mount its directory"))?;
    // A fresh sysfs: the one at /sys shows the namespace that it was mounted in.
    let sysfs = directory.join("sys");
    std::fs::create_dir(&sysfs).map_err(failed("make a directory for sysfs"))?;
    mounted("sysfs", &sysfs, "").map_err(failed("mount sysfs"))?;
    let number = device_number(&sysfs.join(format!("class/net/{name}/tap{index}/dev")));
    umount2(&sysfs, MntFlags::MNT_DETACH).map_err(|errno| failed("unmount sysfs")(errno.into()))?;
    let (major, minor) = number.map_err(failed("read its number"))?;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(node, SFlag::S_IFCHR, mode, makedev(major, minor)).map_err(|errno| failed("mknod")(errno.into()))
}

/// `MAJOR:MINOR`
fn device_number(file: &Path) -> io::Result<(u64, u64)> {
    let text = std::fs::read_to_string(file)?;
    let numbers = text.trim().split_once(':');
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text:?}", file.display())))
}
