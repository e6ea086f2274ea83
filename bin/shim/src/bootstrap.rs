//! `start` and `delete`: the short-lived calls by which containerd finds, starts and buries a sandbox process.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use kata_bundle::{Bundle, BundleError, Role};
use kata_config::Config;
use kata_sandbox::network;
use kata_sandbox::record::{Home, Mark, Record};
use kata_sandbox::recover;
use kata_sys::process::give_fds;

use crate::cache::{self, Taking};
use crate::flags::Flags;
use crate::serve::LISTENER_FD;
use crate::words::{self, Words};

/// Prints the address of the sandbox process that serves the container: that of its pod, or one started now.
///
/// # Errors
/// An unusable bundle, a taken id, a pod that is not there, or a process that does not start; nothing is left then.
pub fn start(flags: &Flags) -> Result<()> {
    let mut words = Words::parse(
        &words::read_stdin()?,
        flags,
        std::env::var(words::MAX_VERSION).ok().as_deref(),
    )?;
    let bundle_dir = bundle_dir(flags)?;
    let bundle = match Bundle::load(&bundle_dir) {
        // A pod that comes by the Sandbox API; all that is known of it yet is its name.
        Err(BundleError::NoConfig { .. }) if flags.place.is_none() => {
            words.about_a_pod();
            None
        }
        loaded => Some(loaded?),
    };
    let home = match bundle.as_ref().map(Bundle::role) {
        Some(Role::Member { pod_id }) => join_pod(flags, &bundle_dir, pod_id.as_ref())?,
        None | Some(Role::Pod | Role::Single) => {
            if let Some(bundle) = &bundle {
                refuse_host_network(flags, &words, bundle)?;
            }
            let home = Home::of(&place(flags, &bundle_dir));
            open_home(flags, &words, &bundle_dir, bundle.as_ref(), &home)?;
            home
        }
    };
    let address = format!("unix://{}", home.task_socket().display());
    // containerd finds the process again by this file after it was restarted itself.
    if flags.place.is_none() {
        std::fs::write(bundle_dir.join("address"), &address).context("cannot write the file address in the bundle")?;
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(&words.answer(&address)?)?;
    stdout.flush()?;
    Ok(())
}

fn bundle_dir(flags: &Flags) -> Result<PathBuf> {
    match &flags.bundle {
        Some(bundle) => std::path::absolute(bundle).with_context(|| format!("bundle {}", bundle.display())),
        None => std::env::current_dir().context("cannot tell the working directory, which is the bundle"),
    }
}

fn place(flags: &Flags, bundle: &Path) -> PathBuf {
    flags.place.clone().unwrap_or_else(|| bundle.to_owned())
}

/// The configuration file that somebody names: the command line, else the pod, else containerd's options.
pub fn named_config<'a>(flags: &'a Flags, words: &'a Words, bundle: Option<&'a Bundle>) -> Option<&'a Path> {
    let named = flags.config.as_deref().or(bundle.and_then(Bundle::config_path));
    named.or(words.config.as_deref())
}

/// Nothing of the host is touched for a pod that wants its network, unless the configuration says what is meant by that.
fn refuse_host_network(flags: &Flags, words: &Words, bundle: &Bundle) -> Result<()> {
    if network::decide(bundle, &Config::default()).is_ok() {
        return Ok(());
    }
    let (config, _) = Config::find(named_config(flags, words, Some(bundle)))?;
    network::decide(bundle, &config)?;
    Ok(())
}

/// containerd keeps the bundles of a namespace side by side, and the command line its containers' places, so a member
/// knows where its pod's is. The command line finds it again by a record of its own.
fn join_pod(flags: &Flags, bundle: &Path, pod: &str) -> Result<Home> {
    let place = place(flags, bundle);
    let home = Home::of(&place.with_file_name(pod));
    if !recover::is_alive(&home) {
        bail!("the sandbox process of pod \"{pod}\" is not running");
    }
    if flags.place.is_some() {
        let record = Record {
            pod: Some(home.path().to_owned()),
            ..Record::new(flags.id.clone(), flags.namespace.clone(), bundle.to_owned())
        };
        make_home(&flags.id, &Home::of(&place), &record)?;
    }
    Ok(home)
}

fn open_home(flags: &Flags, words: &Words, directory: &Path, bundle: Option<&Bundle>, home: &Home) -> Result<()> {
    let record = Record::new(flags.id.clone(), flags.namespace.clone(), directory.to_owned());
    make_home(&flags.id, home, &record)?;
    let started = cache::take(flags, words, bundle, home, &record).and_then(|taking| match taking {
        Taking::Taken(sandbox) => Ok(sandbox.pid),
        Taking::Nobody(why) => start_process(flags, words, directory, home, record, why),
    });
    let pid = started.inspect_err(|_| {
        let _ = recover::clean(home);
    })?;
    if flags.place.is_none() {
        // As other shims do; people look for it.
        let _ = std::fs::write(directory.join("shim.pid"), pid.to_string());
    }
    Ok(())
}

fn make_home(id: &str, home: &Home, record: &Record) -> Result<()> {
    home.create(record).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => anyhow!("container with id \"{id}\" exists already"),
        _ => anyhow::Error::new(error).context(format!("cannot make {}", home.path().display())),
    })
}

/// Answers its pid.
fn start_process(
    flags: &Flags,
    words: &Words,
    bundle: &Path,
    home: &Home,
    record: Record,
    passed_over: Option<String>,
) -> Result<u32> {
    // Listening before the process runs: whoever connects need not wait for it.
    let socket = home.task_socket();
    let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let log = std::fs::File::create(home.log()).context("cannot make the log file")?;
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut command = Command::new(program);
    command
        .arg(format!("-namespace={}", flags.namespace))
        .arg(format!("-id={}", flags.id))
        .arg(format!("-address={}", flags.address))
        .arg(format!("-bundle={}", bundle.display()))
        .arg(format!("-place={}", place(flags, bundle).display()));
    if let Some(config) = &flags.config {
        command.arg(format!("-config={}", config.display()));
    }
    if let Some(config) = &words.config {
        command.arg(format!("-options-config={}", config.display()));
    }
    if let Some(address) = &words.events {
        command.env("TTRPC_ADDRESS", address);
    }
    if flags.debug || words.debug {
        command.arg("-debug");
    }
    if let Some(why) = passed_over {
        command.arg(format!("-passed-over={why}"));
    }
    command
        .arg("serve")
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    give_fds(&mut command, vec![(listener.as_raw_fd(), LISTENER_FD)]);
    let child = command.spawn().context("cannot start the sandbox process")?;
    let record = Record {
        sandbox: Some(Mark::of(child.id()).context("the sandbox process ended at once")?),
        ..record
    };
    home.write(&record)?;
    Ok(child.id())
}

/// Cleans up after the sandbox process and prints a `DeleteResponse` message.
///
/// # Errors
/// What could not be cleaned up.
pub fn delete(flags: &Flags) -> Result<()> {
    let bundle = bundle_dir(flags)?;
    let home = Home::of(&place(flags, &bundle));
    // A member of a pod has no home of its own, and then there is nothing to clean.
    recover::clean(&home)?;
    const KILLED: u32 = 137;
    let response = DeleteResponse {
        pid: 0,
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp::now()),
        ..Default::default()
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(&response.write_to_bytes()?)?;
    stdout.flush()?;
    Ok(())
}
