//! The first bytes on a channel: who speaks, which versions, and what was agreed.
//!
//! ```text
//! host  → guest   "KATA" min:u16 max:u16     the versions the host speaks
//! guest → host    "KATA" min:u16 max:u16     the versions the guest speaks
//! ```
//!
//! Integers are big endian. Each side then takes the highest version both speak; where there is none, both know it
//! and both close. Nothing else is sent before.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: [u8; 4] = *b"KATA";
const LENGTH: usize = 8;

/// The versions of the protocol that one side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Lowest version spoken.
    pub min: u16,
    /// Highest version spoken.
    pub max: u16,
}

/// What this build speaks.
pub const OURS: Versions = Versions { min: 1, max: 1 };

/// Why the two sides do not talk.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's first bytes are not those of this protocol.
    #[error("the peer does not speak the kata channel protocol (its first bytes are {first:02x?})")]
    NotKata {
        /// The bytes received.
        first: [u8; 4],
    },
    /// No version is spoken by both.
    #[error("no common version of the channel protocol: this side speaks {}-{}, the peer {}-{}", ours.min, ours.max, theirs.min, theirs.max)]
    NoCommonVersion {
        /// What this side speaks.
        ours: Versions,
        /// What the peer says it speaks.
        theirs: Versions,
    },
    /// The channel failed or ended.
    #[error("the channel failed during the handshake")]
    Io(#[from] std::io::Error),
}

impl Versions {
    fn encode(self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.min.to_be_bytes());
        out[6..].copy_from_slice(&self.max.to_be_bytes());
        out
    }

    fn decode(bytes: [u8; LENGTH]) -> Result<Self, HandshakeError> {
        let [a, b, c, d, min_high, min_low, max_high, max_low] = bytes;
        if [a, b, c, d] != MAGIC {
            return Err(HandshakeError::NotKata { first: [a, b, c, d] });
        }
        Ok(Self {
            min: u16::from_be_bytes([min_high, min_low]),
            max: u16::from_be_bytes([max_high, max_low]),
        })
    }

    /// The highest version that both speak.
    ///
    /// # Errors
    /// [`HandshakeError::NoCommonVersion`] if the ranges do not meet (a range with `min > max` meets none).
    pub fn agree(self, theirs: Self) -> Result<u16, HandshakeError> {
        let (low, high) = (self.min.max(theirs.min), self.max.min(theirs.max));
        if low > high || theirs.min > theirs.max {
            return Err(HandshakeError::NoCommonVersion { ours: self, theirs });
        }
        Ok(high)
    }
}

/// The host's half. Bounding the wait is the caller's part.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn host<T: AsyncRead + AsyncWrite + Unpin>(channel: &mut T, ours: Versions) -> Result<u16, HandshakeError> {
    channel.write_all(&ours.encode()).await?;
    channel.flush().await?;
    let theirs = receive(channel).await?;
    ours.agree(theirs)
}

/// The guest's half: answers even where there is no common version, so that the host can say why.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn guest<T: AsyncRead + AsyncWrite + Unpin>(channel: &mut T, ours: Versions) -> Result<u16, HandshakeError> {
    let theirs = receive(channel).await?;
    channel.write_all(&ours.encode()).await?;
    channel.flush().await?;
    ours.agree(theirs)
}

async fn receive<T: AsyncRead + Unpin>(channel: &mut T) -> Result<Versions, HandshakeError> {
    let mut bytes = [0; LENGTH];
    channel.read_exact(&mut bytes).await?;
    Versions::decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_taken() {
        let range = |min, max| Versions { min, max };
        for (ours, theirs, agreed) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(2, 5), range(1, 3), Some(3)),
            (range(1, 1), range(2, 3), None),
            (range(2, 3), range(1, 1), None),
            (range(1, 9), range(5, 4), None),
        ] {
            assert_eq!(ours.agree(theirs).ok(), agreed, "{ours:?} with {theirs:?}");
        }
    }

    #[tokio::test]
    async fn both_sides_agree_over_a_byte_stream() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let (host_side, guest_side) = tokio::join!(host(&mut a, OURS), guest(&mut b, OURS));
        assert_eq!(host_side.expect("host"), 1);
        assert_eq!(guest_side.expect("guest"), 1);
    }

    #[tokio::test]
    async fn an_unknown_version_is_named_on_both_sides() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let newer = Versions { min: 7, max: 9 };
        let (host_side, guest_side) = tokio::join!(host(&mut a, OURS), guest(&mut b, newer));
        let message = host_side.expect_err("no common version").to_string();
        assert!(message.contains("this side speaks 1-1, the peer 7-9"), "{message}");
        assert!(matches!(guest_side, Err(HandshakeError::NoCommonVersion { .. })));
    }

    #[tokio::test]
    async fn noise_is_not_taken_for_a_version() {
        let (mut a, mut b) = tokio::io::duplex(64);
        b.write_all(b"login: \r\n").await.expect("write noise");
        let error = host(&mut a, OURS).await.expect_err("noise");
        assert!(matches!(error, HandshakeError::NotKata { first } if &first == b"logi"));
    }
}
