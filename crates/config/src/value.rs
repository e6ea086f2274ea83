//! Values, and what a key takes: each reader says in words what it would have accepted.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A value as TOML knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Value>),
    /// What no key takes, as written.
    Other(String),
}

/// What a key takes, in words that follow "must be".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowed(pub String);

fn allowed<T>(words: impl Into<String>) -> Result<T, Allowed> {
    Err(Allowed(words.into()))
}

impl Value {
    pub(crate) fn boolean(&self) -> Result<bool, Allowed> {
        match self {
            Self::Boolean(yes) => Ok(*yes),
            _ => allowed("true or false"),
        }
    }

    pub(crate) fn text(&self) -> Result<String, Allowed> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            _ => allowed("a text in quotes"),
        }
    }

    /// An absolute path; the empty text is `None`.
    pub(crate) fn optional_path(&self) -> Result<Option<PathBuf>, Allowed> {
        match self {
            Self::Text(text) if text.is_empty() => Ok(None),
            Self::Text(text) if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
            _ => allowed("an absolute path in quotes"),
        }
    }

    pub(crate) fn path(&self) -> Result<PathBuf, Allowed> {
        match self.optional_path()? {
            Some(path) => Ok(path),
            None => allowed("an absolute path in quotes"),
        }
    }

    pub(crate) fn texts(&self) -> Result<Vec<String>, Allowed> {
        let words = "a list of texts in quotes";
        match self {
            Self::List(values) => values
                .iter()
                .map(|value| value.text().or_else(|_| allowed(words)))
                .collect(),
            _ => allowed(words),
        }
    }

    /// A whole number from `least` to `most`; `unit` is part of the words.
    pub(crate) fn number(&self, unit: &str, least: u32, most: u32) -> Result<u32, Allowed> {
        if let Self::Integer(number) = self
            && let Ok(number) = u32::try_from(*number)
            && (least..=most).contains(&number)
        {
            return Ok(number);
        }
        match most {
            u32::MAX => allowed(format!("a whole number of {unit}, at least {least}")),
            _ => allowed(format!("a whole number of {unit} from {least} to {most}")),
        }
    }

    pub(crate) fn seconds(&self) -> Result<Duration, Allowed> {
        self.number("seconds", 1, 86_400)
            .map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// One of the words that `choices` pair with their meaning.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Allowed> {
        if let Self::Text(text) = self
            && let Some((_, meaning)) = choices.iter().find(|(word, _)| word == text)
        {
            return Ok(*meaning);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        allowed(format!("one of {}", words.join(", ")))
    }
}

/// As TOML writes it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{}", toml::Value::Float(*number)),
            Self::Boolean(yes) => write!(f, "{yes}"),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// How a setting is written in a file; `None` if it is not set.
pub(crate) trait Shown {
    fn shown(&self) -> Option<Value>;
}

impl Shown for bool {
    fn shown(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

impl Shown for u32 {
    fn shown(&self) -> Option<Value> {
        Some(Value::Integer((*self).into()))
    }
}

impl Shown for String {
    fn shown(&self) -> Option<Value> {
        Some(Value::Text(self.clone()))
    }
}

impl Shown for PathBuf {
    fn shown(&self) -> Option<Value> {
        Some(Value::Text(self.to_string_lossy().into_owned()))
    }
}

impl Shown for Duration {
    fn shown(&self) -> Option<Value> {
        i64::try_from(self.as_secs()).ok().map(Value::Integer)
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> Option<Value> {
        self.iter().map(T::shown).collect::<Option<_>>().map(Value::List)
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Option<Value> {
        self.as_ref().and_then(T::shown)
    }
}
