//! The kernel's settings of KSM, read and written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Pace;
use crate::error::{KsmError, host};

/// Merged pages are taken apart, and no new ones merged.
const UNMERGE: u32 = 2;

/// The kernel chooses the number of pages by itself with another advisor, and refuses ours.
const NO_ADVISOR: &str = "none";

/// What is changed of the kernel's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// 0: nothing is looked for, what is merged stays; 1: it is looked for; [`UNMERGE`].
    run: u32,
    pages_to_scan: u32,
    sleep_millisecs: u32,
    /// Not in kernels before 6.8.
    advisor_mode: Option<String>,
}

impl Settings {
    /// As they were before, but what we have merged stays so.
    pub(crate) fn at_rest(&self) -> Self {
        Self {
            run: if self.run == UNMERGE { 0 } else { self.run },
            ..self.clone()
        }
    }
}

/// The directory of the settings.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
    /// `/proc/meminfo`.
    memory: PathBuf,
}

impl Kernel {
    /// # Errors
    /// [`KsmError::Unknown`]
    pub(crate) fn at(directory: &Path, memory: &Path) -> Result<Self, KsmError> {
        let path = directory.join("run");
        if !path.exists() {
            return Err(KsmError::Unknown { path });
        }
        Ok(Self {
            directory: directory.to_owned(),
            memory: memory.to_owned(),
        })
    }

    /// # Errors
    /// [`KsmError`]
    pub(crate) fn read(&self) -> Result<Settings, KsmError> {
        Ok(Settings {
            run: self.number("run")?,
            pages_to_scan: self.number("pages_to_scan")?,
            sleep_millisecs: self.number("sleep_millisecs")?,
            advisor_mode: self.advisor()?,
        })
    }

    /// # Errors
    /// [`KsmError`]; some may have been written.
    pub(crate) fn write(&self, settings: &Settings) -> Result<(), KsmError> {
        let advisor = settings.advisor_mode.as_deref();
        if advisor.is_some() {
            self.set("advisor_mode", NO_ADVISOR)?;
        }
        self.set("pages_to_scan", &settings.pages_to_scan.to_string())?;
        self.set("sleep_millisecs", &settings.sleep_millisecs.to_string())?;
        if let Some(advisor) = advisor.filter(|mode| *mode != NO_ADVISOR) {
            self.set("advisor_mode", advisor)?;
        }
        self.set("run", &settings.run.to_string())
    }

    /// What a pace means now; at rest, what was `before`.
    ///
    /// # Errors
    /// [`KsmError`]
    pub(crate) fn settings_for(&self, pace: Pace, before: &Settings) -> Result<Settings, KsmError> {
        let Some(effort) = pace.effort() else {
            return Ok(before.at_rest());
        };
        let pages = (self.anonymous_pages()? / effort.divisor).max(1);
        Ok(Settings {
            run: 1,
            pages_to_scan: u32::try_from(pages).unwrap_or(u32::MAX),
            sleep_millisecs: effort.sleep_millis,
            advisor_mode: before.advisor_mode.as_ref().map(|_| NO_ADVISOR.to_owned()),
        })
    }

    fn anonymous_pages(&self) -> Result<u64, KsmError> {
        let text = fs::read_to_string(&self.memory).map_err(host("read", &self.memory))?;
        let line = text.lines().find_map(|line| line.strip_prefix("AnonPages:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let kib = kib.ok_or_else(|| KsmError::Strange {
            path: self.memory.clone(),
            text: line.unwrap_or_default().to_owned(),
            expected: "a line of AnonPages",
        })?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        Ok(kib.saturating_mul(1024) / u64::try_from(page.unwrap_or(4096)).unwrap_or(4096))
    }

    /// The one in brackets of all that there are.
    fn advisor(&self) -> Result<Option<String>, KsmError> {
        let path = self.directory.join("advisor_mode");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(host("read", &path))?,
        };
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        match chosen {
            Some((mode, _)) => Ok(Some(mode.to_owned())),
            None => Err(KsmError::Strange {
                path,
                text,
                expected: "a word in brackets",
            }),
        }
    }

    fn number(&self, name: &str) -> Result<u32, KsmError> {
        let path = self.directory.join(name);
        let text = fs::read_to_string(&path).map_err(host("read", &path))?;
        text.trim().parse().map_err(|_| KsmError::Strange {
            path,
            text: text.clone(),
            expected: "a number",
        })
    }

    fn set(&self, name: &str, value: &str) -> Result<(), KsmError> {
        let path = self.directory.join(name);
        fs::write(&path, value).map_err(host("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(files: &[(&str, &str)]) -> (tempfile::TempDir, Kernel) {
        let place = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(place.path().join(name), text).expect("file");
        }
        let kernel = Kernel::at(place.path(), &place.path().join("meminfo")).expect("it is there");
        (place, kernel)
    }

    const USUAL: [(&str, &str); 5] = [
        ("run", "0\n"),
        ("pages_to_scan", "100\n"),
        ("sleep_millisecs", "20\n"),
        ("advisor_mode", "none [scan-time]\n"),
        ("meminfo", "MemTotal:  9 kB\nAnonPages:     4000000 kB\n"),
    ];

    #[test]
    fn a_pace_is_a_share_of_the_anonymous_pages() {
        let (_place, kernel) = kernel(&USUAL);
        let before = kernel.read().expect("settings");
        let expect = |pace, pages_to_scan, sleep_millisecs| {
            let expected = Settings {
                run: 1,
                pages_to_scan,
                sleep_millisecs,
                advisor_mode: Some("none".into()),
            };
            assert_eq!(kernel.settings_for(pace, &before).expect("settings"), expected);
        };
        expect(Pace::Aggressive, 100_000, 1);
        expect(Pace::Standard, 10_000, 10);
        expect(Pace::Slow, 2_000, 100);
        assert_eq!(kernel.settings_for(Pace::Rest, &before).expect("settings"), before);
        let unmerging = Settings {
            run: 2,
            ..before.clone()
        };
        assert_eq!(kernel.settings_for(Pace::Rest, &unmerging).expect("settings"), before);
    }

    #[test]
    fn what_is_written_is_what_was_read() {
        for count in [3, 4] {
            let (place, kernel) = kernel(&USUAL[..count]);
            let before = kernel.read().expect("settings");
            assert_eq!(before.advisor_mode.is_some(), count == 4);
            kernel.write(&before).expect("written");
            let text = |name: &str| fs::read_to_string(place.path().join(name)).ok();
            assert_eq!(text("run").as_deref(), Some("0"));
            assert_eq!(text("pages_to_scan").as_deref(), Some("100"));
            assert_eq!(text("advisor_mode").as_deref(), (count == 4).then_some("scan-time"));
        }
    }

    #[test]
    fn what_is_not_there_or_not_understood_is_named() {
        let (place, kernel) = kernel(&[("run", "0"), ("pages_to_scan", "many")]);
        let error = kernel.read().expect_err("no number").to_string();
        assert!(
            error.ends_with("pages_to_scan says \"many\", where a number was expected"),
            "{error}"
        );
        let error = kernel.anonymous_pages().expect_err("nothing").to_string();
        assert!(
            error.starts_with("cannot read ") && error.ends_with("meminfo"),
            "{error}"
        );
        fs::remove_file(place.path().join("run")).expect("remove");
        let error = Kernel::at(place.path(), place.path()).expect_err("no KSM").to_string();
        assert!(error.contains("CONFIG_KSM"), "{error}");
    }
}
