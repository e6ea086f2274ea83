//! A node as tests see it: one containerd, one runtime. The tests of a file share the daemon, and may share a pod.

use serde_json::Value;

use super::{Cri, Pod};
use crate::containerd::Release;
use crate::fixture::Shared;
use crate::lab::Lab;
use crate::runtime::Kind;

/// Which containerd, and which runtime its pods run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The containerd.
    pub release: Release,
    /// The runtime.
    pub kind: Kind,
}

static LABS: [Shared<Lab>; 2] = [const { Shared::new() }; 2];
static CRIS: [Shared<Cri>; 2] = [const { Shared::new() }; 2];
static PODS: [Shared<Pod>; 4] = [const { Shared::new() }; 4];

impl Node {
    /// The daemon, which lives until the tests end.
    #[track_caller]
    pub fn cri(self) -> &'static Cri<'static> {
        let index = usize::from(self.release == Release::V2);
        CRIS[index].get(|| Cri::start(LABS[index].get(Lab::open), self.release))
    }

    /// The lab of the daemon.
    #[track_caller]
    pub fn lab(self) -> &'static Lab {
        self.cri().lab()
    }

    /// A pod of the test's own.
    #[track_caller]
    pub fn pod(self, name: &str, edit: impl FnOnce(&mut Value)) -> Pod<'static> {
        self.cri().pod(self.kind, &self.named(name), edit)
    }

    /// The pod that tests share whose pod needs nothing special.
    #[track_caller]
    pub fn shared_pod(self) -> &'static Pod<'static> {
        let index = usize::from(self.release == Release::V2) * 2 + usize::from(self.kind == Kind::Kata);
        PODS[index].get(|| self.pod("shared", |_| ()))
    }

    /// A name that no other node of the lab uses.
    pub fn named(self, name: &str) -> String {
        format!("{name}-{}", self.kind.cri_handler())
    }
}
