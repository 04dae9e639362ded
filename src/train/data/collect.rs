//! Gathers rows, whatever file they come from, and settles what their labels are.

use super::{
    Dataset, LoadOptions, MAX_LABEL_BYTES, MAX_LABELS, MAX_SAMPLES, OF_A_NAME, OF_A_ROW, Place,
    Rough, RoughLabel, RoughName, Row, Sample, SampleInput, Seen, Spelled, canonical_split,
};
use crate::error::{Error, Result};
use crate::train::tasks::Task;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a name looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Word,
    Integer,
    /// A whole number written with a point.
    Whole,
    Fraction,
}

/// One label name and how it was written.
struct Known {
    name: String,
    looks: Looks,
}

impl Known {
    /// As a class: 2.0 and 2 are one.
    fn class(&self) -> String {
        match self.looks {
            Looks::Whole => match self.name.parse::<f64>() {
                Ok(v) if v.abs() < 1e15 => format!("{v:.0}").replace("-0", "0"),
                _ => self.name.clone(),
            },
            _ => self.name.clone(),
        }
    }
}

struct Held {
    input: SampleInput,
    names: Vec<u32>,
    spans: Vec<[u32; 2]>,
    values: Vec<f32>,
    text: Option<Spelled>,
    place: Place,
}

/// Gathers rows; [`Collector::finish`] makes the data set of them.
pub(crate) struct Collector<'a> {
    options: &'a LoadOptions,
    file: Arc<str>,
    folder: PathBuf,
    /// The task asked for.
    task: Option<Task>,
    /// Those that read the rows so far, where none is asked for.
    candidates: Vec<Task>,
    rows: Vec<Held>,
    ids: BTreeMap<String, u32>,
    known: Vec<Known>,
    lists: usize,
    splits: BTreeSet<String>,
    seen: usize,
    /// Bytes of the rows.
    bytes: u64,
}

impl<'a> Collector<'a> {
    /// For rows of the file or store `path`.
    pub(crate) fn new(path: &Path, options: &'a LoadOptions) -> Collector<'a> {
        // A fixed list of labels is a head's: without more said, of classes.
        let task = options.task.or(options.labels.is_some().then(Task::default));
        Collector {
            options,
            file: path.display().to_string().into(),
            folder: path.parent().unwrap_or(Path::new("")).to_path_buf(),
            task,
            candidates: vec![],
            rows: Vec::new(),
            ids: BTreeMap::new(),
            known: Vec::new(),
            lists: 0,
            splits: BTreeSet::new(),
            seen: 0,
            bytes: 0,
        }
    }

    /// The place of a line of the file read.
    pub(super) fn place(&self, line: u64) -> Place {
        Place::new(&self.file, line)
    }

    /// The task that was asked for.
    pub(super) fn task(&self) -> Option<Task> {
        self.task
    }

    /// Labels are names whatever they look like, unless something else was asked for.
    pub(super) fn prefer_classes(&mut self) {
        self.task.get_or_insert_default();
    }

    /// The task, unless another was asked for.
    pub(super) fn prefer(&mut self, task: Task) {
        self.task.get_or_insert(task);
    }

    /// A sentence as an input.
    fn text(&self, text: &str) -> Result<SampleInput> {
        if text.trim().is_empty() {
            return Err(Error::bad_input("text is empty"));
        }
        Ok(SampleInput::Text(text.into()))
    }

    /// A picture or sound named in the file, relative to the file's folder.
    fn file(&self, name: &str, what: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        match name.is_empty() || !path.is_file() {
            true => Err(Error::bad_input(format!("no such {what} '{name}'"))),
            false => Ok(path),
        }
    }

    /// Takes one row of a file: `text`, `image` or `audio`, perhaps `split`, and what its task reads.
    pub(super) fn row(&mut self, row: Row<'_>, place: Place) -> Result<()> {
        let input = self.input(&row).map_err(|e| e.at(&place))?;
        let split = row.string("split").map_err(|e| e.at(&place))?;
        let split = split.map(str::trim).filter(|split| !split.is_empty());
        self.add(input, row, split, place)
    }

    fn input(&self, row: &Row<'_>) -> Result<SampleInput> {
        let fields = ["text", "image", "audio"].map(|name| row.string(name).map(|v| (name, v)));
        let fields = fields.into_iter().collect::<Result<Vec<_>>>()?;
        let given: Vec<_> = fields.iter().filter_map(|(name, v)| Some((*name, (*v)?))).collect();
        match given.as_slice() {
            [] => self.text_of_task(row),
            [("text", text)] => self.text(text),
            [("image", file)] => Ok(SampleInput::Image(self.file(file.trim(), "picture")?)),
            [(_, file)] => Ok(SampleInput::Audio(self.file(file.trim(), "sound")?)),
            [(one, _), (other, _), ..] => {
                Err(Error::bad_input(format!("both fields '{one}' and '{other}'")))
            }
        }
    }

    /// The sentence that a task makes of other fields.
    fn text_of_task(&self, row: &Row<'_>) -> Result<SampleInput> {
        let readers = self.task.map_or_else(|| Task::reading(row), |task| vec![task]);
        for task in readers {
            match task.rules().text(row)? {
                // A completion may follow on nothing.
                Some(text) if task.rules().completes() => return Ok(SampleInput::Text(text)),
                Some(text) => return self.text(&text),
                None => {}
            }
        }
        Err(Error::bad_input("no field 'text', 'image' or 'audio'"))
    }

    /// Takes one row whose input is there already.
    pub(crate) fn add(
        &mut self,
        input: SampleInput,
        row: Row<'_>,
        split: Option<&str>,
        place: Place,
    ) -> Result<()> {
        self.seen += 1;
        if self.seen > MAX_SAMPLES {
            return Err(Error::bad_input(format!("more than {MAX_SAMPLES} samples")).at(&self.file));
        }
        let split = split.map(canonical_split);
        if let Some(split) = split
            && !self.splits.contains(split)
        {
            if split.len() > MAX_LABEL_BYTES || self.splits.len() >= MAX_LABELS {
                return Err(Error::bad_input("too many or too long names of splits").at(place));
            }
            self.splits.insert(split.to_string());
        }
        let wanted = self.options.split.takes(split);
        let reader = self.reader(&row).map_err(|e| e.at(&place))?;
        let rough = reader.rules().label(&row).map_err(|e| e.at(&place))?;
        let RoughLabel { names, spans, values, text } = rough;
        self.lists += usize::from(!values.is_empty());
        let names = names.into_iter().map(|name| self.name(name)).collect::<Result<Vec<u32>>>();
        let names = names.map_err(|e| e.at(&place))?;
        if !wanted {
            return Ok(());
        }
        if let Some(first) = self.rows.first()
            && first.input.kind() != input.kind()
        {
            return Err(Error::bad_input(format!(
                "sample is {}, those before are {}",
                input.kind(),
                first.input.kind()
            ))
            .at(place));
        }
        let letters =
            text.as_ref().map_or(0, |spelled| spelled.text.len() + 8 * spelled.symbols.len());
        let label = 4 * names.len() + 8 * spans.len() + 4 * values.len() + letters;
        self.take(size_of::<Held>() as u64 + OF_A_ROW + input.bytes() + label as u64)?;
        self.rows.push(Held { input, names, spans, values, text, place });
        Ok(())
    }

    /// Counts memory before it is taken.
    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        let Some(most) = self.options.memory.filter(|most| self.bytes > *most) else {
            return Ok(());
        };
        let (rows, most) = (self.rows.len(), most >> 20);
        Err(Error::refused(format!("after {rows} samples more than {most} MiB are taken"))
            .at(&self.file)
            .hint("allow more with --ram, or train on a part of the samples"))
    }

    /// What is taken, where what was counted before is given back in part.
    pub(super) fn taken(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// The task that reads this row's label: without a task asked for, the most general of
    /// those that read all rows so far.
    fn reader(&mut self, row: &Row<'_>) -> Result<Task> {
        if let Some(task) = self.task {
            return match task.rules().reads_asked(row) {
                true => Ok(task),
                false => Err(missing(task.rules().fields())),
            };
        }
        let reading = Task::reading(row);
        let kept: Vec<Task> = match self.candidates.is_empty() {
            true => reading,
            false => self.candidates.iter().copied().filter(|t| reading.contains(t)).collect(),
        };
        let expected = self.candidates.last().copied().unwrap_or_default();
        self.candidates = kept;
        self.candidates.last().copied().ok_or_else(|| missing(expected.rules().fields()))
    }

    /// The number of a label name.
    fn name(&mut self, RoughName { text, scalar }: RoughName) -> Result<u32> {
        let looks = match text.parse::<f64>() {
            Ok(_) if scalar && text.parse::<i64>().is_ok() => Looks::Integer,
            Ok(v) if scalar && v.is_finite() && v.fract() == 0.0 => Looks::Whole,
            Ok(v) if scalar && v.is_finite() => Looks::Fraction,
            _ => Looks::Word,
        };
        if let Some(&id) = self.ids.get(&text) {
            if let Some(known) = self.known.get_mut(id as usize)
                // The word "1" and the number 1 are one class, and no value.
                && looks == Looks::Word
            {
                known.looks = Looks::Word;
            }
            return Ok(id);
        }
        if text.is_empty() {
            return Err(Error::bad_input("label is empty"));
        }
        if text.len() > MAX_LABEL_BYTES {
            return Err(Error::bad_input(format!(
                "label of {} bytes, at most {MAX_LABEL_BYTES} are taken",
                text.len()
            )));
        }
        // Numbers are names until it is known that they are values.
        if self.known.len() >= MAX_LABELS && (self.task.is_some() || looks == Looks::Word) {
            return Err(Error::bad_input(format!("more than {MAX_LABELS} labels")));
        }
        // It is kept twice.
        self.take((2 * text.len() + OF_A_NAME) as u64)?;
        let id = self.known.len() as u32;
        self.ids.insert(text.clone(), id);
        self.known.push(Known { name: text, looks });
        Ok(id)
    }

    /// Settles task and labels.
    pub(crate) fn finish(self) -> Result<Dataset> {
        if self.seen == 0 {
            return Err(Error::bad_input("no samples").at(&self.file));
        }
        if self.rows.is_empty() {
            let found: Vec<&str> = self.splits.iter().map(String::as_str).take(10).collect();
            return Err(Error::bad_input(format!(
                "no samples of split '{}', found splits [{}]",
                self.options.split.name(),
                found.join(", ")
            ))
            .at(&self.file));
        }
        let (task, why) = match self.task {
            Some(task) => (task, None),
            None => {
                let decided = Task::decide(&self.candidates, &self.looks());
                let (task, why) = decided.ok_or_else(|| Error::failed("no task reads the rows"))?;
                (task, Some(why))
            }
        };
        self.settle(task, why)
    }

    fn looks(&self) -> Seen<'_> {
        let count = |looks| self.known.iter().filter(|k| k.looks == looks).count();
        let fraction = self.known.iter().find(|k| k.looks == Looks::Fraction);
        Seen {
            rows: self.seen,
            distinct: self.known.len(),
            words: count(Looks::Word),
            whole: count(Looks::Whole),
            fraction: fraction.map(|k| k.name.as_str()),
            lists: self.lists,
        }
    }

    fn settle(self, task: Task, why: Option<String>) -> Result<Dataset> {
        let rules = task.rules();
        let classes: Vec<String> = self.known.iter().map(Known::class).collect();
        let labels = match &self.options.labels {
            _ if !rules.has_names() => vec![],
            Some(labels) => labels.clone(),
            None => {
                let labels = sorted(&classes);
                if labels.len() > MAX_LABELS {
                    let error = format!("more than {MAX_LABELS} labels");
                    return Err(Error::bad_input(error).at(&self.file));
                }
                labels
            }
        };
        let places: BTreeMap<&str, usize> =
            labels.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        if places.len() != labels.len() {
            return Err(Error::usage("a label is listed twice"));
        }
        let place = |(known, class): (&Known, &String)| {
            places.get(known.name.as_str()).or_else(|| places.get(class.as_str())).copied()
        };
        let known: Vec<Option<usize>> = self.known.iter().zip(&classes).map(place).collect();
        let mut samples = Vec::with_capacity(self.rows.len());
        let mut width = None;
        for Held { input, names, spans, values, text, place } in self.rows {
            let mut rough = Rough { spans, values, text, ..Rough::default() };
            for id in names {
                let name = self.known.get(id as usize).map_or("", |k| k.name.as_str());
                rough.names.push(name);
                if !rules.has_names() {
                    continue;
                }
                rough.places.push(known.get(id as usize).copied().flatten().ok_or_else(|| {
                    let some: Vec<&str> = labels.iter().map(String::as_str).take(10).collect();
                    let more = if labels.len() > some.len() { ", ..." } else { "" };
                    Error::mismatch(format!(
                        "label '{name}' is not one of the {} known: {}{more}",
                        labels.len(),
                        some.join(", ")
                    ))
                    .at(&place)
                })?);
            }
            let label = rules.settle(rough).map_err(|e| e.at(&place))?;
            let expected = *width.get_or_insert(label.width());
            if label.width() != expected {
                return Err(Error::bad_input(format!(
                    "label has {} numbers, those before have {expected}",
                    label.width()
                ))
                .at(place));
            }
            samples.push(Sample { input, label, place });
        }
        drop(places);
        Ok(Dataset { samples, labels, splits: self.splits, task, why })
    }
}

fn missing(fields: &[&str]) -> Error {
    Error::bad_input(format!("no field '{}'", fields.join("' or '")))
}

/// Each once, by number if all are integers, else by name.
fn sorted(classes: &[String]) -> Vec<String> {
    let mut names = classes.to_vec();
    let numbers: Option<Vec<i64>> = names.iter().map(|n| n.parse().ok()).collect();
    match numbers {
        Some(_) => names.sort_by_key(|n| (n.parse::<i64>().unwrap_or(0), n.clone())),
        None => names.sort_unstable(),
    }
    names.dedup();
    names
}
