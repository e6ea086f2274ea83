//! Whether a container is a pod, a member of one, or alone: engines say so in annotations.
//!
//! Refuses to guess: an engine's annotation with an unknown value is an error, not a single container.

use crate::check::Problem;
use crate::oci::Spec;

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// No engine spoke of pods: a pod of its own. The first container of a pod of Podman is one, too.
    Single,
    /// The first container of a pod, whose machine is booted for it.
    Pod,
    /// A container in a machine that runs already.
    Member {
        /// Id of the pod's first container.
        pod_id: String,
    },
}

/// How one engine says what a container is.
struct Dialect {
    role: &'static str,
    pod: &'static str,
    member: &'static str,
    pod_id: &'static str,
}

const CRI_O_ROLE: &str = "io.kubernetes.cri-o.ContainerType";

const DIALECTS: [Dialect; 3] = [
    // containerd's CRI plugin
    Dialect {
        role: "io.kubernetes.cri.container-type",
        pod: "sandbox",
        member: "container",
        pod_id: "io.kubernetes.cri.sandbox-id",
    },
    // CRI-O
    Dialect {
        role: CRI_O_ROLE,
        pod: "sandbox",
        member: "container",
        pod_id: "io.kubernetes.cri-o.SandboxID",
    },
    // dockershim
    Dialect {
        role: "io.kubernetes.docker.type",
        pod: "podsandbox",
        member: "container",
        pod_id: "io.kubernetes.sandbox.id",
    },
];

const CONTAINER_NAMES: [&str; 3] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.ContainerName",
    "io.kubernetes.container.name",
];

impl Role {
    pub(crate) fn of(spec: &Spec) -> Result<Self, Problem> {
        for dialect in &DIALECTS {
            if let Some(value) = annotation(spec, dialect.role) {
                return dialect.read(spec, value);
            }
        }
        Ok(Self::Single)
    }
}

impl Dialect {
    fn read(&self, spec: &Spec, value: &str) -> Result<Role, Problem> {
        if value == self.pod {
            return Ok(Role::Pod);
        }
        if value != self.member {
            return Err(Problem::UnknownRole {
                name: self.role,
                value: value.to_owned(),
                allowed: format!("{:?} and {:?}", self.pod, self.member),
            });
        }
        match annotation(spec, self.pod_id) {
            Some(id) if !id.is_empty() => Ok(Role::Member { pod_id: id.to_owned() }),
            _ => Err(Problem::NoPodId {
                name: self.role,
                id_name: self.pod_id,
            }),
        }
    }
}

/// CRI-O made the bundle.
pub(crate) fn is_cri_o(spec: &Spec) -> bool {
    annotation(spec, CRI_O_ROLE).is_some()
}

pub(crate) fn container_name(spec: &Spec) -> Option<&str> {
    CONTAINER_NAMES.iter().find_map(|name| annotation(spec, name))
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}
