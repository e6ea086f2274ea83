//! Keeps the machine, and what holds for it on the host, as large as the pod's containers need.
//!
//! One task does it all, one request after the other: two containers that come at once must not both add what only one of
//! them needs. What cannot be had is a warning: the containers' own limits hold in the guest in any case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::Agent;
use kata_cgroup::Groups;
use kata_machine::{Machine, Size};
use kata_plan::{CgroupPlan, CpuWish, Demand, HostLimits, Sizing};
use kata_wire::proto;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};

/// How long the guest may take to see what it was given. Longer is not waited for, but it may still come.
const ONLINE_LIMIT: Duration = Duration::from_secs(10);

/// What a container asks of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    pub demand: Demand,
    pub cpu: CpuWish,
}

/// The way to the task.
#[derive(Clone)]
pub(crate) struct Fitting(mpsc::UnboundedSender<Request>);

enum Request {
    /// Be large enough for these containers.
    Resize(Vec<Wants>, oneshot::Sender<()>),
    /// Hold them to what they may use of the host.
    Confine(Vec<Wants>, oneshot::Sender<()>),
}

/// What the task works with.
pub(crate) struct Fitter {
    pub machine: Arc<dyn Machine>,
    pub guest: Agent,
    pub sizing: Sizing,
    pub cgroups: CgroupPlan,
    pub groups: Groups,
    /// The pod is one container that its engine knows as such.
    pub alone: bool,
    /// Each CPU of the guest gets one of the host's, where the numbers agree.
    pub pin: bool,
}

impl Fitting {
    /// Starts the task; it ends with the last handle.
    pub fn start(fitter: Fitter) -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        let mut now = fitter.sizing.boot;
        tokio::spawn(async move {
            while let Some(request) = inbox.recv().await {
                let done = match request {
                    Request::Resize(wants, done) => {
                        now = fitter.resize(now, &wants).await;
                        done
                    }
                    Request::Confine(wants, done) => {
                        fitter.confine(now, &wants).await;
                        done
                    }
                };
                // Who does not wait needs no answer.
                let _ = done.send(());
            }
        });
        Self(sender)
    }

    /// Makes the machine fit these containers; what is to be given back is not waited for.
    pub async fn resize(&self, wants: Vec<Wants>) {
        let (done, wait) = oneshot::channel();
        if self.0.send(Request::Resize(wants, done)).is_ok() {
            let _ = wait.await;
        }
    }

    /// The same, sooner or later.
    pub fn resize_later(&self, wants: Vec<Wants>) {
        let (done, _) = oneshot::channel();
        let _ = self.0.send(Request::Resize(wants, done));
    }

    /// Applies what these containers may use of the host.
    pub async fn confine(&self, wants: Vec<Wants>) {
        let (done, wait) = oneshot::channel();
        if self.0.send(Request::Confine(wants, done)).is_ok() {
            let _ = wait.await;
        }
    }
}

impl Fitter {
    async fn resize(&self, now: Size, wants: &[Wants]) -> Size {
        let wish = self.sizing.size(wants.iter().map(|wants| wants.demand));
        if wish == now {
            return now;
        }
        if let Some(why) = self.sizing.fixed {
            tracing::info!(?wish, "the machine keeps its size: {why}");
            return now;
        }
        let has = match self.machine.resize(wish).await {
            Ok(has) => has,
            Err(error) => {
                tracing::warn!(%error, ?wish, "the machine cannot be given another size");
                return now;
            }
        };
        // What the machine cannot take back, the guest leaves unused.
        let used = Size {
            vcpus: has.vcpus.min(wish.vcpus),
            ..has
        };
        tracing::info!(?now, ?wish, ?used, "the machine has another size");
        if used != now {
            self.online(used).await;
            self.place_cpus(used, wants).await;
        }
        used
    }

    async fn online(&self, has: Size) {
        let request = proto::OnlineRequest {
            vcpus: has.vcpus,
            memory_mib: has.memory_mib.into(),
            limit_msecs: u32::try_from(ONLINE_LIMIT.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        match self.guest.online(request).await {
            Ok(guest) if guest.vcpus < has.vcpus || guest.memory_mib < has.memory_mib.into() => {
                let (vcpus, memory_mib) = (guest.vcpus, guest.memory_mib);
                tracing::warn!(vcpus, memory_mib, ?has, "the guest does not use all that it has");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the guest does not take what it was given into use"),
        }
    }

    async fn confine(&self, now: Size, wants: &[Wants]) {
        self.place_cpus(now, wants).await;
        self.groups.limit(&self.limits(now, wants));
    }

    fn limits(&self, now: Size, wants: &[Wants]) -> HostLimits {
        let containers = wants.iter().map(|wants| (&wants.cpu, wants.demand.memory_mib > 0));
        self.cgroups
            .limits(self.alone, self.sizing.base.vcpus, now.memory_mib, containers)
    }

    /// Puts the guest's CPUs where they belong, in cgroups and on CPUs of the host.
    async fn place_cpus(&self, now: Size, wants: &[Wants]) {
        if self.groups.of_the_pod().is_empty() && !self.pin {
            return;
        }
        let threads = match self.machine.vcpu_threads().await {
            Ok(threads) => threads,
            Err(error) => return tracing::warn!(%error, "cannot tell which threads are the guest's CPUs"),
        };
        self.groups.take_threads(&threads);
        if self.pin {
            pin(&threads, &self.limits(now, wants).cpu.cpus);
        }
    }
}

/// Thread by thread onto the CPUs, in order, if there are as many; else each wherever all of them may run.
fn pin(threads: &[u32], cpus: &BTreeSet<u32>) {
    let set_of = |cpus: &mut dyn Iterator<Item = u32>| {
        let mut set = CpuSet::new();
        cpus.for_each(|cpu| {
            // Numbers that no kernel has are not in the set.
            let _ = set.set(cpu as usize);
        });
        set
    };
    if cpus.is_empty() {
        return;
    }
    let one_each = threads.len() == cpus.len();
    for (thread, cpu) in threads.iter().zip(cpus.iter().copied().cycle()) {
        let set = match one_each {
            true => set_of(&mut std::iter::once(cpu)),
            false => set_of(&mut cpus.iter().copied()),
        };
        if let Err(errno) = sched_setaffinity(Pid::from_raw(thread.cast_signed()), &set) {
            tracing::warn!(thread, %errno, "a CPU of the guest cannot be bound to CPUs of the host");
        }
    }
}
