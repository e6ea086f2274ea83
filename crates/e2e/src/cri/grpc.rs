//! One gRPC call over a Unix socket: a connection, a request, an answer. There is no pool and no stream; the tests need none.

use std::future::poll_fn;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Request};
use tokio::net::UnixStream;

/// What the other side says instead of an answer, or why it could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC's status code; 4 is a deadline, 5 not found, 2 unknown.
    pub code: u32,
    /// The message.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}: {}", self.code, self.message)
    }
}

impl Refusal {
    /// A failure of the call itself; 14 is gRPC's "unavailable".
    fn of_transport(error: impl std::fmt::Display) -> Self {
        let message = format!("the call itself failed: {error}");
        Self { code: 14, message }
    }
}

/// Calls `method` (`/package.Service/Method`) with an encoded message; answers the encoded answer.
pub fn call(socket: &Path, method: &str, message: &[u8], limit: Duration) -> Result<Bytes, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Refusal::of_transport)?;
    let answer = runtime.block_on(async { tokio::time::timeout(limit, exchange(socket, method, message)).await });
    answer.unwrap_or_else(|_| Err(Refusal::of_transport(format!("no answer within {limit:?}"))))
}

async fn exchange(socket: &Path, method: &str, message: &[u8]) -> Result<Bytes, Refusal> {
    let stream = UnixStream::connect(socket).await.map_err(Refusal::of_transport)?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(Refusal::of_transport)?;
    let driver = tokio::spawn(connection);
    let answer = converse(client, method, message).await;
    driver.abort();
    answer
}

async fn converse(client: h2::client::SendRequest<Bytes>, method: &str, message: &[u8]) -> Result<Bytes, Refusal> {
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(Refusal::of_transport)?;
    let mut client = client.ready().await.map_err(Refusal::of_transport)?;
    let (response, mut body) = client.send_request(request, false).map_err(Refusal::of_transport)?;
    // A message is led by one byte (0: not compressed) and its length.
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(Refusal::of_transport)?);
    frame.put_slice(message);
    body.send_data(frame.freeze(), true).map_err(Refusal::of_transport)?;

    let (head, mut body) = response.await.map_err(Refusal::of_transport)?.into_parts();
    let data = whole(&mut body).await.map_err(Refusal::of_transport)?;
    let trailers = body.trailers().await.map_err(Refusal::of_transport)?;
    // An answer without a body has its status among the headers.
    status(trailers.as_ref().unwrap_or(&head.headers))?;
    let mut data = data.freeze();
    if data.remaining() < 5 {
        return Err(Refusal::of_transport("an answer without a message"));
    }
    data.advance(5);
    Ok(data)
}

async fn whole(body: &mut RecvStream) -> Result<BytesMut, h2::Error> {
    let mut all = BytesMut::new();
    while let Some(block) = poll_fn(|context| body.poll_data(context)).await {
        let block = block?;
        body.flow_control().release_capacity(block.len())?;
        all.extend_from_slice(&block);
    }
    Ok(all)
}

fn status(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    match text("grpc-status").parse() {
        Ok(0) => Ok(()),
        Ok(code) => Err(Refusal {
            code,
            message: unescape(text("grpc-message")),
        }),
        Err(_) => Err(Refusal::of_transport(format!(
            "an answer without a status: {headers:?}"
        ))),
    }
}

/// Undoes gRPC's percent encoding.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn messages_are_unescaped() {
        for (text, plain) in [
            ("a%20b", "a b"),
            ("100%", "100%"),
            ("%e2%80%a6", "…"),
            ("%zz", "%zz"),
            ("", ""),
        ] {
            assert_eq!(unescape(text), plain, "{text}");
        }
    }
}
