//! What becomes of the devices that a container is given: `linux.devices`, and the rules of who may use which.
//!
//! A block device becomes a disk of the machine. A character device is the guest's own of the same number; refused are those
//! that only the host has. A privileged container, which is given all that the host has, gets of it what the guest has.

use kata_bundle::oci::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::PlanError;
use crate::disk::{DiskPlan, DiskSource};

/// Character devices with the same number in every Linux and a meaning in the guest: major, and the minors.
const GUESTS_OWN: [(i64, std::ops::RangeInclusive<i64>); 6] = [
    // memory, null, zero, full, random, kmsg
    (1, 0..=255),
    // the terminal of the process, ptmx
    (5, 0..=2),
    // hwrng
    (10, 183..=183),
    // tun
    (10, 200..=200),
    // fuse
    (10, 229..=229),
    // pseudo-terminals
    (136, 0..=1 << 20),
];

/// The devices of a container.
pub(crate) struct Devices {
    /// Attached to the machine.
    pub disks: Vec<DiskPlan>,
    /// What the guest makes nodes of. The numbers of disks are still the host's.
    pub nodes: Vec<LinuxDevice>,
    /// How many of a privileged container's were left out.
    pub left_out: usize,
}

/// Decides about each device of the specification.
///
/// # Errors
/// [`PlanError::Device`]
pub(crate) fn decide(spec: &Spec) -> Result<Devices, PlanError> {
    let linux = spec.linux().as_ref();
    let rules = rules(spec);
    let mut decided = Devices {
        disks: Vec::new(),
        nodes: Vec::new(),
        left_out: 0,
    };
    let is_privileged = rules.iter().any(allows_everything);
    for device in linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default() {
        let rule = rules.iter().find(|rule| names(rule, device));
        let is_asked_for = !is_privileged || rule.is_some();
        match device.typ() {
            LinuxDeviceType::B if is_asked_for => {
                let disk = disk(device, rule, decided.disks.len())?;
                decided.disks.push(disk);
                decided.nodes.push(device.clone());
            }
            LinuxDeviceType::C | LinuxDeviceType::U if !is_the_guests(device) => {
                if is_asked_for {
                    return Err(refusal(device));
                }
                decided.left_out += 1;
            }
            LinuxDeviceType::B => decided.left_out += 1,
            _ => decided.nodes.push(device.clone()),
        }
    }
    Ok(decided)
}

/// The rules that mean the same in the guest, or will once the numbers of `disks` are the guest's. Numbers of other block
/// devices of the host may be those of somebody else's disk there.
pub(crate) fn guest_rules(rules: &[LinuxDeviceCgroup], disks: &[DiskPlan]) -> Vec<LinuxDeviceCgroup> {
    let stays = |rule: &&LinuxDeviceCgroup| {
        rule.typ() != Some(LinuxDeviceType::B)
            || rule.major().is_none_or(|major| major < 0)
            || disks.iter().any(|disk| disk.has_numbers(rule.major(), rule.minor()))
    };
    rules.iter().filter(stays).cloned().collect()
}

fn rules(spec: &Spec) -> &[LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources
        .and_then(|resources| resources.devices().as_deref())
        .unwrap_or_default()
}

fn disk(device: &LinuxDevice, rule: Option<&LinuxDeviceCgroup>, index: usize) -> Result<DiskPlan, PlanError> {
    let number = |value: i64| u32::try_from(value).map_err(|_| refusal(device));
    let access = rule.and_then(|rule| rule.access().as_deref()).unwrap_or("rwm");
    Ok(DiskPlan {
        name: format!("device-{index}"),
        source: DiskSource::Device {
            major: number(device.major())?,
            minor: number(device.minor())?,
        },
        read_only: !access.contains('w'),
        mount: None,
    })
}

/// Whether the rule allows this very device.
fn names(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    rule.allow() && rule.major() == Some(device.major()) && rule.minor() == Some(device.minor())
}

fn allows_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let any_type = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    let all_access = rule.access().as_deref().is_none_or(|access| access.contains('w'));
    rule.allow() && any_type && any(rule.major()) && any(rule.minor()) && all_access
}

fn is_the_guests(device: &LinuxDevice) -> bool {
    let mut known = GUESTS_OWN.iter();
    known.any(|(major, minors)| *major == device.major() && minors.contains(&device.minor()))
}

fn refusal(device: &LinuxDevice) -> PlanError {
    PlanError::Device {
        path: device.path().clone(),
        kind: device.typ().as_str().into(),
        major: device.major(),
        minor: device.minor(),
    }
}
