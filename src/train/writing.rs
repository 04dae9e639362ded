//! Texts that a decoder writes of what an encoder read: how they are spelled, and what was written.

use super::data::{Label, Spelled};
use super::metrics::entropy;
use super::tasks::written;
use crate::adapter::Bound;
use crate::error::{Cause, Error, Result};
use crate::pack::Role;
use crate::runtime::text::bucket;
use crate::runtime::{Ended, Engine, GenerateOptions, Generator, Named, Preprocessor, of_type};
use crate::shape::{Array, DType};
use std::sync::Arc;

/// Most tokens of an answer: half of what Whisper's decoders take, as openai/whisper has it.
const MOST: usize = 224;

/// A base's decoder, and how it begins.
pub(crate) struct Writing {
    generator: Generator,
    starts: Vec<u32>,
    /// The decoder's input of tokens.
    ids: (String, DType),
    /// Tokens that it reads at most.
    most: usize,
}

impl Writing {
    /// Of the engine's base.
    ///
    /// # Errors
    /// Unsupported: no encoder with a decoder behind it, or a decoder with inputs of unknown meaning. Usage: the
    /// base doesn't say what the decoder begins with.
    pub fn new(engine: &Engine, max_tokens: Option<usize>) -> Result<Writing> {
        let generator = Generator::new(engine)?;
        if !generator.has_encoder() {
            return Err(Error::unsupported("the base has no decoder behind an encoder")
                .hint("a language model learns the task language"));
        }
        let starts = generator.starts().to_vec();
        if starts.is_empty() {
            return Err(Error::usage("the base doesn't say which tokens its decoder begins with").hint(
                "pack it with a generation_config.json that names decoder_start_token_id and forced_decoder_ids",
            ));
        }
        let decoder = engine.graph_named("decoder")?;
        let ids = decoder.input(Role::Ids).ok_or_else(|| Error::failed("no tokens go in"))?;
        let ids = (ids.name.clone(), ids.dtype);
        let most = Preprocessor::new(&decoder).with_max_tokens(max_tokens).max_tokens();
        Ok(Writing { generator, starts, ids, most })
    }

    /// A label with what should follow each token that the decoder reads; a long text is cut.
    pub fn spell(&self, label: &Label) -> Result<Label> {
        let Label::Text(spelled) = label else {
            return Err(Error::usage("a decoder learns a text for each sample"));
        };
        let ids = self.generator.written(&spelled.text)?;
        let begun = vec![-1; self.starts.len() - 1];
        let symbols = begun.into_iter().chain(ids.into_iter().map(i64::from)).take(self.most);
        Ok(Label::Text(Spelled { text: spelled.text.clone(), symbols: symbols.collect() }))
    }

    /// The decoder's input for rows of these labels, as long as beside one of `longest` tokens.
    pub fn ids(&self, labels: &[&Label], longest: usize) -> Result<(String, Array)> {
        let length = bucket(longest, self.most);
        let mut ids: Vec<i64> = Vec::with_capacity(labels.len() * length);
        for label in labels {
            let from = ids.len();
            ids.extend(self.starts.iter().map(|id| i64::from(*id)));
            ids.extend(follows(label).map(i64::from));
            // Nothing follows on the last; what fills up counts for nothing.
            ids.pop();
            let fill = self.generator.ends().first().copied().unwrap_or_default();
            ids.resize(from + length, fill.into());
        }
        let (name, dtype) = &self.ids;
        let shape = [labels.len(), length];
        Ok((name.clone(), of_type(&Array::i64(shape, ids)?, *dtype)?))
    }

    /// What was written of the encoder's `inputs`, and the mean loss of the label's tokens.
    pub fn output(
        &self,
        inputs: &Named,
        label: &Label,
        adapter: Option<&Arc<Bound>>,
    ) -> Result<Vec<f32>> {
        let encoded = self.generator.encode(inputs, adapter)?;
        let ids: Vec<u32> = follows(label).collect();
        let mut loss = 0.0;
        let mut take = |id: u32, logits: &[f32]| loss += entropy(logits, id as usize);
        self.generator.follow(Some(encoded.clone()), &self.starts, &ids, adapter, &mut take)?;
        let text = self.write(encoded, adapter, &mut || true)?;
        Ok(written(loss / ids.len().max(1) as f64, &text))
    }

    /// What is written of all that the encoder gave, in the form of an output; its loss is nobody's. `go_on` is
    /// asked at each token.
    #[cfg(feature = "daemon")]
    pub fn answer(
        &self,
        encoded: Named,
        adapter: Option<&Arc<Bound>>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<f32>> {
        Ok(written(0.0, &self.write(self.generator.features(encoded)?, adapter, go_on)?))
    }

    fn write(
        &self,
        encoded: Array,
        adapter: Option<&Arc<Bound>>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<String> {
        let options = GenerateOptions { tokens: MOST.min(self.most), ..GenerateOptions::default() };
        let mut hear = |_: &str| go_on();
        let (generator, starts) = (&self.generator, &self.starts);
        let found = generator.generate_from(Some(encoded), starts, adapter, &options, &mut hear)?;
        match found.ended {
            Ended::Listener => {
                Err(Error::refused("nobody waits for the text").because(Cause::Stopped))
            }
            _ => Ok(found.text.trim().to_string()),
        }
    }
}

/// The tokens of a label that was spelled.
fn follows(label: &Label) -> impl Iterator<Item = u32> + '_ {
    let symbols = match label {
        Label::Text(spelled) => spelled.symbols.as_slice(),
        _ => &[],
    };
    symbols.iter().filter_map(|symbol| u32::try_from(*symbol).ok())
}
