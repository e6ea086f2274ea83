//! The configuration in force, as TOML: for people and for `kata-runtime env`.

use std::fmt::Write;

use crate::key::KEYS;
use crate::settings::Config;

impl Config {
    /// Every key that has an effect with the value in force. What is decided from the host is a comment. Reading the
    /// text again gives the same configuration.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = key.section;
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{gap}[{section}]");
            }
            let _ = match (key.get)(self) {
                Some(value) => writeln!(text, "{} = {value}", key.name),
                None => writeln!(text, "# {} is decided from the host", key.name),
            };
        }
        text
    }
}
