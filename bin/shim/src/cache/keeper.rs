//! `keep`: has sandbox processes wait, passes them on, and starts others for those that were taken. One is started at a time, so
//! that pods that start meanwhile are not held up.
//!
//! It never holds a machine itself, and what it knows it can forget: those who wait end with it, and whoever comes after it removes
//! their directories.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use kata_config::Config;
use kata_sandbox::cache::{self, Answer, Request, Standpoint, Status};
use kata_sandbox::{describe, spare};
use kata_sys::passing;
use kata_sys::process::take_fd;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cache::waiting::{self, Stage, Waiting};
use crate::cache::{Report, TALK_LIMIT};
use crate::drivers;
use crate::flags::Flags;
use crate::serve::{LISTENER_FD, configuration};

/// How long those who wait get to end by themselves.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The first pause after one that could not be started, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keeps the cache until it is told to end; nothing of it is left then but who was taken.
///
/// # Errors
/// What keeps it from serving at all.
pub fn keep(flags: &Flags) -> Result<()> {
    let listener = StdListener::from(take_fd(LISTENER_FD).context("started by hand? There is no listening socket")?);
    nix::unistd::setsid().context("setsid")?;
    std::env::set_current_dir("/")?;
    // One thread: those who wait end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = listener.local_addr()?.as_pathname().map(PathBuf::from);
    let done = runtime.block_on(serve(flags, listener));
    if let Some(endpoint) = endpoint {
        let _ = std::fs::remove_file(endpoint);
    }
    cache::keeper_home()
        .remove()
        .context("cannot remove the keeper's directory")?;
    done
}

async fn serve(flags: &Flags, listener: StdListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (news, mut happened) = mpsc::unbounded_channel();
    tokio::spawn(take_requests(listener, news.clone()));
    let mut keeper = Keeper {
        config_file: flags.config.clone(),
        standpoint: Standpoint::here()?,
        news,
        wanted: 0,
        recipe: None,
        spares: BTreeMap::new(),
        started: 0,
        pause: None,
        trouble: None,
        waiters: Vec::new(),
    };
    keeper.look();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    loop {
        keeper.refill();
        keeper.tell_waiters().await;
        tokio::select! {
            Some(news) = happened.recv() => keeper.hear(news).await,
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    keeper.end(&mut happened).await;
    Ok(())
}

/// What the keeper hears.
pub enum News {
    /// Somebody asks.
    Asked(UnixStream, Request),
    /// One of those who wait, by its number, reports.
    Reported(u64, Report),
    /// It has ended.
    Ended(u64),
    /// The pause is over.
    Again,
}

/// Takes requests of root alone. Who says nothing is not waited for by others.
async fn take_requests(listener: UnixListener, news: mpsc::UnboundedSender<News>) {
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the cache takes no request");
                tokio::time::sleep(PAUSES.0).await;
                continue;
            }
        };
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
            tracing::warn!("a request of another user is not answered");
            continue;
        }
        let news = news.clone();
        tokio::spawn(async move {
            let mut stream = stream;
            if let Ok(Ok(request)) = timeout(TALK_LIMIT, waiting::hear(&mut stream)).await {
                let _ = news.send(News::Asked(stream, request));
            }
        });
    }
}

async fn answer(mut stream: UnixStream, answer: &Answer) {
    if let Ok(line) = cache::line(answer) {
        // Who has gone away needs none.
        let _ = timeout(TALK_LIMIT, stream.write_all(&line)).await;
    }
}

struct Keeper {
    config_file: Option<PathBuf>,
    standpoint: Standpoint,
    news: mpsc::UnboundedSender<News>,
    wanted: u32,
    /// Of the configuration when it was last looked at.
    recipe: Option<String>,
    spares: BTreeMap<u64, Waiting>,
    /// How many were ever started.
    started: u64,
    /// How long nobody is started after one that could not be.
    pause: Option<Duration>,
    trouble: Option<String>,
    /// Who wants to know when all wait.
    waiters: Vec<UnixStream>,
}

impl Keeper {
    /// Looks at the configuration and its files. Those who wait for another one are told to end.
    fn look(&mut self) {
        let looked = configuration(self.config_file.as_deref(), None)
            .context("the configuration")
            .and_then(|(config, _)| Ok((config.factory.vm_cache_number, recipe(&config)?)));
        let (wanted, recipe) = match looked {
            Ok(looked) => looked,
            Err(error) => return self.refuse(format!("{error:#}")),
        };
        self.wanted = wanted;
        let mut outdated = 0;
        for waiting in self.spares.values_mut() {
            if matches!(&waiting.stage, Stage::Ready(its) if *its != recipe) {
                waiting.dismiss();
                outdated += 1;
            }
        }
        if outdated > 0 {
            tracing::warn!(
                "{outdated} machines that wait are of another configuration, kernel or agent; others follow"
            );
        }
        self.recipe = Some(recipe);
        let surplus = self.count().saturating_sub(wanted as usize);
        let ready = self
            .spares
            .values_mut()
            .filter(|waiting| matches!(waiting.stage, Stage::Ready(_)));
        ready.take(surplus).for_each(Waiting::dismiss);
    }

    /// Nobody can be started of what is configured now.
    fn refuse(&mut self, why: String) {
        tracing::warn!("the cache stays as it is: {why}");
        self.trouble = Some(why);
    }

    /// Those who wait, or will.
    fn count(&self) -> usize {
        self.spares
            .values()
            .filter(|waiting| !matches!(waiting.stage, Stage::Ending))
            .count()
    }

    fn pids(&self, is: impl Fn(&Stage) -> bool) -> Vec<u32> {
        let spares = self.spares.values().filter(|waiting| is(&waiting.stage));
        spares.map(|waiting| waiting.pid).collect()
    }

    fn status(&self) -> Status {
        Status {
            wanted: self.wanted,
            ready: self.pids(|stage| matches!(stage, Stage::Ready(_))),
            starting: self.pids(|stage| matches!(stage, Stage::Starting)),
            trouble: self.trouble.clone(),
        }
    }

    fn refill(&mut self) {
        let is_starting = self
            .spares
            .values()
            .any(|waiting| matches!(waiting.stage, Stage::Starting));
        if is_starting || self.pause.is_some() && self.trouble.is_some() || self.count() >= self.wanted as usize {
            return;
        }
        self.started += 1;
        match waiting::start(self.started, self.config_file.as_ref(), &self.news) {
            Ok(waiting) => drop(self.spares.insert(self.started, waiting)),
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    /// One could not be started: the next one is tried after a while.
    fn fail(&mut self, why: String) {
        tracing::warn!("no machine waits: {why}");
        self.trouble = Some(why);
        let pause = self.pause.map_or(PAUSES.0, |last| PAUSES.1.min(last * 2));
        self.pause = Some(pause);
        let news = self.news.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = news.send(News::Again);
        });
    }

    /// Answers who waits for the cache to be full, if it is, or will not be.
    async fn tell_waiters(&mut self) {
        let is_over = self.trouble.is_some() || self.status().ready.len() >= self.wanted as usize;
        if is_over {
            let status = Answer::Status(self.status());
            for waiter in std::mem::take(&mut self.waiters) {
                answer(waiter, &status).await;
            }
        }
    }

    async fn hear(&mut self, news: News) {
        match news {
            News::Asked(stream, Request::Take { recipe, standpoint }) => {
                if let Err(said) = self.lend(&stream, &recipe, &standpoint) {
                    answer(stream, &said).await;
                }
            }
            News::Asked(stream, Request::Status) => answer(stream, &Answer::Status(self.status())).await,
            News::Asked(stream, Request::Fill) => {
                self.trouble = None;
                self.look();
                self.waiters.push(stream);
            }
            News::Reported(number, report) => self.note(number, report),
            News::Ended(number) => {
                let Some(waiting) = self.spares.remove(&number) else {
                    return;
                };
                waiting.clear_up();
                if matches!(waiting.stage, Stage::Starting | Stage::Ready(_)) {
                    self.fail(format!("process {} has ended by itself", waiting.pid));
                }
            }
            News::Again => self.trouble = None,
        }
    }

    fn note(&mut self, number: u64, report: Report) {
        let Some(waiting) = self.spares.get_mut(&number) else {
            return;
        };
        match report {
            Report::Ready(recipe) => {
                let is_other = self.recipe.as_ref() != Some(&recipe);
                waiting.stage = Stage::Ready(recipe);
                (self.pause, self.trouble) = (None, None);
                if is_other {
                    // Something has changed since it was last looked at, before or after this one was started.
                    self.look();
                }
            }
            Report::Back => {
                if let Stage::Lent(recipe) = &waiting.stage {
                    waiting.stage = Stage::Ready(recipe.clone());
                }
            }
            Report::Taken => drop(self.spares.remove(&number)),
            Report::Failed(why) => {
                waiting.dismiss();
                self.fail(why);
            }
        }
    }

    /// Passes the connection on to one that waits; or what is to be answered.
    fn lend(&mut self, taker: &UnixStream, recipe: &str, standpoint: &Standpoint) -> Result<(), Answer> {
        if *standpoint != self.standpoint {
            return Err(Answer::Misfit(
                "it is kept in other namespaces than the engine's".into(),
            ));
        }
        let fits = |waiting: &&mut Waiting| matches!(&waiting.stage, Stage::Ready(its) if its == recipe);
        while let Some(waiting) = self.spares.values_mut().find(fits) {
            match passing::send(waiting.control.as_fd(), b"t", Some(taker.as_fd())) {
                Ok(()) => {
                    waiting.stage = Stage::Lent(recipe.to_owned());
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(pid = waiting.pid, %error, "one that waited takes nobody");
                    waiting.dismiss();
                }
            }
        }
        if self.pids(|stage| matches!(stage, Stage::Ready(_))).is_empty() {
            return Err(Answer::Empty);
        }
        self.look();
        Err(Answer::Misfit(match self.recipe.as_deref() == Some(recipe) {
            true => "those that wait were of what is no more; others follow".into(),
            false => "those that wait are of another configuration, or other programs, than the pod's".into(),
        }))
    }

    /// Has all end who were not taken. Who is being taken is waited for.
    async fn end(mut self, happened: &mut mpsc::UnboundedReceiver<News>) {
        // These would first finish what they have begun.
        let starting = self
            .spares
            .values()
            .filter(|waiting| matches!(waiting.stage, Stage::Starting));
        starting.for_each(Waiting::clear_up);
        let is_lent = |waiting: &Waiting| matches!(waiting.stage, Stage::Lent(_));
        let finished = async {
            while !self.spares.is_empty() {
                self.spares
                    .values_mut()
                    .filter(|waiting| !is_lent(waiting))
                    .for_each(Waiting::dismiss);
                match happened.recv().await {
                    Some(News::Reported(number, report)) => self.note(number, report),
                    Some(News::Ended(number)) => {
                        if let Some(waiting) = self.spares.remove(&number) {
                            waiting.clear_up();
                        }
                    }
                    _ => {}
                }
            }
        };
        let _ = timeout(END_LIMIT, finished).await;
        self.spares.values().for_each(Waiting::clear_up);
    }
}

fn recipe(config: &Config) -> Result<String> {
    spare::recipe(config, &*drivers::driver(config)).map_err(|error| anyhow::anyhow!(describe(&error)))
}
