//! The way from a small initramfs into an image: what a kernel with the drivers for it built in does by itself, as told by
//! the same parameters (`root`, `rootfstype`, `rootflags`).

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, execv};

use kata_wire::names;

use crate::command_line::values;
use crate::log;
use crate::modules::Modules;
use crate::uevents::Uevents;

const NOTHING: Option<&str> = None;

/// How long the image's device may take to appear.
const LIMIT: Duration = Duration::from_secs(20);

/// An image, as the kernel's command line describes it.
#[derive(Debug, PartialEq, Eq)]
struct Image<'a> {
    device: &'a Path,
    file_system: &'a str,
    options: Option<&'a str>,
}

impl<'a> Image<'a> {
    fn read(command_line: &'a str) -> Option<Self> {
        let value = |name| values(command_line, name).next();
        Some(Self {
            device: Path::new(value("root")?),
            file_system: value("rootfstype")?,
            options: value("rootflags"),
        })
    }

    /// In the order in which they are needed.
    fn drivers(&self) -> Vec<&str> {
        let of_device = if self.device.to_string_lossy().starts_with("/dev/pmem") {
            ["virtio_pmem", "nd_pmem"].as_slice()
        } else {
            &["virtio_blk"]
        };
        let drivers = ["virtio_pci"].iter().chain(of_device).copied();
        drivers.chain([self.file_system]).collect()
    }
}

/// Goes on as the agent in the image, if this is an initramfs that leads to one.
///
/// # Errors
/// When there is no way into the image.
pub fn enter() -> anyhow::Result<()> {
    match fs::read_to_string(names::ROOT_MODULES_LIST) {
        Ok(list) => match follow(&Modules::read(&list)).context("move from the initramfs into the image")? {},
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context(names::ROOT_MODULES_LIST),
    }
}

fn follow(modules: &Modules) -> anyhow::Result<Infallible> {
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NOTHING).context("mount /proc")?;
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::empty(), NOTHING).context("mount /dev")?;
    let command_line = fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    log::start(log::level(&command_line, names::LOG_PARAMETER)).context("open the log")?;
    let image = Image::read(&command_line).context("the kernel's command line names no root and rootfstype")?;
    for driver in image.drivers() {
        modules.load(driver)?;
    }
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    waiting
        .block_on(async { tokio::time::timeout(LIMIT, mount_when_there(&image)).await })
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .with_context(|| format!("mount {} as {}", image.device.display(), image.file_system))?;
    drop(waiting);

    for directory in ["/proc", "/dev"] {
        umount2(directory, MntFlags::MNT_DETACH).with_context(|| format!("unmount {directory}"))?;
    }
    clear()?;
    chdir(names::NEXT_ROOT)?;
    mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING).context("move the image's root")?;
    chroot(".")?;
    chdir("/")?;
    execv(c"/init", &[c"/init"]).context("execute the image's /init")
}

/// Its device appears some time after its driver was loaded.
async fn mount_when_there(image: &Image<'_>) -> io::Result<()> {
    // Listening first, so that nothing happens unheard between the attempt and the wait.
    let events = Uevents::listen()?;
    loop {
        let mounted = mount(
            Some(image.device),
            names::NEXT_ROOT,
            Some(image.file_system),
            MsFlags::MS_RDONLY,
            image.options,
        );
        match mounted {
            // A node may be there a moment before its device can be opened.
            Err(Errno::ENOENT | Errno::ENXIO) => events.next().await?,
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Removes the files of the initramfs, which would take up memory unseen for ever.
fn clear() -> anyhow::Result<()> {
    let paths: Vec<PathBuf> = fs::read_dir("/")?.flatten().map(|entry| entry.path()).collect();
    for path in paths.iter().filter(|path| *path != Path::new(names::NEXT_ROOT)) {
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_on_the_command_line() {
        let line = "quiet root=/dev/pmem0 rootfstype=erofs rootflags=dax ro kata.log=debug";
        let image = Image::read(line).expect("an image");
        let (device, options) = (Path::new("/dev/pmem0"), Some("dax"));
        assert_eq!(
            (image.device, image.file_system, image.options),
            (device, "erofs", options)
        );
        assert_eq!(image.drivers(), ["virtio_pci", "virtio_pmem", "nd_pmem", "erofs"]);

        let image = Image::read("rootfstype=ext4 root=/dev/vda").expect("an image");
        assert_eq!(image.options, None);
        assert_eq!(image.drivers(), ["virtio_pci", "virtio_blk", "ext4"]);

        for line in [
            "",
            "root=/dev/vda",
            "rootfstype=erofs",
            "xroot=/dev/vda rootfstype=erofs",
        ] {
            assert_eq!(Image::read(line), None, "{line:?}");
        }
    }
}
