//! Containers: created, and deleted with all that was made for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kata_agent_client::{Agent, AgentError, Process};
use kata_bundle::{Bundle, BundleError};
use kata_plan::{ContainerPlan, Facts, HugePages, MemoryPlan, RootfsPlan};
use kata_storage::bind::{Bind, Taken, unbind};
use kata_storage::mount::{EngineMount, assemble};
use kata_storage::socket::HostSocket;
use kata_wire::proto;

use crate::error::SandboxError;
use crate::fitting::Wants;
use crate::hooks::{HostHooks, Moment};
use crate::lifecycle::ExitStatus;
use crate::sandbox::{ContainerThings, Event, MACHINE_LOST, ProcessThings, Sandbox, now_unix_nanos};
use crate::sockets::Sockets;
use crate::stdio::{Copying, HostStdio, Stdio};
use crate::step::Steps;
use crate::survey;
use crate::tree::{self, ReadTree};

/// A container to be created.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What the engine wants mounted as its root file system; empty if it has mounted it itself.
    pub rootfs: Vec<EngineMount>,
    /// Its stdio.
    pub stdio: Stdio,
}

/// What is kept of a container that has been built.
struct Built {
    copying: Copying,
    hooks: Option<Arc<HostHooks>>,
    oom_file: Option<PathBuf>,
}

impl Sandbox {
    /// Creates a container; the first one boots the pod's machine. After an error nothing of it is left.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn create(&self, container: NewContainer) -> Result<(), SandboxError> {
        let id = container.id.clone();
        self.ask({
            let id = id.clone();
            move |state| state.pod.create(&id)
        })
        .await??;
        let mut own = Steps::new(self.faults.clone());
        match self.build(&container, &mut own).await {
            Ok(built) => {
                let began = Instant::now();
                let this = self.clone();
                self.ask(move |state| this.enter(state, container, own, built)).await?;
                self.note("enter the container", began).await;
                Ok(())
            }
            Err(error) => {
                let error = self.explain_loss(error).await;
                if self.is_first(&id) {
                    self.undo_pod().await;
                }
                own.undo().await;
                self.ask(move |state| state.pod.created(&id, false)).await?;
                Err(error)
            }
        }
    }

    pub(crate) fn is_first(&self, container: &str) -> bool {
        *self.id == *container
    }

    pub(crate) async fn undo_pod(&self) {
        let steps = self
            .ask(|state| {
                state.forget_machine();
                state.network = None;
                state.record.helpers.clear();
                state.record.network = None;
                state.steps.take()
            })
            .await;
        if let Ok(Some(steps)) = steps {
            steps.undo().await;
        }
    }

    /// Everything between the decision to create a container and its entry in the books.
    async fn build(&self, container: &NewContainer, own: &mut Steps) -> Result<Built, SandboxError> {
        let began = Instant::now();
        let bundle = self.abroad(|| load(container))??;
        let hooks = HostHooks::of(&container.id, &bundle).map(Arc::new);
        let stdio = self.open_stdio(&container.id, &container.stdio).await?;
        if let Some(hooks) = &hooks {
            self.run_create_hooks(hooks, own).await?;
        }
        let facts = self.abroad(|| survey::facts(&self.config, &self.home, bundle.spec(), &container.rootfs))??;
        let plan = kata_plan::container(&container.id, &bundle, &self.config, &facts)?;
        for note in &plan.notes {
            tracing::info!(container = plan.id, "{note}");
        }
        let binds = self.take(container, &plan)?;
        let disks = self.open_disks(&plan.disks)?;
        let trees = self.read_trees(&plan.trees)?;
        self.note("survey the host and plan", began).await;
        let guest = if self.is_first(&container.id) {
            self.boot_for(&bundle, facts, own.faults()).await?
        } else {
            self.guest().await?
        };
        self.make_room(&plan, own).await?;
        let began = Instant::now();
        self.show(&plan.id, binds, own)?;
        let disks = self.attach_disks(disks, plan.disk_access, own).await?;
        let sockets = self.abroad(|| open_sockets(&plan, own))??;
        let mut request = request(&plan, &stdio, container.stdio.terminal);
        request.disks = disks;
        request.sockets = sockets.announce();
        request.trees = trees.iter().map(ReadTree::message).collect();
        let copying = create_in_guest(&guest, request, stdio, sockets, own).await?;
        tree::follow(trees, &plan.id, &guest, own);
        self.note("create the container", began).await;
        self.confine().await?;
        Ok(Built {
            copying,
            hooks,
            oom_file: bundle.oom_file(),
        })
    }

    /// Has the machine grow for the container, and shrink again when it goes.
    async fn make_room(&self, plan: &ContainerPlan, own: &mut Steps) -> Result<(), SandboxError> {
        own.next("room in the machine")?;
        let wants = Wants {
            demand: plan.demand,
            cpu: plan.cpu_wish.clone(),
        };
        self.want(&plan.id, wants).await?;
        let (owner, id) = (self.owner.clone(), plan.id.clone());
        own.done("room in the machine", move || async move {
            owner.tell(move |state| {
                state.wants.remove(&id);
                if let Some(fitting) = &state.fitting {
                    fitting.resize_later(state.wants.values().cloned().collect());
                }
            });
            Ok(())
        });
        Ok(())
    }

    /// Runs what is to be run before anything is made for the container; what takes that back runs even if a hook fails.
    async fn run_create_hooks(&self, hooks: &Arc<HostHooks>, own: &mut Steps) -> Result<(), SandboxError> {
        own.next("hooks")?;
        let (id, kept) = (hooks.container().to_owned(), HostHooks::clone(hooks));
        self.ask(move |state| {
            state.record.hooks.insert(id, kept);
            state.home.write(&state.record)
        })
        .await??;
        let (this, last) = (self.clone(), hooks.clone());
        own.done("hooks", move || async move {
            last.run_poststop(&this.origin).await;
            let forgotten = this.ask(move |state| {
                state.record.hooks.remove(last.container());
                state.home.write(&state.record)
            });
            match forgotten.await {
                Ok(written) => written.map_err(|error| error.to_string()),
                // The whole record goes.
                Err(_) => Ok(()),
            }
        });
        for moment in [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer] {
            hooks.run(moment, &self.origin).await?;
        }
        Ok(())
    }

    /// Does `act` where the engine's paths mean something.
    pub(crate) fn abroad<T>(&self, act: impl FnOnce() -> T) -> Result<T, SandboxError> {
        self.origin.visit(act).map_err(|source| SandboxError::Origin { source })
    }

    /// The same in a copy of that place, in which what is mounted is seen by nobody.
    pub(crate) fn abroad_in_copy<T>(&self, act: impl FnOnce() -> T) -> Result<T, SandboxError> {
        self.origin
            .visit_copy(act)
            .map_err(|source| SandboxError::Origin { source })
    }

    /// Takes everything of the host that the container sees; nothing of it is to be seen yet.
    fn take(&self, container: &NewContainer, plan: &ContainerPlan) -> Result<Vec<Taken>, SandboxError> {
        let share = self.home.share();
        let rootfs = match &plan.rootfs {
            RootfsPlan::Shared { source, share_path } => Some(Bind {
                from: source.clone(),
                to: share.join(share_path),
                recursive: true,
                read_only: false,
                follows: false,
            }),
            RootfsPlan::Disk => None,
        };
        let volumes = plan.volumes.iter().map(|volume| Bind {
            from: volume.source.clone(),
            to: share.join(&volume.share_path),
            recursive: volume.recursive,
            read_only: volume.read_only,
            follows: volume.follows,
        });
        let mut taken = Vec::new();
        match rootfs {
            Some(rootfs) if !container.rootfs.is_empty() => {
                let assembled = self.abroad_in_copy(|| assemble(&container.rootfs, &rootfs.from))??;
                taken.push(rootfs.settle(assembled)?);
            }
            Some(rootfs) => taken.push(self.abroad(|| rootfs.take())??),
            None => {}
        }
        taken.extend(self.abroad(|| volumes.map(Bind::take).collect::<Result<Vec<_>, _>>())??);
        Ok(taken)
    }

    /// Shows in the share what was taken, in this order.
    fn show(&self, id: &str, binds: Vec<Taken>, own: &mut Steps) -> Result<(), SandboxError> {
        let directory = self.home.share().join(id);
        own.done("container's directory", move || async move {
            // Everything in it is a mount point that its own step has removed.
            let _ = std::fs::remove_dir(directory.join(kata_wire::names::VOLUMES_DIR));
            let _ = std::fs::remove_dir(&directory);
            Ok(())
        });
        for bind in binds {
            own.next("bind into the share")?;
            let target = bind.target().to_owned();
            bind.show()?;
            own.done("bind into the share", move || async move {
                unbind(&target).map_err(|error| error.to_string())
            });
        }
        Ok(())
    }

    /// Boots the machine for the pod's first container and keeps the steps of it in the books, done well or not.
    pub(crate) async fn boot_for(
        &self,
        bundle: &Bundle,
        facts: Facts,
        faults: crate::step::Faults,
    ) -> Result<Agent, SandboxError> {
        let facts = Facts {
            network: self.look_at_network()?,
            has_spare: self.ask(|state| state.spare.is_some()).await?,
            ..facts
        };
        let plan = kata_plan::pod(&self.id, bundle, &self.config, &facts)?;
        let mut steps = Steps::new(faults);
        let booted = self.boot(&plan, &mut steps).await;
        self.ask(move |state| state.steps = Some(steps)).await?;
        booted
    }

    /// Writes a created container into the books and starts to wait for its end.
    fn enter(&self, state: &mut crate::sandbox::State, container: NewContainer, own: Steps, built: Built) {
        let process = Process::init(&container.id);
        state.pod.created(&container.id, true);
        let mut things = ProcessThings::new(container.stdio.clone(), Vec::new());
        things.copies(built.copying);
        state.processes.insert(process.clone(), things);
        state.containers.insert(
            container.id.clone(),
            ContainerThings {
                bundle: container.bundle.clone(),
                hooks: built.hooks,
                oom_file: built.oom_file,
                steps: Some(own),
            },
        );
        state.tell(Event::Created {
            container: container.id,
            bundle: container.bundle,
            stdio: container.stdio,
        });
        match state.guest.clone() {
            Some(guest) => self.wait_for_exit(guest, process),
            // The machine ended in this very moment, and whoever reported it did not know of this container.
            None => state.exited(
                &process,
                ExitStatus {
                    code: MACHINE_LOST,
                    at_unix_nanos: now_unix_nanos(),
                },
            ),
        }
    }

    /// Forgets a process that has ended or was never started: of an exec that alone, of a container all that was made
    /// for it, and of the pod's first container the machine. Answers how it ended.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn delete(&self, process: &Process) -> Result<ExitStatus, SandboxError> {
        let wanted = process.clone();
        let exit = self.ask(move |state| state.pod.delete(&wanted)).await??;
        // As runc's shim: what never ran was killed.
        let status = exit.unwrap_or(ExitStatus {
            code: 137,
            at_unix_nanos: now_unix_nanos(),
        });
        let wanted = process.clone();
        let copying = self
            .ask(move |state| {
                state
                    .processes
                    .get_mut(&wanted)
                    .and_then(|things| things.copying.take())
            })
            .await?;
        if let Some(copying) = copying {
            copying.finish().await;
        }
        if process.exec.is_empty() {
            self.delete_container(&process.container).await?;
        } else if let Ok(guest) = self.guest().await {
            forgive_lost(guest.delete_process(process).await)?;
        }
        let wanted = process.clone();
        self.ask(move |state| {
            state.pod.deleted(&wanted);
            state
                .processes
                .retain(|key, _| *key != wanted && !(wanted.exec.is_empty() && key.container == wanted.container));
            state.tell(Event::Deleted(wanted, status));
        })
        .await?;
        Ok(status)
    }

    async fn delete_container(&self, id: &str) -> Result<(), SandboxError> {
        let wanted = id.to_owned();
        let steps = self
            .ask(move |state| state.containers.remove(&wanted).and_then(|container| container.steps))
            .await?;
        let (first, has_disks) = (self.is_first(id), self.has_disks().await);
        if first && !has_disks {
            // The machine goes with everything in it; there is no need to tidy up inside first.
            self.undo_pod().await;
        }
        if let Some(steps) = steps {
            steps.undo().await;
        }
        if first && has_disks {
            self.undo_pod().await;
        }
        Ok(())
    }
}

/// Takes hold of the host's sockets; what holds them is dropped with whatever fails.
fn open_sockets(plan: &ContainerPlan, own: &mut Steps) -> Result<Sockets, SandboxError> {
    let mut sockets = Sockets::default();
    for socket in &plan.sockets {
        own.next("open a socket")?;
        sockets.add(socket.number, HostSocket::open(&socket.source)?);
    }
    Ok(sockets)
}

/// The bundle, with a root file system in it unless the engine leaves the mounting to us.
fn load(container: &NewContainer) -> Result<Bundle, BundleError> {
    let bundle = Bundle::load(&container.bundle)?;
    if container.rootfs.is_empty() {
        bundle.check_rootfs()?;
    }
    Ok(bundle)
}

/// What the agent is asked for, as far as the plan settles it.
fn request(plan: &ContainerPlan, stdio: &HostStdio, terminal: bool) -> proto::CreateContainerRequest {
    let memory = |memory: &MemoryPlan| proto::Memory {
        name: memory.name.clone(),
        fs_type: memory.fs_type.clone(),
        options: memory.options.clone(),
        ..Default::default()
    };
    let huge_pages = |pages: &HugePages| proto::HugePages {
        page_kib: pages.page_kib,
        pages: pages.pages,
        ..Default::default()
    };
    proto::CreateContainerRequest {
        container_id: plan.id.clone(),
        spec_json: plan.guest.spec_json.clone(),
        seccomp_filter: plan.guest.seccomp_filter.clone(),
        seccomp_flags: plan.guest.seccomp_flags,
        stdio: Some(stdio.announce(terminal)).into(),
        keep_namespaces: plan.guest.keep_namespaces,
        memories: plan.memories.iter().map(memory).collect(),
        huge_pages: plan.huge_pages.iter().map(huge_pages).collect(),
        ..Default::default()
    }
}

async fn create_in_guest(
    guest: &Agent,
    request: proto::CreateContainerRequest,
    stdio: HostStdio,
    sockets: Sockets,
    own: &mut Steps,
) -> Result<Copying, SandboxError> {
    own.next("container in the guest")?;
    let process = Process::init(&request.container_id);
    guest.create_container(request).await?;
    let agent = guest.clone();
    let id: Arc<str> = Arc::from(process.container.as_str());
    own.done("container in the guest", move || async move {
        forgive_lost(agent.delete_container(&id).await).map_err(|error| error.to_string())
    });
    let serving = sockets.serve(guest, &process.container);
    own.done("sockets", move || async move {
        drop(serving);
        Ok(())
    });
    Ok(stdio.connect(guest, &process).await?)
}

/// A guest that is gone has forgotten everything.
pub(crate) fn forgive_lost(result: Result<(), AgentError>) -> Result<(), AgentError> {
    match result {
        Err(AgentError::Lost) => Ok(()),
        other => other,
    }
}
