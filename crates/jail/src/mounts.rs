//! What the options of an OCI mount mean. Pure.

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

/// The options of one mount, sorted by what has to be done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Flags to set.
    pub set: Bits,
    /// Flags asked to be off (`exec`, `rw` …); matters for binds, which inherit those of their source.
    pub clear: Bits,
    /// Flags to set and to clear on the mounts below a bind too (`rro` …).
    pub set_below: Bits,
    /// See `set_below`.
    pub clear_below: Bits,
    /// `Some(recursive)` for binds.
    pub bind: Option<bool>,
    /// Propagation to set after mounting, in order.
    pub propagation: Vec<MsFlags>,
    /// tmpfs starts with a copy of what it hides.
    pub copy_up: bool,
    /// What is left for the file system itself, as it was given.
    pub data: Vec<String>,
}

/// A set of mount flags, `MS_*` bits.
pub type Bits = u64;

const ATIME: Bits = libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;

/// `(option, bit, whether it sets it)`.
const FLAGS: &[(&str, Bits, bool)] = &[
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("mand", libc::MS_MANDLOCK, true),
    ("nomand", libc::MS_MANDLOCK, false),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("relatime", libc::MS_RELATIME, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("nostrictatime", libc::MS_STRICTATIME, false),
    ("nosymfollow", libc::MS_NOSYMFOLLOW, true),
    ("symfollow", libc::MS_NOSYMFOLLOW, false),
    ("silent", libc::MS_SILENT, true),
    ("loud", libc::MS_SILENT, false),
    ("iversion", libc::MS_I_VERSION, true),
    ("noiversion", libc::MS_I_VERSION, false),
    ("lazytime", libc::MS_LAZYTIME, true),
    ("nolazytime", libc::MS_LAZYTIME, false),
];

fn propagation(option: &str) -> Option<MsFlags> {
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

/// The propagation named by `linux.rootfsPropagation`, for the whole tree; `None` for an unknown name.
pub fn root_propagation(name: &str) -> Option<MsFlags> {
    propagation(name).map(|flags| flags | MsFlags::MS_REC)
}

impl Options {
    /// Reads the options of `mount`.
    pub fn read(mount: &Mount) -> Self {
        let mut options = Self::default();
        if mount.typ().as_deref() == Some("bind") {
            options.bind = Some(false);
        }
        options.extend(mount.options().as_deref().unwrap_or_default());
        options
    }

    /// Reads options as `mount -o` takes them.
    pub fn of(list: &[String]) -> Self {
        let mut options = Self::default();
        options.extend(list);
        options
    }

    fn extend(&mut self, list: &[String]) {
        list.iter().for_each(|option| self.add(option));
    }

    fn add(&mut self, option: &str) {
        if let Some((_, bit, on)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            change(&mut self.set, &mut self.clear, *bit, *on);
        } else if let Some((_, bit, on)) = option
            .strip_prefix('r')
            .and_then(|below| FLAGS.iter().find(|(name, ..)| *name == below))
        {
            change(&mut self.set_below, &mut self.clear_below, *bit, *on);
        } else if let Some(flags) = propagation(option) {
            self.propagation.push(flags);
        } else {
            match option {
                "bind" => self.bind = Some(self.bind.unwrap_or(false)),
                "rbind" => self.bind = Some(true),
                "tmpcopyup" => self.copy_up = true,
                "defaults" | "" => {}
                other => self.data.push(other.to_owned()),
            }
        }
    }

    /// The flags for `mount(2)` of a fresh file system.
    pub fn mount_flags(&self) -> MsFlags {
        MsFlags::from_bits_truncate(self.set | self.set_below)
    }

    /// What to change on a bind's top mount, and on it and all below.
    pub fn bind_attributes(&self) -> (kata_sys::tree::Attributes, kata_sys::tree::Attributes) {
        (
            attributes(self.set, self.clear),
            attributes(self.set_below, self.clear_below),
        )
    }
}

fn change(set: &mut Bits, clear: &mut Bits, bit: Bits, on: bool) {
    let (to, from) = if on { (set, clear) } else { (clear, set) };
    if on && bit & ATIME != 0 {
        // These exclude each other.
        *to &= !ATIME;
    }
    *to |= bit;
    *from &= !bit;
}

/// `MS_*` bits as `MOUNT_ATTR_*` bits. Flags of the file system rather than of the mount have none and are left out.
fn attributes(set: Bits, clear: Bits) -> kata_sys::tree::Attributes {
    let translate = |bits: Bits| {
        [
            (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
            (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
            (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
            (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
            (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
            (libc::MS_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
        ]
        .iter()
        .filter(|(flag, _)| bits & flag != 0)
        .fold(0, |sum, (_, attribute)| sum | attribute)
    };
    let mut result = kata_sys::tree::Attributes {
        set: translate(set),
        clear: translate(clear),
    };
    if set & libc::MS_NOATIME != 0 {
        result.set |= libc::MOUNT_ATTR_NOATIME;
    } else if set & libc::MS_STRICTATIME != 0 {
        result.set |= libc::MOUNT_ATTR_STRICTATIME;
    }
    if (set | clear) & ATIME != 0 {
        // The access time attributes are one field, which has to be cleared as a whole.
        result.clear |= libc::MOUNT_ATTR__ATIME;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn read(typ: &str, options: &[&str]) -> Options {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        Options::read(
            &MountBuilder::default()
                .destination("/x")
                .typ(typ)
                .options(options)
                .build()
                .expect("mount"),
        )
    }

    #[test]
    fn flags_data_and_propagation_are_told_apart() {
        let options = read(
            "tmpfs",
            &[
                "nosuid",
                "strictatime",
                "mode=755",
                "size=65536k",
                "rslave",
                "tmpcopyup",
            ],
        );
        assert_eq!(options.mount_flags(), MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
        assert_eq!(options.propagation, [MsFlags::MS_SLAVE | MsFlags::MS_REC]);
        assert!(options.copy_up && options.bind.is_none());
    }

    #[test]
    fn the_last_of_opposites_wins() {
        assert_eq!(read("bind", &["ro", "rw"]).set, 0);
        assert_eq!(read("bind", &["rw", "ro"]).set, libc::MS_RDONLY);
        assert_eq!(read("tmpfs", &["noatime", "relatime"]).set, libc::MS_RELATIME);
    }

    #[test]
    fn binds_are_recursive_only_when_asked() {
        assert_eq!(read("bind", &[]).bind, Some(false));
        assert_eq!(read("none", &["bind", "ro"]).bind, Some(false));
        assert_eq!(read("bind", &["rbind", "bind"]).bind, Some(true));
        assert_eq!(read("tmpfs", &["ro"]).bind, None);
    }

    #[test]
    fn bind_attributes_concern_the_top_or_everything() {
        let (top, all) = read("bind", &["rbind", "ro", "nosuid", "exec", "rnodev"]).bind_attributes();
        assert_eq!(top.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(top.clear, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(all.set, libc::MOUNT_ATTR_NODEV);
        let (atime, _) = read("bind", &["noatime"]).bind_attributes();
        assert_eq!(
            (atime.set, atime.clear),
            (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME)
        );
    }

    #[test]
    fn relatime_is_not_taken_for_a_recursive_option() {
        assert_eq!(read("bind", &["relatime"]).set, libc::MS_RELATIME);
        assert_eq!(read("bind", &["rro"]).set_below, libc::MS_RDONLY);
    }
}
