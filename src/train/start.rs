//! First values from a generation before.

use super::head;
use super::lesson::Lesson;
use super::options::{TargetChoice, TrainOptions};
use super::parameter;
use super::tasks::Task;
use super::trainer::Trainer;
use crate::adapter::{Adapter, NamedTensor};
use crate::error::{Error, Result};
use crate::runtime::Engine;

/// At its first values. What the layers are is that of the generation before, where it goes on from
/// that and nobody says otherwise.
pub(super) fn untaught(
    engine: &Engine,
    lesson: &Lesson<'_>,
    options: &TrainOptions,
) -> Result<Trainer> {
    let labels = lesson.labels(options.task)?;
    let previous = lesson.previous.filter(|previous| !previous.targets.is_empty());
    match previous {
        Some(previous) if options.warm_start && options.targets == TargetChoice::Auto => {
            let paths = previous.targets.iter().map(|pair| regex::escape(&pair.module_path));
            let targets = TargetChoice::Regex(paths.collect::<Vec<_>>().join("|"));
            Trainer::new(engine, &TrainOptions { targets, ..options.clone() }, labels)
        }
        _ => Trainer::new(engine, options, labels),
    }
}

impl Trainer {
    /// Starts at the values of `previous` (an adapter of the same base): its pairs and the rows of
    /// its head, found by their labels. What it lacks keeps its first values.
    ///
    /// # Errors
    /// Mismatch: another rank or scaling, a target that is not trained, a head that reads
    /// otherwise or has other labels.
    pub fn start_from(&mut self, previous: &Adapter) -> Result<()> {
        let other = |what: String| {
            Err(Error::mismatch(format!("the generation before {what}"))
                .hint("train with the settings of that generation, or without its values"))
        };
        for pair in &previous.targets {
            let path = &pair.module_path;
            if pair.kind != self.setup.kind {
                let (found, want) = (pair.kind.name(), self.setup.kind.name());
                return other(format!("is of kind {found} at '{path}', not {want}"));
            }
            let scaling = pair.scaling();
            if scaling != self.setup.scaling {
                return other(format!(
                    "has rank {} and scaling {scaling} at '{path}', not scaling {}",
                    pair.rank, self.setup.scaling
                ));
            }
            for NamedTensor { name, values, .. } in &pair.tensors {
                let name = parameter::of_target(path, name);
                match self.value(&name).map(<[f32]>::len) {
                    Err(_) => return other(format!("adapts '{path}', which is not trained")),
                    Ok(len) if len != values.len() => {
                        return other(format!("has rank {} at '{path}'", pair.rank));
                    }
                    Ok(_) => self.set_parameter(&name, values)?,
                }
            }
        }
        let Some(head) = previous.head() else { return Ok(()) };
        if Task::of_head(&head.task)? != self.setup.task {
            return other(format!("has learned the task {}", head.task));
        }
        let features = &self.setup.features;
        if (head.output.as_str(), head.pool, head.features as usize)
            != (features.name.as_str(), features.pool, features.width)
        {
            return other(format!("reads '{}' with pool {}", head.output, head.pool.name()));
        }
        let width = features.width;
        for (row, label) in head.labels.iter().enumerate() {
            let Some(place) = self.labels.iter().position(|l| l == label) else {
                return other(format!("knows the label '{label}', which is not trained"));
            };
            let from = head.weight.get(row * width..(row + 1) * width).zip(head.bias.get(row));
            let Some((weight, bias)) = from else { continue };
            let to = self.value_mut(head::WEIGHT)?;
            if let Some(to) = to.get_mut(place * width..(place + 1) * width) {
                to.copy_from_slice(weight);
            }
            if let Some(to) = self.value_mut(head::BIAS)?.get_mut(place) {
                *to = *bias;
            }
        }
        Ok(())
    }
}
