//! Texts that a language model writes behind what it is asked.

use super::tasks::{Wording, completed, conversation_tokens};
use crate::adapter::Bound;
use crate::error::{Cause, Error, Result};
use crate::runtime::{Ended, Engine, GenerateOptions, Generator, Message, Sampling, Stop};
use serde_json::Value;
use std::sync::Arc;

/// A base that goes on from a text.
pub(crate) struct Completing {
    generator: Generator,
}

impl Completing {
    /// Of the engine's base; its runs take their memory of the engine's.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn new(engine: &Engine) -> Result<Completing> {
        Ok(Completing { generator: Generator::new(engine)? })
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// Bad input: so many that nothing can follow.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.fitting(self.generator.tokens(text)?)
    }

    /// The tokens of a conversation, up to where the assistant speaks; as [`Completing::prompt`].
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.fitting(conversation_tokens(&self.generator, messages)?)
    }

    fn fitting(&self, prompt: Vec<u32>) -> Result<Vec<u32>> {
        match self.generator.room().filter(|room| prompt.len() >= *room) {
            Some(room) => {
                let found = prompt.len();
                let error =
                    format!("the prompt has {found} tokens, the base takes {room} with the answer");
                Err(Error::bad_input(error))
            }
            None => Ok(prompt),
        }
    }

    /// Bytes that an answer takes from beginning to end, beside those of its runs.
    pub fn bytes(&self, prompt: &[u32], tokens: usize) -> u64 {
        let all = prompt.len().saturating_add(tokens);
        self.generator.kept_bytes(self.generator.room().map_or(all, |room| room.min(all)))
    }

    /// What is written behind `prompt`, at most `tokens` tokens, as an answer says it. `hear` is told each part
    /// of the text; it and `stop` end it.
    ///
    /// # Errors
    /// As [`Generator::generate`]; [`Cause::Stopped`].
    pub fn answer(
        &self,
        prompt: &[u32],
        tokens: usize,
        wording: &Wording,
        adapter: Option<&Arc<Bound>>,
        stop: &Stop,
        hear: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Value> {
        let Wording { temperature, top_k, top_p, repetition_penalty, seed, stop: stops, .. } =
            wording;
        let usual = Sampling::default();
        let sampling = Sampling {
            temperature: temperature.unwrap_or(usual.temperature),
            top_k: top_k.unwrap_or(usual.top_k),
            top_p: top_p.unwrap_or(usual.top_p),
            repetition_penalty: repetition_penalty.unwrap_or(usual.repetition_penalty),
            seed: seed.unwrap_or(usual.seed),
        };
        let options = GenerateOptions { tokens, sampling, stop: stops.clone() };
        let mut go_on = |text: &str| !stop() && hear(text);
        let stop = Some(stop.clone());
        let found =
            self.generator.generate_until(None, prompt, adapter, &options, stop, &mut go_on)?;
        match found.ended {
            Ended::Listener => {
                Err(Error::refused("nobody waits for the text").because(Cause::Stopped))
            }
            _ => Ok(completed(&found)),
        }
    }
}
