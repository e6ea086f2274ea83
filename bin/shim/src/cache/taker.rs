//! `start` takes a sandbox process that waits, if the configuration has some kept and one is what the pod needs.

use std::io;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use kata_bundle::Bundle;
use kata_config::Config;
use kata_sandbox::cache::{self, Answer, Request, Standpoint};
use kata_sandbox::record::{Home, Mark, Record};
use kata_sandbox::{describe, recover, spare};
use kata_sys::process::descendants;

use crate::bootstrap::named_config;
use crate::cache::{Handover, TALK_LIMIT, Taken};
use crate::flags::Flags;
use crate::serve::{configuration, events_address};
use crate::words::Words;
use crate::{drivers, log};

/// What the attempt came to.
pub enum Taking {
    /// This process is the pod's now; everything is as if it had been started.
    Taken(Mark),
    /// A process has to be started; and why, if that is unexpected.
    Nobody(Option<String>),
}

/// Takes a sandbox process for the pod of `bundle` (unknown for one that comes by the Sandbox API), whose directory with this
/// record is `home`.
///
/// # Errors
/// A sandbox process that was taken, does not answer and cannot be cleaned up after.
pub fn take(flags: &Flags, words: &Words, bundle: Option<&Bundle>, home: &Home, record: &Record) -> Result<Taking> {
    // What is wrong with the configuration is for the sandbox process to say.
    let Ok((config, _)) = configuration(named_config(flags, words, bundle), bundle) else {
        return Ok(Taking::Nobody(None));
    };
    if config.factory.vm_cache_number == 0 {
        return Ok(Taking::Nobody(None));
    }
    let (keeper, sandbox) = match ask(&config) {
        Ok(Some(offer)) => offer,
        Ok(None) => return Ok(Taking::Nobody(None)),
        Err(error) => return Ok(Taking::Nobody(Some(format!("{error:#}")))),
    };
    let handover = Handover {
        home: home.path().to_owned(),
        record: record.clone(),
        config: flags.config.clone(),
        options_config: words.config.clone().or_else(environments_config),
        events: events_address(words.events.as_deref()),
        log: log::filter(flags.debug || words.debug),
    };
    // Before it is taken: after the end of this process everybody knows whose it is.
    home.write(&Record {
        sandbox: Some(sandbox),
        ..record.clone()
    })?;
    let taken = cache::say(&keeper, &handover).and_then(|()| cache::hear::<Taken>(&keeper));
    match taken {
        Ok(Taken) => {
            settle(sandbox);
            Ok(Taking::Taken(sandbox))
        }
        Err(error) => {
            // Whatever it has come to, nothing of it is left.
            recover::clean(home).context("a machine of the cache was not taken")?;
            home.create(record)?;
            Ok(Taking::Nobody(Some(format!("one that waited did not answer: {error}"))))
        }
    }
}

fn environments_config() -> Option<std::path::PathBuf> {
    std::env::var_os(kata_config::ENVIRONMENT).map(Into::into)
}

/// A sandbox process that may be taken, and the way to it; `None` if there is none now.
fn ask(config: &Config) -> Result<Option<(UnixStream, Mark)>> {
    let endpoint = &config.factory.vm_cache_endpoint;
    let keeper = match cache::connect(endpoint) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected.with_context(|| endpoint.display().to_string())?,
    };
    keeper.set_read_timeout(Some(TALK_LIMIT))?;
    keeper.set_write_timeout(Some(TALK_LIMIT))?;
    let recipe = spare::recipe(config, &*drivers::driver(config)).map_err(|error| anyhow::anyhow!(describe(&error)))?;
    let request = Request::Take {
        recipe,
        standpoint: Standpoint::here()?,
    };
    let answer = cache::say(&keeper, &request).and_then(|()| cache::hear(&keeper));
    match answer.context("its keeper does not answer")? {
        Answer::Offer(offer) => Ok(Some((keeper, offer.sandbox))),
        Answer::Misfit(why) => anyhow::bail!(why),
        Answer::Empty | Answer::Status(_) => Ok(None),
    }
}

/// Puts the process and its children where children of this process are. What fails is no reason not to run the pod.
fn settle(sandbox: Mark) {
    let cgroups = kata_cgroup::own_cgroups().unwrap_or_default();
    for pid in [sandbox.pid].into_iter().chain(descendants(sandbox.pid)) {
        kata_cgroup::join(&cgroups, pid);
    }
    // Its children follow it in that when they become the pod's.
    let own = std::fs::read("/proc/self/oom_score_adj");
    let _ = own.and_then(|own| std::fs::write(format!("/proc/{}/oom_score_adj", sandbox.pid), own));
}
