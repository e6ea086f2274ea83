//! Ids that the host gives: they become names of directories.

use super::refusal::Refusal;

/// Longest id, bytes; a stream's header holds no longer one.
const LONGEST: usize = 255;

/// Lets through what can be the name of one directory.
///
/// # Errors
/// [`Refusal::Invalid`] naming the id.
pub fn check(what: &str, id: &str) -> Result<(), Refusal> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-+:@".contains(c);
    let is_fine = !id.is_empty() && id.len() <= LONGEST && id.chars().all(is_plain) && !id.chars().all(|c| c == '.');
    if is_fine {
        Ok(())
    } else {
        Err(Refusal::Invalid(format!("{what} id {id:?} is not possible")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for id in ["a", "web-1.2_3", "0123abc", ".hidden", &"x".repeat(255)] {
            assert!(check("container", id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "é", "a\n", &"x".repeat(256)] {
            assert!(check("container", id).is_err(), "{id}");
        }
    }
}
