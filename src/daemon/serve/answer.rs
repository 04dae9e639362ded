//! From a question to its answer: inputs made, the base run, labels read.

use super::api::now;
use super::ask::{Asked, Question, Raw};
use super::completion::{Completer, Prompt};
use super::look::Look;
use super::problem::Problem;
use super::recent::{Offer, Recent};
use super::roster::{Instead, Roster, Served};
use super::rows::{one_row, rows_are_free, zero};
use super::writer::Writer;
use super::written::{Each, written};
use crate::daemon::Tensor;
use crate::error::{Error, ErrorKind, Result};
use crate::pack::Role;
use crate::runtime::picture::smaller_side;
use crate::runtime::text::Tokens;
use crate::runtime::{
    Engine, MemoryLimit, Named, Prediction, Preprocessor, Stop, Taken, Words, apply_head,
    base_predictions,
};
use crate::shape::Array;
use crate::train::Task;
use crate::train::tasks::Wanted;
use axum::body::Bytes;
use axum::http::StatusCode;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory for the prediction of a row beside its values.
const BYTES_OF_A_ROW: u64 = 256;
/// A question of so many times the probe's size is large: a sentence of more than a hundred words, a batch.
const LARGE: usize = 16;

/// Memory that a sentence of so many bytes takes on its way to tokens: a hundred and more for each, of what
/// goes through the tokenizer.
pub(super) fn tokenizing_bytes(bytes: usize) -> u64 {
    256 * bytes.min(64 << 10) as u64
}

/// Answers questions about one base. Shared by all workers.
pub struct Answerer {
    engine: Engine,
    /// What requests take their memory of, and the engine's runs theirs.
    memory: MemoryLimit,
    preprocessor: Preprocessor,
    roster: Arc<Roster>,
    recent: Arc<Recent>,
    /// What writes texts behind the base's encoder, where that is its task.
    writer: Writer,
    /// What goes on from texts, where that is its task.
    completer: Completer,
    /// Whether sentences of one length may share a run.
    batches: bool,
    /// Decoding takes up to 192 MiB: one picture or sound at a time.
    decoding: Mutex<()>,
    /// The size of the last [`Answerer::probe`], as [`Prepared::size`] has it.
    least: AtomicUsize,
    /// Whether the log says that the base's file has changed.
    told_changed: AtomicBool,
}

/// A question ready to run.
pub struct Prepared {
    work: Work,
    /// The sentence, where the head answers for its words.
    sentence: Option<(String, Words)>,
    served: Arc<Served>,
    wanted: Wanted,
    outputs: Option<bool>,
    /// What was asked, where the answer is to be kept, and how its picture looks.
    kept: Option<(Asked, Option<Look>)>,
    /// The memory of its inputs; none for the daemon's own question, which is answered however much
    /// clients have taken.
    taken: Option<Taken>,
}

impl Prepared {
    /// Tokens, or values of the largest input.
    fn size(&self) -> usize {
        match &self.work {
            Work::Tokens(_, length) => *length,
            Work::Inputs(named) => named.iter().map(|(_, a)| a.data().len()).max().unwrap_or(0),
            Work::Prompt(prompt) => prompt.size(),
        }
    }
}

enum Work {
    /// A sentence and the length that it is padded to.
    Tokens(Tokens, usize),
    Inputs(Named),
    /// What a text is to be written behind.
    Prompt(Box<Prompt>),
}

/// The answer to one question.
#[derive(Serialize)]
struct Reply<'a, P: Serialize> {
    /// Who answered, and its generation.
    adapter: Option<&'a str>,
    generation: Option<u64>,
    /// The generation that should have answered and can't, with the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    instead_of: Option<&'a Instead>,
    /// Of how many samples the head was made at once, where one answers that no training has seen yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    instant: Option<usize>,
    /// For each row what the head's task says.
    predictions: P,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_answer: Option<String>,
    /// The base's outputs, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<BTreeMap<&'a str, Tensor<'a>>>,
}

impl Answerer {
    /// For this engine and these adapters, with runs that take their memory of `memory`, and written texts of
    /// at most so many tokens.
    pub fn new(
        engine: Engine,
        roster: Arc<Roster>,
        recent: Arc<Recent>,
        memory: MemoryLimit,
        tokens: usize,
    ) -> Answerer {
        let batches = rows_are_free(&engine);
        let preprocessor = Preprocessor::new(&engine);
        let decoding = Mutex::new(());
        let least = AtomicUsize::new(0);
        let writer = Writer::new(engine.clone().with_memory(memory.clone()));
        let completer = Completer::new(engine.clone(), memory.clone(), tokens);
        Answerer {
            engine,
            memory,
            preprocessor,
            roster,
            recent,
            writer,
            completer,
            batches,
            decoding,
            least,
            told_changed: AtomicBool::new(false),
        }
    }

    /// What requests take their memory of.
    pub fn memory(&self) -> &MemoryLimit {
        &self.memory
    }

    /// What goes on from texts.
    pub fn completer(&self) -> &Completer {
        &self.completer
    }

    /// Parses a question, chooses who answers and makes the base's inputs.
    pub fn prepare(&self, raw: &Raw) -> Result<Prepared, Problem> {
        // Half of one base and half of another is none.
        if let Err(e) = self.engine.base().check_unchanged()
            && e.kind() == ErrorKind::BadInput
        {
            if !self.told_changed.swap(true, Ordering::Relaxed) {
                tracing::error!("nothing is answered any more: {e}");
            }
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", e.message())
                .hint("restart the daemon, on a base that is whole"));
        }
        let mut taken = self.memory.take(0)?;
        let question = raw.parse(|| self.roster.list(), &mut taken)?;
        let Question { input, selection, wanted, wording, outputs } = question;
        let served = self.roster.resolve(&selection)?;
        let head = served.bound.as_ref().and_then(|b| b.head.as_ref());
        let task = Task::serving(head, self.engine.base())?;
        let completes = task.rules().completes();
        let completes = completes && matches!(input, Asked::Text(_) | Asked::Talk(_));
        if wording.is_some() && !completes {
            return Err(Problem::invalid("what answers this writes no text that could be worded")
                .hint("'tokens', 'temperature', 'stop', 'stream', ... are for language models"));
        }
        let of_labels = wanted.reject.is_some() || !wanted.among.is_empty();
        if completes && (outputs == Some(true) || of_labels) {
            return Err(Problem::invalid(
                "a text that is written has no outputs and no labels, and rejects nothing",
            ));
        }
        let mut sentence = None;
        let shown = served.name.is_some() && !raw.query.aside && self.recent.wants(&input);
        let mut kept = shown.then(|| (input.clone(), None));
        let work = match input {
            input if completes => {
                let (wording, hear) = (wording.unwrap_or_default(), raw.hear.clone());
                Work::Prompt(Box::new(self.completer.prepare(&input, wording, hear, &mut taken)?))
            }
            Asked::Talk(_) => {
                return Err(Error::unsupported("only a language model answers 'messages'").into());
            }
            Asked::Text(text) => {
                let _taken = self.memory.take(tokenizing_bytes(text.len()))?;
                let tokens = if task.needs_words() {
                    let (tokens, words) = self.preprocessor.words(&text)?;
                    sentence = Some((text, words));
                    tokens
                } else {
                    self.preprocessor.tokens(&text)?
                };
                let length = self.preprocessor.padded_length(tokens.ids.len());
                Work::Tokens(tokens, length)
            }
            Asked::File(bytes) => {
                let picture = self.picture(&bytes)?;
                if let Some((_, look)) = &mut kept {
                    *look = Look::of(&picture, smaller_side(&bytes));
                }
                Work::Inputs(self.preprocessor.stack(&[&picture])?)
            }
            Asked::Tensors(named) => Work::Inputs(named),
        };
        Ok(Prepared { work, sentence, served, wanted, outputs, kept, taken: Some(taken) })
    }

    fn picture(&self, bytes: &[u8]) -> Result<Array, Problem> {
        let _one = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        let _taken = self.memory.take(self.preprocessor.media_memory(bytes)?)?;
        Ok(self.preprocessor.media_bytes(bytes)?)
    }

    /// Seconds of sound that the base takes at once: 0 for any number, `None` where it takes no sound.
    pub fn hears(&self) -> Option<f32> {
        let spec = self.engine.base().audio().ok()??;
        Some(spec.seconds().unwrap_or(0.0))
    }

    /// An error if the base can't take `input`, or can't go on from it (`completes`), without running it.
    pub fn check(&self, input: &Asked, completes: bool) -> Result<(), Problem> {
        match input {
            _ if completes => self.completer.check(input, self.preprocessor.max_tokens())?,
            Asked::Talk(_) => {
                return Err(Error::unsupported("only a language model learns of 'messages'").into());
            }
            Asked::Text(text) => {
                let _taken = self.memory.take(tokenizing_bytes(text.len()))?;
                drop(self.preprocessor.tokens(text)?);
            }
            Asked::File(bytes) => drop(self.picture(bytes)?),
            Asked::Tensors(named) => self.engine.check(named)?,
        }
        Ok(())
    }

    /// Whether a question takes many times what the daemon's own does.
    pub fn is_large(&self, prepared: &Prepared) -> bool {
        let least = self.least.load(Ordering::Relaxed);
        least > 0 && prepared.size() / LARGE >= least
    }

    /// Questions of equal keys may share a run: one adapter, one padded length.
    pub fn key(&self, prepared: &Prepared) -> Option<(usize, usize)> {
        match &prepared.work {
            Work::Tokens(_, length) if self.batches => {
                let adapter = prepared.served.bound.as_ref();
                Some((adapter.map_or(0, |b| Arc::as_ptr(b) as usize), *length))
            }
            _ => None,
        }
    }

    /// Answers questions of one key, in one run that ends when `stop` says so: for each the JSON that
    /// is sent.
    pub fn answer(&self, group: &[&Prepared], stop: &Stop) -> Result<Vec<Bytes>, Problem> {
        let Some(first) = group.first() else { return Ok(vec![]) };
        let made;
        let inputs = match &first.work {
            // Of those each is a group of its own.
            Work::Prompt(prompt) => return Ok(vec![self.complete(first, prompt, stop)?]),
            Work::Inputs(named) => named,
            Work::Tokens(..) => {
                let rows: Vec<&Tokens> = group
                    .iter()
                    .filter_map(|p| match &p.work {
                        Work::Tokens(tokens, _) => Some(tokens),
                        Work::Inputs(_) | Work::Prompt(_) => None,
                    })
                    .collect();
                made = self.preprocessor.batch(&rows)?;
                &made
            }
        };
        let bound = first.served.bound.as_ref();
        let own = first.taken.is_none();
        let limited = self.engine.clone().with_memory((!own).then(|| self.memory.clone()));
        let outputs = limited.run_until(inputs, bound, stop.clone())?;
        let held: usize = outputs.iter().map(|(_, a)| a.data().byte_len()).sum();
        let rows = outputs.first().and_then(|(_, a)| a.shape().first()).copied().unwrap_or(0);
        let held = held as u64 + rows as u64 * BYTES_OF_A_ROW;
        let _held = (!own).then(|| self.memory.take(held)).transpose()?;
        let head = bound.and_then(|b| b.head.as_ref());
        let task = Task::serving(head, self.engine.base())?;
        let predictions = match head {
            _ if task.rules().writes() && !own => {
                vec![self.writer.write(outputs.clone(), bound, stop)?]
            }
            Some(head) => {
                let mask = self.engine.given(inputs, Role::Mask);
                apply_head(&self.engine, head, mask, &outputs)?
            }
            None => base_predictions(&self.engine, &outputs),
        };
        let shown = group.iter().any(|p| p.outputs.unwrap_or(predictions.is_empty()));
        if predictions.iter().flat_map(|p| &p.logits).any(|v| !v.is_finite())
            || shown && !outputs.iter().all(|(_, a)| a.is_finite())
        {
            return Err(limited.not_finite(inputs, bound, Some(stop.clone())).into());
        }
        let alone = group.len() == 1;
        group
            .iter()
            .enumerate()
            .map(|(row, prepared)| {
                let own: &[Prediction] = match alone {
                    true => &predictions,
                    false => predictions.get(row..row + 1).unwrap_or_default(),
                };
                let part: Named;
                let shown = match (prepared.outputs.unwrap_or(own.is_empty()), alone) {
                    (false, _) => None,
                    (true, true) => Some(&outputs),
                    (true, false) => {
                        let rows = outputs.iter();
                        part = rows
                            .map(|(name, a)| Ok((name.clone(), one_row(a, row)?)))
                            .collect::<Result<Named>>()?;
                        Some(&part)
                    }
                };
                let sentence =
                    prepared.sentence.as_ref().map(|(text, words)| (text.as_str(), words));
                let said = |p: &Prediction| -> Result<serde_json::Value> {
                    Ok(task.answer(head, p, sentence, &prepared.wanted)?.json)
                };
                let Wanted { reject, among, .. } = &prepared.wanted;
                let kept = prepared.kept.is_some() && own.len() == 1;
                // What can't be had is the request's fault, and said before the answer is written.
                if let Some(one) =
                    own.first().filter(|_| kept || reject.is_some() || !among.is_empty())
                {
                    let said = said(one)?;
                    if kept {
                        self.keep(prepared, &said);
                    }
                }
                let reply = Reply {
                    adapter: prepared.served.name.as_deref(),
                    generation: prepared.served.generation,
                    instead_of: prepared.served.instead.as_deref(),
                    no_answer: own.is_empty().then(|| silence(&prepared.served)),
                    instant: prepared.served.instant,
                    predictions: Each(own, said),
                    outputs: shown.map(|all| {
                        all.iter().map(|(name, a)| (name.as_str(), Tensor(a))).collect()
                    }),
                };
                written(&self.memory, &reply)
            })
            .collect()
    }

    /// The JSON of a text that is written.
    fn complete(&self, asked: &Prepared, prompt: &Prompt, stop: &Stop) -> Result<Bytes, Problem> {
        let served = &asked.served;
        let predictions = [self.completer.answer(prompt, served.bound.as_ref(), stop)?];
        self.keep(asked, &predictions[0]);
        let reply = Reply {
            adapter: served.name.as_deref(),
            generation: served.generation,
            instead_of: served.instead.as_deref(),
            no_answer: None,
            instant: served.instant,
            predictions: &predictions,
            outputs: None,
        };
        written(&self.memory, &reply)
    }

    /// Offers an answer to be kept for people to look at.
    fn keep(&self, prepared: &Prepared, answer: &serde_json::Value) {
        let Some((input, look)) = &prepared.kept else { return };
        let Some(name) = prepared.served.name.clone() else { return };
        self.recent.offer(Offer {
            time: now(),
            name,
            generation: prepared.served.generation,
            answer: answer.clone(),
            input: input.clone(),
            look: *look,
        });
    }

    /// A question that any base of its kind can answer.
    ///
    /// # Errors
    /// The base has inputs that nothing is known of.
    pub fn probe(&self) -> Result<Prepared, Problem> {
        let base = self.engine.base();
        let spec = base.preprocess().image.as_ref();
        let reads = self.engine.input(Role::Ids).is_some();
        let work = if reads && base.tokenizer().is_ok_and(|t| t.is_some()) {
            let tokens = self.preprocessor.tokens("ready")?;
            let length = self.preprocessor.padded_length(tokens.ids.len());
            Work::Tokens(tokens, length)
        } else if let Some(spec) = spec {
            let [height, width] = spec.size.map(|side| side as usize);
            let shape = match spec.channels_first {
                true => vec![1, 3, height, width],
                false => vec![1, height, width, 3],
            };
            let grey = Array::f32(shape, vec![0.0; 3 * height * width])?;
            Work::Inputs(self.preprocessor.stack(&[&grey])?)
        } else if let Some(spec) = base.audio()? {
            // Two seconds where clips may have any length: more than any row of bands takes.
            let silence = vec![0.0; spec.samples.map_or(2 * spec.rate, |n| n) as usize];
            let silence = self.preprocessor.clip(spec.rate, &silence)?;
            Work::Inputs(self.preprocessor.stack(&[&silence])?)
        } else {
            Work::Inputs(self.zeros()?)
        };
        let served = self.roster.resolve(&super::roster::Selection::Base)?;
        let (kept, taken) = (None, None);
        let outputs = Some(false);
        let wanted = Wanted { top: 1, ..Wanted::default() };
        let probe = Prepared { work, sentence: None, served, wanted, outputs, kept, taken };
        self.least.store(probe.size(), Ordering::Relaxed);
        Ok(probe)
    }

    /// Zeros of the least sizes that the base's inputs allow.
    fn zeros(&self) -> Result<Named, Problem> {
        let mut last = Problem::failed("the base has no inputs");
        for free in [1, 8, 16, 32, 64] {
            let inputs = self.engine.inputs().iter().map(|spec| {
                // The first free dimension is the batch.
                let dim = |(i, d): (usize, &String)| match d.parse::<usize>() {
                    Ok(n) => n,
                    Err(_) if i == 0 => 1,
                    Err(_) => free,
                };
                let shape: Vec<usize> = spec.dims.iter().enumerate().map(dim).collect();
                zero(shape, spec.dtype).map(|a| (spec.name.clone(), a))
            });
            let inputs = inputs.collect::<Result<Named>>()?;
            match self.engine.run(&inputs, None) {
                Ok(_) => return Ok(inputs),
                Err(e) => last = e.into(),
            }
        }
        Err(last)
    }
}

/// Why there is no prediction, and what helps.
fn silence(served: &Served) -> String {
    match (&served.silence, &served.instead) {
        (Some(why), _) => {
            format!("{why}: corrections (/v1/feedback) and training give it an answer")
        }
        (None, Some(instead)) => {
            format!("generation {} can't answer: {}", instead.generation, instead.why)
        }
        (None, None) => "the base has no labels: its outputs are the answer".into(),
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}
