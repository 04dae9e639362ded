//! Gathers rows, whatever file they come from, and settles what their labels are.

use super::{
    Dataset, Label, LoadOptions, MAX_LABEL_BYTES, MAX_LABELS, MAX_SAMPLES, Place, Sample,
    SampleInput, Task,
};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A label as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawLabel {
    /// A word.
    Name(String),
    /// A number or a word that may be one: what it looks like decides.
    Scalar(String),
    /// Numbers.
    Values(Vec<f32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    Integer,
    Fraction,
}

/// One label name and how it was written.
struct Known {
    name: String,
    kind: Kind,
    /// Row that had it first, if it was one that is wanted.
    first: Option<usize>,
}

enum Held {
    Known(usize),
    Values(Vec<f32>),
}

struct Row {
    input: SampleInput,
    label: Held,
    place: Place,
}

pub(super) struct Collector<'a> {
    options: &'a LoadOptions,
    file: Arc<str>,
    folder: PathBuf,
    task: Task,
    rows: Vec<Row>,
    ids: BTreeMap<String, usize>,
    known: Vec<Known>,
    splits: BTreeSet<String>,
    seen: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(path: &Path, options: &'a LoadOptions) -> Collector<'a> {
        let task = if options.labels.is_some() { Task::Classes } else { options.task };
        Collector {
            options,
            file: path.display().to_string().into(),
            folder: path.parent().unwrap_or(Path::new("")).to_path_buf(),
            task,
            rows: Vec::new(),
            ids: BTreeMap::new(),
            known: Vec::new(),
            splits: BTreeSet::new(),
            seen: 0,
        }
    }

    /// The place of a line of the file read.
    pub(super) fn place(&self, line: u64) -> Place {
        Place::new(&self.file, line)
    }

    /// Labels are names whatever they look like, unless something else was asked for.
    pub(super) fn prefer_classes(&mut self) {
        if self.task == Task::Auto {
            self.task = Task::Classes;
        }
    }

    /// A sentence as an input.
    pub(super) fn text(&self, text: String, place: &Place) -> Result<SampleInput> {
        if text.trim().is_empty() {
            return Err(Error::bad_input("text is empty").at(place));
        }
        Ok(SampleInput::Text(text))
    }

    /// A picture named in the file, relative to the file's folder.
    pub(super) fn picture(&self, name: &str, place: &Place) -> Result<SampleInput> {
        let path = self.folder.join(name);
        if name.is_empty() || !path.is_file() {
            return Err(Error::bad_input(format!("no such picture '{name}'")).at(place));
        }
        Ok(SampleInput::Image(path))
    }

    /// Takes one row.
    pub(super) fn add(
        &mut self,
        input: SampleInput,
        label: RawLabel,
        split: Option<&str>,
        place: Place,
    ) -> Result<()> {
        self.seen += 1;
        if self.seen > MAX_SAMPLES {
            return Err(Error::bad_input(format!("more than {MAX_SAMPLES} samples")).at(&self.file));
        }
        if let Some(split) = split
            && !self.splits.contains(split)
        {
            if split.len() > MAX_LABEL_BYTES || self.splits.len() >= MAX_LABELS {
                return Err(Error::bad_input("too many or too long names of splits").at(place));
            }
            self.splits.insert(split.to_string());
        }
        let wanted = self.options.split.takes(split);
        let label = match label {
            RawLabel::Values(values) => {
                if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
                    return Err(Error::bad_input("label is no list of finite numbers").at(place));
                }
                Held::Values(values)
            }
            // Not kept by name: every sample may have another.
            RawLabel::Scalar(text) if self.task == Task::Values => match text.parse::<f32>() {
                Ok(v) if v.is_finite() => Held::Values(vec![v]),
                _ => {
                    let error = format!("label '{text}' is no finite number");
                    return Err(Error::bad_input(error).at(place));
                }
            },
            RawLabel::Name(name) => Held::Known(self.name(name, false, wanted, &place)?),
            RawLabel::Scalar(name) => Held::Known(self.name(name, true, wanted, &place)?),
        };
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
        self.rows.push(Row { input, label, place });
        Ok(())
    }

    /// The number of a label name.
    fn name(&mut self, name: String, scalar: bool, wanted: bool, place: &Place) -> Result<usize> {
        let kind = match name.parse::<f64>() {
            Ok(_) if scalar && name.parse::<i64>().is_ok() => Kind::Integer,
            Ok(v) if scalar && v.is_finite() => Kind::Fraction,
            _ => Kind::Word,
        };
        let first = wanted.then_some(self.rows.len());
        if let Some(&id) = self.ids.get(&name) {
            if let Some(known) = self.known.get_mut(id) {
                known.first = known.first.or(first);
                // The word "1" and the number 1 are one class, and no value.
                if kind == Kind::Word {
                    known.kind = Kind::Word;
                }
            }
            return Ok(id);
        }
        if name.is_empty() {
            return Err(Error::bad_input("label is empty").at(place));
        }
        if name.len() > MAX_LABEL_BYTES {
            return Err(Error::bad_input(format!(
                "label of {} bytes, at most {MAX_LABEL_BYTES} are taken",
                name.len()
            ))
            .at(place));
        }
        if self.known.len() >= MAX_LABELS && self.task == Task::Classes {
            return Err(Error::bad_input(format!("more than {MAX_LABELS} labels")).at(place));
        }
        let id = self.known.len();
        self.ids.insert(name.clone(), id);
        self.known.push(Known { name, kind, first });
        Ok(id)
    }

    /// Settles the labels.
    pub(super) fn finish(self) -> Result<Dataset> {
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
        match self.is_values()? {
            true => self.values(),
            false => self.classes(),
        }
    }

    fn is_values(&self) -> Result<bool> {
        match self.task {
            Task::Classes => return Ok(false),
            Task::Values => return Ok(true),
            Task::Auto => {}
        }
        let fraction = self.known.iter().find(|k| k.kind == Kind::Fraction);
        let list = self.rows.iter().find_map(|r| match &r.label {
            Held::Values(_) => Some(&r.place),
            Held::Known(_) => None,
        });
        if fraction.is_none() && list.is_none() {
            return Ok(false);
        }
        let word = self.known.iter().find(|k| k.kind == Kind::Word && k.first.is_some());
        if let Some(word) = word {
            let place = word.first.and_then(|i| self.rows.get(i)).map(|r| &r.place);
            let other = fraction.map_or("a list of numbers", |k| &k.name);
            let error = format!("label '{}' is a name where others are {other}", word.name);
            return Err(match place {
                Some(place) => Error::bad_input(error).at(place),
                None => Error::bad_input(error).at(&self.file),
            });
        }
        Ok(true)
    }

    fn values(self) -> Result<Dataset> {
        let mut width = None;
        let mut samples = Vec::with_capacity(self.rows.len());
        for row in self.rows {
            let values = match row.label {
                Held::Values(values) => values,
                Held::Known(id) => {
                    let name = self.known.get(id).map_or("", |k| &k.name);
                    match name.parse::<f32>() {
                        Ok(v) if v.is_finite() => vec![v],
                        _ => {
                            let error = format!("label '{name}' is no finite number");
                            return Err(Error::bad_input(error).at(row.place));
                        }
                    }
                }
            };
            let expected = *width.get_or_insert(values.len());
            if values.len() != expected {
                return Err(Error::bad_input(format!(
                    "label has {} numbers, those before have {expected}",
                    values.len()
                ))
                .at(row.place));
            }
            samples.push(Sample {
                input: row.input,
                label: Label::Values(values),
                place: row.place,
            });
        }
        Ok(Dataset { samples, labels: Vec::new(), splits: self.splits })
    }

    fn classes(self) -> Result<Dataset> {
        let labels = match &self.options.labels {
            Some(labels) => labels.clone(),
            None => {
                if self.known.len() > MAX_LABELS {
                    let error = format!("more than {MAX_LABELS} labels");
                    return Err(Error::bad_input(error).at(&self.file));
                }
                sorted(&self.known)
            }
        };
        let places: BTreeMap<&str, usize> =
            labels.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        if places.len() != labels.len() {
            return Err(Error::usage("a label is listed twice"));
        }
        let class: Vec<Option<usize>> =
            self.known.iter().map(|k| places.get(k.name.as_str()).copied()).collect();
        let mut samples = Vec::with_capacity(self.rows.len());
        for row in self.rows {
            let id = match row.label {
                Held::Known(id) => id,
                Held::Values(_) => {
                    let error = "label is a list of numbers, expected a name";
                    return Err(Error::bad_input(error).at(row.place));
                }
            };
            let Some(class) = class.get(id).copied().flatten() else {
                let name = self.known.get(id).map_or("", |k| &k.name);
                let some: Vec<&str> = labels.iter().map(String::as_str).take(10).collect();
                let more = if labels.len() > some.len() { ", ..." } else { "" };
                return Err(Error::mismatch(format!(
                    "label '{name}' is not one of the {} known: {}{more}",
                    labels.len(),
                    some.join(", ")
                ))
                .at(row.place));
            };
            samples.push(Sample { input: row.input, label: Label::Class(class), place: row.place });
        }
        drop(places);
        Ok(Dataset { samples, labels, splits: self.splits })
    }
}

/// By number if all are integers, else by name.
fn sorted(known: &[Known]) -> Vec<String> {
    let mut names: Vec<String> = known.iter().map(|k| k.name.clone()).collect();
    let numbers: Option<Vec<i64>> = names.iter().map(|n| n.parse().ok()).collect();
    match numbers {
        Some(_) => names.sort_by_key(|n| (n.parse::<i64>().unwrap_or(0), n.clone())),
        None => names.sort_unstable(),
    }
    names
}
