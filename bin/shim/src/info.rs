//! `-info`: what this runtime is and can do, as a `RuntimeInfo` message; containerd ≥ 2 asks before it uses a runtime.

use std::io::Write;

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::words;

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, where the build said so.
pub const COMMIT: &str = match option_env!("KATA_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The type of the features object of the OCI runtime spec, which is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the message. The options that may come on stdin go back in it.
///
/// # Errors
/// Options that are none; a stdout that is gone.
pub fn print() -> Result<()> {
    let options = words::options(&words::read_stdin()?)?;
    let bytes = message(options)?.write_to_bytes()?;
    std::io::stdout().write_all(&bytes).context("stdout")
}

fn message(options: Option<Any>) -> Result<RuntimeInfo> {
    Ok(RuntimeInfo {
        name: "io.containerd.kata.v2".to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_owned(),
            revision: COMMIT.to_owned(),
            ..Default::default()
        }),
        options: options.into(),
        features: MessageField::some(Any {
            type_url: FEATURES.to_owned(),
            value: serde_json::to_vec(&kata_plan::features(VERSION, COMMIT))?,
            ..Default::default()
        }),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_the_runtime_are_told() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            ..Default::default()
        };
        let info = message(Some(options.clone())).expect("a message");
        assert_eq!(info.name, "io.containerd.kata.v2");
        assert_eq!(info.version.version, VERSION);
        assert_eq!(info.options.into_option(), Some(options));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).expect("JSON");
        assert_eq!(features["ociVersionMax"], kata_plan::OCI_VERSION);
        assert_eq!(features["hooks"].as_array().map(Vec::len), Some(6));
    }
}
