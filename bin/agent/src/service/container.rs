//! Containers: made, started, frozen, limited, taken away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kata_jail::cgroup;
use kata_jail::container::Container as Jail;
use kata_jail::identity::Filter;
use kata_jail::link::Word;
use kata_jail::mounts::Options;
use kata_sys::statx::refresh;
use kata_wire::names;
use kata_wire::proto::{CreateContainerRequest, CreateContainerResponse, Empty, UpdateRequest};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime::Spec;

use super::refusal::Refusal;
use super::{disk, driver, ids, memory, tree};
use crate::descriptor::watch;
use crate::pod::{Container, Phase, Pod};
use crate::process::{Plumbing, Process, Until, listen};
use crate::sockets::Sockets;
use crate::watch_cgroup;

/// How long an init may take to prepare itself, and, with its hooks, to execute its program.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long killed processes may take to be gone, and running ones to be frozen.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Makes a container up to the point where its init only has to execute.
///
/// # Errors
/// [`Refusal`]; nothing is left of it then.
pub async fn create(pod: Arc<Pod>, request: CreateContainerRequest) -> Result<CreateContainerResponse, Refusal> {
    let id = request.container_id.as_str();
    ids::check("container", id)?;
    pod.with(|state| {
        if state.containers.contains_key(id) {
            return Err(Refusal::Exists(format!("container {id} exists already")));
        }
        state.containers.insert(id.to_owned(), None);
        Ok(())
    })?;
    match make(&pod, &request).await {
        Ok(container) => {
            let pid = container.init.pid;
            pod.with(|state| state.containers.insert(id.to_owned(), Some(container)));
            tracing::info!(id, pid, "container created");
            Ok(CreateContainerResponse {
                pid,
                ..Default::default()
            })
        }
        Err(refusal) => {
            release(id);
            pod.with(|state| {
                state.streams.forget_container(id);
                state.containers.remove(id)
            });
            Err(refusal)
        }
    }
}

async fn make(pod: &Pod, request: &CreateContainerRequest) -> Result<Container, Refusal> {
    let id = request.container_id.as_str();
    let mut spec = serde_json::from_slice(&request.spec_json)
        .map_err(|error| Refusal::Invalid(format!("the spec of container {id}: {error}")))?;
    driver::load(&pod.modules, &spec);
    memory::mount_all(&request.memories)?;
    memory::set_aside(id, &request.huge_pages)?;
    tree::make_all(id, &request.trees)?;
    disk::bring(&pod.modules, id, &request.disks, &mut spec).await?;
    let filter = Filter {
        instructions: request.seccomp_filter.clone(),
        flags: request.seccomp_flags,
    };
    let internal = |error: io::Error| Refusal::Internal(format!("container {id}: {error}"));

    let sockets = pod
        .with(|state| Sockets::make(id, &request.sockets, state))
        .map_err(internal)?;
    // Nothing is awaited from the birth to the watch for its end.
    let (jail, newborn, plumbing, exit) = pod.with(|state| {
        let (stdio, plumbing) = Plumbing::lay(&request.stdio, id, "", state).map_err(internal)?;
        let (jail, newborn) = Jail::create(id, &spec, filter, &stdio, Path::new(cgroup::ROOT))?;
        let exit = state.watch(newborn.pid, jail.cgroup().path().to_owned(), !jail.ends_with_init());
        Ok::<_, Refusal>((jail, newborn, plumbing, exit))
    })?;
    let prepared = async {
        let link = watch(newborn.link).map_err(internal)?;
        let terminal = listen(&link, Until::Ready, PREPARE_LIMIT)
            .await
            .map_err(Refusal::Internal)?;
        if request.keep_namespaces {
            keep_namespaces(newborn.pid).map_err(internal)?;
        }
        let init = Process::new(newborn.pid, exit, plumbing, terminal).map_err(internal)?;
        Ok((link, init))
    };
    match prepared.await {
        Ok((link, init)) => Ok(Container {
            jail,
            phase: Phase::Created(link),
            init,
            execs: Default::default(),
            bound: bound(&spec),
            _sockets: sockets,
        }),
        Err(refusal) => {
            if let Err(left) = empty_and_remove(&jail).await {
                tracing::warn!(id, "left of a container that failed: {left}");
            }
            settle();
            Err(refusal)
        }
    }
}

/// The sources of binds.
fn bound(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| Options::read(mount).bind.is_some());
    binds.filter_map(|mount| mount.source().clone()).collect()
}

/// Keeps the namespaces of the process for other containers to join, in place of those that were kept before.
pub(super) fn keep_namespaces(pid: u32) -> io::Result<()> {
    let directory = Path::new(names::POD_NAMESPACES);
    std::fs::create_dir_all(directory)?;
    for kind in ["ipc", "uts", "pid"] {
        let file = directory.join(kind);
        match umount2(&file, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        std::fs::File::create(&file)?;
        let namespace = format!("/proc/{pid}/ns/{kind}");
        mount(
            Some(namespace.as_str()),
            &file,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    Ok(())
}

/// Lets the init execute its program.
///
/// # Errors
/// [`Refusal::State`] unless it is created and alive; [`Refusal::Internal`] with why the program was not executed.
pub async fn start(pod: Arc<Pod>, id: String) -> Result<Empty, Refusal> {
    let (link, bound) = pod.with(|state| {
        let container = made(state.containers.get_mut(&id), &id)?;
        if container.init.ended().is_some() {
            return Err(Refusal::State(format!("container {id} has ended")));
        }
        match std::mem::replace(&mut container.phase, Phase::Starting) {
            Phase::Created(link) => Ok((link, std::mem::take(&mut container.bound))),
            other => {
                container.phase = other;
                Err(Refusal::State(format!("container {id} has been started already")))
            }
        }
    })?;
    // Engines complete files as /etc/hosts between create and start.
    for file in &bound {
        if let Err(error) = refresh(file) {
            tracing::warn!(id, file = %file.display(), "a bind's source: {error}");
        }
    }
    link.get_ref()
        .say(Word::Start)
        .map_err(|_| Refusal::State(format!("container {id} has ended")))?;
    let outcome = listen(&link, Until::Executed, START_LIMIT).await;
    pod.with(|state| {
        if let Some(Some(container)) = state.containers.get_mut(&id) {
            container.phase = Phase::Started;
            if outcome.is_err() {
                // It gives up by itself, except where a hook does not come back.
                let _ = container.jail.cgroup().kill();
            }
        }
    });
    outcome.map_err(Refusal::Internal)?;
    tracing::info!(id, "container started");
    Ok(Empty::new())
}

/// Kills what is left of a container and forgets it.
///
/// # Errors
/// [`Refusal::Internal`] when it does not die; it can be tried again then.
pub async fn delete(pod: Arc<Pod>, id: String) -> Result<Empty, Refusal> {
    let taken = pod.with(|state| match state.containers.get_mut(&id) {
        None => Ok(None),
        Some(slot) => match slot.take() {
            None => Err(Refusal::State(format!("container {id} is being made or taken away"))),
            container => Ok(container),
        },
    })?;
    let Some(container) = taken else {
        return Ok(Empty::new());
    };
    if let Err(refusal) = empty_and_remove(&container.jail).await {
        pod.with(|state| state.containers.insert(id, Some(container)));
        return Err(refusal);
    }
    settle();
    drop(container);
    release(&id);
    pod.with(|state| {
        state.containers.remove(&id);
        state.streams.forget_container(&id);
    });
    tracing::info!(id, "container deleted");
    Ok(Empty::new())
}

/// Waits until the share's server has done what processes that have ended asked of it. It answers in turn; what it
/// answers may make the kernel ask once more (a file is given up when its last read is done), hence twice.
fn settle() {
    for _ in 0..2 {
        match refresh(Path::new(names::SHARE_MOUNT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!("look at the share: {error}"),
            _ => {}
        }
    }
}

/// Lets go of what was brought for a container.
fn release(id: &str) {
    disk::release(id);
    tree::remove_all(id);
    memory::give_back(id);
}

async fn empty_and_remove(jail: &Jail) -> Result<(), Refusal> {
    let cgroup = jail.cgroup();
    cgroup.kill()?;
    let emptied = watch_cgroup::wait(&cgroup.events_file(), "populated", 0, KILL_LIMIT).await;
    if !emptied.map_err(|error| Refusal::Internal(error.to_string()))? {
        let path = cgroup.path().display();
        return Err(Refusal::Internal(format!("processes in {path} survive being killed")));
    }
    Ok(cgroup.remove()?)
}

/// Freezes or thaws a container, and waits until that is so.
///
/// # Errors
/// [`Refusal::State`] when it is not running.
pub async fn freeze(pod: &Pod, id: &str, frozen: bool) -> Result<Empty, Refusal> {
    let events = pod.with(|state| {
        let container = made(state.containers.get_mut(id), id)?;
        if container.init.ended().is_some() || !matches!(container.phase, Phase::Started) {
            return Err(Refusal::State(format!("container {id} is not running")));
        }
        container.jail.cgroup().freeze(frozen)?;
        Ok(container.jail.cgroup().events_file())
    })?;
    let wanted = u64::from(frozen);
    let reached = watch_cgroup::wait(&events, "frozen", wanted, FREEZE_LIMIT).await;
    if !reached.map_err(|error| Refusal::Internal(error.to_string()))? {
        return Err(Refusal::Internal(format!(
            "container {id} did not get frozen={wanted} in time"
        )));
    }
    Ok(Empty::new())
}

/// Changes a container's limits.
///
/// # Errors
/// [`Refusal::Invalid`] for limits that make no sense.
pub fn update(pod: &Pod, request: &UpdateRequest) -> Result<Empty, Refusal> {
    let id = request.container_id.as_str();
    let resources = serde_json::from_slice(&request.resources_json)
        .map_err(|error| Refusal::Invalid(format!("the resources for container {id}: {error}")))?;
    pod.with(|state| {
        made(state.containers.get_mut(id), id)?
            .jail
            .update(&resources)
            .map_err(Refusal::from)
    })?;
    Ok(Empty::new())
}

/// The container behind a slot of the table.
///
/// # Errors
/// [`Refusal::NotFound`] if there is none, [`Refusal::State`] if it is being made or taken away.
pub fn made<'a>(slot: Option<&'a mut Option<Container>>, id: &str) -> Result<&'a mut Container, Refusal> {
    slot.ok_or_else(|| Refusal::no_container(id))?
        .as_mut()
        .ok_or_else(|| Refusal::State(format!("container {id} is being made or taken away")))
}
