//! Fragments of a kernel's configuration: what is asked for, line by line, and whether a finished configuration holds it.
//!
//! The kernel's own configurator drops silently what it does not know or cannot do. Here every line of a fragment is
//! looked for in what came out, and one that does not hold is an error that names it. Pure, but for [`known_options`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What every guest needs, built in.
const MIN: &str = include_str!("../../kernel/min.config");
/// What full workloads want on top of it.
const FULL: &str = include_str!("../../kernel/full.config");

/// Why a fragment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line that is none of a configuration.
    #[error("{file}:{line}: {text:?} is neither CONFIG_NAME=VALUE nor \"# CONFIG_NAME is not set\"")]
    Syntax {
        /// The fragment.
        file: String,
        /// Its line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// An option that stands twice in the same fragment.
    #[error("{file}:{line}: {option} stands in line {first} already")]
    Twice {
        /// The fragment.
        file: String,
        /// The second line.
        line: usize,
        /// The option.
        option: String,
        /// The first line.
        first: usize,
    },
    /// Lines that do not hold in the configuration that came out.
    #[error("{}", lines(unmet))]
    Unmet {
        /// One for each line.
        unmet: Vec<Unmet>,
    },
}

/// A line that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Unmet {
    /// What was asked for.
    pub demand: Demand,
    /// What came out; `None` where the kernel has no such option at all.
    pub found: Option<Value>,
}

/// What an option is set to: the text after `=`, or nothing.
pub type Value = Option<String>;

/// What a line of a fragment asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// With its `CONFIG_`.
    pub option: String,
    /// To be.
    pub value: Value,
    /// The fragment.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
}

/// Demands of several fragments, of which later ones replace earlier ones; by option.
#[derive(Clone, Debug, Default)]
pub struct Demands(BTreeMap<String, Demand>);

impl Demands {
    /// Reads the fragments called `names`: `min`, `full` (which holds `min`), or else files.
    ///
    /// # Errors
    /// See [`FragmentError`].
    pub fn read(names: &[String]) -> Result<Self, FragmentError> {
        let mut all = Self::default();
        for name in names {
            match name.as_str() {
                "min" => all.add("min.config", MIN)?,
                "full" => {
                    all.add("min.config", MIN)?;
                    all.add("full.config", FULL)?;
                }
                file => {
                    let text = std::fs::read_to_string(file).map_err(|source| FragmentError::Read {
                        path: file.into(),
                        source,
                    })?;
                    all.add(file, &text)?;
                }
            }
        }
        Ok(all)
    }

    /// Adds those of one more fragment.
    ///
    /// # Errors
    /// [`FragmentError::Syntax`], [`FragmentError::Twice`]
    fn add(&mut self, file: &str, text: &str) -> Result<(), FragmentError> {
        let mut own: BTreeMap<String, Demand> = BTreeMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            if is_remark(text) {
                continue;
            }
            let (option, value) = parse(text).ok_or_else(|| FragmentError::Syntax {
                file: file.to_owned(),
                line,
                text: text.to_owned(),
            })?;
            if let Some(first) = own.get(&option) {
                return Err(FragmentError::Twice {
                    file: file.to_owned(),
                    line,
                    option,
                    first: first.line,
                });
            }
            let demand = Demand {
                option: option.clone(),
                value,
                file: file.to_owned(),
                line,
            };
            own.insert(option, demand);
        }
        self.0.extend(own);
        Ok(())
    }

    /// All of them as one fragment, in order of the options, without remarks.
    pub fn render(&self) -> String {
        let line = |demand: &Demand| match &demand.value {
            Some(value) => format!("{}={value}\n", demand.option),
            None => format!("# {} is not set\n", demand.option),
        };
        self.0.values().map(line).collect()
    }

    /// Accepts a finished configuration in which all of them hold. `known` are the options that the kernel has.
    ///
    /// # Errors
    /// [`FragmentError::Unmet`]
    pub fn check(&self, config: &str, known: &BTreeSet<String>) -> Result<(), FragmentError> {
        let found: BTreeMap<String, Value> = config.lines().filter_map(parse).collect();
        let unmet: Vec<Unmet> = self
            .0
            .values()
            .filter_map(|demand| {
                let is_known = known.contains(&demand.option);
                let value = found.get(&demand.option).cloned().flatten();
                (!is_known || value != demand.value).then(|| Unmet {
                    demand: demand.clone(),
                    found: is_known.then_some(value),
                })
            })
            .collect();
        if unmet.is_empty() {
            Ok(())
        } else {
            Err(FragmentError::Unmet { unmet })
        }
    }
}

fn lines(unmet: &[Unmet]) -> String {
    let said: Vec<String> = unmet.iter().map(Unmet::to_string).collect();
    said.join("\n")
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Demand {
            option,
            value,
            file,
            line,
        } = &self.demand;
        let say = |value: &Value| value.clone().unwrap_or_else(|| "not set".into());
        write!(f, "{file}:{line}: ")?;
        match &self.found {
            None => write!(f, "this kernel has no option {option}"),
            Some(found) => write!(
                f,
                "{option} is to be {} and came out as {}; see what it depends on, and who selects it",
                say(value),
                say(found)
            ),
        }
    }
}

/// Empty, or a comment that does not speak of an option.
fn is_remark(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || (line.starts_with('#') && !line.starts_with("# CONFIG_"))
}

/// What a line of a configuration says. `n` and "is not set" are the same.
fn parse(line: &str) -> Option<(String, Value)> {
    let line = line.trim();
    let (option, value) = match line.strip_prefix("# ") {
        Some(rest) => (rest.strip_suffix(" is not set")?, None),
        None => {
            let (option, value) = line.split_once('=')?;
            (option, Some(value).filter(|value| *value != "n"))
        }
    };
    let name = option.strip_prefix("CONFIG_")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && value != Some("")).then(|| (option.to_owned(), value.map(str::to_owned)))
}

/// The options that the kernel whose source is in `tree` has, on any architecture.
///
/// # Errors
/// [`FragmentError::Read`]
pub fn known_options(tree: &Path) -> Result<BTreeSet<String>, FragmentError> {
    let mut known = BTreeSet::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        let unreadable = |source| FragmentError::Read {
            path: directory.clone(),
            source,
        };
        for entry in std::fs::read_dir(&directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let kind = entry.file_type().map_err(unreadable)?;
            let path = entry.path();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with("Kconfig") {
                let text = std::fs::read(&path).map_err(|source| FragmentError::Read { path, source })?;
                known.extend(String::from_utf8_lossy(&text).lines().filter_map(declared));
            }
        }
    }
    Ok(known)
}

/// The option that a line of a Kconfig file begins to declare.
fn declared(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("config" | "menuconfig"), Some(name), None) => Some(format!("CONFIG_{name}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demands(fragments: &[(&str, &str)]) -> Result<Demands, FragmentError> {
        let mut all = Demands::default();
        for (file, text) in fragments {
            all.add(file, text)?;
        }
        Ok(all)
    }

    fn known(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| format!("CONFIG_{name}")).collect()
    }

    #[test]
    fn lines_say_what_is_to_be() {
        let all = demands(&[(
            "a",
            "# remark\n\n#\nCONFIG_B=y\n# CONFIG_A is not set\n  CONFIG_S=\"x y\"\nCONFIG_N=n\nCONFIG_H=0x10\n# -- more --\n",
        )])
        .unwrap();
        let expected = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_H=0x10\n# CONFIG_N is not set\nCONFIG_S=\"x y\"\n";
        assert_eq!(all.render(), expected);
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, expected) in [
            ("CONFIG_A=y\nFOO=y", "f:2: \"FOO=y\" is neither"),
            ("CONFIG_A", "f:1: \"CONFIG_A\" is neither"),
            ("CONFIG_A=", "f:1: \"CONFIG_A=\" is neither"),
            ("CONFIG_=y", "f:1: \"CONFIG_=y\" is neither"),
            ("CONFIG_A-B=y", "f:1: \"CONFIG_A-B=y\" is neither"),
            ("# CONFIG_A is unset", "f:1: \"# CONFIG_A is unset\" is neither"),
            (
                "CONFIG_A=y\n\n# CONFIG_A is not set",
                "f:3: CONFIG_A stands in line 1 already",
            ),
        ] {
            let error = demands(&[("f", text)]).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn later_fragments_replace_what_earlier_ones_say() {
        let all = demands(&[("a", "CONFIG_A=y\nCONFIG_B=y"), ("b", "CONFIG_A=n")]).unwrap();
        assert_eq!(all.render(), "# CONFIG_A is not set\nCONFIG_B=y\n");
    }

    #[test]
    fn what_does_not_hold_is_named_with_its_place() {
        let all = demands(&[
            (
                "a",
                "CONFIG_GOOD=y\nCONFIG_LOST=y\n# CONFIG_OFF is not set\nCONFIG_WORD=\"x\"",
            ),
            (
                "b",
                "CONFIG_TYPO=y\n# CONFIG_SELECTED is not set\n# CONFIG_GONE is not set\nCONFIG_LOST=y",
            ),
        ])
        .unwrap();
        let config = "CONFIG_GOOD=y\n# CONFIG_LOST is not set\nCONFIG_WORD=\"y\"\nCONFIG_SELECTED=y\n";
        let error = all
            .check(config, &known(&["GOOD", "LOST", "OFF", "WORD", "SELECTED"]))
            .unwrap_err();
        let advice = "; see what it depends on, and who selects it";
        let expected = [
            "b:3: this kernel has no option CONFIG_GONE".to_owned(),
            format!("b:4: CONFIG_LOST is to be y and came out as not set{advice}"),
            format!("b:2: CONFIG_SELECTED is to be not set and came out as y{advice}"),
            "b:1: this kernel has no option CONFIG_TYPO".to_owned(),
            format!("a:4: CONFIG_WORD is to be \"x\" and came out as \"y\"{advice}"),
        ];
        assert_eq!(error.to_string().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_configuration_that_holds_is_accepted() {
        let all = demands(&[("a", "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set")]).unwrap();
        let config = "#\n# Automatically generated\n#\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=y\n";
        all.check(config, &known(&["A", "B", "C"])).unwrap();
    }

    #[test]
    fn fragments_of_our_own_are_well_formed() {
        let min = Demands::read(&["min".into()]).unwrap();
        let full = Demands::read(&["full".into()]).unwrap();
        assert!(min.render().contains("CONFIG_PVH=y\n") && full.render().contains("CONFIG_PVH=y\n"));
        assert!(full.render().len() > min.render().len());
        for all in [min, full] {
            // What is built in needs no loading; a guest does not load anything else.
            assert!(all.render().contains("# CONFIG_MODULES is not set\n"));
            assert!(all.0.values().all(|demand| demand.value.as_deref() != Some("m")));
        }
    }

    #[test]
    fn options_are_found_wherever_the_kernel_declares_them() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("arch/x86")).unwrap();
        std::fs::write(tree.path().join("Kconfig"), "menuconfig A\n\tbool \"a\"\n# config B\n").unwrap();
        std::fs::write(
            tree.path().join("arch/x86/Kconfig.debug"),
            "  config C\n\tdepends on config D\n",
        )
        .unwrap();
        std::fs::write(tree.path().join("arch/x86/other"), "config E\n").unwrap();
        assert_eq!(known_options(tree.path()).unwrap(), known(&["A", "C"]));
    }
}
