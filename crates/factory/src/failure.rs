//! What is remembered of templates that could not be made, so that not every pod pays for the same failure: a file beside the
//! templates, with the recipe's name and the reason in it. It holds for a while, and only for what failed: another kernel or
//! configuration is another recipe.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::store::{FactoryError, host};
use crate::{Recipe, Store, recipe};

/// How long a failure is held against a recipe.
const HOLDS: Duration = Duration::from_secs(5 * 60);

/// What follows the recipe's name in that of the file.
const SUFFIX: &str = ".failed";

/// The longest reason that is kept, bytes.
const REASON_LIMIT: usize = 2 << 10;

/// A template that could not be made a while ago.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it could not be made, which is tried again in {} s: {why}", retry_in.as_secs())]
pub struct Failure {
    /// Where it would be.
    pub path: PathBuf,
    /// Why, for people, on one line.
    pub why: String,
    /// How long nobody tries.
    pub retry_in: Duration,
}

impl Store {
    /// Writes down that no template of this recipe could be made.
    ///
    /// # Errors
    /// [`FactoryError`]; a store that others can write to is left alone.
    pub fn note_failure(&self, recipe: &Recipe, why: &str) -> Result<(), FactoryError> {
        self.check_owner()?;
        self.forget_failures(|failure| failure.is_some())?;
        let path = self.failure_path(&recipe.name());
        // Some of the words are a guest's.
        let mut text = why.replace(char::is_control, " ");
        text.truncate(text.floor_char_boundary(REASON_LIMIT));
        std::fs::write(&path, text).map_err(host("write", &path))
    }

    /// The last failure with this recipe, while it holds.
    pub fn failure(&self, recipe: &Recipe) -> Option<Failure> {
        self.check_owner().ok()?;
        self.read_failure(&recipe.name())
    }

    /// All failures that still hold, by the name of the recipe.
    ///
    /// # Errors
    /// [`FactoryError::Host`]; that there is no store is no error.
    pub fn failures(&self) -> Result<Vec<Failure>, FactoryError> {
        let names = self.failed_names()?;
        Ok(names.iter().filter_map(|name| self.read_failure(name)).collect())
    }

    /// Removes what is written down of failures but for those that are to `stay`, of which it is told whether they still hold.
    pub(crate) fn forget_failures(&self, stay: impl Fn(Option<&Failure>) -> bool) -> Result<(), FactoryError> {
        for name in self.failed_names()? {
            if !stay(self.read_failure(&name).as_ref()) {
                self.forget_failure(&name)?;
            }
        }
        Ok(())
    }

    pub(crate) fn forget_failure(&self, name: &str) -> Result<(), FactoryError> {
        let path = self.failure_path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(host("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn failed_names(&self) -> Result<Vec<String>, FactoryError> {
        let mut names: Vec<String> = self
            .entries()?
            .iter()
            .filter_map(|entry| entry.strip_suffix(SUFFIX))
            .filter(|name| recipe::is_name(name))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    fn failure_path(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}{SUFFIX}"))
    }

    fn read_failure(&self, name: &str) -> Option<Failure> {
        let file = File::open(self.failure_path(name)).ok()?;
        // One from the future is none: the clock was set.
        let age = SystemTime::now().duration_since(file.metadata().ok()?.modified().ok()?);
        let retry_in = HOLDS.checked_sub(age.ok()?)?;
        let mut why = String::new();
        file.take(REASON_LIMIT as u64).read_to_string(&mut why).ok()?;
        Some(Failure {
            path: Path::new(self.path()).join(name),
            why,
            retry_in,
        })
    }
}
