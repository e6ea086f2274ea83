//! Finds the files, reads them, lays one over the other.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{ConfigError, Oddity, Warning};
use crate::file::{self, Item};
use crate::key::{self, Key};
use crate::known::{self, Standing};
use crate::settings::Config;

/// Environment variable that names a configuration file.
pub const ENVIRONMENT: &str = "KATA_CONF_FILE";

/// Where a configuration file is looked for, in this order, if nobody names one.
pub const SEARCH: [&str; 3] = [
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/configuration.toml",
];

/// Directory of drop-ins, beside the base file.
const DROP_INS: &str = "config.d";

/// [`SEARCH`] as [`Config::load`] takes it.
pub fn search_paths() -> Vec<PathBuf> {
    SEARCH.iter().map(PathBuf::from).collect()
}

impl Config {
    /// As [`load`](Self::load), with this process's environment and the places of [`SEARCH`].
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn find(explicit: Option<&Path>) -> Result<(Self, Vec<Warning>), ConfigError> {
        let env = std::env::var_os(ENVIRONMENT)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        Self::load(explicit, env.as_deref(), &search_paths())
    }

    /// Reads the configuration: the file `explicit` (from the command line), else `env` (from [`ENVIRONMENT`]), else the
    /// first of `search` that exists, else the defaults. The drop-ins `config.d/*.toml` beside the file are laid over it
    /// in the order of their names.
    ///
    /// # Errors
    /// [`ConfigError`] for a named file that cannot be read, for what is not TOML and for wrong values. Unknown keys are
    /// warnings.
    pub fn load(
        explicit: Option<&Path>,
        env: Option<&Path>,
        search: &[PathBuf],
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        if let Some((base, text)) = find(explicit, env, search)? {
            config.add(&base, &text, &mut warnings)?;
            for drop_in in drop_ins(&base)? {
                let text = read(&drop_in).map_err(unreadable(&drop_in, None))?;
                config.add(&drop_in, &text, &mut warnings)?;
            }
        }
        config.check()?;
        Ok((config, warnings))
    }

    /// What each key for itself does not tell.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match (&self.qemu.image, &self.qemu.initrd) {
            (Some(image), Some(initrd)) => Err(ConfigError::TwoRoots {
                image: image.clone(),
                initrd: initrd.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Lays the text of one file over what is there.
    fn add(&mut self, path: &Path, text: &str, warnings: &mut Vec<Warning>) -> Result<(), ConfigError> {
        for item in file::parse(path, text)? {
            match item {
                Item::Section { name, place } => {
                    warnings.extend(odd_section(name).map(|oddity| Warning { place, oddity }))
                }
                Item::Entry(entry) => match key::find(&entry.section, &entry.key) {
                    Some(Key { set, .. }) => set(self, &entry.value).map_err(|allowed| ConfigError::Value {
                        place: entry.place,
                        key: format!("{}.{}", entry.section, entry.key),
                        found: entry.value.to_string(),
                        allowed: allowed.0,
                    })?,
                    None => warnings.extend(odd_key(&entry).map(|oddity| Warning {
                        place: entry.place.clone(),
                        oddity,
                    })),
                },
            }
        }
        self.files.push(path.to_owned());
        Ok(())
    }
}

fn find(
    explicit: Option<&Path>,
    env: Option<&Path>,
    search: &[PathBuf],
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let named = explicit
        .map(|path| (path, "--kata-config"))
        .or(env.map(|path| (path, ENVIRONMENT)));
    if let Some((path, by)) = named {
        let text = read(path).map_err(unreadable(path, Some(by)))?;
        return Ok(Some((path.to_owned(), text)));
    }
    for path in search {
        match read(path) {
            Ok(text) => return Ok(Some((path.clone(), text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(path, None)(error)),
        }
    }
    Ok(None)
}

/// Reads a file, but neither waits for the writer of a fifo nor reads a device.
fn read(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    std::fs::read_to_string(path)
}

fn unreadable(file: &Path, asked_by: Option<&'static str>) -> impl FnOnce(io::Error) -> ConfigError {
    let file = file.to_owned();
    move |source| ConfigError::Read { file, asked_by, source }
}

fn drop_ins(base: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = base.with_file_name(DROP_INS);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(unreadable(&dir, None)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable(&dir, None))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn odd_section(section: String) -> Option<Oddity> {
    match known::section(&section) {
        Standing::Used => None,
        Standing::NotYet => Some(Oddity::SectionNotYet { section }),
        Standing::Unknown => Some(Oddity::UnknownSection { section }),
    }
}

/// Keys of sections that are odd themselves are not reported one by one.
fn odd_key(entry: &file::Entry) -> Option<Oddity> {
    let key = if entry.section.is_empty() {
        entry.key.clone()
    } else {
        format!("{}.{}", entry.section, entry.key)
    };
    if known::section(&entry.section) != Standing::Used {
        return entry
            .section
            .is_empty()
            .then_some(Oddity::UnknownKey { key, similar: None });
    }
    match known::default_of(&entry.section, &entry.key) {
        // What asks for nothing else than is done anyway needs no warning.
        Some(default) if default == entry.value.to_string() => None,
        Some(_) => Some(Oddity::KeyNotYet { key }),
        None => Some(Oddity::UnknownKey {
            key,
            similar: known::similar(&entry.section, &entry.key),
        }),
    }
}
