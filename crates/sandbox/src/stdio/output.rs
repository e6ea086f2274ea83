//! Where a client wants a process's output: a fifo, a file, or a program that logs it. Clients say so in a URI, as
//! containerd's own shim understands it. Refuses what it does not know, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StdioError;

/// A place for output. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    uri: Arc<str>,
    place: Arc<Place>,
}

/// What a URI means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `PATH` or `fifo://PATH`: a fifo that is there.
    Fifo(PathBuf),
    /// `file://PATH`: a file, made with its directory if it is not there, to be appended to.
    File(PathBuf),
    /// `binary://PATH?KEY=VALUE&…`
    Program(Program),
}

/// A program that reads the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Each key of the URI and its value, if that is not empty.
    pub arguments: Vec<String>,
    /// Keys that begin with `env.`, without that.
    pub environment: BTreeMap<String, String>,
}

impl Output {
    /// Understands what a client says of `stream`; nothing said is no place.
    ///
    /// # Errors
    /// [`StdioError::Uri`]
    pub(super) fn parse(stream: &'static str, uri: &str) -> Result<Option<Self>, StdioError> {
        if uri.is_empty() {
            return Ok(None);
        }
        let wrong = |reason: &str| StdioError::Uri {
            stream,
            uri: uri.to_owned(),
            reason: reason.to_owned(),
        };
        let place = match split_scheme(uri) {
            None => Place::Fifo(uri.into()),
            Some(("fifo", rest)) => Place::Fifo(path(rest).map_err(wrong)?),
            Some(("file", rest)) => Place::File(path(rest).map_err(wrong)?),
            Some(("binary", rest)) => Place::Program(Program::parse(rest).map_err(wrong)?),
            Some(_) => return Err(wrong("known are a path, fifo://, file:// and binary://")),
        };
        Ok(Some(Self {
            uri: uri.into(),
            place: Arc::new(place),
        }))
    }

    /// A fifo.
    pub fn fifo(path: &Path) -> Self {
        Self {
            uri: path.display().to_string().into(),
            place: Arc::new(Place::Fifo(path.to_owned())),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

/// As the client said it.
impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.uri)
    }
}

impl Program {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let mut arguments = Vec::new();
        let mut environment = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key, true)?, decode(value, true)?);
            if let Some(name) = key.strip_prefix("env.") {
                environment.insert(name.to_owned(), value);
            } else {
                arguments.push(key);
                if !value.is_empty() {
                    arguments.push(value);
                }
            }
        }
        Ok(Self {
            path: path(place)?,
            arguments,
            environment,
        })
    }
}

/// Scheme and rest, if the text is a URI and not just a path.
pub(super) fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let of_a_scheme = |letter: u8| letter.is_ascii_alphanumeric() || b"+-.".contains(&letter);
    (scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(of_a_scheme))
        .then_some((scheme, rest))
}

/// The path of a URI, which names no other host.
pub(super) fn path(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("the path must be absolute, after three slashes");
    }
    Ok(decode(text, false)?.into())
}

/// Takes the percent signs back, and in a query the plus signs.
fn decode(text: &str, in_query: bool) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err("a percent sign without two hexadecimal digits");
                };
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
            }
            b'+' if in_query => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    if bytes.contains(&0) {
        return Err("a zero byte");
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(uri: &str) -> Place {
        let output = Output::parse("stdout", uri).expect(uri).expect(uri);
        assert_eq!(output.to_string(), uri);
        Place::clone(&output.place)
    }

    #[test]
    fn every_kind_of_place_is_understood() {
        assert_eq!(Output::parse("stdout", "").expect("nothing"), None);
        assert_eq!(place("/run/a b"), Place::Fifo("/run/a b".into()));
        assert_eq!(place("/a%20://b"), Place::Fifo("/a%20://b".into()));
        assert_eq!(place("fifo:///run/a%20b"), Place::Fifo("/run/a b".into()));
        assert_eq!(place("file:///var/log/x+y"), Place::File("/var/log/x+y".into()));
        let program = Program {
            path: "/usr/bin/log er".into(),
            arguments: ["--tag", "a b&c", "verbose"].map(String::from).to_vec(),
            environment: BTreeMap::from([("LEVEL".into(), "2".into())]),
        };
        assert_eq!(
            place("binary:///usr/bin/log%20er?--tag=a+b%26c&env.LEVEL=2&verbose="),
            Place::Program(program)
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (uri, reason) in [
            ("http://x/y", "known are"),
            ("attachablebinary:///x", "known are"),
            ("file://host/x", "absolute"),
            ("file://", "absolute"),
            ("binary://?a=b", "absolute"),
            ("fifo:///a%2", "percent"),
            ("fifo:///a%zz", "percent"),
            ("fifo:///a%00", "zero byte"),
            ("fifo:///a%ff", "UTF-8"),
        ] {
            let error = Output::parse("stderr", uri).expect_err(uri).to_string();
            assert!(
                error.contains(uri) && error.contains("stderr") && error.contains(reason),
                "{error}"
            );
        }
    }
}
