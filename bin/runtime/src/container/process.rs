//! The process of an `exec`: from a file, or from the container's own with what the command line changes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kata_bundle::Bundle;
use kata_bundle::oci::Process;
use serde_json::{Map, Value, json};

/// What the command line says about the process.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub struct Args {
    /// File with the process as JSON (the `process` object of a config.json), in place of the other flags
    #[arg(long, short = 'p', value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Variable NAME=VALUE, added to those of the container; may be given again
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    /// User UID[:GID]
    #[arg(long, short = 'u', value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional group; may be given again
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Capability to add, CAP_NAME; may be given again
    #[arg(long, short = 'c', value_name = "CAP_NAME")]
    pub cap: Vec<String>,
    /// Let the process gain no privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Accepted for compatibility: the guest has no AppArmor
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub apparmor: Option<String>,
    /// Accepted for compatibility: the guest has no SELinux
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,
}

/// The process that is meant. `command` is what follows the container's id.
///
/// # Errors
/// An unusable file, a user or variable that is none, neither file nor command.
pub fn process_of(args: &Args, command: &[String], bundle: &Bundle) -> Result<Process> {
    if let Some(file) = &args.process {
        return Ok(kata_bundle::load_process(file)?);
    }
    if command.is_empty() {
        bail!("no command given, and no --process FILE");
    }
    let own = bundle
        .spec()
        .process()
        .as_ref()
        .context("the container's config.json has no process")?;
    let mut process = serde_json::to_value(own)?;
    let fields = process
        .as_object_mut()
        .context("the container's process is no object")?;
    change(fields, args, command)?;
    let bytes = serde_json::to_vec(&process)?;
    Ok(kata_bundle::parse_process(&bytes)?)
}

fn change(fields: &mut Map<String, Value>, args: &Args, command: &[String]) -> Result<()> {
    fields.insert("args".into(), json!(command));
    fields.insert("terminal".into(), json!(args.tty));
    fields.remove("consoleSize");
    if let Some(cwd) = &args.cwd {
        fields.insert("cwd".into(), json!(cwd));
    }
    let env = fields.entry("env").or_insert_with(|| json!([]));
    for variable in &args.env {
        if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            bail!("--env {variable:?} is not NAME=VALUE");
        }
        env.as_array_mut().context("env is no list")?.push(json!(variable));
    }
    if let Some(user) = &args.user {
        let (uid, gid) = parse_user(user)?;
        fields.insert("user".into(), json!({ "uid": uid, "gid": gid.unwrap_or(0) }));
    }
    if !args.additional_gids.is_empty()
        && let Some(user) = fields.get_mut("user").and_then(Value::as_object_mut)
    {
        user.insert("additionalGids".into(), json!(args.additional_gids));
    }
    if args.no_new_privs {
        fields.insert("noNewPrivileges".into(), json!(true));
    }
    if !args.cap.is_empty() {
        add_capabilities(fields, &args.cap);
    }
    Ok(())
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str| {
        part.parse::<u32>()
            .with_context(|| format!("--user {text:?} is not UID[:GID]"))
    };
    Ok(match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(text)?, None),
    })
}

/// Into every set but the ambient one, as runc does.
fn add_capabilities(fields: &mut Map<String, Value>, capabilities: &[String]) {
    let sets = fields.entry("capabilities").or_insert_with(|| json!({}));
    for set in ["bounding", "effective", "permitted"] {
        let Some(sets) = sets.as_object_mut() else { continue };
        let list = sets.entry(set).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(capabilities.iter().map(|name| json!(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("5").expect("uid"), (5, None));
        assert_eq!(parse_user("5:6").expect("uid and gid"), (5, Some(6)));
        for text in ["", "root", "1:", ":1", "-1"] {
            assert!(parse_user(text).is_err(), "{text}");
        }
    }
}
