//! Machines that are to be templates.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use kata_machine::{
    Draft, ExitWatch, Machine, MachineError, MachineSpec, MemoryBacking, Template, TemplateFiles, Transport,
};

use crate::imprint;
use crate::machine::{self, QemuMachine};
use crate::news::{Listening, News};
use crate::render::{AGENT_PORT, Start};
use crate::template::{copy_into, create, create_memory, explain, go_on, host, recipe, transfer};

/// A machine that is to be saved.
#[derive(Debug)]
pub(crate) struct QemuDraft {
    machine: QemuMachine,
    memory: PathBuf,
    state: File,
    writing: Writing,
    /// From the first connection on.
    news: Option<Listening>,
}

/// How a draft is written down.
#[derive(Debug)]
enum Writing {
    /// As QEMU writes the state of a machine.
    State,
    /// As an image of QEMU, but for the guest's memory, which is in this file.
    Process { memory: File },
}

/// Boots, and waits until the agent listens.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn draft(
    spec: &MachineSpec,
    files: &TemplateFiles,
    greeting_limit: Duration,
    limit: Duration,
) -> Result<QemuDraft, MachineError> {
    recipe(spec)?;
    // Nobody else is to read the memory of what may become anybody's pod.
    create(&files.memory)?
        .set_len(u64::from(spec.memory_mib) << 20)
        .map_err(host("size", &files.memory))?;
    let state = create(&files.state)?;
    let booted = async {
        let machine = machine::start(spec, Start::Save(&files.memory), None, greeting_limit).await?;
        let mut news = machine.listen();
        let listens = async {
            machine.resume().await?;
            hear_agent(&machine, &mut news, limit).await
        };
        match listens.await {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.halt(Duration::ZERO).await;
                Err(error)
            }
        }
    };
    let machine = booted.await.map_err(|error| explain(error, &files.memory))?;
    Ok(QemuDraft {
        machine,
        memory: files.memory.clone(),
        state,
        writing: Writing::State,
        news: None,
    })
}

/// Makes a machine of the template, which is to be written down as a process.
///
/// # Errors
/// See [`MachineError`].
pub(crate) async fn redraft(
    spec: &MachineSpec,
    template: &Template,
    files: &TemplateFiles,
    greeting_limit: Duration,
) -> Result<QemuDraft, MachineError> {
    let memory = create_memory(&files.memory)?;
    copy_into(&template.memory, &memory).map_err(host("write", &files.memory))?;
    let state = create(&files.state)?;
    // What it writes is to be in the file, whatever machines of the template do.
    let shared = MachineSpec {
        memory_backing: MemoryBacking::SharedMemfd,
        ..spec.clone()
    };
    let own = memory.try_clone().map_err(host("open", &files.memory))?;
    let made = async {
        let machine = go_on(&shared, template, own, greeting_limit).await?;
        machine.resume().await?;
        Ok(machine)
    };
    Ok(QemuDraft {
        machine: made.await.map_err(|error| explain(error, &files.memory))?,
        memory: files.memory.clone(),
        state,
        writing: Writing::Process { memory },
        news: None,
    })
}

/// Waits until the agent opens its port.
async fn hear_agent(machine: &QemuMachine, news: &mut Listening, limit: Duration) -> Result<(), MachineError> {
    let is_agent = |news| matches!(news, News::PortOpened(id) if id == AGENT_PORT).then_some(());
    machine.hear(news, "the agent's port", is_agent, limit).await
}

#[async_trait]
impl Draft for QemuDraft {
    fn exit(&self) -> ExitWatch {
        self.machine.exit()
    }

    async fn connect(&mut self) -> Result<Box<dyn Transport>, MachineError> {
        // That the port was opened is heard before a connection is made: the next time is after its end. QEMU tells of one
        // change a second, and always of the last.
        self.news = Some(self.machine.listen());
        self.machine.connect().await
    }

    fn console_tail(&self) -> String {
        self.machine.console_tail()
    }

    async fn save(self: Box<Self>, limit: Duration) -> Result<(), MachineError> {
        let Self {
            machine,
            memory,
            state,
            writing,
            news,
        } = *self;
        let saved = async {
            if let Some(mut news) = news {
                hear_agent(&machine, &mut news, limit).await?;
            }
            machine.suspend().await?;
            match &writing {
                Writing::State => transfer(&machine, "migrate", state.into()).await,
                Writing::Process { memory } => imprint::write(&machine, memory, &state),
            }
        };
        let saved = saved.await.map_err(|error| explain(error, &memory));
        machine.halt(Duration::ZERO).await;
        saved
    }

    async fn discard(self: Box<Self>) -> Result<(), MachineError> {
        let exit = self.machine.exit().borrow().clone();
        self.machine.halt(Duration::ZERO).await;
        match exit {
            Some(exit) => Err(explain(self.machine.died(exit), &self.memory)),
            None => Ok(()),
        }
    }
}
