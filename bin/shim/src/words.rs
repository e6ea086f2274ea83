//! What containerd says on stdin when it runs this program, and how it wants the answer to `start`. Three generations:
//!
//! | containerd | says | reads |
//! |---|---|---|
//! | ≥ 2.3 | `BootstrapParams`, protobuf | `BootstrapResult`, protobuf |
//! | 2.0–2.2 | the runtime's options as an `Any`, or nothing | an address, or JSON |
//! | 1.x | likewise | an address |
//!
//! JSON is written only where the environment's `MAX_SHIM_VERSION` is at least 3, and to who knows the Sandbox API; those of
//! 1.7 to 2.2 say 2, and an address is what all of them understand.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::flags::Flags;

/// The version of the Task API that is served; the older one is served, too.
const TASK_API_VERSION: i32 = containerd_shim_protos::TASK_API_VERSION;

/// Variable with the highest version that containerd understands.
pub const MAX_VERSION: &str = "MAX_SHIM_VERSION";

const PROTOCOL: &str = "ttrpc";

/// More than any options; what is longer is not read.
const LIMIT_BYTES: u64 = 10 << 20;

/// How long stdin may stay open. Whoever has something to say says it at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Address,
    Json,
    Protobuf,
}

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    form: Form,
    /// The configuration file that the runtime's options name.
    pub config: Option<PathBuf>,
    /// More messages.
    pub debug: bool,
    /// containerd's socket for events, without scheme.
    pub events: Option<String>,
}

impl Words {
    /// Understands `input`, of which the flags and `max_version`, the environment's, say what it must be.
    ///
    /// # Errors
    /// Input that is nothing known.
    pub fn parse(input: &[u8], flags: &Flags, max_version: Option<&str>) -> Result<Self> {
        // The options' Any may well be read as parameters, as it has texts in the same places. But not with these.
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && !params.instance_id.is_empty()
            && params.instance_id == flags.id
            && params.namespace == flags.namespace
        {
            let options = params
                .extensions
                .iter()
                .filter_map(|extension| extension.value.as_ref());
            let address = params.containerd_ttrpc_address.as_str();
            let address = address.strip_prefix("unix://").unwrap_or(address);
            return Ok(Self {
                form: Form::Protobuf,
                config: options.filter_map(config_path).next(),
                // Above is less, below is more.
                debug: params.log_level.value() < 0,
                events: (!address.is_empty()).then(|| address.to_owned()),
            });
        }
        let options = options(input)?;
        let json = max_version.and_then(|version| version.parse().ok()) >= Some(TASK_API_VERSION);
        Ok(Self {
            form: if json { Form::Json } else { Form::Address },
            config: options.as_ref().and_then(config_path),
            debug: false,
            events: None,
        })
    }

    /// It is a pod that comes by the Sandbox API: whoever knows that understands the newer version, which needs more than an
    /// address. With the older one containerd 2.1 runs this program for each of the pod's containers, too.
    pub fn about_a_pod(&mut self) {
        if self.form == Form::Address {
            self.form = Form::Json;
        }
    }

    /// The answer: where the sandbox process listens.
    ///
    /// # Errors
    /// None that can happen with an address of ours.
    pub fn answer(&self, address: &str) -> Result<Vec<u8>> {
        Ok(match self.form {
            Form::Address => address.as_bytes().to_vec(),
            Form::Json => {
                let answer = serde_json::json!({
                    "version": TASK_API_VERSION,
                    "address": address,
                    "protocol": PROTOCOL,
                });
                answer.to_string().into_bytes()
            }
            Form::Protobuf => BootstrapResult {
                version: TASK_API_VERSION,
                address: address.to_owned(),
                protocol: PROTOCOL.to_owned(),
                ..Default::default()
            }
            .write_to_bytes()?,
        })
    }
}

/// The runtime's options as containerd gives them; `None` for no input.
///
/// # Errors
/// Input that is no `Any`.
pub fn options(input: &[u8]) -> Result<Option<Any>> {
    if input.is_empty() {
        return Ok(None);
    }
    let options = Any::parse_from_bytes(input).ok().filter(|any| !any.type_url.is_empty());
    options
        .map(Some)
        .context("what came on stdin are neither bootstrap parameters for this container nor options of a runtime")
}

/// Reads stdin to its end; of a terminal or device nothing.
///
/// # Errors
/// Too much, or no end in time.
pub fn read_stdin() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    let fd = stdin.as_fd().try_clone_to_owned().context("stdin")?;
    let mut file = std::fs::File::from(fd);
    if file.metadata().context("stdin")?.file_type().is_char_device() {
        return Ok(Vec::new());
    }
    let end = Instant::now() + PATIENCE;
    let mut input = Vec::new();
    let mut block = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], left)? == 0 {
            bail!("stdin has not ended within {PATIENCE:?}");
        }
        match file.read(&mut block).context("stdin")? {
            0 => return Ok(input),
            length => input.extend_from_slice(&block[..length]),
        }
        if input.len() as u64 > LIMIT_BYTES {
            bail!("more than {LIMIT_BYTES} bytes came on stdin");
        }
    }
}

/// The `config_path` of a `runtimeoptions.v1.Options` message (field 2): which configuration file containerd's own
/// configuration names for this runtime.
pub fn config_path(any: &Any) -> Option<PathBuf> {
    if !any.type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    let mut input = CodedInputStream::from_bytes(&any.value);
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    while let Ok(Some(tag)) = input.read_raw_tag_or_eof() {
        if tag == CONFIG_PATH {
            return input
                .read_string()
                .ok()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from);
        }
        // Every field of the message is length-delimited.
        let length = input.read_raw_varint32().ok()?;
        input.skip_raw_bytes(length).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::{Extension, LogLevel};
    use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};

    const ADDRESS: &str = "unix:///run/kata/k/task.sock";

    fn flags() -> Flags {
        let line = "-namespace ns -id c start".split(' ').map(str::to_owned);
        crate::flags::parse(line).expect("flags")
    }

    /// type_url (1) and config_path (2), both strings.
    fn kata_options() -> Any {
        let mut value = vec![1 << 3 | 2, 3, b'f', b'o', b'o', 2 << 3 | 2, 7];
        value.extend_from_slice(b"/c.toml");
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value,
            ..Default::default()
        }
    }

    fn params(id: &str, namespace: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: namespace.into(),
            log_level: EnumOrUnknown::new(LogLevel::LOG_LEVEL_DEBUG),
            containerd_ttrpc_address: "unix:///run/c.sock.ttrpc".into(),
            extensions: vec![Extension {
                value: MessageField::some(kata_options()),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn parse(input: &[u8], max_version: Option<&str>) -> Words {
        Words::parse(input, &flags(), max_version).expect("understood")
    }

    #[test]
    fn the_newest_containerd_is_told_by_its_parameters() {
        let words = parse(&params("c", "ns").write_to_bytes().expect("bytes"), Some("2"));
        assert_eq!(words.config, Some("/c.toml".into()));
        assert!(words.debug);
        assert_eq!(words.events.as_deref(), Some("/run/c.sock.ttrpc"));
        let answer = BootstrapResult::parse_from_bytes(&words.answer(ADDRESS).expect("answer")).expect("a result");
        assert_eq!(
            (answer.version, answer.address.as_str(), answer.protocol.as_str()),
            (3, ADDRESS, "ttrpc")
        );
    }

    #[test]
    fn older_ones_get_the_address_unless_they_know_more() {
        let options = kata_options().write_to_bytes().expect("bytes");
        for (input, max_version, config, json) in [
            (&b""[..], None, None, false),
            (b"", Some("2"), None, false),
            (b"", Some("?"), None, false),
            (b"", Some("3"), None, true),
            (&options, Some("2"), Some(PathBuf::from("/c.toml")), false),
            (&options, Some("4"), Some(PathBuf::from("/c.toml")), true),
        ] {
            let mut words = parse(input, max_version);
            assert_eq!((words.config.clone(), words.debug), (config, false), "{max_version:?}");
            let answer = String::from_utf8(words.answer(ADDRESS).expect("answer")).expect("text");
            if json {
                let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
                let expected = serde_json::json!({"version": 3, "address": ADDRESS, "protocol": "ttrpc"});
                assert_eq!(answer, expected);
            } else {
                assert_eq!(answer, ADDRESS, "{max_version:?}");
            }
            words.about_a_pod();
            assert_eq!(words.form, Form::Json);
        }
    }

    #[test]
    fn parameters_of_another_container_and_nonsense_are_refused() {
        for input in [
            params("d", "ns").write_to_bytes().expect("bytes"),
            params("c", "other").write_to_bytes().expect("bytes"),
            vec![0xff; 20],
        ] {
            // Parameters for something else read as an Any whose type is the id.
            match Words::parse(&input, &flags(), None) {
                Ok(words) => assert_eq!((words.form, words.config), (Form::Address, None)),
                Err(error) => assert!(error.to_string().contains("neither bootstrap parameters"), "{error}"),
            }
        }
    }

    #[test]
    fn the_configuration_named_by_containerd_is_found() {
        assert_eq!(config_path(&kata_options()), Some("/c.toml".into()));
        let foreign = Any {
            type_url: "containerd.runc.v1.Options".into(),
            ..kata_options()
        };
        assert_eq!(config_path(&foreign), None);
    }
}
