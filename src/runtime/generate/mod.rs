//! Generating text: a base's graphs as a decoder, how the next token is chosen, what ends a text.

mod chat;
mod decoder;
mod fallback;
#[cfg(all(test, feature = "import"))]
mod kept_tests;
mod sampling;
mod settings;
mod stream;

pub(crate) use chat::rendered as chat_text;
pub use sampling::Sampling;

use super::engine::{Engine, Named};
use super::message::Message;
use super::text::{TextEncoder, UNLIMITED};
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::graph::Stop;
use crate::pack::Role;
use crate::shape::{Array, Input};
use decoder::{Decoder, Past};
use sampling::{Sampler, log_probability};
use settings::Settings;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::TextStream;

/// A base's own chat template, among its texts.
const TEMPLATE: &str = "chat_template.jinja";

/// What to generate, and until when.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// At most so many new tokens.
    pub tokens: usize,
    /// How the next one is chosen.
    pub sampling: Sampling,
    /// Texts that end the text; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    /// 128 tokens, the likeliest each time.
    fn default() -> GenerateOptions {
        GenerateOptions { tokens: 128, sampling: Sampling::default(), stop: vec![] }
    }
}

/// Why no more tokens came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The base ended the text.
    End,
    /// A text of [`GenerateOptions::stop`] came.
    Stop,
    /// [`GenerateOptions::tokens`] are there.
    Tokens,
    /// The base takes no more tokens.
    Full,
    /// The listener said so.
    Listener,
}

impl Ended {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Ended::End => "end",
            Ended::Stop => "stop",
            Ended::Tokens => "tokens",
            Ended::Full => "full",
            Ended::Listener => "listener",
        }
    }
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text; empty for bases without a tokenizer.
    pub text: String,
    /// Tokens that stood before them.
    pub prompt_tokens: usize,
    /// Why no more came.
    pub ended: Ended,
    /// The temperature that it was written at: that which was asked for, or a higher one where speech became the same
    /// words over and over ([`Generator::generate_from`]).
    pub temperature: f32,
    /// How long the prompt took, an encoder included.
    pub prompt_time: Duration,
    /// How long the new tokens took, of all tries.
    pub time: Duration,
}

/// Hears with each new token the text that is certain by it, which may be empty; `false` ends the text.
pub type Listener<'a> = dyn FnMut(&str) -> bool + 'a;

/// A base that generates text: a decoder with past states or without, alone or behind an encoder.
///
/// ```no_run
/// use offshoot::{Engine, GenerateOptions, Generator};
///
/// # fn main() -> offshoot::Result<()> {
/// let generator = Generator::new(&Engine::open("smollm2.base")?)?;
/// let prompt = generator.tokens("Three colours are")?;
/// let options = GenerateOptions { tokens: 20, ..GenerateOptions::default() };
/// let found = generator.generate(&prompt, None, &options, &mut |text| {
///     print!("{text}");
///     true
/// })?;
/// assert!(found.ids.len() <= 20);
/// # Ok(())
/// # }
/// ```
pub struct Generator {
    engine: Engine,
    decoder: Decoder,
    text: Option<TextEncoder>,
    settings: Settings,
}

impl Generator {
    /// Of all graphs of the engine's base.
    ///
    /// # Errors
    /// Unsupported: the base is no language model, or its graphs have inputs whose meaning isn't known,
    /// by name. Bad input: a damaged tokenizer.
    pub fn new(engine: &Engine) -> Result<Generator> {
        let decoder = Decoder::new(engine)?;
        let bytes = engine.base().tokenizer()?;
        let text = bytes.map(|bytes| TextEncoder::from_bytes(bytes, UNLIMITED)).transpose()?;
        let token = |name: &str| text.as_ref().and_then(|text| text.id_of(name));
        let settings = Settings::read(engine.base(), &token)?;
        Ok(Generator { engine: engine.clone(), decoder, text, settings })
    }

    /// Whether an encoder stands before the decoder.
    pub fn has_encoder(&self) -> bool {
        self.decoder.encoder.is_some()
    }

    /// Tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.settings.ends
    }

    /// Tokens that a decoder behind an encoder begins with, as the base's own files say.
    pub fn starts(&self) -> &[u32] {
        &self.settings.starts
    }

    /// The tokens of a prompt, special ones as the tokenizer sets them before a text, but none behind it:
    /// the text goes on. Behind an encoder only those that the prompt names.
    ///
    /// # Errors
    /// Unsupported: a base without a tokenizer.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let text = self.text()?;
        let bare = text.ids(prompt, false)?;
        if self.has_encoder() {
            return Ok(bare);
        }
        let mut whole = text.ids(prompt, true)?;
        // What the tokenizer adds behind a text, an end above all, is no part of a prompt.
        let inside = |at: &usize| whole[*at..].starts_with(&bare);
        if let Some(at) = (0..whole.len()).find(inside) {
            whole.truncate(at + bare.len());
        }
        Ok(whole)
    }

    /// Whether the base has a template that conversations are written by.
    pub fn has_chat(&self) -> Result<bool> {
        Ok(self.engine.base().text(TEMPLATE)?.is_some())
    }

    /// The tokens of a conversation, up to where the assistant speaks, by the base's own chat template.
    ///
    /// # Errors
    /// Usage: a base without a template. Unsupported: what the template has and this doesn't know, by name.
    /// Bad input: the template refuses the messages. As [`Generator::tokens`].
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.engine.base().text(TEMPLATE)?.ok_or_else(|| {
            Error::usage("the base has no chat template").hint(
                "pack a folder with chat_template.jinja or tokenizer_config.json, or write the prompt out",
            )
        })?;
        self.bare_tokens(&chat::rendered(template, messages, &self.settings.names)?)
    }

    /// The tokens of a text that goes on from another: no special ones but those that it names.
    ///
    /// # Errors
    /// As [`Generator::tokens`].
    pub fn bare_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.text()?.ids(text, false)
    }

    /// The tokens of a text as a decoder behind an encoder writes it, its end last.
    ///
    /// # Errors
    /// As [`Generator::tokens`]. Unsupported: nothing says how a text ends.
    pub(crate) fn written(&self, text: &str) -> Result<Vec<u32>> {
        let text = text.trim();
        let end = *self.ends().first().ok_or_else(|| {
            Error::unsupported("the base doesn't say which token ends a text")
                .hint("pack a folder with generation_config.json, which names eos_token_id")
        })?;
        // Whisper, of a byte-level vocabulary, writes a blank first (openai/whisper encodes texts so); others add
        // their own.
        let blank = self.text()?.id_of("\u{120}");
        let leads = self.hears()
            && !text.is_empty()
            && blank.is_some_and(|id| self.bare_tokens(" ").is_ok_and(|ids| ids == [id]));
        let mut ids = match leads {
            true => self.bare_tokens(&format!(" {text}"))?,
            false => self.bare_tokens(text)?,
        };
        ids.push(end);
        Ok(ids)
    }

    /// Whether it writes down speech.
    fn hears(&self) -> bool {
        self.decoder.encoder.as_ref().is_some_and(|encoder| {
            encoder.inputs().iter().any(|s| matches!(s.role, Role::Mel | Role::Samples))
        })
    }

    /// Feeds `ids` in behind `prompt` one by one; `take` gets each with the logits that it follows on.
    ///
    /// # Errors
    /// As [`Generator::generate_from`].
    pub(crate) fn follow(
        &self,
        encoded: Option<Array>,
        prompt: &[u32],
        ids: &[u32],
        adapter: Option<&Arc<Bound>>,
        take: &mut dyn FnMut(u32, &[f32]),
    ) -> Result<()> {
        let (mut past, mut logits) = (Past::behind(self.decoder.encoded(encoded)?, None), vec![]);
        let mut new = prompt;
        for (at, id) in ids.iter().enumerate() {
            self.decoder.feed(&mut past, new, adapter, &mut logits)?;
            take(*id, &logits);
            new = &ids[at..at + 1];
        }
        Ok(())
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// Unsupported: a base without a tokenizer.
    pub fn text_of(&self, ids: &[u32]) -> Result<String> {
        self.text()?.decode(ids)
    }

    fn text(&self) -> Result<&TextEncoder> {
        self.text.as_ref().ok_or_else(|| {
            let place = self.engine.base().path().display();
            Error::unsupported(format!("base '{place}' has no tokenizer"))
                .hint("pack it with --tokenizer tokenizer.json, or give token ids")
        })
    }

    /// The encoder's output \[1, frames, features\] for its inputs by name.
    ///
    /// # Errors
    /// As [`Engine::run`]; usage: a base without an encoder; unsupported: an encoder without features.
    pub fn encode<I: Input>(&self, inputs: &[I], adapter: Option<&Arc<Bound>>) -> Result<Array> {
        let encoder = self
            .decoder
            .encoder
            .as_ref()
            .ok_or_else(|| Error::usage("the base has no encoder that takes inputs"))?;
        self.features(encoder.run(inputs, adapter)?)
    }

    /// As [`Generator::encode`], of all that the encoder gave.
    pub(crate) fn features(&self, mut outputs: Named) -> Result<Array> {
        let encoder = self.decoder.encoder.as_ref();
        let specs = encoder.map_or(&[][..], Engine::outputs);
        let at = specs.iter().position(|spec| spec.role == Role::Features);
        let at = at.filter(|at| *at < outputs.len());
        let at = at.ok_or_else(|| Error::unsupported("the encoder has no output of features"))?;
        let array = outputs.swap_remove(at).1;
        match array.shape() {
            [1, _, _] => Ok(array),
            shape => Err(Error::unsupported(format!(
                "text is generated for one input at a time, the encoder gave {shape:?}"
            ))),
        }
    }

    /// Text behind the tokens `prompt`, with an adapter or without. `listener` hears it as it comes.
    ///
    /// # Errors
    /// Usage: an empty prompt, options out of range, a base behind whose encoder the decoder stands
    /// ([`Generator::generate_from`]). As [`Engine::run`].
    pub fn generate(
        &self,
        prompt: &[u32],
        adapter: Option<&Arc<Bound>>,
        options: &GenerateOptions,
        listener: &mut Listener<'_>,
    ) -> Result<Generated> {
        self.generate_from(None, prompt, adapter, options, listener)
    }

    /// As [`Generator::generate`], with what [`Generator::encode`] gave.
    ///
    /// Speech that becomes the same words over and over, where the likeliest token is taken each time, is written again at
    /// temperatures of 0.2 to 1 until it doesn't: `listener` then hears all of the text at its end, and nothing but empty
    /// texts before.
    pub fn generate_from(
        &self,
        encoded: Option<Array>,
        prompt: &[u32],
        adapter: Option<&Arc<Bound>>,
        options: &GenerateOptions,
        listener: &mut Listener<'_>,
    ) -> Result<Generated> {
        self.generate_until(encoded, prompt, adapter, options, None, listener)
    }

    /// As [`Generator::generate_from`], until `stop` says so: it is asked between the steps of the runs.
    ///
    /// # Errors
    /// As [`Engine::run_until`].
    pub(crate) fn generate_until(
        &self,
        encoded: Option<Array>,
        prompt: &[u32],
        adapter: Option<&Arc<Bound>>,
        options: &GenerateOptions,
        stop: Option<Stop>,
        listener: &mut Listener<'_>,
    ) -> Result<Generated> {
        options.sampling.check()?;
        if options.stop.iter().any(String::is_empty) {
            return Err(Error::usage("a stop text is empty"));
        }
        if prompt.is_empty() {
            return Err(Error::usage("the prompt is empty"));
        }
        let room = self.room();
        if room.is_some_and(|room| prompt.len() >= room) {
            return Err(Error::bad_input(format!(
                "the prompt has {} tokens, the base takes {} with the answer",
                prompt.len(),
                room.unwrap_or_default()
            )));
        }
        let encoded = self.decoder.encoded(encoded)?;
        let behind = || Past::behind(encoded.clone(), stop.clone());
        if options.sampling.temperature > 0.0 || !self.hears() {
            return Ok(self.write(behind(), prompt, adapter, options, false, listener)?.0);
        }
        let start = Instant::now();
        let mut found = fallback::tries(options.sampling, &mut |sampling, measured| {
            let options = GenerateOptions { sampling, ..options.clone() };
            self.write(behind(), prompt, adapter, &options, measured, &mut |_| listener(""))
        })?;
        found.time = start.elapsed().saturating_sub(found.prompt_time);
        if found.ended != Ended::Listener {
            listener(&found.text);
        }
        Ok(found)
    }

    /// Text behind `past` and `prompt`, with the mean of its tokens' log probabilities where that is to be measured.
    fn write(
        &self,
        mut past: Past,
        prompt: &[u32],
        adapter: Option<&Arc<Bound>>,
        options: &GenerateOptions,
        measured: bool,
        listener: &mut Listener<'_>,
    ) -> Result<fallback::Try> {
        let room = self.room();
        let (start, mut logits) = (Instant::now(), vec![]);
        self.decoder.feed(&mut past, prompt, adapter, &mut logits)?;
        let prompt_time = start.elapsed();
        let mut sampler = Sampler::new(options.sampling);
        let mut stream = TextStream::new(&options.stop);
        let decode = |ids: &[u32]| self.text.as_ref().map_or(Ok(String::new()), |t| t.decode(ids));
        let mut ended = Ended::Tokens;
        let (mut likely, mut chosen) = (0.0, 0);
        for left in (0..options.tokens).rev() {
            for id in &self.settings.suppressed {
                logits.get_mut(*id as usize).into_iter().for_each(|v| *v = f32::NEG_INFINITY);
            }
            let id = sampler.next(&mut logits, &past.ids)?;
            if measured {
                (likely, chosen) = (likely + log_probability(&logits, id), chosen + 1);
            }
            if self.settings.ends.contains(&id) {
                ended = Ended::End;
                break;
            }
            let (text, stopped) = stream.push(id, &decode)?;
            let goes_on = listener(&text);
            if stopped || !goes_on || left == 0 || room.is_some_and(|n| past.ids.len() + 1 >= n) {
                past.ids.push(id);
                ended = match (stopped, goes_on) {
                    (true, _) => Ended::Stop,
                    (_, false) => Ended::Listener,
                    _ if left == 0 => Ended::Tokens,
                    _ => Ended::Full,
                };
                break;
            }
            self.decoder.feed(&mut past, &[id], adapter, &mut logits)?;
        }
        if ended != Ended::Stop {
            let rest = stream.finish(&decode)?;
            if !rest.is_empty() {
                listener(&rest);
            }
        }
        let time = start.elapsed() - prompt_time;
        let (ids, text) = (past.ids[prompt.len()..].to_vec(), stream.into_text());
        let (prompt_tokens, temperature) = (prompt.len(), options.sampling.temperature);
        let found = Generated { ids, text, prompt_tokens, ended, temperature, prompt_time, time };
        Ok((found, likely / f64::from(chosen.max(1))))
    }

    /// Bytes that `tokens` tokens take between runs: their states and one row of logits.
    #[cfg(feature = "daemon")]
    pub(crate) fn kept_bytes(&self, tokens: usize) -> u64 {
        self.decoder.kept_bytes(tokens)
    }

    /// How many tokens there may be, the prompt's included, where the base says.
    pub(crate) fn room(&self) -> Option<usize> {
        let stated = self.engine.base().preprocess().max_tokens.map(|n| n as usize);
        [stated, self.decoder.fixed_length()].into_iter().flatten().min()
    }
}
