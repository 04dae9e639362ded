//! What reads bytes from outside and is not public otherwise, for `tests/fuzz`. Each function says whether
//! the bytes were taken; what it makes of them is dropped.

use crate::pack::{AudioSpec, ImageSpec};
use crate::runtime::audio::{FrontEnd, Stream};
use crate::runtime::picture;
use crate::train::checkpoint::Checkpoint;
use std::path::Path;

#[cfg(feature = "daemon")]
pub use crate::daemon::learn::heard_and_judged;
#[cfg(feature = "daemon")]
pub use crate::daemon::serve::{InProcess, hook_queue, recent_answers, tokens};

/// A picture, as an input of 32 × 24.
pub fn picture(bytes: &[u8]) -> bool {
    let spec = ImageSpec { size: [24, 32], ..ImageSpec::default() };
    picture::decoding_bytes(bytes).is_ok() & picture::from_bytes(bytes, &spec).is_ok()
}

/// What takes WAV files as a front end of [`AudioSpec::NAMES`] does.
pub fn sound(front: &str) -> Option<impl Fn(&[u8]) -> bool> {
    let front = FrontEnd::new(AudioSpec::named(front)?);
    Some(move |bytes: &[u8]| front.wav(bytes, 3).is_ok())
}

/// What a recorder sends, read to its end in small pieces.
pub fn recording(bytes: &[u8], channels: usize, coding: &str) -> bool {
    let Ok(mut stream) = Stream::new(bytes, 16_000, channels, coding) else { return false };
    loop {
        match stream.read(700) {
            Ok(samples) if samples.is_empty() => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// What a child that reads an ONNX file says, and its answer about one.
#[cfg(feature = "import")]
pub fn import_child(stderr: &[u8], answer: &[u8]) -> bool {
    drop(crate::import::failure_of(stderr));
    serde_json::from_slice::<crate::runtime::OnnxSummary>(answer).is_ok()
}

/// A tokenizer.json, tried on a sentence as `pack` does.
#[cfg(feature = "text")]
pub fn tokenizer(json: &[u8], sentence: &str) -> bool {
    let tried = crate::runtime::text::TextEncoder::from_bytes(json, 64).and_then(|encoder| {
        let (tokens, _) = encoder.words(sentence)?;
        encoder.decode(&encoder.ids(sentence, false)?)?;
        Ok(tokens)
    });
    tried.is_ok()
}

/// A chat template, over a conversation of two.
#[cfg(feature = "text")]
pub fn chat_template(template: &str) -> bool {
    let said =
        |role: &str, content: &str| crate::Message { role: role.into(), content: content.into() };
    let messages =
        [said("system", "Be kind."), said("user", " Ünd? "), said("assistant", "{{ yes }}")];
    crate::runtime::chat_text(template, &messages, &[("bos_token".into(), "<s>".into())]).is_ok()
}

/// A checkpoint.
pub fn checkpoint(bytes: &[u8]) -> bool {
    Checkpoint::from_bytes(bytes).is_ok()
}

/// The daemon's configuration.
#[cfg(feature = "daemon")]
pub fn config(text: &str) -> bool {
    crate::daemon::Config::parse(text).is_ok()
}

/// Events of Home Assistant's voice.
#[cfg(feature = "daemon")]
pub fn events(bytes: &[u8]) -> usize {
    crate::daemon::serve::events(bytes)
}

/// The topic of an MQTT message.
#[cfg(feature = "mqtt")]
pub fn topic(text: &str) -> bool {
    crate::daemon::serve::Topics::new("offshoot", "board", "homeassistant").wish(text).is_some()
}

/// A log of SQLite's; whether a change in it is read whole.
#[cfg(feature = "store")]
pub fn log(bytes: &[u8]) -> bool {
    crate::store::log_pages(bytes) > 0
}

/// A program, as `doctor` looks at one.
pub fn program(path: &Path) -> bool {
    crate::host::Elf::read(path).is_ok()
}
