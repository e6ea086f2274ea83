//! What can be said on the command line: the flags before the verb, and the verbs.
//!
//! The names are those of runc and of Kata Containers, so that engines and people find what they know. A flag that has
//! no effect here is accepted and says so. What a verb means is in its own file below [`cmd`](crate::cmd).

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "kata-runtime",
    about = "Containers that each run inside a small virtual machine of their own",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs"
)]
pub struct Cli {
    /// The flags before the verb.
    #[command(flatten)]
    pub globals: Globals,
    /// The verb; only `--version` and `--kata-show-default-config-paths` do without.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The flags before the verb.
#[derive(Args, Clone, Debug)]
pub struct Globals {
    /// Directory for the state of sandboxes and containers
    #[arg(long, value_name = "DIR", default_value = "/run/kata-containers")]
    pub root: PathBuf,
    /// Append messages to this file instead of writing them to stderr
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How messages are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Configuration file, in place of the ones that are looked for
    #[arg(long, value_name = "FILE")]
    pub kata_config: Option<PathBuf>,
    /// Print where a configuration file is looked for, and leave
    #[arg(long)]
    pub kata_show_default_config_paths: bool,
    /// Write more messages
    #[arg(long)]
    pub debug: bool,
    /// Accepted for compatibility; sandboxes need root
    #[arg(long, value_name = "auto|true|false", hide = true)]
    pub rootless: Option<Rootless>,
    /// Accepted for compatibility; cgroup paths in systemd's form are understood without it
    #[arg(long, hide = true)]
    pub systemd_cgroup: bool,
    /// Accepted for compatibility; there is no checkpoint
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
    /// Print the version, and leave
    #[arg(long, short = 'v')]
    pub version: bool,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`, which Docker and Podman read back.
    Json,
}

/// The values that engines give to `--rootless`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Rootless {
    /// Find out.
    Auto,
    /// Yes.
    True,
    /// No.
    False,
}

/// One line a verb; its flags and its meaning are in the file of the same name.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Tell whether this host can run sandboxes, and what mends it
    #[command(alias = "kata-check")]
    Check(cmd::check::Args),
    /// Create a container
    Create(cmd::create::Args),
    /// Remove a container
    Delete(cmd::delete::Args),
    /// Print versions, paths and the effective configuration
    #[command(alias = "kata-env")]
    Env(cmd::env::Args),
    /// Print what a container uses
    Events(cmd::events::Args),
    /// Run one more process in a container
    Exec(cmd::exec::Args),
    /// Make, show and remove templates of machines
    Factory(cmd::factory::Args),
    /// Print what of the OCI runtime spec is known
    Features(cmd::features::Args),
    /// Build and show the guest's kernel and initramfs
    Image(cmd::image::Args),
    /// Send a signal to a container
    Kill(cmd::kill::Args),
    /// Have the kernel merge equal pages of machines, most after one was started
    KsmThrottler(cmd::ksm_throttler::Args),
    /// List containers
    List(cmd::list::Args),
    /// Freeze a container
    Pause(cmd::pause::Args),
    /// Print what would be run for a bundle
    Plan(cmd::plan::Args),
    /// List the processes of a container
    Ps(cmd::ps::Args),
    /// Let a frozen container go on
    Resume(cmd::resume::Args),
    /// Create, start and wait for a container
    Run(cmd::run::Args),
    /// Write a config.json to begin with
    Spec(cmd::spec::Args),
    /// Stand in for a process in a container
    #[command(hide = true)]
    StandIn(cmd::stand_in::Args),
    /// Start a created container
    Start(cmd::start::Args),
    /// Print the state of a container
    State(cmd::state::Args),
    /// Print where the time of a sandbox's start went
    Trace(cmd::trace::Args),
    /// Change the limits of a container
    Update(cmd::update::Args),
    /// Print the version
    Version(cmd::version::Args),
}

impl Cli {
    /// Does what was said.
    ///
    /// # Errors
    /// Whatever the verb reports; a command line without a verb.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let globals = &self.globals;
        if globals.version {
            return cmd::version::run(cmd::version::Args {}, globals);
        }
        if globals.kata_show_default_config_paths {
            return cmd::env::show_config_paths();
        }
        match self.verb {
            Some(Verb::Check(args)) => cmd::check::run(args, globals),
            Some(Verb::Create(args)) => cmd::create::run(args, globals),
            Some(Verb::Delete(args)) => cmd::delete::run(args, globals),
            Some(Verb::Env(args)) => cmd::env::run(args, globals),
            Some(Verb::Events(args)) => cmd::events::run(args, globals),
            Some(Verb::Exec(args)) => cmd::exec::run(args, globals),
            Some(Verb::Factory(args)) => cmd::factory::run(args, globals),
            Some(Verb::Features(args)) => cmd::features::run(args, globals),
            Some(Verb::Image(args)) => cmd::image::run(args, globals),
            Some(Verb::Kill(args)) => cmd::kill::run(args, globals),
            Some(Verb::KsmThrottler(args)) => cmd::ksm_throttler::run(args, globals),
            Some(Verb::List(args)) => cmd::list::run(args, globals),
            Some(Verb::Pause(args)) => cmd::pause::run(args, globals),
            Some(Verb::Plan(args)) => cmd::plan::run(args, globals),
            Some(Verb::Ps(args)) => cmd::ps::run(args, globals),
            Some(Verb::Resume(args)) => cmd::resume::run(args, globals),
            Some(Verb::Run(args)) => cmd::run::run(args, globals),
            Some(Verb::Spec(args)) => cmd::spec::run(args, globals),
            Some(Verb::StandIn(args)) => cmd::stand_in::run(args, globals),
            Some(Verb::Start(args)) => cmd::start::run(args, globals),
            Some(Verb::State(args)) => cmd::state::run(args, globals),
            Some(Verb::Trace(args)) => cmd::trace::run(args, globals),
            Some(Verb::Update(args)) => cmd::update::run(args, globals),
            Some(Verb::Version(args)) => cmd::version::run(args, globals),
            None => anyhow::bail!("no verb given; `kata-runtime --help` lists them"),
        }
    }
}

impl Globals {
    /// The few flags that say where messages go, picked from a command line that as a whole is wrong.
    pub fn salvage(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut globals = Self {
            root: PathBuf::new(),
            log: None,
            log_format: LogFormat::Text,
            kata_config: None,
            kata_show_default_config_paths: false,
            debug: false,
            rootless: None,
            systemd_cgroup: false,
            criu: None,
            version: false,
        };
        let words: Vec<OsString> = arguments.collect();
        for (index, word) in words.iter().enumerate() {
            let Some(word) = word.to_str() else { continue };
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(OsString::from(value))),
                None => (word, words.get(index + 1).cloned()),
            };
            match (flag, value) {
                ("--log", Some(value)) => globals.log = Some(value.into()),
                ("--log-format", Some(value)) if value == "json" => globals.log_format = LogFormat::Json,
                _ => {}
            }
        }
        globals
    }
}

/// What was wrong with the command line, on one line, without clap's own prefix.
pub fn usage_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let facts = lines
        .iter()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let joined = facts.copied().collect::<Vec<_>>().join(" ");
    let message = joined.strip_prefix("error: ").unwrap_or(&joined).to_owned();
    match lines.iter().find(|line| line.starts_with("Usage:")) {
        Some(usage) if !message.is_empty() => format!("{message}; {}", usage.replacen("Usage:", "usage:", 1)),
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_runc_and_kata_are_accepted_before_the_verb() {
        let cli = Cli::try_parse_from(words(
            "kata-runtime --root /r --log /l --log-format=json --kata-config /c --rootless auto --systemd-cgroup --debug --criu /x check -n --strict",
        ))
        .unwrap();
        assert_eq!(cli.globals.root, PathBuf::from("/r"));
        assert_eq!(cli.globals.log_format, LogFormat::Json);
        assert!(matches!(cli.verb, Some(Verb::Check(_))));
    }

    #[test]
    fn old_names_of_verbs_still_work() {
        for (old, matches) in [
            (
                "kata-runtime kata-check",
                matches!(parse("kata-runtime kata-check"), Some(Verb::Check(_))),
            ),
            (
                "kata-runtime kata-env --json",
                matches!(parse("kata-runtime kata-env --json"), Some(Verb::Env(_))),
            ),
        ] {
            assert!(matches, "{old}");
        }
    }

    fn parse(line: &str) -> Option<Verb> {
        Cli::try_parse_from(words(line)).unwrap().verb
    }

    #[test]
    fn the_log_is_found_on_a_wrong_command_line() {
        for line in [
            "kata-runtime --log /l --log-format json --nonsense",
            "kata-runtime --log=/l --log-format=json frob",
        ] {
            let globals = Globals::salvage(words(line).into_iter());
            assert_eq!(globals.log, Some(PathBuf::from("/l")), "{line}");
            assert_eq!(globals.log_format, LogFormat::Json, "{line}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line_that_names_the_flag() {
        let error = Cli::try_parse_from(words("kata-runtime check --nonsense")).unwrap_err();
        let message = usage_message(&error);
        assert!(
            message.contains("--nonsense") && !message.contains('\n') && !message.starts_with("error"),
            "{message}"
        );
    }
}
