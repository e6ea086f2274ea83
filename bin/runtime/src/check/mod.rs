//! What a host must offer, looked at one by one. Nothing is changed and nothing is left behind.
//!
//! A [`Finding`] says what was found, what it is for and what mends it; the [`Report`] of all of them decides the exit
//! code. Each room looks at one side of the host.

mod assets;
mod host;
mod programs;
mod vmm;

pub use programs::SHIM;

use kata_config::Config;
use serde::Serialize;

use crate::cli::Globals;
use crate::settings;

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There, and good.
    Ok,
    /// Sandboxes run without it, but worse.
    Degraded,
    /// Sandboxes do not run without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its short name, stable.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What it is for.
    pub purpose: &'static str,
    /// The command that mends it, or what else does; only where something is to be mended.
    pub remedy: Option<String>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether sandboxes can run.
    pub ok: bool,
    /// In the order in which they were looked at.
    pub checks: Vec<Finding>,
}

/// A thing that is to be looked at.
struct Subject {
    name: &'static str,
    purpose: &'static str,
}

impl Subject {
    fn ok(&self, detail: impl Into<String>) -> Finding {
        self.finding(State::Ok, detail.into(), None)
    }

    fn degraded(&self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(State::Degraded, detail.into(), Some(remedy.into()))
    }

    fn missing(&self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(State::Missing, detail.into(), Some(remedy.into()))
    }

    fn finding(&self, state: State, detail: String, remedy: Option<String>) -> Finding {
        Finding {
            name: self.name,
            state,
            detail,
            purpose: self.purpose,
            remedy,
        }
    }
}

/// Looks at everything.
pub fn survey(globals: &Globals) -> Report {
    let subject = Subject {
        name: "configuration",
        purpose: "how sandboxes are made",
    };
    let (config, finding) = match settings::load(globals) {
        Ok(config) => {
            let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
            let detail = if files.is_empty() {
                "defaults, there is no file".to_owned()
            } else {
                files.join(", ")
            };
            (config, subject.ok(detail))
        }
        // The rest is looked at with the defaults: one wrong key should not hide everything else.
        Err(error) => (
            Config::default(),
            subject.missing(format!("{error:#}"), "correct the line that is named"),
        ),
    };
    let accelerator = kata_qemu::probe();
    let mut checks = vec![finding, vmm::accelerator(&accelerator)];
    let guest = assets::look(&config);
    checks.extend([vmm::vmm(&config), vmm::firmware(&config)]);
    checks.push(vmm::share(&config, guest.has_9p));
    checks.push(vmm::vsock(&config));
    checks.extend(guest.findings);
    checks.extend(host::look(
        globals,
        settings::guest_memory_mib(&config, accelerator.accelerator),
    ));
    checks.extend(programs::look());
    Report::of(checks)
}

impl Report {
    fn of(checks: Vec<Finding>) -> Self {
        let ok = checks.iter().all(|finding| finding.state < State::Missing);
        Self { ok, checks }
    }

    /// Whether the host passes; strictly, nothing may be degraded either.
    pub fn passes(&self, strict: bool) -> bool {
        self.checks
            .iter()
            .all(|finding| finding.state == State::Ok || (!strict && finding.state == State::Degraded))
    }

    /// For people: a line for each thing, and below it what is to be done.
    pub fn table(&self, verbose: bool) -> String {
        let width = self.checks.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding {
            name,
            state,
            detail,
            purpose,
            remedy,
        } in &self.checks
        {
            let word = match state {
                State::Ok => "ok",
                State::Degraded => "degraded",
                State::Missing => "missing",
            };
            text.push_str(&format!("{word:<8}  {name:<width$}  {detail}\n"));
            let indent = " ".repeat(width + 12);
            if verbose || *state != State::Ok {
                text.push_str(&format!("{indent}for: {purpose}\n"));
            }
            if let Some(remedy) = remedy {
                text.push_str(&format!("{indent}mend: {remedy}\n"));
            }
        }
        let count = |state| self.checks.iter().filter(|finding| finding.state == state).count();
        let verdict = if self.ok {
            "this host can run sandboxes"
        } else {
            "this host cannot run sandboxes"
        };
        text.push_str(&format!(
            "{verdict}: {} missing, {} degraded\n",
            count(State::Missing),
            count(State::Degraded)
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject = Subject {
        name: "thing",
        purpose: "the work",
    };

    #[test]
    fn only_what_is_missing_fails_unless_it_is_strict() {
        let (ok, degraded, missing) = (SUBJECT.ok("a"), SUBJECT.degraded("b", "c"), SUBJECT.missing("d", "e"));
        for (checks, passes, passes_strictly) in [
            (vec![], true, true),
            (vec![ok.clone()], true, true),
            (vec![ok.clone(), degraded.clone()], true, false),
            (vec![missing.clone(), ok.clone()], false, false),
            (vec![degraded, missing], false, false),
        ] {
            let report = Report::of(checks);
            assert_eq!(
                (report.passes(false), report.passes(true)),
                (passes, passes_strictly),
                "{report:?}"
            );
            assert_eq!(report.ok, passes);
        }
    }

    #[test]
    fn the_table_says_what_mends() {
        let report = Report::of(vec![
            SUBJECT.ok("fine"),
            SUBJECT.missing("gone", "apt-get install thing"),
        ]);
        let expected = "ok        thing  fine\n\
                        missing   thing  gone\n                 for: the work\n                 mend: apt-get install thing\n\
                        this host cannot run sandboxes: 1 missing, 0 degraded\n";
        assert_eq!(report.table(false), expected);
        assert!(report.table(true).contains("fine\n                 for: the work\n"));
    }

    #[test]
    fn the_json_is_stable() {
        let report = Report::of(vec![SUBJECT.degraded("slow", "kvm")]);
        let expected = serde_json::json!({"ok": true, "checks": [
            {"name": "thing", "state": "degraded", "detail": "slow", "purpose": "the work", "remedy": "kvm"},
        ]});
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }
}
