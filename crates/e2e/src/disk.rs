//! A block device for a test: a loop device that goes when the test lets go of it, however that happens.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::command::Cmd;
use crate::{places, wait};

/// A loop device and the file behind it.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    node: PathBuf,
    image: PathBuf,
}

impl LoopDevice {
    /// A device of this many MiB whose bytes are all zero, kept in `image`.
    ///
    /// # Panics
    /// When the host has no loop device to spare.
    #[track_caller]
    pub fn new(image: &Path, mib: u64) -> Self {
        let file = File::create(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
        file.set_len(mib << 20).expect("size");
        let shown = Cmd::new(places::tool("losetup")).args(["--find", "--show"]).arg(image);
        let node = PathBuf::from(shown.run().ok().text().trim());
        let options = File::options().read(true).write(true).open(&node);
        let device = options.unwrap_or_else(|error| panic!("{}: {error}", node.display()));
        let image = image.to_owned();
        let made = Self { device, node, image };
        // It is busy: it goes with its last user.
        Cmd::new(places::tool("losetup"))
            .arg("--detach")
            .arg(&made.node)
            .run()
            .ok();
        made
    }

    /// Puts an ext4 file system on it that holds what is in `directory`.
    #[track_caller]
    pub fn format(&self, directory: &Path) {
        let make = Cmd::new(places::tool("mkfs.ext4")).args(["-q", "-F", "-d"]);
        make.arg(directory).arg(&self.node).run().ok();
    }

    /// The content of a file in its ext4 file system, as it is on the disk.
    #[track_caller]
    pub fn file(&self, path: &str) -> String {
        let debugfs = Cmd::new(places::tool("debugfs")).args(["-R", &format!("cat {path}")]);
        debugfs.arg(&self.node).run().ok().text()
    }

    /// `/dev/loopN`
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Its major and minor number.
    pub fn numbers(&self) -> (u64, u64) {
        let number = self.device.metadata().expect("stat").rdev();
        (major(number), minor(number))
    }

    /// Writes at its beginning.
    #[track_caller]
    pub fn write(&self, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        self.device.write_all_at(bytes, 0).expect("write");
    }

    /// The first bytes of it, as the host sees them.
    #[track_caller]
    pub fn bytes(&self, count: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; count];
        self.device.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// Lets go of it; answers whether that was the last user.
    pub fn close(self) -> bool {
        let Self { device, node, image } = self;
        drop(device);
        let backing = Path::new("/sys/block").join(node.file_name().unwrap_or_default());
        let behind = || std::fs::read_to_string(backing.join("loop/backing_file")).unwrap_or_default();
        let gone = || (Path::new(behind().trim()) != image).then_some(());
        // A child that another thread is just starting has a copy of the descriptor until its exec.
        wait::eventually(Duration::from_secs(10), gone).is_some()
    }
}
