//! An event as it passes: a line of JSON, perhaps more data, perhaps bytes.

#![warn(clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line, and most bytes of data behind it.
const MAX_DATA: usize = 64 << 10;
/// Most bytes with one event.
const MAX_PAYLOAD: u64 = 1 << 20;
/// The event whose bytes are kept; those of others are read and dropped.
pub const SOUND: &str = "audio-chunk";

/// An event.
#[derive(Debug, PartialEq)]
pub struct Event {
    /// Its type.
    pub kind: String,
    pub data: Map<String, Value>,
    /// The bytes of [`SOUND`].
    pub payload: Vec<u8>,
}

/// What was read.
#[derive(Debug, PartialEq)]
pub enum Read {
    Event(Event),
    /// The client has gone.
    End,
}

#[derive(Deserialize)]
struct Head {
    r#type: String,
    data: Option<Map<String, Value>>,
    data_length: Option<u64>,
    payload_length: Option<u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'a str,
    version: &'a str,
    data_length: usize,
}

impl Event {
    pub fn new(kind: &str, data: Map<String, Value>) -> Event {
        Event { kind: kind.into(), data, payload: vec![] }
    }
}

/// Reads an event. Errors say what can't be understood; nothing can be read after one.
pub async fn read<R: AsyncBufRead + Unpin>(reader: &mut R) -> Result<Read, String> {
    let mut line = vec![];
    let mut limited = (&mut *reader).take(MAX_DATA as u64);
    let read = limited.read_until(b'\n', &mut line).await;
    if read.is_err() || line.is_empty() {
        return Ok(Read::End);
    }
    if line.last() != Some(&b'\n') {
        return if line.len() >= MAX_DATA {
            Err(format!("a line has {MAX_DATA} bytes at most"))
        } else {
            Ok(Read::End)
        };
    }
    let head: Head = serde_json::from_slice(&line)
        .map_err(|e| format!("expected an event, a line of JSON: {e}"))?;
    let mut data = head.data.unwrap_or_default();
    let more = head.data_length.unwrap_or(0);
    if more > MAX_DATA as u64 {
        return Err(format!("an event has {MAX_DATA} bytes of data at most"));
    }
    if more > 0 {
        let mut bytes = vec![0; more as usize];
        if reader.read_exact(&mut bytes).await.is_err() {
            return Ok(Read::End);
        }
        let more: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|e| format!("expected data as JSON: {e}"))?;
        data.extend(more);
    }
    let payload = head.payload_length.unwrap_or(0);
    if payload > MAX_PAYLOAD {
        return Err(format!("an event has {MAX_PAYLOAD} bytes of sound at most"));
    }
    let mut kept = vec![];
    let rest = &mut (&mut *reader).take(payload);
    let came = match head.r#type == SOUND {
        // Grows as bytes come, not by what the client says.
        true => rest.read_to_end(&mut kept).await.map(|n| n as u64),
        false => tokio::io::copy(rest, &mut tokio::io::sink()).await,
    };
    if !came.is_ok_and(|came| came == payload) {
        return Ok(Read::End);
    }
    Ok(Read::Event(Event { kind: head.r#type, data, payload: kept }))
}

/// Writes an event.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, event: &Event) -> std::io::Result<()> {
    let data = serde_json::to_vec(&event.data)?;
    let line =
        Line { r#type: &event.kind, version: env!("CARGO_PKG_VERSION"), data_length: data.len() };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    bytes.extend(data);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(bytes: &[u8]) -> Vec<Result<Read, String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = tokio::io::BufReader::new(bytes);
            let mut all = vec![];
            loop {
                all.push(read(&mut reader).await);
                if !matches!(all.last(), Some(Ok(Read::Event(_)))) {
                    return all;
                }
            }
        })
    }

    fn event(kind: &str, data: Value) -> Result<Read, String> {
        Ok(Read::Event(Event::new(kind, data.as_object().unwrap().clone())))
    }

    #[test]
    fn data_come_in_the_line_and_behind_it_and_bytes_are_kept_of_sound() {
        let bytes = b"{\"type\":\"a\",\"data\":{\"x\":1},\"version\":\"9\"}\n\
            {\"type\":\"b\",\"data\":{\"x\":1},\"data_length\":7,\"payload_length\":3}\n{\"y\":2}\n\0\n\
            {\"type\":\"audio-chunk\",\"payload_length\":3}\nabc{\"type\":\"c\"}\n";
        let sound = Event { payload: b"abc".to_vec(), ..Event::new(SOUND, Map::new()) };
        let expected = [
            event("a", json!({"x": 1})),
            event("b", json!({"x": 1, "y": 2})),
            Ok(Read::Event(sound)),
            event("c", json!({})),
        ];
        let read = all(bytes);
        assert_eq!(read[..4], expected);
        assert_eq!(read[4], Ok(Read::End));
    }

    #[test]
    fn what_is_hostile_is_an_error_and_what_is_cut_short_an_end() {
        let deep = format!("{{\"type\":\"a\",\"data\":{{\"x\":{}\n", "[".repeat(10_000));
        let long = format!("{{\"type\":\"{}\"}}\n", "x".repeat(MAX_DATA));
        for wrong in [
            "\n",
            "hello\n",
            "[]\n",
            "{\"type\":1}\n",
            "{\"type\":\"a\",\"data\":[]}\n",
            "{\"type\":\"a\",\"data_length\":-1}\n",
            "{\"type\":\"a\",\"data_length\":99999999999}\n",
            "{\"type\":\"a\",\"data_length\":2}\n[]",
            "{\"type\":\"a\",\"payload_length\":99999999999}\n",
            "{\"type\":\"\u{fffd}\"",
            &deep,
            &long,
        ] {
            let read = all(wrong.as_bytes());
            let cut = !wrong.ends_with('\n') && !wrong.ends_with(']');
            assert_eq!(read.len(), 1, "{wrong:.60}");
            assert_eq!(read[0].is_err(), !cut, "{wrong:.60}: {read:?}");
        }
        for cut in [
            "{\"type\":\"a\"",
            "{\"type\":\"a\",\"data_length\":9}\n{}",
            "{\"type\":\"a\",\"payload_length\":9}\n1",
        ] {
            assert_eq!(all(cut.as_bytes()), [Ok(Read::End)], "{cut}");
        }
        assert!(all(b"\xff\n")[0].is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let data = json!({"text": "ä\n"}).as_object().unwrap().clone();
        let mut bytes = vec![];
        runtime.block_on(write(&mut bytes, &Event::new("pong", data.clone()))).unwrap();
        assert_eq!(all(&bytes)[0], Ok(Read::Event(Event::new("pong", data))));
    }
}
