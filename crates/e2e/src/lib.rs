//! The harness of the end-to-end tests: rooms in which real engines run real containers in real VMs, and in which runc
//! stands beside our runtime to test the tests. It hides the boring half (daemons, namespaces, images, time limits);
//! what is expected stays in the tests. It is test code: whatever goes wrong in it panics with what it was doing.

pub mod bundle;
pub mod clock;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod expect;
pub mod factory;
pub mod fixture;
pub mod image;
pub mod lab;
pub mod leak;
pub mod pids;
pub mod places;
pub mod pod;
pub mod podman;
pub mod program;
pub mod rootfs;
pub mod runtime;
pub mod task;
pub mod terminal;
pub mod wait;

/// Makes of each case `fn case(kind: Kind)` two tests: one against runc, which proves the test, and one against ours.
#[macro_export]
macro_rules! against_both {
    ($($case:ident),* $(,)?) => {
        mod runc {
            $(#[test] fn $case() { super::$case($crate::runtime::Kind::Runc) })*
        }
        mod kata {
            $(#[test] fn $case() { super::$case($crate::runtime::Kind::Kata) })*
        }
    };
}

/// Makes of each case `fn case(node: Node)` four tests: against both generations of containerd, by runc and by ours.
#[macro_export]
macro_rules! against_nodes {
    ($($case:ident),* $(,)?) => {
        $crate::against_nodes!(@ runc_v1, Runc, V1, $($case),*);
        $crate::against_nodes!(@ runc_v2, Runc, V2, $($case),*);
        $crate::against_nodes!(@ kata_v1, Kata, V1, $($case),*);
        $crate::against_nodes!(@ kata_v2, Kata, V2, $($case),*);
    };
    (@ $name:ident, $kind:ident, $release:ident, $($case:ident),*) => {
        mod $name {
            const NODE: $crate::cri::Node = $crate::cri::Node {
                kind: $crate::runtime::Kind::$kind,
                release: $crate::containerd::Release::$release,
            };
            $(#[test] fn $case() { super::$case(NODE) })*
        }
    };
}
