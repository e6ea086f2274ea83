//! `kata-agent`: the first process of the guest. It makes the guest a place where containers can live, then serves the
//! host over one channel until the machine ends.
//!
//! One thread only, and nothing that would start another (no blocking pool, no `tokio::fs`): children are made by a bare
//! `clone3`, and may then allocate. It knows nothing of the host but what comes over the channel.

mod channel;
mod clock;
mod command_line;
mod descriptor;
mod image;
mod init;
mod log;
mod loopback;
mod modules;
mod network;
mod pod;
mod power;
mod process;
mod pump;
mod reaper;
mod server;
mod service;
mod sockets;
mod table;
mod uevents;
mod watch_cgroup;

use std::sync::Arc;

fn main() -> anyhow::Result<()> {
    let boot = clock::Boot::begin();
    if std::process::id() != 1 {
        anyhow::bail!("kata-agent is the init of a kata guest; it does nothing useful anywhere else");
    }
    let ended = live(boot);
    if let Err(error) = &ended {
        tracing::error!("the agent cannot go on: {error:#}");
    }
    // An init that ends is a kernel panic; a machine that is switched off says the same with less noise.
    power::off();
    ended
}

fn live(boot: Arc<clock::Boot>) -> anyhow::Result<()> {
    image::enter()?;
    let modules = init::prepare()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pod = Arc::new(pod::Pod::new(modules, boot));
        tokio::spawn(reaper::run(Arc::clone(&pod), reaper::Ends::listen()?));
        server::run(pod).await
    })
}
