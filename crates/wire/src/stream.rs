//! What a stream of the channel is: said by its first bytes, which the host writes.
//!
//! ```text
//! kind:u8  container:len:u8,bytes  exec:len:u8,bytes
//! ```
//!
//! After the header a stream carries raw bytes: requests (ttrpc) or the stdio of one process. The end of the writing
//! half is the end of file of that stdio stream.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The purpose of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// ttrpc requests to the agent; container and exec are empty.
    Requests = 1,
    /// Bytes from the host to the process.
    Stdin = 2,
    /// Bytes from the process to the host; of a terminal, all it prints.
    Stdout = 3,
    /// Bytes from the process to the host.
    Stderr = 4,
}

/// The first bytes of a stream, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// What the stream carries.
    pub kind: Kind,
    /// Container id.
    pub container: String,
    /// Exec id; empty for the container's init.
    pub exec: String,
}

/// Why a stream's first bytes make no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The kind byte is unknown.
    #[error("a stream of unknown kind {0}")]
    UnknownKind(u8),
    /// An id is not UTF-8.
    #[error("a stream whose {field} id is not UTF-8")]
    NotText {
        /// `container` or `exec`
        field: &'static str,
    },
    /// An id is longer than a length byte can say.
    #[error("{field} id of {length} bytes; at most 255 are possible")]
    TooLong {
        /// `container` or `exec`
        field: &'static str,
        /// Length of the id, bytes.
        length: usize,
    },
    /// The stream failed or ended.
    #[error("the stream ended in its header")]
    Io(#[from] std::io::Error),
}

impl Header {
    /// The stream of requests.
    pub fn requests() -> Self {
        Self {
            kind: Kind::Requests,
            container: String::new(),
            exec: String::new(),
        }
    }

    /// Writes the header as the first bytes of `stream`.
    ///
    /// # Errors
    /// [`HeaderError::TooLong`] for ids over 255 bytes, [`HeaderError::Io`] if the stream fails.
    pub async fn send<T: AsyncWrite + Unpin>(&self, stream: &mut T) -> Result<(), HeaderError> {
        let mut bytes = vec![self.kind as u8];
        for (field, id) in [("container", &self.container), ("exec", &self.exec)] {
            let length = u8::try_from(id.len()).map_err(|_| HeaderError::TooLong {
                field,
                length: id.len(),
            })?;
            bytes.push(length);
            bytes.extend_from_slice(id.as_bytes());
        }
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        Ok(())
    }

    /// Reads the header from the first bytes of `stream`, and not a byte more.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub async fn receive<T: AsyncRead + Unpin>(stream: &mut T) -> Result<Self, HeaderError> {
        let kind = match stream.read_u8().await? {
            1 => Kind::Requests,
            2 => Kind::Stdin,
            3 => Kind::Stdout,
            4 => Kind::Stderr,
            other => return Err(HeaderError::UnknownKind(other)),
        };
        Ok(Self {
            kind,
            container: receive_id(stream, "container").await?,
            exec: receive_id(stream, "exec").await?,
        })
    }
}

async fn receive_id<T: AsyncRead + Unpin>(stream: &mut T, field: &'static str) -> Result<String, HeaderError> {
    let length = usize::from(stream.read_u8().await?);
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| HeaderError::NotText { field })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_header_is_read_as_it_was_written_and_leaves_the_rest() {
        let sent = Header {
            kind: Kind::Stderr,
            container: "web-1".into(),
            exec: "e7".into(),
        };
        let mut bytes = Vec::new();
        sent.send(&mut bytes).await.expect("write to memory");
        bytes.extend_from_slice(b"payload");
        let mut rest = bytes.as_slice();
        assert_eq!(Header::receive(&mut rest).await.expect("decode"), sent);
        assert_eq!(rest, b"payload");
    }

    #[tokio::test]
    async fn broken_headers_are_errors() {
        for (bytes, expected) in [
            (&b"\x09\x00\x00"[..], "unknown kind 9"),
            (&b"\x03\x02\xff\xfe\x00"[..], "container id is not UTF-8"),
            (&b"\x03\x05ab"[..], "ended in its header"),
            (&b""[..], "ended in its header"),
        ] {
            let error = Header::receive(&mut { bytes }).await.expect_err("broken").to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
        let long = Header {
            kind: Kind::Stdin,
            container: "x".repeat(256),
            exec: String::new(),
        };
        assert!(matches!(
            long.send(&mut Vec::new()).await,
            Err(HeaderError::TooLong { length: 256, .. })
        ));
    }
}
