//! A machine without a VMM: its guest is a [`FakeAgent`], at the other end of a pipe in this process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kata_machine::{
    Disk, DiskAddress, Draft, Exit, ExitWatch, Machine, MachineError, MachineSpec, Size, Template, TemplateFiles,
    Transport, Vmm,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agent::FakeAgent;

/// A driver of fake machines.
#[derive(Clone)]
pub struct FakeVmm {
    /// The agent in every machine of a pod.
    pub agent: FakeAgent,
    /// The agent in every machine that is to be a template.
    pub rehearsing: FakeAgent,
    machines: Arc<Mutex<Vec<watch::Sender<Option<Exit>>>>>,
    disks: Arc<Mutex<BTreeMap<DiskAddress, Disk>>>,
    sizes: Arc<Mutex<Vec<Size>>>,
    restored: Arc<AtomicUsize>,
    mute: bool,
}

impl Default for FakeVmm {
    fn default() -> Self {
        Self {
            agent: FakeAgent::default(),
            rehearsing: FakeAgent::copying(),
            machines: Arc::default(),
            disks: Arc::default(),
            sizes: Arc::default(),
            restored: Arc::default(),
            mute: false,
        }
    }
}

impl FakeVmm {
    /// A driver whose machines never say a word.
    pub fn mute() -> Self {
        Self {
            mute: true,
            ..Self::default()
        }
    }

    fn machine(&self, agent: FakeAgent, mute: bool) -> FakeMachine {
        FakeMachine {
            agent,
            disks: self.disks.clone(),
            sizes: self.sizes.clone(),
            mute,
            exit: watch::Sender::new(None),
            serving: Mutex::default(),
        }
    }

    /// The sizes that running machines were asked to have, in order.
    pub fn sizes(&self) -> Vec<Size> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many machines were made of a template.
    pub fn restored(&self) -> usize {
        self.restored.load(Ordering::Relaxed)
    }

    /// How many machines were ever started.
    pub fn started(&self) -> usize {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many machines run.
    pub fn running(&self) -> usize {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.iter().filter(|exit| exit.borrow().is_none()).count()
    }

    /// How many disks are attached.
    pub fn disks(&self) -> usize {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends all machines, as if their processes had been killed.
    pub fn kill_all(&self) {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        for exit in machines.iter() {
            exit.send_replace(Some(killed()));
        }
    }
}

fn killed() -> Exit {
    Exit {
        status: Err(9),
        messages: "the fake machine was killed".into(),
    }
}

struct FakeMachine {
    agent: FakeAgent,
    disks: Arc<Mutex<BTreeMap<DiskAddress, Disk>>>,
    sizes: Arc<Mutex<Vec<Size>>>,
    mute: bool,
    exit: watch::Sender<Option<Exit>>,
    serving: Mutex<Vec<JoinHandle<()>>>,
}

#[async_trait]
impl Vmm for FakeVmm {
    fn command_line(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError> {
        Ok(vec![spec.vmm.display().to_string()])
    }

    async fn boot(&self, _: &MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        let machine = self.machine(self.agent.clone(), self.mute);
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.push(machine.exit.clone());
        Ok(Box::new(machine))
    }

    fn recipe(&self, spec: &MachineSpec) -> Result<Vec<String>, MachineError> {
        self.command_line(spec)
    }

    async fn draft(
        &self,
        spec: &MachineSpec,
        files: &TemplateFiles,
        _: Duration,
    ) -> Result<Box<dyn Draft>, MachineError> {
        // What is said of this driver's machines is said of those that pods get.
        let machine = self.machine(self.rehearsing.clone(), false);
        Ok(Box::new(FakeDraft {
            machine,
            id: spec.id.clone(),
            files: files.clone(),
        }))
    }

    async fn restore(&self, spec: &MachineSpec, _: &Template) -> Result<Box<dyn Machine>, MachineError> {
        self.restored.fetch_add(1, Ordering::Relaxed);
        self.boot(spec).await
    }
}

struct FakeDraft {
    machine: FakeMachine,
    id: String,
    files: TemplateFiles,
}

#[async_trait]
impl Draft for FakeDraft {
    fn exit(&self) -> ExitWatch {
        self.machine.exit()
    }

    async fn connect(&mut self) -> Result<Box<dyn Transport>, MachineError> {
        self.machine.connect().await
    }

    fn console_tail(&self) -> String {
        self.machine.console_tail()
    }

    async fn save(self: Box<Self>, _: Duration) -> Result<(), MachineError> {
        for file in [&self.files.memory, &self.files.state] {
            std::fs::write(file, &self.id).map_err(|source| MachineError::Host {
                what: format!("cannot write {}", file.display()),
                source,
            })?;
        }
        self.machine.halt(Duration::ZERO).await;
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), MachineError> {
        self.machine.halt(Duration::ZERO).await;
        Ok(())
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn exit(&self) -> ExitWatch {
        self.exit.subscribe()
    }

    async fn connect(&self) -> Result<Box<dyn Transport>, MachineError> {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        let (agent, mute) = (self.agent.clone(), self.mute);
        let mut exit = self.exit.subscribe();
        let task = tokio::spawn(async move {
            if mute {
                let _ = exit.wait_for(Option::is_some).await;
                drop(guest);
                return;
            }
            tokio::select! {
                () = agent.serve(guest) => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        });
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        Ok(Box::new(host))
    }

    fn console_tail(&self) -> String {
        "the fake console".into()
    }

    async fn suspend(&self) -> Result<(), MachineError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), MachineError> {
        Ok(())
    }

    async fn attach(&self, disk: Disk) -> Result<DiskAddress, MachineError> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let last = disks.last_key_value().map_or(0, |(address, _)| address.target);
        let address = DiskAddress { target: last + 1 };
        disks.insert(address, disk);
        Ok(address)
    }

    async fn detach(&self, disk: DiskAddress) -> Result<(), MachineError> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        match disks.remove(&disk) {
            Some(_) => Ok(()),
            None => Err(MachineError::Refused {
                command: "detach".into(),
                reason: format!("no disk at target {}", disk.target),
            }),
        }
    }

    async fn vcpu_threads(&self) -> Result<Vec<u32>, MachineError> {
        Ok(Vec::new())
    }

    async fn resize(&self, wish: Size) -> Result<Size, MachineError> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).push(wish);
        Ok(wish)
    }

    async fn halt(&self, _: Duration) {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.exit.send_if_modified(|exit| {
            let runs = exit.is_none();
            if runs {
                *exit = Some(killed());
            }
            runs
        });
    }
}
