//! What the verbs that talk to the daemon ask it.

use super::chat::messages;
use crate::daemon::Tensor;
use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::npy;
use crate::runtime::audio::MAX_SOUND_BYTES;
use crate::runtime::picture::MAX_PICTURE_BYTES;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What goes into the base.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Input {
    /// A sentence; for a language model what it goes on from
    #[arg(long, value_name = "SENTENCE")]
    text: Option<String>,
    /// A conversation that a language model answers: JSON, a list of {role, content}
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
    /// A picture (PNG, JPEG, WebP or GIF)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// A sound (WAV of 8 to 48 kHz)
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// The base's inputs as one .npz file
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
}

/// How a language model is to write.
#[derive(clap::Args)]
pub(super) struct Wording {
    /// At most so many new tokens
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// How freely tokens are chosen; 0 takes the likeliest, always
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// A text that ends the answer and is no part of it; once for each
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Input {
    /// The fields of a request.
    pub(super) fn fields(&self) -> Result<Value> {
        use base64::Engine as _;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        match (&self.text, self.image.as_ref().or(self.audio.as_ref()), &self.inputs) {
            (Some(text), ..) => Ok(json!({"text": text})),
            (_, Some(file), _) => {
                let (field, most) = match self.audio {
                    Some(_) => ("audio", MAX_SOUND_BYTES),
                    None => ("image", MAX_PICTURE_BYTES),
                };
                Ok(json!({field: encode(&read_limited(file, most)?)}))
            }
            (.., Some(file)) => {
                let mut inputs = serde_json::Map::new();
                for (name, array) in npy::read_npz(file, 256 << 20)? {
                    let tensor = serde_json::to_value(Tensor(&array))
                        .map_err(|e| Error::failed(format!("input '{name}': {e}")))?;
                    inputs.insert(name, tensor);
                }
                Ok(json!({"inputs": inputs}))
            }
            _ => match &self.chat {
                Some(file) => Ok(json!({"messages": messages(file)?})),
                None => Err(Error::usage("expected --text, --chat, --image, --audio or --inputs")),
            },
        }
    }
}

impl Wording {
    /// Into the fields of a request.
    pub(super) fn put(&self, body: &mut Value) {
        if let Some(tokens) = self.tokens {
            put(body, "tokens", tokens);
        }
        if let Some(temperature) = self.temperature {
            put(body, "temperature", temperature);
        }
        if !self.stop.is_empty() {
            put(body, "stop", self.stop.clone());
        }
        if let Some(seed) = self.seed {
            put(body, "seed", seed);
        }
    }
}

/// One more field.
pub(super) fn put(fields: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = fields.as_object_mut() {
        map.insert(key.into(), value.into());
    }
}
