//! The two machine types that this driver knows, and what each of them needs.
//!
//! Measured with QEMU 10.0 under TCG: user+sys CPU seconds from exec to power-off of Debian's 6.1 cloud kernel (ELF) with
//! a trivial initramfs, medians of 5 or 6 interleaved runs, about ±0.1:
//!
//! | q35, SeaBIOS | qboot | + devices off | without `cryptomgr.notests` | with `noreplace-smp` | microvm, the same |
//! |---|---|---|---|---|---|
//! | 2.64 | 2.47 | 2.5 | 3.8 | **2.3** | 2.2–2.4 |
//!
//! Room for more memory costs 0.4 s and 64 MiB, because the kernel then makes bounce buffers for devices that cannot
//! address all of it; with `swiotlb=noforce`, nothing measurable (virtio devices can). Room for more CPUs costs nothing.
//!
//! Nothing measurable in a boot: `mitigations=off`, `nokaslr`, `tsc=reliable`, `no_timer_check`, `lpj=`, `8250.nr_uarts=1`,
//! `init_on_alloc=0`, `lsm=`, `audit=0`, `rcupdate.rcu_expedited=1`, other CPU models.

use kata_machine::{Accelerator, Growth, MachineError};

/// Parts of a distribution's kernel that a guest does without: tracing by kprobe events, the export of format strings to
/// tracers, a self test, and the certificates of modules that are not signed any more. 2.36 s without, 2.26 s with
/// (medians of 7). Then the files of tracefs, 10,000 for the kernel's events: 9 MiB in each guest and 0.07 s
/// (medians of 5). Names that a kernel does not know are passed over by it.
const SKIPPED: &str = "initcall_blacklist=init_kprobe_trace,init_trace_printk_function_export,tracer_init_tracefs,\
                       crypto_kdf108_init,load_system_certificate_list";

/// A machine type with its options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Board {
    family: Family,
    /// As the user wrote it: `q35`, `pc-q35-9.2`, `microvm`.
    name: String,
    /// Ours, then the user's.
    options: Vec<String>,
    pcie: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Q35,
    Microvm,
}

impl Family {
    /// What the guest does not use. An option that the user sets is not set here.
    fn defaults(self) -> &'static [&'static str] {
        match self {
            Self::Q35 => &[
                "hpet=off",
                "smm=off",
                "usb=off",
                "sata=off",
                "smbus=off",
                "vmport=off",
                "i8042=off",
            ],
            // PCIe leaves room for hotplug; ACPI describes it to the guest, and powers the machine off.
            Self::Microvm => &["acpi=on", "pcie=on"],
        }
    }
}

impl Board {
    /// Reads `TYPE[,OPTION=VALUE…]`.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] for another type, or a word that is no option.
    pub(crate) fn parse(machine_type: &str) -> Result<Self, MachineError> {
        let mut words = machine_type.split(',');
        let name = words.next().unwrap_or_default();
        let family = match name {
            "q35" => Family::Q35,
            versioned if versioned.starts_with("pc-q35-") => Family::Q35,
            "microvm" => Family::Microvm,
            other => {
                let message = format!("machine type {other:?}: this driver knows q35, pc-q35-VERSION and microvm");
                return Err(MachineError::Unsupported(message));
            }
        };
        let wished: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        for word in &wished {
            if word.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                let message = format!("machine type {machine_type:?}: {word:?} is not of the form OPTION=VALUE");
                return Err(MachineError::Unsupported(message));
            }
        }
        let is_wished = |key| wished.iter().any(|word| key_of(word) == key);
        let options: Vec<String> = family
            .defaults()
            .iter()
            .filter(|word| !is_wished(key_of(word)))
            .chain(&wished)
            .map(|&word| word.to_owned())
            .collect();
        let pcie = family == Family::Q35
            || options
                .iter()
                .rfind(|word| key_of(word) == "pcie")
                .is_some_and(|w| is_on(w));
        Ok(Self {
            family,
            name: name.to_owned(),
            options,
            pcie,
        })
    }

    /// # Errors
    /// [`MachineError::Unsupported`] for a machine that takes nothing while it runs.
    pub(crate) fn check_growth(&self, growth: Option<&Growth>) -> Result<(), MachineError> {
        match (self.family, growth) {
            (Family::Microvm, Some(_)) => Err(MachineError::Unsupported(
                "a microvm takes neither CPUs nor memory while it runs".into(),
            )),
            _ => Ok(()),
        }
    }

    /// The value of `-machine`.
    pub(crate) fn option(&self) -> String {
        std::iter::once(&self.name)
            .chain(&self.options)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// The value of `-bios` when nobody wishes another.
    ///
    /// On microvm it is a matter of life and death: its default firmware with ACPI, SeaBIOS, puts the tables at the top
    /// of memory, where QEMU then loads the initramfs; the kernel takes cpio padding for the length of a table and sums
    /// it up for ever (QEMU 10.0.2, unless the initramfs happens to leave room in its last page). qboot puts them below
    /// 1 MiB.
    pub(crate) fn firmware(&self) -> &'static str {
        "qboot.rom"
    }

    /// Whether the guest's kernel has to be told how fast its time stamp counter counts.
    ///
    /// Under TCG the counter is the host's, and the kernel measures it by timers that stand still while the host has no time
    /// for the VMM. On a host with four other busy processes one boot in 24 took 294 MHz for 2596, and time passed nine
    /// times too fast in that guest for ever (q35, Linux 6.1). On microvm with ACPI the kernel has one such timer, the PIT;
    /// when that fails it waits for ever for a tick of a timer that it has not set up (calibrate_APIC_clock).
    pub(crate) fn needs_tsc_frequency(accelerator: Accelerator) -> bool {
        accelerator == Accelerator::Tcg
    }

    /// Kernel parameters that come with the machine. A guest that falls ends the VMM: a triple fault needs no device.
    pub(crate) fn kernel_parameters(&self, accelerator: Accelerator) -> Vec<&'static str> {
        let mut parameters = vec![
            "console=ttyS0",
            "panic=-1",
            "reboot=t",
            "cryptomgr.notests",
            "swiotlb=noforce",
            // A machine may have CPUs later, and so the kernel would not trust its time stamp counter, and read the ACPI timer
            // instead, each time through the VMM.
            "tsc=reliable",
            // Who looks whether a CPU hangs wakes every idle machine, and on a busy host finds nothing but the host's business.
            "nowatchdog",
        ];
        if accelerator == Accelerator::Tcg {
            // With one CPU the kernel patches its thousands of lock prefixes away; for TCG that is self-modifying code.
            parameters.push("noreplace-smp");
            // The kernel tries whether its timer ticks, while this host may have no time for the thread that makes it tick;
            // it panics then ("IO-APIC + timer doesn't work").
            parameters.push("no_timer_check");
            // virtiofsd writes files into the guest's memory behind TCG's back, which goes on to run what it translated of the
            // page's last program. A page that the guest clears when it takes it is translated anew.
            parameters.push("init_on_alloc=1");
            parameters.push(SKIPPED);
        }
        parameters
    }

    /// A virtio device with its options, on the bus that this machine has.
    pub(crate) fn virtio(&self, device: &str, options: &str) -> String {
        format!("{device}-{},{options}", if self.pcie { "pci" } else { "device" })
    }

    /// Whether memory devices can be in it.
    pub(crate) fn has_memory_devices(&self) -> bool {
        self.family == Family::Q35
    }

    /// Where the room for memory devices begins, of a machine with so much memory, bytes (QEMU: `pc_q35_init`,
    /// `pc_get_device_memory_range`): from 2.75 GiB of memory on all but 2 GiB of it are above 4 GiB, and the room begins at
    /// the next whole GiB.
    pub(crate) fn device_memory(&self, memory: u64) -> u64 {
        const GIB: u64 = 1 << 30;
        let below = if memory >= 0xb000_0000 { 2 * GIB } else { memory };
        (4 * GIB + memory - below).next_multiple_of(GIB)
    }

    /// Whether [`Self::virtio`] makes PCI devices.
    pub(crate) fn has_pci(&self) -> bool {
        self.pcie
    }
}

fn key_of(word: &str) -> &str {
    word.split_once('=').map_or(word, |(key, _)| key)
}

fn is_on(word: &str) -> bool {
    matches!(word.split_once('='), Some((_, "on" | "yes" | "true" | "y")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_replace_defaults() {
        let board = Board::parse("q35,usb=on,x-foo=1").expect("known");
        let expected = "q35,hpet=off,smm=off,sata=off,smbus=off,vmport=off,i8042=off,usb=on,x-foo=1";
        assert_eq!(board.option(), expected);
    }

    #[test]
    fn the_bus_follows_the_machine() {
        for (machine_type, expected) in [
            ("q35", "virtio-rng-pci,rng=r"),
            ("pc-q35-9.2", "virtio-rng-pci,rng=r"),
            ("microvm", "virtio-rng-pci,rng=r"),
            ("microvm,pcie=off", "virtio-rng-device,rng=r"),
            ("microvm,pcie=off,pcie=on", "virtio-rng-pci,rng=r"),
        ] {
            let board = Board::parse(machine_type).expect(machine_type);
            assert_eq!(board.virtio("virtio-rng", "rng=r"), expected, "{machine_type}");
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (machine_type, part) in [
            ("", "\"\""),
            ("pc", "\"pc\""),
            ("virt,x=1", "\"virt\""),
            ("q35,usb", "\"usb\""),
        ] {
            let error = Board::parse(machine_type).expect_err(machine_type).to_string();
            assert!(error.contains(part), "{machine_type}: {error}");
        }
    }
}
