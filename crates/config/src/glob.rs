//! Shell patterns for paths: `*`, `?` and `[…]` within one component, as `glob(3)` reads them.
//!
//! Only names are compared: nothing is looked for on the disk, so that a link cannot change what a pattern allows.

/// Whether `pattern` covers the whole of `path`. A path with `.` or `..` in it is covered by nothing.
pub(crate) fn covers(pattern: &str, path: &str) -> bool {
    let parts = |text: &str| {
        text.split('/')
            .map(|part| part.chars().collect())
            .collect::<Vec<Vec<char>>>()
    };
    let (wanted, given) = (parts(pattern), parts(path));
    let walks = path.split('/').any(|part| part == "." || part == "..");
    !walks
        && wanted.len() == given.len()
        && wanted
            .iter()
            .zip(&given)
            .all(|(pattern, part)| matches(pattern, part) && !hidden(pattern, part))
}

/// A leading dot is matched by a dot alone.
fn hidden(pattern: &[char], part: &[char]) -> bool {
    part.first() == Some(&'.') && pattern.first() != Some(&'.')
}

fn matches(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        ['[', rest @ ..] => match (class(rest), text) {
            (Some((class, rest)), [letter, text @ ..]) => class.holds(*letter) && matches(rest, text),
            // Without an end it is a letter like any other.
            (None, ['[', text @ ..]) => matches(rest, text),
            _ => false,
        },
        ['\\', letter, rest @ ..] => text.first() == Some(letter) && matches(rest, &text[1..]),
        [letter, rest @ ..] => match text {
            [first, text @ ..] => (*letter == '?' || letter == first) && matches(rest, text),
            [] => false,
        },
    }
}

struct Class<'a> {
    inverted: bool,
    letters: &'a [char],
}

/// The class whose inside `pattern` begins with, and what follows it.
fn class(pattern: &[char]) -> Option<(Class<'_>, &[char])> {
    let inverted = matches!(pattern.first(), Some('!' | '^'));
    let start = usize::from(inverted);
    // A bracket right at the beginning belongs to the class.
    let length = pattern.get(start + 1..)?.iter().position(|letter| *letter == ']')? + 1;
    let letters = &pattern[start..start + length];
    Some((Class { inverted, letters }, &pattern[start + length + 1..]))
}

impl Class<'_> {
    fn holds(&self, letter: char) -> bool {
        let mut letters = self.letters;
        let mut found = false;
        while let [first, rest @ ..] = letters {
            (found, letters) = match rest {
                ['-', last, rest @ ..] => (found || (*first..=*last).contains(&letter), rest),
                _ => (found || *first == letter, rest),
            };
        }
        found != self.inverted
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn patterns_cover_whole_paths_component_by_component() {
        for (pattern, path, wanted) in [
            ("/usr/bin/qemu", "/usr/bin/qemu", true),
            ("/usr/bin/qemu", "/usr/bin/qemu2", false),
            ("/usr/bin/qemu-*", "/usr/bin/qemu-system-x86_64", true),
            ("/usr/*/qemu", "/usr/local/qemu", true),
            ("/usr/*/qemu", "/usr/local/bin/qemu", false),
            ("/usr/*", "/usr/../tmp", false),
            ("/usr/*", "/usr/..", false),
            ("/usr/*", "/usr/.hidden", false),
            ("/usr/.*", "/usr/.hidden", true),
            ("/a?c", "/abc", true),
            ("/a?c", "/ac", false),
            ("/opt/v[0-9]/x", "/opt/v7/x", true),
            ("/opt/v[!0-9]/x", "/opt/v7/x", false),
            ("/opt/[]a]", "/opt/]", true),
            ("/opt/[", "/opt/[", true),
            ("/opt/\\*", "/opt/*", true),
            ("/opt/\\*", "/opt/a", false),
            ("", "/x", false),
            ("*", "/x", false),
        ] {
            assert_eq!(covers(pattern, path), wanted, "{pattern} {path}");
        }
    }
}
