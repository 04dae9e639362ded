//! A request's question: JSON or a raw body to what the base takes.

#![warn(clippy::arithmetic_side_effects)]

use super::problem::Problem;
use super::roster::{Row, Selection};
use crate::npy;
use crate::runtime::audio::media_type;
use crate::runtime::{Message, Named, Taken};
use crate::shape::{Array, DType, Data};
use crate::store::{Input, Reference, check_name};
use crate::train::tasks::{MAX_BEAM, Wanted, Wording, conversation_text};
use axum::body::Bytes;
use axum::http::StatusCode;
use base64::Engine as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use tokio::sync::mpsc::UnboundedSender;

/// Labels in an answer where the request does not say.
const DEFAULT_TOP: usize = 5;
/// Most labels in an answer.
pub const MAX_TOP: usize = 1000;
/// Most bytes that a `.npz` body unpacks to.
pub const MAX_UNPACKED: u64 = 256 << 20;
/// Memory for a number of a JSON body: as it was read, in a list that grows, and in its array.
const BYTES_OF_A_NUMBER: u64 = 40;
/// Most texts that end an answer, and their bytes: each token is held against all of them.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Most adapters summed for one request.
const MAX_MIX: usize = 16;

/// Types of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mime {
    /// `application/json`.
    Json,
    /// `image/*` or `audio/*`.
    File,
    /// `application/x-npz` or `application/zip`.
    Npz,
    /// `application/octet-stream`.
    Bytes,
}

impl Mime {
    /// Reads a `Content-Type`; parameters are ignored.
    pub fn parse(text: &str) -> Option<Mime> {
        let name = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        Some(match name.as_str() {
            "application/json" => Mime::Json,
            file if file.starts_with("image/") || file.starts_with("audio/") => Mime::File,
            "application/x-npz" | "application/zip" => Mime::Npz,
            "application/octet-stream" => Mime::Bytes,
            _ => return None,
        })
    }
}

/// What a question's or feedback's body may be.
pub const INPUTS: &str = "application/json, image/png, image/jpeg, image/webp, image/gif, audio/wav or application/x-npz";

/// 415, naming what is taken.
pub fn unsupported_media(taken: &str) -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        format!("expected a Content-Type of {taken}"),
    )
}

/// A question as it came: parsed by the thread that answers it.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The body.
    pub body: Bytes,
    /// Its type.
    pub mime: Mime,
    /// What a raw body can't say.
    pub query: AskQuery,
    /// Who is told of a text as it comes, where the question asks for that.
    pub hear: Option<Hear>,
}

impl Raw {
    /// One whose answer is told as a whole.
    pub fn new(body: Bytes, mime: Mime, query: AskQuery) -> Raw {
        Raw { body, mime, query, hear: None }
    }
}

/// Where the parts of a text go.
pub type Hear = UnboundedSender<String>;

/// The query of a raw body.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskQuery {
    pub adapter: Option<String>,
    pub top: Option<usize>,
    /// Separated by commas.
    pub among: Option<String>,
    pub reject: Option<f32>,
    pub beam: Option<usize>,
    pub outputs: Option<bool>,
    /// Whether the answer is not kept for people to look at.
    #[serde(skip)]
    pub aside: bool,
}

#[cfg(feature = "mqtt")]
impl AskQuery {
    /// For an adapter.
    pub fn of(adapter: &str) -> AskQuery {
        AskQuery { adapter: Some(adapter.into()), ..AskQuery::default() }
    }
}

/// A parsed question.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is asked.
    pub input: Asked,
    /// Who answers.
    pub selection: Selection,
    /// What of the answer.
    pub wanted: Wanted,
    /// How a text is to be written, where the request says something of that.
    pub wording: Option<Wording>,
    /// Whether the base's outputs are in the answer; `None`: where there are no labels.
    pub outputs: Option<bool>,
}

/// What the base is asked.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A sentence.
    Text(String),
    /// A conversation.
    Talk(Vec<Message>),
    /// A picture or a clip of sound.
    File(Bytes),
    /// The base's inputs.
    Tensors(Named),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PredictBody {
    text: Option<String>,
    messages: Option<Vec<Message>>,
    image: Option<String>,
    audio: Option<String>,
    inputs: Option<BTreeMap<String, TensorBody>>,
    #[serde(default, deserialize_with = "given")]
    adapter: Option<Option<String>>,
    lora: Option<Vec<LoraWeight>>,
    top: Option<usize>,
    among: Option<Vec<String>>,
    reject: Option<f32>,
    beam: Option<usize>,
    outputs: Option<bool>,
    tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
    stream: Option<bool>,
}

impl PredictBody {
    /// What it says of a text to be written; `None`: nothing.
    fn wording(&mut self) -> Result<Option<Wording>, Problem> {
        let stop = self.stop.take().unwrap_or_default();
        if stop.len() > MAX_STOPS || stop.iter().any(|text| text.len() > MAX_STOP_BYTES) {
            return Err(Problem::invalid(format!(
                "stop: expected at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes"
            )));
        }
        let wording = Wording {
            tokens: self.tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop,
            stream: self.stream == Some(true),
        };
        Ok((wording != Wording::default()).then_some(wording))
    }
}

/// llama.cpp's form of a weight.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraWeight {
    /// As `GET /lora-adapters` gives it.
    pub id: usize,
    /// The weight.
    pub scale: f32,
}

/// A tensor in JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorBody {
    shape: Vec<usize>,
    #[serde(default = "f32_type")]
    dtype: DType,
    data: Vec<Scalar>,
}

fn f32_type() -> DType {
    DType::F32
}

/// Tells `null` from nothing.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

#[derive(Clone, Copy, Debug)]
enum Scalar {
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Scalar, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number or a boolean")
            }

            fn visit_i64<E>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar::Int(v))
            }

            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Scalar, E> {
                i64::try_from(v).map(Scalar::Int).map_err(|_| E::custom("number out of range"))
            }

            fn visit_f64<E>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(v))
            }

            fn visit_bool<E>(self, v: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(v))
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl TensorBody {
    fn into_array(self, name: &str) -> Result<Array, Problem> {
        let wrong = |found: &Scalar| {
            Problem::invalid(format!(
                "input '{name}': {found:?} is no value of the type {}",
                self.dtype.name()
            ))
        };
        let int = |s: &Scalar| match *s {
            Scalar::Int(v) => Ok(v),
            _ => Err(wrong(s)),
        };
        let data = match self.dtype {
            DType::F32 => Data::F32(collect(&self.data, |s| match *s {
                Scalar::Int(v) => Ok(v as f32),
                // A double out of range becomes infinite, which is not what was sent.
                Scalar::Float(v) if (v as f32).is_finite() => Ok(v as f32),
                _ => Err(wrong(s)),
            })?),
            DType::I64 => Data::I64(collect(&self.data, int)?),
            DType::I32 => {
                Data::I32(collect(&self.data, |s| i32::try_from(int(s)?).map_err(|_| wrong(s)))?)
            }
            DType::U8 => {
                Data::U8(collect(&self.data, |s| u8::try_from(int(s)?).map_err(|_| wrong(s)))?)
            }
            DType::Bool => Data::Bool(collect(&self.data, |s| match *s {
                Scalar::Bool(v) => Ok(v),
                Scalar::Int(0) => Ok(false),
                Scalar::Int(1) => Ok(true),
                _ => Err(wrong(s)),
            })?),
        };
        Array::new(self.shape.clone(), data)
            .map_err(|e| Problem::from(e.at(format_args!("input '{name}'"))))
    }
}

fn collect<T>(
    data: &[Scalar],
    convert: impl Fn(&Scalar) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    data.iter().map(convert).collect()
}

/// Parses JSON; 400 with the place of the first fault.
pub fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::invalid(format!("the body: {e}")))
}

/// As [`json`], an object only: serde would take a struct's fields as a list too.
pub fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'{') | None => json(body),
        Some(_) => Err(Problem::invalid("the body: expected an object")),
    }
}

/// Exactly one of a sentence, a conversation, a picture or sound in base64, and tensors.
pub fn input(
    text: Option<String>,
    messages: Option<Vec<Message>>,
    image: Option<String>,
    audio: Option<String>,
    inputs: Option<BTreeMap<String, TensorBody>>,
) -> Result<Asked, Problem> {
    let file = |text: &str, name: &str| {
        let engine = base64::engine::general_purpose::STANDARD;
        let bytes = engine.decode(text.as_bytes());
        let bytes = bytes.map_err(|e| Problem::invalid(format!("{name}: not base64: {e}")))?;
        Ok(Asked::File(bytes.into()))
    };
    match (text, messages, image, audio, inputs) {
        (Some(text), None, None, None, None) => {
            if text.trim().is_empty() {
                return Err(Problem::invalid("text: the sentence is empty"));
            }
            Ok(Asked::Text(text))
        }
        (None, Some(messages), None, None, None) => {
            if messages.is_empty() {
                return Err(Problem::invalid("messages: there are none"));
            }
            Ok(Asked::Talk(messages))
        }
        (None, None, Some(image), None, None) => file(&image, "image"),
        (None, None, None, Some(audio), None) => file(&audio, "audio"),
        (None, None, None, None, Some(inputs)) => {
            if inputs.is_empty() {
                return Err(Problem::invalid("inputs: there are none"));
            }
            let arrays = inputs.into_iter().map(|(name, body)| {
                let array = body.into_array(&name)?;
                Ok((name, array))
            });
            Ok(Asked::Tensors(arrays.collect::<Result<Named, Problem>>()?))
        }
        _ => Err(Problem::invalid(
            "expected exactly one of 'text', 'messages', 'image', 'audio' and 'inputs'",
        )),
    }
}

/// The input that a raw body is; `None` for JSON. What it unpacks to, or what JSON is read into, is
/// `taken` before.
pub fn raw_input(body: &Bytes, mime: Mime, taken: &mut Taken) -> Result<Option<Asked>, Problem> {
    match mime {
        Mime::Json => {
            // A number may stand in two bytes; what separates them tells how many there are.
            let numbers = body.iter().filter(|b| **b == b',').count() as u64;
            taken.grow(numbers.saturating_mul(BYTES_OF_A_NUMBER))?;
            Ok(None)
        }
        Mime::File => Ok(Some(Asked::File(body.clone()))),
        Mime::Npz => {
            let before = taken.bytes();
            let arrays = npy::read_npz_within(body, MAX_UNPACKED, &mut |more| taken.grow(more))?;
            let bytes: usize = arrays.iter().map(|(_, a)| a.data().byte_len()).sum();
            taken.shrink(before.saturating_add(bytes as u64));
            Ok(Some(Asked::Tensors(arrays)))
        }
        Mime::Bytes => Err(unsupported_media(INPUTS)),
    }
}

/// Reads `NAME` or `NAME@GENERATION`.
pub fn reference(text: &str) -> Result<Reference, Problem> {
    Reference::parse(text).map_err(|e| Problem::invalid(format!("adapter: {}", e.message())))
}

impl Raw {
    /// Parses the question. `rows`: what `GET /lora-adapters` lists, for `lora`; `taken`: what its
    /// memory is taken of.
    pub fn parse(
        &self,
        rows: impl Fn() -> Vec<Row>,
        taken: &mut Taken,
    ) -> Result<Question, Problem> {
        let raw = raw_input(&self.body, self.mime, taken)?;
        let (input, adapter, lora, top, among, reject, beam, outputs, wording) = match raw {
            Some(input) => {
                let q = self.query.clone();
                let among = q.among.map(|labels| labels.split(',').map(str::to_string).collect());
                (input, q.adapter.map(Some), None, q.top, among, q.reject, q.beam, q.outputs, None)
            }
            None => {
                if (AskQuery { aside: false, ..self.query.clone() }) != AskQuery::default() {
                    return Err(Problem::invalid(
                        "the query is for raw bodies: put it into the JSON",
                    ));
                }
                let mut b: PredictBody = object(&self.body)?;
                let wording = b.wording()?;
                let input = input(b.text, b.messages, b.image, b.audio, b.inputs)?;
                let among = b.among;
                (input, b.adapter, b.lora, b.top, among, b.reject, b.beam, b.outputs, wording)
            }
        };
        let selection = match (adapter, lora) {
            (None, None) => Selection::Default,
            (Some(None), None) => Selection::Base,
            (Some(Some(text)), None) => Selection::Named(reference(&text)?),
            (None, Some(list)) => Selection::Mix(mix(&list, &rows())?),
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("expected 'adapter' or 'lora', not both"));
            }
        };
        let top = top.unwrap_or(DEFAULT_TOP);
        if top > MAX_TOP {
            return Err(Problem::invalid(format!("top: expected at most {MAX_TOP}, found {top}")));
        }
        if let Some(share) = reject.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(Problem::invalid(format!(
                "reject: expected a share between 0 and 1, found {share}"
            )));
        }
        let beam = beam.unwrap_or(1);
        if !(1..=MAX_BEAM).contains(&beam) {
            let error = format!("beam: expected 1 to {MAX_BEAM}, found {beam}");
            return Err(Problem::invalid(error));
        }
        let wanted = Wanted { top, among: among.unwrap_or_default(), reject, beam };
        Ok(Question { input, selection, wanted, wording, outputs })
    }
}

/// llama.cpp's list of weights, by name.
pub fn mix(list: &[LoraWeight], rows: &[Row]) -> Result<Vec<(String, f32)>, Problem> {
    if list.len() > MAX_MIX {
        return Err(Problem::invalid(format!("at most {MAX_MIX} adapters can be summed")));
    }
    let mut parts: Vec<(String, f32)> = vec![];
    for weight in list {
        let Some(name) = rows.iter().find(|row| row.id == weight.id).map(|row| &row.name) else {
            return Err(Problem::not_found(format!(
                "there is no adapter with the id {}",
                weight.id
            ))
            .hint("see GET /lora-adapters"));
        };
        if !weight.scale.is_finite() || parts.iter().any(|(n, _)| n == name) {
            return Err(Problem::invalid(format!(
                "adapter {}: expected one finite scale",
                weight.id
            )));
        }
        parts.push((name.clone(), weight.scale));
    }
    Ok(parts)
}

impl Asked {
    /// As the store keeps it.
    pub fn into_stored(self) -> Result<Input, Problem> {
        Ok(match self {
            Asked::Text(text) => Input::Text(text),
            Asked::Talk(messages) => Input::Text(conversation_text(&messages)),
            Asked::File(bytes) => {
                let mime = media_type(&bytes).unwrap_or("application/octet-stream");
                Input::File { bytes: bytes.to_vec(), mime: mime.into() }
            }
            Asked::Tensors(named) => Input::Tensors(npy::to_npz(&named)?),
        })
    }
}

/// An adapter's name from a path or a body: 400 for what can be none.
pub fn name(text: &str) -> Result<&str, Problem> {
    check_name(text).map_err(|e| Problem::invalid(e.message()))?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "ask_tests.rs"]
mod tests;
