//! What a template's guest does before it is saved: all that a pod's start does, from the first connection on, and then it
//! forgets that. What the guest has done once is in the memory of every clone.
//!
//! One ordinary container starts, one more process is executed in it, it is killed and deleted; then the agent is told to
//! make the guest what it was. Whatever fails in it would fail in pods, and is a reason to save nothing.

mod program;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_agent_client::{Agent, Process, connect};
use kata_machine::{Device, Draft, MachineSpec};
use kata_plan::{RehearsalPlan, SharePlan, TemplatePlan};
use kata_storage::bind::{Bind, unbind};
use kata_wire::names::VOLUMES_DIR;
use kata_wire::proto;
use kata_wire::stream::Kind;
use nix::libc::{RT_SCOPE_LINK, RTPROT_BOOT, RTPROT_KERNEL};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::boot::set_up_of_any;
use crate::error::SandboxError;
use crate::expendable::ended;

/// What the second process gets to copy.
const WORDS: &[u8] = b"a rehearsal\n";

/// Its id.
const EXEC: &str = "copy";

const KILL: u32 = 9;

/// After how long a guest has reported what it has free: Linux begins with that two seconds after there is more
/// (`PAGE_REPORTING_DELAY`), and tells nobody when it is done.
const REPORTED_AFTER: Duration = Duration::from_millis(2600);

/// Has the guest rehearse within `limit`. The share is the process's own, and served. After an error the machine is of no use.
///
/// # Errors
/// See [`SandboxError`].
pub(crate) async fn rehearse(draft: &mut dyn Draft, plan: &TemplatePlan, limit: Duration) -> Result<(), SandboxError> {
    let mut exit = draft.exit();
    make_files(&plan.rehearsal).map_err(|(path, source)| SandboxError::Host {
        act: "make",
        path,
        source,
    })?;
    tokio::select! {
        performed = timeout(limit, perform(draft, plan, limit)) => {
            performed.unwrap_or_else(|_| Err(SandboxError::Template(format!("it took longer than {limit:?}"))))
        }
        exit = ended(&mut exit) => Err(SandboxError::Ended { exit }),
    }
}

async fn perform(draft: &mut dyn Draft, plan: &TemplatePlan, limit: Duration) -> Result<(), SandboxError> {
    let transport = draft.connect().await?;
    let agent = connect(transport, limit)
        .await
        .map_err(|source| SandboxError::NoAgent {
            console: draft.console_tail(),
            source,
        })?;
    let id = &plan.rehearsal.id;
    let set_up = proto::SetupRequest {
        sandbox_id: id.clone(),
        hostname: id.clone(),
        network: Some(network(&plan.machine)).into(),
        ..set_up_of_any(&plan.machine, &plan.share)
    };
    agent.set_up(set_up).await?;
    let (SharePlan::VirtioFs { source: share, .. } | SharePlan::NineP { source: share, .. }) = &plan.share;
    let shown = show(&plan.rehearsal, share)?;
    live(&agent, &plan.rehearsal).await?;
    agent.delete_container(id).await?;
    hide(&share.join(id), shown);
    agent.reset().await?;
    if plan.machine.devices.contains(&Device::Balloon) {
        tokio::time::sleep(REPORTED_AFTER).await;
    }
    // With the agent goes the connection.
    Ok(())
}

/// A usual link on the first device, if there is one. Nobody is at its other end.
fn network(machine: &MachineSpec) -> proto::Network {
    let device = machine.devices.iter().find_map(|device| match device {
        Device::Nic { mac, .. } => Some(mac.0.to_vec()),
        _ => None,
    });
    let [own, gateway, subnet] = [[192, 0, 2, 2], [192, 0, 2, 1], [192, 0, 2, 0]].map(|ip: [u8; 4]| ip.to_vec());
    let interface = |device_mac| proto::Interface {
        device_mac,
        name: "eth0".into(),
        mac: vec![2, 0, 0, 0, 2, 2],
        mtu: 1450,
        addresses: vec![proto::Address {
            ip: own.clone(),
            prefix: 24,
            ..Default::default()
        }],
        routes: vec![
            proto::Route {
                destination: subnet,
                prefix: 24,
                source: own,
                scope: u32::from(RT_SCOPE_LINK),
                protocol: u32::from(RTPROT_KERNEL),
                ..Default::default()
            },
            proto::Route {
                destination: vec![0; 4],
                gateway,
                protocol: u32::from(RTPROT_BOOT),
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    proto::Network {
        interfaces: device.map(interface).into_iter().collect(),
        ..Default::default()
    }
}

/// The container, from its creation to the end of its first process.
async fn live(agent: &Agent, plan: &RehearsalPlan) -> Result<(), SandboxError> {
    let output = proto::Stdio {
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let request = proto::CreateContainerRequest {
        container_id: plan.id.clone(),
        spec_json: plan.spec_json.clone().into_bytes(),
        seccomp_filter: plan.seccomp_filter.clone(),
        seccomp_flags: plan.seccomp_flags,
        stdio: Some(output).into(),
        keep_namespaces: true,
        ..Default::default()
    };
    let init = Process::init(&plan.id);
    agent.create_container(request).await?;
    let mut output = agent.stdio(Kind::Stdout, &init).await?;
    let mut errors = agent.stdio(Kind::Stderr, &init).await?;
    let waited = async { Ok(agent.wait(&init).await?) };
    let acted = async {
        agent.start_container(&plan.id).await?;
        execute(agent, plan).await?;
        Ok::<_, SandboxError>(agent.signal(&init, KILL, false).await?)
    };
    let (end, ()) = tokio::try_join!(waited, acted)?;
    expect("the container ended with", &end.exit_code, &(128 + KILL))?;
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    // Where nothing was ever written there may be no orderly end.
    let _ = tokio::join!(output.read_to_end(&mut said), errors.read_to_end(&mut complained));
    expect("it said", &(said, complained), &Default::default())
}

/// One more process, which copies some words.
async fn execute(agent: &Agent, plan: &RehearsalPlan) -> Result<(), SandboxError> {
    let process = Process {
        container: plan.id.clone(),
        exec: EXEC.to_owned(),
    };
    let stdio = proto::Stdio {
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let request = proto::ExecRequest {
        container_id: plan.id.clone(),
        exec_id: EXEC.to_owned(),
        process_json: plan.exec_json.clone().into_bytes(),
        stdio: Some(stdio).into(),
        ..Default::default()
    };
    agent.exec(request).await?;
    let mut input = agent.stdio(Kind::Stdin, &process).await?;
    let mut output = agent.stdio(Kind::Stdout, &process).await?;
    let mut errors = agent.stdio(Kind::Stderr, &process).await?;
    let mut copied = Vec::new();
    let mut complained = Vec::new();
    let talked = async {
        input.write_all(WORDS).await?;
        input.shutdown().await?;
        output.read_to_end(&mut copied).await?;
        errors.read_to_end(&mut complained).await
    };
    talked
        .await
        .map_err(|error| SandboxError::Template(format!("talk to a process in the guest: {error}")))?;
    expect("a process copied", &copied, &WORDS.to_vec())?;
    expect("it complained", &complained, &Vec::new())?;
    expect("it ended with", &agent.wait(&process).await?.exit_code, &0)?;
    Ok(agent.delete_process(&process).await?)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, expected: &T) -> Result<(), SandboxError> {
    match seen == expected {
        true => Ok(()),
        false => Err(SandboxError::Template(format!(
            "{what} {seen:?} instead of {expected:?}"
        ))),
    }
}

/// What the container is made of.
fn make_files(plan: &RehearsalPlan) -> Result<(), (PathBuf, std::io::Error)> {
    for directory in &plan.directories {
        std::fs::create_dir_all(directory).map_err(|error| (directory.clone(), error))?;
    }
    for file in &plan.files {
        std::fs::write(file, "").map_err(|error| (file.clone(), error))?;
    }
    let program = &plan.program;
    std::fs::write(program, program::bytes())
        .and_then(|()| std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)))
        .map_err(|error| (program.clone(), error))?;
    let name = program.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(name, &plan.link).map_err(|error| (plan.link.clone(), error))
}

/// Binds it into the share, as for a pod.
fn show(plan: &RehearsalPlan, share: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let binds = plan.binds.iter().map(|(from, to)| {
        let target = share.join(to);
        let bind = Bind {
            from: from.clone(),
            to: target.clone(),
            recursive: true,
            read_only: false,
            follows: false,
        };
        bind.take()?.show()?;
        Ok(target)
    });
    binds.collect()
}

/// Takes it back, so that the file server lets go of it.
fn hide(directory: &Path, shown: Vec<PathBuf>) {
    for target in shown.iter().rev() {
        if let Err(error) = unbind(target) {
            tracing::warn!(%error, "left in the share of the template: {}", target.display());
        }
    }
    let _ = std::fs::remove_dir(directory.join(VOLUMES_DIR));
    let _ = std::fs::remove_dir(directory);
}
