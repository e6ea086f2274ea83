//! The client's half of a WebSocket (RFC 6455), as far as containerd's streaming server needs it: binary messages both ways.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::lab::Lab;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The longest message that is taken.
const MESSAGE_MAX: u64 = 16 << 20;

/// One end of the connection; both ends of a clone are the same.
#[derive(Debug)]
pub(super) struct WebSocket(TcpStream);

impl WebSocket {
    /// Connects to `http://HOST:PORT/PATH` in the lab.
    pub(super) fn open(lab: &Lab, url: &str, protocol: &str) -> io::Result<Self> {
        let bad = || io::Error::other(format!("no URL of a streaming server: {url:?}"));
        let (host, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(bad)?;
        let address: SocketAddr = host.parse().map_err(|_| bad())?;
        let mut stream = lab.connect(address)?;
        // The key only shows that the server understood, and no cache lies between.
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: a2F0YS1lMmUtY2xpZW50IQ==\r\nSec-WebSocket-Protocol: {protocol}\r\nOrigin: http://{host}\r\n\r\n"
        )?;
        let head = read_head(&mut stream)?;
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut rest = String::new();
            let _ = stream.read_to_string(&mut rest);
            return Err(io::Error::other(format!("no WebSocket at {url}: {head}{rest}")));
        }
        Ok(Self(stream))
    }

    /// Another handle on the connection.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends one binary message.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.send_frame(BINARY, message)
    }

    /// Says that no more will be sent.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.send_frame(CLOSE, &[])
    }

    fn send_frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        // Clients must mask; a mask of zeros is one.
        let mut frame = vec![0x80 | kind];
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..126), _) => frame.push(0x80 | length),
            (_, Ok(length)) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.write_all(&frame)
    }

    /// The next message; `None` when the other side has ended.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        loop {
            let mut head = [0; 2];
            match self.0.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            let payload = self.payload(head[1])?;
            match head[0] & 0x0f {
                CLOSE => return Ok(None),
                PING => self.send_frame(PONG, &payload)?,
                PONG => {}
                CONTINUATION..=BINARY => {
                    message.extend(payload);
                    if head[0] & 0x80 != 0 {
                        return Ok(Some(message));
                    }
                }
                other => return Err(io::Error::other(format!("a frame of unknown kind {other}"))),
            }
        }
    }

    fn payload(&mut self, length: u8) -> io::Result<Vec<u8>> {
        let length = match length & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.array()?)),
            127 => u64::from_be_bytes(self.array()?),
            length => u64::from(length),
        };
        if length > MESSAGE_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes")));
        }
        let mut payload = vec![0; usize::try_from(length).expect("bounded")];
        self.0.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads to the end of the answer's headers, and no byte further.
fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
