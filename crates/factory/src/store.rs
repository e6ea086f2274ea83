//! The directory of templates.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kata_machine::{Template, TemplateFiles};
use nix::fcntl::{Flock, FlockArg};

use crate::manifest::Manifest;
use crate::{Recipe, memory, recipe};

const MANIFEST: &str = "manifest.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// Where one is made. There is one maker at a time.
const HALF_MADE: &str = ".new";

/// Templates that are kept: some configurations, each with one. Of more, those go that were not used for longest.
const KEPT: usize = 4;

/// The longest manifest that is read, bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// What is wrong with the store or one of its templates.
#[derive(Debug, thiserror::Error)]
pub enum FactoryError {
    /// The host failed.
    #[error("cannot {act} {}", path.display())]
    Host {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A template cannot be used.
    #[error("the template {} cannot be used: {why}", path.display())]
    Damaged {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Anybody may have put something into the store.
    #[error("templates are not taken from {}: others than user {user} may write there", path.display())]
    Open {
        /// The store.
        path: PathBuf,
        /// Who alone should.
        user: u32,
    },
}

pub(crate) fn host(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FactoryError {
    let path = path.to_owned();
    move |source| FactoryError::Host { act, path, source }
}

/// How far a template can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is what was made, and what it was made of has not changed.
    Current,
    /// It is what was made, but of something else than what is there now.
    Outdated,
    /// It is not what was made.
    Damaged,
}

/// A template, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its directory.
    pub path: PathBuf,
    /// How far it can be used.
    pub trust: Trust,
    /// Memory of the host that it takes, bytes.
    pub memory_bytes: u64,
}

/// The templates of this host.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Those below `directory`, an absolute path. It need not exist.
    pub fn at(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Opens the template of this recipe, if there is one.
    ///
    /// # Errors
    /// [`FactoryError`]; [`FactoryError::Damaged`] for one that must not be used.
    pub fn open(&self, recipe: &Recipe) -> Result<Option<Template>, FactoryError> {
        let path = self.0.join(recipe.name());
        if !path.exists() {
            return Ok(None);
        }
        self.check_owner()?;
        let damaged = |why| FactoryError::Damaged {
            path: path.clone(),
            why,
        };
        let (manifest, mut template, file) = read(&path).map_err(damaged)?;
        if manifest.recipe != *recipe {
            return Err(damaged("it is made of something else".to_owned()));
        }
        manifest.check(&mut template).map_err(damaged)?;
        // So it is known when it was last used.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(template))
    }

    /// That nobody else can put something in.
    pub(crate) fn check_owner(&self) -> Result<(), FactoryError> {
        let data = std::fs::symlink_metadata(&self.0).map_err(host("look at", &self.0))?;
        let user = nix::unistd::geteuid().as_raw();
        if data.uid() != user || data.mode() & 0o022 != 0 {
            let path = self.0.clone();
            return Err(FactoryError::Open { path, user });
        }
        Ok(())
    }

    /// Takes the template of this recipe away. Who uses it goes on.
    ///
    /// # Errors
    /// [`FactoryError::Host`]; that there is none is no error.
    pub fn discard(&self, recipe: &Recipe) -> Result<(), FactoryError> {
        remove(&self.0.join(recipe.name()))
    }

    /// All templates, by name.
    ///
    /// # Errors
    /// [`FactoryError::Host`]; that there is no store is no error.
    pub fn list(&self) -> Result<Vec<Entry>, FactoryError> {
        let entries = self.names()?.into_iter().map(|name| {
            let path = self.0.join(name);
            let memory_bytes = std::fs::metadata(path.join(MEMORY)).map_or(0, |data| data.blocks().saturating_mul(512));
            let trust = match read(&path) {
                Ok((manifest, mut template, _)) => match manifest.check(&mut template) {
                    Ok(()) if manifest.recipe.is_current() => Trust::Current,
                    Ok(()) => Trust::Outdated,
                    Err(_) => Trust::Damaged,
                },
                Err(_) => Trust::Damaged,
            };
            Entry {
                path,
                trust,
                memory_bytes,
            }
        });
        Ok(entries.collect())
    }

    fn names(&self) -> Result<Vec<String>, FactoryError> {
        let mut names = self.entries()?;
        names.retain(|name| recipe::is_name(name));
        names.sort();
        Ok(names)
    }

    /// The names of all that is in the directory.
    pub(crate) fn entries(&self) -> Result<Vec<String>, FactoryError> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(host("read", &self.0))?,
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.collect())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Waits until nobody else makes or destroys templates here. The lock is on the directory above: the store's own may be
    /// hidden by a mount, or go.
    ///
    /// # Errors
    /// [`FactoryError::Host`]
    pub fn lock(&self) -> Result<Locked, FactoryError> {
        let above = self.0.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(above).map_err(host("make", above))?;
        let directory = File::open(above).map_err(host("open", above))?;
        let lock =
            Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| host("lock", above)(errno.into()))?;
        Ok(Locked {
            store: self.clone(),
            _lock: lock,
        })
    }

    /// The directory in which a template is made.
    pub fn half_made(&self) -> PathBuf {
        self.0.join(HALF_MADE)
    }
}

/// The store, for one process alone.
#[derive(Debug)]
pub struct Locked {
    store: Store,
    _lock: Flock<File>,
}

impl Locked {
    /// Makes room for a template: an empty directory. What another maker has left there is removed.
    ///
    /// # Errors
    /// [`FactoryError::Host`]
    pub fn begin(&self) -> Result<HalfMade, FactoryError> {
        let path = &self.store.0;
        memory::settle(path).map_err(host("make a place in memory of", path))?;
        self.store.check_owner()?;
        let half_made = self.store.half_made();
        remove(&half_made)?;
        let made = std::fs::DirBuilder::new().mode(0o700).create(&half_made);
        made.map_err(host("make", &half_made))?;
        Ok(HalfMade {
            path: half_made,
            store: self.store.clone(),
            is_whole: false,
        })
    }

    /// Removes templates that nobody can use any more, and those beyond the number that is kept that were not used for
    /// longest; never the one of `recipe`. Failures that do not hold any more go, too.
    ///
    /// # Errors
    /// [`FactoryError::Host`]
    pub fn sweep(&self, recipe: &Recipe) -> Result<(), FactoryError> {
        self.store.forget_failures(|failure| failure.is_some())?;
        let mut others = Vec::new();
        for name in self.store.names()?.into_iter().filter(|name| *name != recipe.name()) {
            let path = self.store.0.join(&name);
            let used = read(&path).ok().filter(|(manifest, ..)| manifest.recipe.is_current());
            match used.and_then(|(.., file)| file.metadata().ok()?.modified().ok()) {
                Some(used) => others.push((used, path)),
                None => remove(&path)?,
            }
        }
        others.sort();
        let surplus = (others.len() + 1).saturating_sub(KEPT);
        others.iter().take(surplus).try_for_each(|(_, path)| remove(path))
    }

    /// Removes everything that is ours, the mount and the directory.
    ///
    /// # Errors
    /// [`FactoryError::Host`]
    pub fn destroy(self) -> Result<(), FactoryError> {
        let path = &self.store.0;
        for name in self.store.names()? {
            remove(&path.join(name))?;
        }
        remove(&self.store.half_made())?;
        self.store.forget_failures(|_| false)?;
        memory::leave(path).map_err(host("remove", path))
    }
}

/// A template that is being made. Dropping it removes it.
#[derive(Debug)]
pub struct HalfMade {
    path: PathBuf,
    store: Store,
    is_whole: bool,
}

impl HalfMade {
    /// The directory, which may hold other things while the template is made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be written.
    pub fn files(&self) -> TemplateFiles {
        TemplateFiles {
            memory: self.path.join(MEMORY),
            state: self.path.join(STATE),
        }
    }

    /// It is whole: from now on it is found by its recipe, and earlier failures are forgotten.
    ///
    /// # Errors
    /// [`FactoryError::Host`]; it is removed then.
    pub fn finish(mut self, recipe: &Recipe) -> Result<(), FactoryError> {
        let path = self.path.clone();
        let mut template = files(&path).map_err(host("open what was made in", &path))?;
        let manifest = Manifest::of(recipe.clone(), &mut template).map_err(host("read what was made in", &path))?;
        let file = path.join(MANIFEST);
        let text = serde_json::to_vec(&manifest).map_err(|error| host("write", &file)(error.into()))?;
        std::fs::write(&file, text).map_err(host("write", &file))?;
        let whole = self.store.0.join(recipe.name());
        remove(&whole)?;
        std::fs::rename(&path, &whole).map_err(host("rename", &path))?;
        self.is_whole = true;
        self.store.forget_failure(&recipe.name())
    }
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        if !self.is_whole
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "a template that was not made is left");
        }
    }
}

fn files(directory: &Path) -> io::Result<Template> {
    Ok(Template {
        memory: File::open(directory.join(MEMORY))?,
        state: File::open(directory.join(STATE))?,
    })
}

/// What is written down of the template in `directory`, its files, and the file in which it is written.
fn read(directory: &Path) -> Result<(Manifest, Template, File), String> {
    use std::io::Read;
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(directory.join(MANIFEST)).map_err(unreadable)?;
    let mut bytes = Vec::new();
    (&file)
        .take(MANIFEST_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let manifest = Manifest::parse(&bytes).map_err(|why| format!("{MANIFEST}: {why}"))?;
    Ok((manifest, files(directory).map_err(unreadable)?, file))
}

/// Without what is written down it is none, so that goes first.
fn remove(directory: &Path) -> Result<(), FactoryError> {
    let _ = std::fs::remove_file(directory.join(MANIFEST));
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(host("remove", directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
