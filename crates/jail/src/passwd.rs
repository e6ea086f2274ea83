//! The home directory of a user, read from the container's own `/etc/passwd`.

/// The home of `uid` by the text of a passwd file; `/` if it names none.
pub fn home(passwd: &str, uid: u32) -> &str {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            [_, _, id, _, _, home, ..] if id.parse() == Ok(uid) && !home.is_empty() => Some(home),
            _ => None,
        })
        .unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::home;

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken:line\nweb:x:33:33::/var/www:\nbare:x:34:34:::\n";
        for (uid, expected) in [(0, "/root"), (33, "/var/www"), (34, "/"), (1000, "/")] {
            assert_eq!(home(passwd, uid), expected, "uid {uid}");
        }
    }
}
