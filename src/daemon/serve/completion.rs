//! Texts that the base writes behind what it was asked.

use super::ask::{Asked, Hear};
use super::problem::Problem;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::runtime::{Engine, MemoryLimit, Stop, Taken};
use crate::train::Completing;
use crate::train::tasks::Wording;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// New tokens where the request does not say.
const USUAL: usize = 128;

/// What is asked of a language model, ready to be gone on from.
pub struct Prompt {
    tokens: Vec<u32>,
    /// New tokens at most.
    most: usize,
    wording: Wording,
    hear: Option<Hear>,
}

impl Prompt {
    /// Tokens that go through the base, at most.
    pub fn size(&self) -> usize {
        self.tokens.len().saturating_add(self.most)
    }
}

/// A base's language model, read when it is first asked.
pub struct Completer {
    engine: Engine,
    memory: MemoryLimit,
    /// `limits.tokens`.
    most: AtomicUsize,
    completing: Mutex<Option<Arc<Completing>>>,
}

impl Completer {
    /// Of the engine's base, with runs and pasts that take their memory of `memory`.
    pub fn new(engine: Engine, memory: MemoryLimit, most: usize) -> Completer {
        let (engine, most) = (engine.with_memory(memory.clone()), AtomicUsize::new(most));
        Completer { engine, memory, most, completing: Mutex::default() }
    }

    /// Has answers have at most so many new tokens from now on.
    pub fn set(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Makes tokens of what is asked, and takes the memory of the whole answer.
    ///
    /// # Errors
    /// 400: more tokens than an answer may have, or than the base takes; 413, 503: no memory for them.
    pub fn prepare(
        &self,
        asked: &Asked,
        wording: Wording,
        hear: Option<Hear>,
        taken: &mut Taken,
    ) -> Result<Prompt, Problem> {
        let limit = self.most.load(Ordering::Relaxed);
        let most = wording.tokens.unwrap_or(USUAL.min(limit));
        if !(1..=limit).contains(&most) {
            return Err(Problem::invalid(format!(
                "tokens: expected 1 to {limit} (limits.tokens), found {most}"
            )));
        }
        let completing = self.completing()?;
        let tokens = self.tokens(&completing, asked)?;
        taken.grow(completing.bytes(&tokens, most))?;
        let hear = hear.filter(|_| wording.stream);
        Ok(Prompt { tokens, most, wording, hear })
    }

    /// An error if the base can't go on from what is asked, or no answer to it could be learned, of which
    /// training takes `longest` tokens.
    pub fn check(&self, asked: &Asked, longest: usize) -> Result<()> {
        let found = self.tokens(&*self.completing()?, asked)?.len();
        match found < longest {
            true => Ok(()),
            false => Err(Error::bad_input(format!(
                "the prompt has {found} tokens, {longest} are learned with the answer"
            ))),
        }
    }

    fn tokens(&self, completing: &Completing, asked: &Asked) -> Result<Vec<u32>> {
        match asked {
            Asked::Text(text) => {
                let _taken = self.memory.take(super::answer::tokenizing_bytes(text.len()))?;
                completing.prompt(text)
            }
            Asked::Talk(messages) => {
                let bytes = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
                let _taken = self.memory.take(super::answer::tokenizing_bytes(bytes))?;
                completing.conversation(messages)
            }
            Asked::File(_) | Asked::Tensors(_) => Err(Error::usage(
                "a completion follows on 'text' or 'messages'; what a clip or a picture says is its 'transcript'",
            )),
        }
    }

    /// What is written, as an answer says it; until `stop` says so, or nobody hears it any more.
    pub fn answer(
        &self,
        prompt: &Prompt,
        adapter: Option<&Arc<Bound>>,
        stop: &Stop,
    ) -> Result<Value> {
        let Prompt { tokens, most, wording, hear } = prompt;
        let mut told = |text: &str| {
            hear.as_ref().is_none_or(|hear| text.is_empty() || hear.send(text.into()).is_ok())
        };
        if let Some(hear) = hear {
            // The answer has begun. Who has gone is noticed at the first token.
            let _ = hear.send(String::new());
        }
        self.completing()?.answer(tokens, *most, wording, adapter, stop, &mut told)
    }

    fn completing(&self) -> Result<Arc<Completing>> {
        let mut slot = self.completing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(completing) = &*slot {
            return Ok(completing.clone());
        }
        let completing = Arc::new(Completing::new(&self.engine)?);
        *slot = Some(completing.clone());
        Ok(completing)
    }
}
