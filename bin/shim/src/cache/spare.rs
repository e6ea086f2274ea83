//! `wait`: a sandbox process that has a machine before it has a pod. It belongs to the keeper and ends with it, until it is taken;
//! from then on it is as any other.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail};
use kata_sandbox::cache::{self, Answer, Offer};
use kata_sandbox::describe;
use kata_sandbox::record::{Home, Mark, Record};
use kata_sandbox::spare::{Needs, Spare};
use kata_storage::namespace;
use kata_storage::origin::Origin;
use kata_sys::passing;
use kata_sys::process::take_fd;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::stat::{Mode, umask};
use tokio::io::Interest;
use tokio::net::UnixStream as AsyncStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::cache::{CONTROL_FD, Handover, Report, TALK_LIMIT, Taken};
use crate::drivers;
use crate::flags::Flags;
use crate::log::Log;
use crate::serve::{Beginning, configuration, serve};

/// Waits to be taken, and is the sandbox process of a pod then.
///
/// # Errors
/// What keeps a machine from being started; what keeps the process from serving.
pub fn wait(flags: &Flags, log: &Log) -> Result<()> {
    let control = take_fd(CONTROL_FD).context("started by hand? There is no keeper")?;
    let place = flags.place.clone().context("-place is missing")?;
    nix::unistd::setsid().context("setsid")?;
    umask(Mode::from_bits_truncate(0o022));
    let network = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
    let origin = namespace::enter().context("cannot make a mount namespace of its own")?;
    let mut home = Home::at(place);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut keeper = Keeper(UnixStream::from(control));
        let waited = start(flags, &home, &origin).await;
        let spare = waited.inspect_err(|error| keeper.tell(&Report::Failed(format!("{error:#}"))))?;
        keeper.tell(&Report::Ready(spare.recipe().to_owned()));
        let handed = wait_for_taker(&mut keeper, &mut home, &spare).await;
        let (handover, listener) = match handed {
            Ok(Some(handed)) => handed,
            other => {
                spare.end(&home).await;
                return other.map(drop);
            }
        };
        match go_to(&handover, network, origin, log) {
            Ok(origin) => serve(beginning(handover, listener, home.clone(), origin, spare)).await,
            Err(error) => {
                spare.end(&home).await;
                Err(error)
            }
        }
    });
    home.remove().context("cannot remove the sandbox's directory")?;
    done
}

async fn start(flags: &Flags, home: &Home, origin: &Origin) -> Result<Spare> {
    let look = || configuration(flags.config.as_deref(), None);
    let (config, warnings) = origin.visit(look)??;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let needs = Needs {
        home,
        config: &config,
        vmm: &*drivers::driver(&config),
        origin,
        // This program, wherever it lies.
        maker: Some("/proc/self/exe".as_ref()),
    };
    let started = Spare::start(&needs).await;
    started.map_err(|error| anyhow::anyhow!(describe(&error)))
}

/// The way to the keeper.
struct Keeper(UnixStream);

impl Keeper {
    /// A keeper that has gone need not know.
    fn tell(&mut self, report: &Report) {
        if let Ok(line) = cache::line(report) {
            let _ = self.0.write_all(&line);
        }
    }
}

/// Waits for who takes this process, whose directory is `home` then; `None` when nobody will any more.
///
/// # Errors
/// A machine that has ended; a taking that went wrong on the way.
async fn wait_for_taker(
    keeper: &mut Keeper,
    home: &mut Home,
    spare: &Spare,
) -> Result<Option<(Handover, UnixListener)>> {
    let control = keeper.0.try_clone()?;
    control.set_nonblocking(true)?;
    let control = AsyncStream::from_std(control)?;
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        let sent = tokio::select! {
            sent = control.async_io(Interest::READABLE, || passing::receive(&control, &mut [0])) => sent?,
            words = spare.ended() => bail!("the machine has ended while it waited: {words}"),
            _ = terminated.recv() => return Ok(None),
        };
        let taker = match sent {
            (0, _) => return Ok(None),
            (_, None) => continue,
            (_, Some(taker)) => taker,
        };
        if let Some(handed) = negotiate(taker, home, spare)? {
            keeper.tell(&Report::Taken);
            return Ok(Some(handed));
        }
        keeper.tell(&Report::Back);
    }
}

/// Lets the taker decide; `None` if it has gone away. Nothing else is to be done meanwhile, so this waits.
///
/// # Errors
/// What went wrong after the decision.
fn negotiate(taker: OwnedFd, home: &mut Home, spare: &Spare) -> Result<Option<(Handover, UnixListener)>> {
    let taker = UnixStream::from(taker);
    let me = Mark::of(std::process::id())?;
    let decided = taker
        .set_nonblocking(false)
        .and_then(|()| taker.set_read_timeout(Some(TALK_LIMIT)))
        .and_then(|()| taker.set_write_timeout(Some(TALK_LIMIT)))
        .and_then(|()| cache::say(&taker, &Answer::Offer(Offer { sandbox: me })))
        .and_then(|()| cache::hear::<Handover>(&taker));
    let Ok(handover) = decided else { return Ok(None) };
    match move_in(&taker, &handover, me, home, spare) {
        Ok(listener) => Ok(Some((handover, listener))),
        Err(error) => {
            // To who took it the end of the connection is the end of this process, which has yet to clean up.
            std::mem::forget(taker);
            Err(error)
        }
    }
}

/// Makes the taker's directory its own, and answers.
fn move_in(taker: &UnixStream, handover: &Handover, me: Mark, home: &mut Home, spare: &Spare) -> Result<UnixListener> {
    // Under its old name; it moves with the directory.
    let listener = UnixListener::bind(home.task_socket()).context("cannot listen")?;
    home.write(&Record {
        sandbox: Some(me),
        helpers: spare.helpers(),
        ..handover.record.clone()
    })?;
    // In one step, so that the pod's directory has a record at every moment.
    let (ours, theirs) = (home.path(), handover.home.as_path());
    renameat2(AT_FDCWD, ours, AT_FDCWD, theirs, RenameFlags::RENAME_EXCHANGE)
        .with_context(|| format!("cannot change {} for {}", ours.display(), theirs.display()))?;
    let old = std::mem::replace(home, Home::at(handover.home.clone()));
    old.remove().context("cannot remove the directory of who took it")?;
    // It is the keeper's no more.
    set_pdeathsig(None).context("cannot outlive the keeper")?;
    cache::say(taker, &Taken).context("who wanted it has gone away")?;
    Ok(listener)
}

/// Goes where a process would be that the taker has started; answers the engine's side of the host.
fn go_to(handover: &Handover, network: File, origin: Origin, log: &Log) -> Result<Origin> {
    setns(network, CloneFlags::CLONE_NEWNET).context("cannot return to the engine's network namespace")?;
    let Record { id, bundle, .. } = &handover.record;
    let origin = origin.in_directory(bundle);
    let origin = origin.with_context(|| format!("cannot enter the bundle {}", bundle.display()))?;
    origin.visit(|| log.follow(bundle))?;
    log.select(&handover.log);
    tracing::info!(id, "taken out of the cache");
    Ok(origin)
}

fn beginning(handover: Handover, listener: UnixListener, home: Home, origin: Origin, spare: Spare) -> Beginning {
    Beginning {
        namespace: handover.record.namespace,
        home,
        config: handover.config,
        options_config: handover.options_config,
        events: handover.events,
        listener,
        origin,
        spare: Some(spare),
    }
}
