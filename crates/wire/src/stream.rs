//! What a stream of the channel is: said by its first bytes, which the host writes. Integers are big endian.
//!
//! ```text
//! 1                                                 requests
//! 2|3|4  container:len:u8,bytes  exec:len:u8,bytes  stdin, stdout, stderr of a process
//! 5      container:len:u8,bytes  socket:u32         waits for a connection to a socket of a container
//! 6      family:u8  port:u16                        connects to a port of the guest's loopback
//! ```
//!
//! After the header a stream carries raw bytes: requests (ttrpc) or the stdio of one process. The end of the writing
//! half is the end of file of that stdio stream.
//!
//! A stream of kind 5 or 6 is a connection from the moment on that the guest says [`CONNECTED`] on it; one that it closes
//! instead was refused. It ends as the connection does: half by half, or at once by a reset (see [`crate::relay`]).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The guest's first byte on a stream that has become a connection.
pub const CONNECTED: u8 = 0;

/// Which stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Bytes from the host to the process.
    Stdin = 2,
    /// Bytes from the process to the host; of a terminal, all it prints.
    Stdout = 3,
    /// Bytes from the process to the host.
    Stderr = 4,
}

/// Which of the guest's two loopback addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// `127.0.0.1`
    V4 = 4,
    /// `::1`
    V6 = 6,
}

/// The first bytes of a stream, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Header {
    /// ttrpc requests to the agent.
    Requests,
    /// The stdio of one process.
    Stdio {
        /// What the stream carries.
        kind: Kind,
        /// Container id.
        container: String,
        /// Exec id; empty for the container's init.
        exec: String,
    },
    /// Waits for the next connection to a socket of a container.
    Accept {
        /// Container id.
        container: String,
        /// The number by which the container's creation named the socket.
        socket: u32,
    },
    /// A connection to the guest's loopback.
    Connect {
        /// To which address.
        family: Family,
        /// To which port.
        port: u16,
    },
}

/// Why a stream's first bytes make no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The kind byte is unknown.
    #[error("a stream of unknown kind {0}")]
    UnknownKind(u8),
    /// The family byte is unknown.
    #[error("a stream to an address of unknown family {0}")]
    UnknownFamily(u8),
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

const REQUESTS: u8 = 1;
const ACCEPT: u8 = 5;
const CONNECT: u8 = 6;

impl Header {
    /// The container whose stream it is; `None` for one of the whole guest.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Stdio { container, .. } | Self::Accept { container, .. } => Some(container),
            Self::Requests | Self::Connect { .. } => None,
        }
    }

    /// Writes the header as the first bytes of `stream`.
    ///
    /// # Errors
    /// [`HeaderError::TooLong`] for ids over 255 bytes, [`HeaderError::Io`] if the stream fails.
    pub async fn send<T: AsyncWrite + Unpin>(&self, stream: &mut T) -> Result<(), HeaderError> {
        stream.write_all(&self.encode()?).await?;
        stream.flush().await?;
        Ok(())
    }

    fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let mut bytes = Vec::new();
        match self {
            Self::Requests => bytes.push(REQUESTS),
            Self::Stdio { kind, container, exec } => {
                bytes.push(*kind as u8);
                encode_id(&mut bytes, "container", container)?;
                encode_id(&mut bytes, "exec", exec)?;
            }
            Self::Accept { container, socket } => {
                bytes.push(ACCEPT);
                encode_id(&mut bytes, "container", container)?;
                bytes.extend_from_slice(&socket.to_be_bytes());
            }
            Self::Connect { family, port } => {
                bytes.extend_from_slice(&[CONNECT, *family as u8]);
                bytes.extend_from_slice(&port.to_be_bytes());
            }
        }
        Ok(bytes)
    }

    /// Reads the header from the first bytes of `stream`, and not a byte more.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub async fn receive<T: AsyncRead + Unpin>(stream: &mut T) -> Result<Self, HeaderError> {
        let kind = match stream.read_u8().await? {
            REQUESTS => return Ok(Self::Requests),
            2 => Kind::Stdin,
            3 => Kind::Stdout,
            4 => Kind::Stderr,
            ACCEPT => {
                return Ok(Self::Accept {
                    container: receive_id(stream, "container").await?,
                    socket: stream.read_u32().await?,
                });
            }
            CONNECT => {
                let family = match stream.read_u8().await? {
                    4 => Family::V4,
                    6 => Family::V6,
                    other => return Err(HeaderError::UnknownFamily(other)),
                };
                let port = stream.read_u16().await?;
                return Ok(Self::Connect { family, port });
            }
            other => return Err(HeaderError::UnknownKind(other)),
        };
        Ok(Self::Stdio {
            kind,
            container: receive_id(stream, "container").await?,
            exec: receive_id(stream, "exec").await?,
        })
    }
}

fn encode_id(bytes: &mut Vec<u8>, field: &'static str, id: &str) -> Result<(), HeaderError> {
    let length = u8::try_from(id.len()).map_err(|_| HeaderError::TooLong {
        field,
        length: id.len(),
    })?;
    bytes.push(length);
    bytes.extend_from_slice(id.as_bytes());
    Ok(())
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
        for sent in [
            Header::Requests,
            Header::Stdio {
                kind: Kind::Stderr,
                container: "web-1".into(),
                exec: "e7".into(),
            },
            Header::Accept {
                container: "web-1".into(),
                socket: 70_000,
            },
            Header::Connect {
                family: Family::V6,
                port: 8080,
            },
        ] {
            let mut bytes = Vec::new();
            sent.send(&mut bytes).await.expect("write to memory");
            bytes.extend_from_slice(b"payload");
            let mut rest = bytes.as_slice();
            assert_eq!(Header::receive(&mut rest).await.expect("decode"), sent);
            assert_eq!(rest, b"payload");
        }
    }

    #[tokio::test]
    async fn broken_headers_are_errors() {
        for (bytes, expected) in [
            (&b"\x09\x00\x00"[..], "unknown kind 9"),
            (&b"\x06\x05\x00\x50"[..], "unknown family 5"),
            (&b"\x06\x04\x00"[..], "ended in its header"),
            (&b"\x05\x01a\x00\x00"[..], "ended in its header"),
            (&b"\x03\x02\xff\xfe\x00"[..], "container id is not UTF-8"),
            (&b"\x03\x05ab"[..], "ended in its header"),
            (&b""[..], "ended in its header"),
        ] {
            let error = Header::receive(&mut { bytes }).await.expect_err("broken").to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
        let long = Header::Stdio {
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
