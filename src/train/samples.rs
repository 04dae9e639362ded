//! Samples as micro-batches: encoded once, put together as they are needed.

use super::data::{Dataset, Label, Sample, SampleInput, StoredPicture};
use super::features::choose_features;
use super::tasks::{Given, Speller, Task};
use super::trainer::Answers;
use super::writing::Writing;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::pack::IoSpec;
#[cfg(feature = "text")]
use crate::runtime::Generator;
use crate::runtime::text::Tokens;
use crate::runtime::{Engine, Named, Preprocessor, Words, concat_axis, read};
use crate::shape::Array;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of decoded pictures that are kept.
pub(super) const PICTURE_CACHE: u64 = 64 << 20;

/// A data set ready to be cut into batches. Its arrays stay where they are.
pub(super) struct Samples<'a> {
    preprocessor: Preprocessor,
    items: Vec<Item<'a>>,
    labels: Vec<Label>,
    data: &'a Dataset,
    task: Task,
    /// What writes texts, where the task's answers are written.
    writing: Option<Writing>,
    /// Of sentences, where the task needs them.
    sentences: Vec<(&'a str, Words)>,
    /// Outputs of the head.
    width: usize,
    /// How texts are read: [`Wanted::beam`](super::tasks::Wanted::beam).
    pub(super) beam: usize,
    /// Of each input that isn't cut along its first axis, which one the samples stand along.
    axes: Vec<(String, usize)>,
    /// Rows that every run must have, where the graph fixes that.
    fixed_rows: Option<usize>,
    bytes: u64,
    cache: Mutex<Cache>,
}

enum Item<'a> {
    Tokens(Tokens),
    Picture(&'a Path),
    Sound(&'a Path),
    Stored(&'a StoredPicture),
    /// Without a batch axis.
    Arrays(&'a [(String, Array)]),
}

/// Name, type and shape of an input.
type Form<'a> = (&'a str, &'static str, &'a [usize]);

#[derive(Default)]
struct Cache {
    pictures: HashMap<usize, Arc<Array>>,
    bytes: u64,
    limit: u64,
}

/// Encodes one sample of `data` and asks the base for it. Errors: what training on it would say of it.
pub fn try_sample(
    engine: &Engine,
    data: &Dataset,
    sample: usize,
    max_tokens: Option<usize>,
) -> Result<()> {
    let outputs = engine.run(&one_row(engine, &data.samples[sample], max_tokens)?, None)?;
    if data.task.rules().own_output() {
        let samples = Samples::new(engine, data, &data.labels, max_tokens)?;
        let features = choose_features(engine, None, None, true)?;
        let output = outputs.get(features.output).map(|(_, output)| output);
        let output = output.map(|output| read(engine, &features.name, output)).transpose()?;
        samples.fits(sample, output.and_then(|o| o.shape().get(1).copied()).unwrap_or(0))?;
    }
    Ok(())
}

/// The inputs of a sample alone.
fn one_row(engine: &Engine, sample: &Sample, max_tokens: Option<usize>) -> Result<Named> {
    // Which labels it has doesn't matter here.
    let sample = Sample { label: Label::Class(0), ..sample.clone() };
    let labels = vec![String::new()];
    let data = Dataset {
        samples: vec![sample],
        labels: labels.clone(),
        splits: Default::default(),
        task: Task::default(),
        why: None,
    };
    let samples = Samples::new(engine, &data, &labels, max_tokens)?;
    samples.inputs(&[0], samples.fixed_rows().unwrap_or(1))
}

/// The graph's free dimensions for a sample alone.
#[cfg(feature = "cli")]
pub(super) fn binding_of_one(engine: &Engine, sample: &Sample) -> Result<Vec<(String, i64)>> {
    let inputs = one_row(engine, sample, None)?;
    Ok(engine.binding(&engine.ordered(&inputs)?)?.into_iter().collect())
}

/// Bytes that one row of a sample takes where the base answers it; 0 for what is no array, whose
/// length is bounded.
pub fn answering_bytes(engine: &Engine, sample: &Sample) -> Result<u64> {
    match &sample.input {
        SampleInput::Arrays(_) => engine.planned_bytes(&one_row(engine, sample, None)?),
        _ => Ok(0),
    }
}

/// Tokens of the longest sentence, as `max_tokens` cuts it; `None`: these are no sentences, or what would be
/// cut away is what is learned.
pub fn longest_sentence(
    engine: &Engine,
    data: &Dataset,
    max_tokens: Option<usize>,
) -> Result<Option<usize>> {
    if data.task.rules().completes() {
        return Ok(None);
    }
    let preprocessor = Preprocessor::new(engine).with_max_tokens(max_tokens);
    let mut longest = None;
    for sample in &data.samples {
        let SampleInput::Text(text) = &sample.input else { return Ok(None) };
        longest = longest.max(Some(preprocessor.tokens(text)?.ids.len()));
    }
    Ok(longest)
}

impl<'a> Samples<'a> {
    /// Encodes `data`; classes become places in `labels` (those of a head) by their names.
    ///
    /// # Errors
    /// Mismatch: a class that `labels` lacks. What the preprocessor says, with the sample's place.
    pub(super) fn new(
        engine: &Engine,
        data: &'a Dataset,
        labels: &[String],
        max_tokens: Option<usize>,
    ) -> Result<Samples<'a>> {
        let rules = data.task.rules();
        // What is written is written of what the encoder reads.
        let encoder = rules.writes().then(|| engine.graph_named("encoder")).transpose()?;
        let engine = encoder.as_ref().unwrap_or(engine);
        let preprocessor = Preprocessor::new(engine).with_max_tokens(max_tokens);
        let writing = rules.writes().then(|| Writing::new(engine, max_tokens)).transpose()?;
        #[cfg(feature = "text")]
        let generator = rules.learns_texts().then(|| Generator::new(engine)).transpose()?;
        let spell = rules.own_output().then(|| rules.speller(engine.labels())).transpose()?;
        let spell = match &writing {
            Some(writing) => Some(Box::new(|label: &Label| writing.spell(label)) as Speller<'_>),
            None => spell,
        };
        let places: Vec<Option<usize>> =
            data.labels.iter().map(|l| labels.iter().position(|known| known == l)).collect();
        let mut items = Vec::with_capacity(data.samples.len());
        let mut answers = Vec::with_capacity(data.samples.len());
        let mut sentences = vec![];
        for sample in &data.samples {
            #[cfg(feature = "text")]
            if let Some(generator) = &generator {
                let most = preprocessor.max_tokens();
                let encoded = match &sample.input {
                    SampleInput::Text(text) => rules.encode(text, &sample.label, generator, most),
                    _ => Err(Error::unsupported(format!("the task {} learns texts", data.task))),
                };
                let (tokens, label) = encoded.map_err(|e| e.at(&sample.place))?;
                items.push(Item::Tokens(tokens));
                answers.push(label);
                continue;
            }
            let item = match &sample.input {
                SampleInput::Text(_) | SampleInput::Arrays(_) if rules.writes() => {
                    Err(Error::unsupported(format!(
                        "the task {} learns of sounds and pictures",
                        data.task
                    )))
                }
                SampleInput::Text(text) if rules.needs_words() => {
                    preprocessor.words(text).map(|(tokens, words)| {
                        sentences.push((text.as_str(), words));
                        Item::Tokens(tokens)
                    })
                }
                SampleInput::Text(text) => preprocessor.tokens(text).map(Item::Tokens),
                SampleInput::Image(path) => Ok(Item::Picture(path)),
                SampleInput::Audio(path) => Ok(Item::Sound(path)),
                SampleInput::Stored(picture) => Ok(Item::Stored(picture)),
                SampleInput::Arrays(arrays) => Ok(Item::Arrays(arrays)),
            };
            items.push(item.map_err(|e| e.at(&sample.place))?);
            if let Some(spell) = &spell {
                answers.push(spell(&sample.label).map_err(|e| e.at(&sample.place))?);
                continue;
            }
            let moved = sample.label.moved(&|place| places.get(place).copied().flatten());
            answers.push(moved.map_err(|place| {
                let name = data.labels.get(place).map_or("?", String::as_str);
                Error::mismatch(format!("the head has no label '{name}'"))
                    .at(&sample.place)
                    .hint(format!("it knows {}", labels.join(", ")))
            })?);
        }
        drop(spell);
        let first = engine.inputs().iter().find_map(|s| s.dims.first());
        let batch = first.filter(|d| d.parse::<u64>().is_err());
        let axis = |spec: &IoSpec| {
            let at = spec.dims.iter().position(|dim| Some(dim) == batch)?;
            (at > 0).then(|| (spec.name.clone(), at))
        };
        let axes = engine.inputs().iter().filter_map(axis).collect();
        let fixed_rows = first.and_then(|d| d.parse().ok());
        let cache = Cache { limit: PICTURE_CACHE, ..Cache::default() };
        Ok(Samples {
            preprocessor,
            items,
            labels: answers,
            data,
            task: data.task,
            writing,
            sentences,
            width: labels.len(),
            beam: 1,
            axes,
            fixed_rows,
            bytes: data.bytes(),
            cache: Mutex::new(cache),
        })
    }

    /// Of sentences that go through the network many times: they are padded to more lengths.
    pub(super) fn padded_narrowly(mut self) -> Samples<'a> {
        if !self.task.rules().learns_texts() {
            self.preprocessor.pad_narrowly();
        }
        self
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn label(&self, sample: usize) -> &Label {
        &self.labels[sample]
    }

    /// An error that names the sample whose label no output of so many steps can say.
    pub(super) fn fits(&self, sample: usize, steps: usize) -> Result<()> {
        let found = self.task.rules().fits(&self.labels[sample], steps);
        found.map_err(|e| e.at(&self.data.samples[sample].place))
    }

    /// What is learned of them.
    pub(super) fn task(&self) -> Task {
        self.task
    }

    /// The sentence of a sample and its words, where the task needs them.
    pub(super) fn sentence(&self, sample: usize) -> Option<(&str, &Words)> {
        self.sentences.get(sample).map(|(text, words)| (*text, words))
    }

    /// What a sample's output is read with, as `given` has it.
    pub(super) fn given<'g>(&'g self, sample: usize, given: Given<'g>) -> Given<'g> {
        Given { sentence: self.sentence(sample), beam: self.beam, ..given }
    }

    /// What the loss compares a sample's output with.
    pub(super) fn target(&self, sample: usize) -> Result<Vec<f32>> {
        let words = self.sentence(sample).map(|(_, words)| words);
        self.task.rules().target(&self.labels[sample], self.width, words)
    }

    pub(super) fn fixed_rows(&self) -> Option<usize> {
        self.fixed_rows
    }

    /// Whether answers are written by a decoder.
    pub(super) fn writes(&self) -> bool {
        self.task.rules().writes()
    }

    /// What is written of a sample, in the form of an output.
    ///
    /// # Errors
    /// As [`Generator::generate_from`](crate::runtime::Generator::generate_from).
    pub(super) fn written(&self, sample: usize, adapter: Option<&Arc<Bound>>) -> Result<Vec<f32>> {
        let writing = self.writing.as_ref();
        let writing = writing.ok_or_else(|| Error::failed("nothing writes of these samples"))?;
        writing.output(&self.media(&[sample])?, &self.labels[sample], adapter)
    }

    pub(super) fn has_pictures(&self) -> bool {
        matches!(self.items.first(), Some(Item::Picture(_) | Item::Sound(_) | Item::Stored(_)))
    }

    /// Whether batches of as many rows have the same sizes: pictures and sounds without a text beside them.
    pub(super) fn is_of_one_size(&self) -> bool {
        self.has_pictures() && !self.writes()
    }

    pub(super) fn has_text(&self) -> bool {
        matches!(self.items.first(), Some(Item::Tokens(_)))
    }

    pub(super) fn limit_cache(&self, bytes: u64) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).limit = bytes;
    }

    /// Tokens of a sentence or of the text that is written, values of arrays, 0 for pictures: what batches
    /// are sorted by.
    pub(super) fn length(&self, sample: usize) -> usize {
        if let (true, Label::Text(spelled)) = (self.writes(), &self.labels[sample]) {
            return spelled.symbols.len();
        }
        match &self.items[sample] {
            Item::Tokens(tokens) => tokens.ids.len(),
            Item::Arrays(arrays) => arrays.iter().map(|(_, a)| a.data().len()).sum(),
            Item::Picture(_) | Item::Sound(_) | Item::Stored(_) => 0,
        }
    }

    /// What two samples must have in common to share a batch: all of arrays but their values.
    fn form(&self, sample: usize) -> Vec<Form<'a>> {
        match &self.items[sample] {
            Item::Arrays(arrays) => {
                let form = |(name, a): &'a (String, Array)| -> Form<'a> {
                    (name, a.dtype().name(), a.shape())
                };
                let mut form: Vec<Form<'a>> = arrays.iter().map(form).collect();
                form.sort_unstable();
                form
            }
            _ => vec![],
        }
    }

    /// Bytes that the samples take all the time.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sample whose batch takes the most memory.
    pub(super) fn longest(&self) -> usize {
        (0..self.len()).max_by_key(|&s| (self.length(s), usize::MAX - s)).unwrap_or(0)
    }

    /// `samples` sorted by length, in groups of at most `rows`, so that short sentences are not
    /// padded to the length of long ones. Arrays of different shapes are in different groups.
    pub(super) fn groups(&self, samples: &[usize], rows: usize) -> Vec<Vec<usize>> {
        let mut sorted = samples.to_vec();
        sorted.sort_by_cached_key(|&s| (self.length(s), self.form(s)));
        sorted
            .chunk_by(|&a, &b| self.form(a) == self.form(b))
            .flat_map(|alike| alike.chunks(rows.max(1)))
            .map(<[usize]>::to_vec)
            .collect()
    }

    /// The base's inputs for `samples` (at least one), filled up to `rows` rows by the first.
    pub(super) fn inputs(&self, samples: &[usize], rows: usize) -> Result<Named> {
        let first = *samples.first().ok_or_else(|| Error::usage("a batch without samples"))?;
        let fill = std::iter::repeat_n(first, rows.saturating_sub(samples.len()));
        let rows: Vec<usize> = samples.iter().copied().chain(fill).collect();
        self.rows(&rows, samples)
    }

    /// As [`Samples::inputs`] for one sample, of a text its first `tokens` alone.
    pub(super) fn beginning(&self, sample: usize, rows: usize, tokens: usize) -> Result<Named> {
        let Item::Tokens(whole) = &self.items[sample] else { return self.inputs(&[sample], rows) };
        let first = |all: &[u32]| all.iter().copied().take(tokens).collect();
        let cut = Tokens { ids: first(&whole.ids), types: first(&whole.types) };
        self.preprocessor.batch_as_with(&vec![&cut; rows.max(1)], cut.ids.len())
    }

    /// The base's inputs for `sample` alone, as long as beside the others of `group`.
    pub(super) fn alone(&self, sample: usize, group: &[usize]) -> Result<Named> {
        self.rows(&[sample], group)
    }

    /// One row for each of `rows`, at least one, as long as the longest of `group`.
    fn rows(&self, rows: &[usize], group: &[usize]) -> Result<Named> {
        let first = *rows.first().ok_or_else(|| Error::usage("a batch without samples"))?;
        match &self.items[first] {
            Item::Tokens(_) => {
                let longest = group.iter().map(|&s| self.length(s)).max().unwrap_or(0);
                let rows: Vec<&Tokens> = rows
                    .iter()
                    .filter_map(|&s| match &self.items[s] {
                        Item::Tokens(tokens) => Some(tokens),
                        _ => None,
                    })
                    .collect();
                self.preprocessor.batch_as_with(&rows, longest)
            }
            Item::Picture(_) | Item::Sound(_) | Item::Stored(_) => {
                let mut inputs = self.media(rows)?;
                if let Some(writing) = &self.writing {
                    let longest = group.iter().map(|&s| self.length(s)).max().unwrap_or(0);
                    let labels: Vec<&Label> = rows.iter().map(|&s| &self.labels[s]).collect();
                    inputs.push(writing.ids(&labels, longest)?);
                }
                Ok(inputs)
            }
            Item::Arrays(arrays) => {
                let column = |name: &str| -> Result<Array> {
                    let cells = rows.iter().filter_map(|&s| match &self.items[s] {
                        Item::Arrays(arrays) => arrays.iter().find(|(n, _)| n == name),
                        _ => None,
                    });
                    let axis =
                        self.axes.iter().find(|(n, _)| n == name).map_or(0, |(_, axis)| *axis);
                    let cells: Vec<&Array> = cells.map(|(_, a)| a).collect();
                    concat_axis(name, &cells, axis)
                };
                arrays.iter().map(|(name, _)| Ok((name.clone(), column(name)?))).collect()
            }
        }
    }

    /// Pictures or sounds as the base's input.
    fn media(&self, samples: &[usize]) -> Result<Named> {
        let pictures = samples.iter().map(|&s| self.picture(s)).collect::<Result<Vec<_>>>()?;
        self.preprocessor.stack(&pictures.iter().map(|p| &**p).collect::<Vec<_>>())
    }

    fn picture(&self, sample: usize) -> Result<Arc<Array>> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(picture) = lock().pictures.get(&sample) {
            return Ok(picture.clone());
        }
        let picture = Arc::new(match &self.items[sample] {
            Item::Picture(path) => self.preprocessor.image(path)?,
            Item::Sound(path) => self.preprocessor.audio(path)?,
            Item::Stored(file) => self.preprocessor.media_bytes(&file.bytes()?)?,
            _ => return Err(Error::usage("samples of different kinds can't share a batch")),
        });
        let bytes = 4 * picture.data().len() as u64;
        let mut cache = lock();
        if cache.bytes + bytes <= cache.limit && !cache.pictures.contains_key(&sample) {
            cache.bytes += bytes;
            cache.pictures.insert(sample, picture.clone());
        }
        Ok(picture)
    }

    /// The answers of `samples`, filled up to `rows` with rows that don't count.
    pub(super) fn answers(&self, samples: &[usize], rows: usize) -> Result<Answers> {
        let fill = rows.saturating_sub(samples.len());
        let targets = samples.iter().map(|&s| self.target(s).map(Some));
        targets.chain((0..fill).map(|_| Ok(None))).collect()
    }

    /// What the samples are, for a run's hash.
    pub(super) fn hash(&self, samples: &[usize]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: Cow<[u8]>| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        };
        for &s in samples {
            match &self.items[s] {
                Item::Tokens(tokens) => {
                    part(tokens.ids.iter().flat_map(|id| id.to_le_bytes()).collect());
                }
                Item::Picture(path) | Item::Sound(path) => {
                    part(path.to_string_lossy().as_bytes().into());
                }
                Item::Stored(picture) => part(picture.hash().to_vec().into()),
                Item::Arrays(arrays) => {
                    for (name, array) in *arrays {
                        part(name.as_bytes().into());
                        part(crate::npy::to_bytes(array).into());
                    }
                }
            }
            part(self.labels[s].bytes().into());
        }
        *hasher.finalize().as_bytes()
    }
}
