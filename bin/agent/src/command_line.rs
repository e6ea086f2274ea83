//! The kernel's command line.

/// The values of `NAME=VALUE` on it, in their order.
pub fn values<'a>(line: &'a str, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
    line.split_whitespace()
        .filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
}
