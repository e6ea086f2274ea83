//! Which network namespace a container is to have.

use std::path::PathBuf;

use crate::Bundle;
use crate::oci::LinuxNamespaceType;

/// The network namespace that a specification asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// That of whoever runs the container.
    Host,
    /// One of its own, made for it.
    New,
    /// One that somebody has made, usually with links in it.
    At(PathBuf),
}

impl Bundle {
    /// The network namespace that the specification asks for.
    pub fn network_namespace(&self) -> NetworkNamespace {
        let linux = self.spec().linux().as_ref();
        let mut all = linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten();
        let Some(network) = all.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) else {
            return NetworkNamespace::Host;
        };
        match network.path() {
            Some(path) if !path.as_os_str().is_empty() => NetworkNamespace::At(path.clone()),
            _ => NetworkNamespace::New,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_list_of_namespaces_decides() {
        for (namespaces, wanted) in [
            ("[]", NetworkNamespace::Host),
            (r#"[{"type": "pid"}]"#, NetworkNamespace::Host),
            (r#"[{"type": "pid"}, {"type": "network"}]"#, NetworkNamespace::New),
            (r#"[{"type": "network", "path": ""}]"#, NetworkNamespace::New),
            (
                r#"[{"type": "network", "path": "/run/netns/a"}]"#,
                NetworkNamespace::At("/run/netns/a".into()),
            ),
        ] {
            let json = format!(
                r#"{{"ociVersion": "1.0.2", "process": {{"user": {{"uid": 0, "gid": 0}}, "args": ["sh"], "cwd": "/"}},
                    "root": {{"path": "rootfs"}}, "linux": {{"namespaces": {namespaces}}}}}"#
            );
            let bundle = Bundle::from_json(Path::new("/bundle"), json.as_bytes()).expect("a bundle");
            assert_eq!(bundle.network_namespace(), wanted, "{namespaces}");
        }
    }
}
