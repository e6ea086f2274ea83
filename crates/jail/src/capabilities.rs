//! Capabilities of a process, in the order in which the kernel lets them go.

use std::collections::HashSet;
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use oci_spec::runtime::LinuxCapabilities;

use crate::fault::Fault;

/// The five sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// The most that can ever be gained.
    pub bounding: CapsHashSet,
    /// In force.
    pub effective: CapsHashSet,
    /// Can be put in force.
    pub permitted: CapsHashSet,
    /// Kept over execve for files that say so.
    pub inheritable: CapsHashSet,
    /// Kept over execve for all files.
    pub ambient: CapsHashSet,
}

impl Sets {
    /// Translates the spec's sets; no sets mean none at all.
    ///
    /// # Errors
    /// [`Fault::Value`] for a capability that is not known here.
    pub fn read(spec: Option<&LinuxCapabilities>) -> Result<Self, Fault> {
        let Some(spec) = spec else { return Ok(Self::default()) };
        let translate = |set: &Option<HashSet<oci_spec::runtime::Capability>>| {
            set.iter()
                .flatten()
                .map(|capability| {
                    let name = format!("CAP_{capability}");
                    Capability::from_str(&name).map_err(|_| Fault::Value {
                        what: "process.capabilities",
                        value: name,
                        expected: "is not a capability",
                    })
                })
                .collect::<Result<CapsHashSet, Fault>>()
        };
        Ok(Self {
            bounding: translate(spec.bounding())?,
            effective: translate(spec.effective())?,
            permitted: translate(spec.permitted())?,
            inheritable: translate(spec.inheritable())?,
            ambient: translate(spec.ambient())?,
        })
    }

    /// Lowers the bounding set. For while the process may still do everything.
    ///
    /// # Errors
    /// [`Fault::Value`] naming the set.
    pub fn lower_bounding(&self) -> Result<(), Fault> {
        let known = caps::read(None, CapSet::Bounding).map_err(|error| refused("bounding", &error))?;
        for capability in known.difference(&self.bounding) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(|error| refused("bounding", &error))?;
        }
        Ok(())
    }

    /// Sets the others. For after the change of user. Ambient capabilities that are not also permitted and inheritable
    /// are left out, as runc does.
    ///
    /// # Errors
    /// [`Fault::Value`] naming the set.
    pub fn apply(&self) -> Result<(), Fault> {
        let set =
            |which, name, value: &CapsHashSet| caps::set(None, which, value).map_err(|error| refused(name, &error));
        // Permitted bounds the others, so it is lowered last; inheritable needs CAP_SETPCAP in force.
        set(CapSet::Inheritable, "inheritable", &self.inheritable)?;
        set(CapSet::Effective, "effective", &self.effective)?;
        set(CapSet::Permitted, "permitted", &self.permitted)?;
        caps::clear(None, CapSet::Ambient).map_err(|error| refused("ambient", &error))?;
        for capability in &self.ambient {
            if self.permitted.contains(capability) && self.inheritable.contains(capability) {
                caps::raise(None, CapSet::Ambient, *capability).map_err(|error| refused("ambient", &error))?;
            }
        }
        Ok(())
    }
}

fn refused(set: &str, error: &caps::errors::CapsError) -> Fault {
    Fault::Value {
        what: "process.capabilities",
        value: format!("{set}: {error}"),
        expected: "was refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_and_no_sets_are_empty_sets() {
        let spec: LinuxCapabilities =
            serde_json::from_str(r#"{"bounding":["CAP_KILL","CAP_SYS_ADMIN"],"ambient":["CAP_BPF"]}"#).expect("sets");
        let sets = Sets::read(Some(&spec)).expect("translate");
        assert_eq!(sets.bounding, [Capability::CAP_KILL, Capability::CAP_SYS_ADMIN].into());
        assert_eq!(sets.ambient, [Capability::CAP_BPF].into());
        assert!(sets.effective.is_empty());
        assert_eq!(Sets::read(None).expect("none"), Sets::default());
    }

    #[test]
    fn every_capability_of_the_kernel_has_a_name_in_the_spec() {
        for capability in caps::all() {
            let json = format!(r#"{{"bounding":["{capability}"]}}"#);
            let spec: LinuxCapabilities = serde_json::from_str(&json).expect("known to the spec");
            assert_eq!(
                Sets::read(Some(&spec)).expect("known here").bounding,
                [capability].into()
            );
        }
    }
}
