//! The command line as containerd gives it: Go's flags, one dash or two, `-name value` or `-name=value`, then an action.

use std::path::PathBuf;

use anyhow::{Result, bail};
use kata_sandbox::{cache, template};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find or start the sandbox process of a container and print its address.
    Start,
    /// Clean up after a sandbox process that is gone.
    Delete,
    /// Be the sandbox process. Only `Start` asks for this.
    Serve,
    /// Make a template. Only `Serve` asks for this.
    Template,
    /// Keep a cache of machines. Only `kata-runtime factory` asks for this.
    Keep,
    /// Wait in the cache. Only `Keep` asks for this.
    Wait,
    /// Print what this runtime is and can do, as a message.
    Info,
    /// Print the version.
    Version,
    /// Print how it is used.
    Help,
}

/// The command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// What is to be done.
    pub action: Action,
    /// containerd's namespace; of the command line its `--root`.
    pub namespace: String,
    /// Container id.
    pub id: String,
    /// containerd's own socket (gRPC).
    pub address: String,
    /// containerd's binary for publishing events, when there is no socket for them.
    pub publish_binary: String,
    /// Bundle; default is the working directory.
    pub bundle: Option<PathBuf>,
    /// What names the sandbox for its owner; default is the bundle. Given by `kata-runtime`.
    pub place: Option<PathBuf>,
    /// Configuration file. Given by `kata-runtime`.
    pub config: Option<PathBuf>,
    /// Configuration file that containerd's options name.
    pub options_config: Option<PathBuf>,
    /// Why no machine of the cache was taken. Given by `Start`.
    pub passed_over: Option<String>,
    /// More messages.
    pub debug: bool,
}

/// What `-help` prints.
pub const USAGE: &str = "\
usage: containerd-shim-kata-v2 [flags] start|delete

  -namespace NAME        containerd's namespace
  -id ID                 container id
  -address SOCKET        containerd's socket
  -publish-binary FILE   program that publishes events
  -bundle DIR            bundle (default: the working directory)
  -debug                 more messages
  -info                  print what this runtime is and can do (protobuf; options may come on stdin)
  -version, -v           print the version
  -help                  print this

Started by containerd; kata-runtime starts it with these flags of its own:

  -place PATH            what names the sandbox for its owner (default: the bundle)
  -config FILE           configuration file
";

/// Understands a command line (without the program's name).
///
/// # Errors
/// An unknown flag or action, a flag without its value, an action too many or none.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Flags> {
    let mut flags = Flags {
        action: Action::Help,
        namespace: String::new(),
        id: String::new(),
        address: String::new(),
        publish_binary: String::new(),
        bundle: None,
        place: None,
        config: None,
        options_config: None,
        passed_over: None,
        debug: false,
    };
    let mut action = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            if action.is_some() {
                bail!("unexpected argument \"{argument}\" after the action");
            }
            action = Some(match argument.as_str() {
                "start" => Action::Start,
                "delete" => Action::Delete,
                "serve" => Action::Serve,
                template::MAKER_ACTION => Action::Template,
                cache::KEEPER_ACTION => Action::Keep,
                cache::SPARE_ACTION => Action::Wait,
                other => bail!("unknown action \"{other}\"; there are start and delete"),
            });
            continue;
        };
        let (name, attached) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "debug" => {
                flags.debug = attached.as_deref() != Some("false");
                continue;
            }
            "v" | "version" => {
                action = Some(Action::Version);
                continue;
            }
            "info" => {
                action = Some(Action::Info);
                continue;
            }
            "h" | "help" => {
                action = Some(Action::Help);
                continue;
            }
            _ => {}
        }
        if !matches!(
            name,
            "namespace"
                | "id"
                | "address"
                | "publish-binary"
                | "bundle"
                | "place"
                | "config"
                | "options-config"
                | "passed-over"
                | "socket"
        ) {
            bail!("unknown flag -{name}");
        }
        let Some(value) = attached.or_else(|| arguments.next()) else {
            bail!("flag -{name} needs a value");
        };
        match name {
            "namespace" => flags.namespace = value,
            "id" => flags.id = value,
            "address" => flags.address = value,
            "publish-binary" => flags.publish_binary = value,
            "bundle" => flags.bundle = Some(value.into()),
            "place" => flags.place = Some(value.into()),
            "config" => flags.config = Some(value.into()),
            "options-config" => flags.options_config = Some(value.into()),
            "passed-over" => flags.passed_over = Some(value),
            // containerd's old way to name the socket; ours is where it is.
            _ => {}
        }
    }
    match action {
        Some(action) => flags.action = action,
        None => bail!("no action; there are start and delete"),
    }
    if matches!(flags.action, Action::Start | Action::Delete | Action::Serve) && flags.id.is_empty() {
        bail!("flag -id is missing");
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Flags> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_own_lines_are_understood() {
        let start = parsed("-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id t1 start")
            .expect("containerd 1.6");
        assert_eq!(start.action, Action::Start);
        assert_eq!((start.namespace.as_str(), start.id.as_str()), ("default", "t1"));
        assert_eq!(start.address, "/run/c.sock");
        let delete = parsed("-namespace=k8s.io --id=t1 -bundle /b -debug delete").expect("other spellings");
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(delete.bundle, Some("/b".into()));
        assert!(delete.debug);
        assert_eq!(parsed("-v").expect("version").action, Action::Version);
        assert_eq!(parsed("-info").expect("info").action, Action::Info);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("-id t1 -frobnicate start", "unknown flag -frobnicate"),
            ("-id t1 stop", "unknown action \"stop\""),
            ("-id t1", "no action"),
            ("start", "flag -id is missing"),
            ("start -id", "flag -id needs a value"),
            ("-id t1 start delete", "unexpected argument \"delete\""),
        ] {
            let error = parsed(line).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
