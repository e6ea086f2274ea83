//! One file's text becomes a flat list of sections and entries, each with its line.
//!
//! Knows TOML, but no key of it.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place};
use crate::value::Value;

/// A thing in a file, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    /// A table that holds entries of its own.
    Section {
        /// With its parents: `hypervisor.qemu`.
        name: String,
        place: Place,
    },
    Entry(Entry),
}

/// `key = value`
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Empty at the top of the file.
    pub section: String,
    pub key: String,
    pub value: Value,
    pub place: Place,
}

/// # Errors
/// [`ConfigError::Syntax`]
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Item>, ConfigError> {
    let place = |offset: usize| Place::Line {
        file: file.to_owned(),
        line: line_of(text, offset),
    };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().map_or(0, |span| span.start)),
        reason: error.message().trim().to_owned(),
    })?;
    let mut found = Vec::new();
    flatten("", table.get_ref(), &mut found);
    found.sort_by_key(|(offset, _)| *offset);
    Ok(found
        .into_iter()
        .map(|(offset, thing)| match thing {
            Thing::Section(name) => Item::Section {
                name,
                place: place(offset),
            },
            Thing::Entry(section, key, value) => Item::Entry(Entry {
                section,
                key,
                value,
                place: place(offset),
            }),
        })
        .collect())
}

enum Thing {
    Section(String),
    Entry(String, String, Value),
}

/// Notes everything of `table` with its offset. The order of a table is not that of its text.
fn flatten(section: &str, table: &DeTable<'_>, found: &mut Vec<(usize, Thing)>) {
    for (key, value) in table.iter() {
        let offset = key.span().start;
        match value.get_ref() {
            DeValue::Table(inner) => {
                let name = if section.is_empty() {
                    key.get_ref().to_string()
                } else {
                    format!("{section}.{}", key.get_ref())
                };
                let only_sections = inner
                    .iter()
                    .all(|(_, value)| matches!(value.get_ref(), DeValue::Table(_)));
                if inner.is_empty() || !only_sections {
                    found.push((offset, Thing::Section(name.clone())));
                }
                flatten(&name, inner, found);
            }
            other => found.push((
                offset,
                Thing::Entry(section.to_owned(), key.get_ref().to_string(), convert(other)),
            )),
        }
    }
}

fn convert(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Other(number.to_string()),
        },
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(values) => Value::List(values.iter().map(Spanned::get_ref).map(convert).collect()),
        DeValue::Table(_) => Value::Other("a table".to_owned()),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}
