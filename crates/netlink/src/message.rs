//! Messages of rtnetlink (rtnetlink(7), netlink(7)): built attribute by attribute, read without trust in any length.

/// `struct nlmsghdr`, bytes.
pub(crate) const HEADER: usize = 16;

/// `struct nlattr`, bytes.
const ATTRIBUTE: usize = 4;

/// The upper two bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// A request that is being put together.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of type `kind` (`RTM_*`) with `flags` (`NLM_F_*`, beside `NLM_F_REQUEST`); `body` is the structure that
    /// comes before the attributes.
    pub fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let flags = libc::NLM_F_REQUEST | flags;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&u16::try_from(flags).unwrap_or_default().to_ne_bytes());
        bytes.extend_from_slice(body);
        let mut request = Self(bytes);
        request.align();
        request
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.begin(kind, value.len());
        self.0.extend_from_slice(value);
        self.align();
        self
    }

    /// Adds an attribute that is a text.
    #[must_use]
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that is a number.
    #[must_use]
    pub fn with_u32(self, kind: u16, number: u32) -> Self {
        self.with(kind, &number.to_ne_bytes())
    }

    /// Adds an attribute made of the attributes that `fill` adds.
    #[must_use]
    pub fn with_nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.begin(kind, 0);
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    fn begin(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(ATTRIBUTE + length).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
    }

    fn align(&mut self) {
        self.0.resize(aligned(self.0.len()), 0);
    }

    /// The whole message, numbered.
    pub(crate) fn finish(mut self, flags: i32, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | u16::try_from(flags).unwrap_or_default();
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages in what one `recv` has read.
pub(crate) fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER..length)?;
        let reply = Reply {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body,
        };
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(reply)
    })
}

/// The attributes in `bytes`, each with its type; ends at the first that is none.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A text attribute's text, without the NUL that ends it.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// The number at this offset, in the machine's own byte order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read() {
        let request = Request::new(16, libc::NLM_F_ACK, &[1, 2, 3, 4])
            .with_text(3, "eth0")
            .with_nested(18, |inner| inner.with_text(1, "veth").with_u32(2, 7))
            .with_u32(4, 1500);
        let bytes = request.finish(libc::NLM_F_DUMP, 9);
        let all: Vec<Reply> = replies(&bytes).collect();
        let [message] = all[..] else {
            panic!("one message, not {}", all.len())
        };
        assert_eq!((message.kind, message.sequence), (16, 9));
        assert_eq!(
            i32::from(message.flags),
            libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_DUMP
        );
        let body = &message.body[4..];
        assert_eq!(attribute(body, 3).map(text).as_deref(), Some("eth0"));
        assert_eq!(attribute(body, 4).and_then(|value| u32_at(value, 0)), Some(1500));
        let nested = attribute(body, 18).expect("nested");
        assert_eq!(attribute(nested, 1).map(text).as_deref(), Some("veth"));
        assert_eq!(attribute(nested, 2).and_then(|value| u32_at(value, 0)), Some(7));
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for bytes in [&[][..], &[4, 0], &[0, 0, 1, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 5, 5]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let mut short = Request::new(16, 0, &[]).finish(0, 1);
        short[0] = 3;
        assert_eq!(replies(&short).count(), 0);
        short[0] = 200;
        assert_eq!(replies(&short).count(), 0);
    }
}
