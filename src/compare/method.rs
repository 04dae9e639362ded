//! The ways to learn that are compared.

use super::Recipe;
use crate::adapter::Kind;
use crate::error::{Error, Result};
use crate::train::{InstantHead, TargetChoice, Task, TrainOptions, suited_rate};
use serde::{Deserialize, Serialize};

/// Ranks of the first kind.
const RANKS: [u32; 3] = [2, 8, 32];
/// That of the other kinds that take one, and of the run that keeps knowledge.
const RANK: u32 = 8;
/// The share of the base's knowledge that the run that keeps it asks for.
const KEPT: f32 = 0.9;

/// A way to learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// As people choose it.
    pub name: String,
    /// What is done.
    pub what: What,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A head in closed form.
    Instant,
    /// A trained head, the layers as they are.
    Probe,
    /// All linear layers and convolutions.
    Layers {
        /// How they are changed.
        kind: Kind,
        /// Its rank, where it takes one.
        rank: u32,
        /// The share of the base's knowledge to keep; 0: none is asked for.
        keep: f32,
    },
}

impl Method {
    /// All, those that cost least first.
    pub fn all() -> Vec<Method> {
        let first = Kind::default();
        let layers = |name: String, kind, rank, keep| Method {
            name,
            what: What::Layers { kind, rank, keep },
        };
        let mut all = vec![
            Method { name: "instant".into(), what: What::Instant },
            Method { name: "probe".into(), what: What::Probe },
        ];
        let name = first.name();
        all.extend(RANKS.map(|rank| layers(format!("{name}-{rank}"), first, rank, 0.0)));
        all.push(layers(format!("{name}-kept"), first, RANK, KEPT));
        let others = Kind::all().filter(|kind| *kind != first);
        all.extend(others.map(|kind| layers(kind.name().into(), kind, RANK, 0.0)));
        all
    }

    /// Those of these names; the first kind's name alone stands for all of its.
    ///
    /// # Errors
    /// Usage: there is none of that name.
    pub fn of_names(names: &[String]) -> Result<Vec<Method>> {
        let all = Method::all();
        let is = |method: &Method, name: &str| {
            method.name == name || (name == Kind::default().name() && method.is_first_kind())
        };
        if let Some(name) = names.iter().find(|name| !all.iter().any(|m| is(m, name))) {
            let known: Vec<&str> = all.iter().map(|m| m.name.as_str()).collect();
            let error = format!("'{name}' is nothing to compare: {}", known.join(", "));
            return Err(Error::usage(error));
        }
        Ok(all.into_iter().filter(|m| names.iter().any(|name| is(m, name))).collect())
    }

    /// Whether it changes layers by the first kind.
    pub fn is_first_kind(&self) -> bool {
        matches!(&self.what, What::Layers { kind, .. } if *kind == Kind::default())
    }

    /// Whether knowledge is asked for.
    pub fn keeps(&self) -> bool {
        matches!(&self.what, What::Layers { keep, .. } if *keep > 0.0)
    }

    /// Whether the layers stay as they are.
    pub fn is_head_alone(&self) -> bool {
        !matches!(self.what, What::Layers { .. })
    }

    /// A training run's settings.
    pub(super) fn options(&self, recipe: &Recipe, task: Task, seed: u64) -> TrainOptions {
        let mut options = TrainOptions {
            name: self.name.clone(),
            task,
            learning_rate: recipe.learning_rate,
            head_rate: recipe.head_rate,
            epochs: recipe.epochs,
            min_steps: recipe.min_steps,
            steps: recipe.steps,
            batch: recipe.batch,
            micro_batch: recipe.micro_batch,
            threads: recipe.threads,
            seed,
            max_tokens: recipe.max_tokens,
            probes: recipe.probes.clone(),
            targets: TargetChoice::None,
            // What a way comes to is to be seen.
            even_if_worse: true,
            ..TrainOptions::default()
        };
        match &self.what {
            What::Instant => options.instant = InstantHead::Only,
            What::Probe => {}
            What::Layers { kind, rank, keep } => {
                options.targets = TargetChoice::AllLinear;
                (options.kind, options.rank, options.keep_knowledge) = (*kind, *rank, *keep);
                // The scaling alpha/rank is that of train's defaults at every rank.
                options.alpha = 2.0 * *rank as f32;
                options.learning_rate *= suited_rate(*kind);
                // A multiple of the layers' rate: the head's stays what it is.
                options.head_rate /= suited_rate(*kind);
            }
        }
        options
    }
}
