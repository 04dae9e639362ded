//! Heads at run time: pooling, the linear layer, probabilities and labels.

use super::engine::Engine;
use super::reading::Reading;
use super::scores::{softmax, top_k};
use crate::adapter::{Head, Pool};
use crate::error::{Error, Result};
use crate::pack::Problem;
use crate::shape::{Array, Values, View};
use std::borrow::Cow;
use std::sync::Arc;

/// What a token that doesn't count has under [`Pool::Max`], as sentence-transformers has it.
pub(crate) const MASKED: f32 = -1e9;
/// The least number of tokens that [`Pool::Mean`] divides by: without any the mean is 0.
pub(crate) const LEAST_COUNT: f32 = 1e-9;

/// What a head says of one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The head's raw outputs, one a label; of a head that answers for tokens those of each token
    /// that counts, one after another.
    pub logits: Vec<f32>,
    /// Names of the outputs, in order.
    pub labels: Arc<[String]>,
    /// How like the input is to what the head was learned from, where it can tell:
    /// [`Known::score`](crate::adapter::Known::score).
    pub likeness: Option<f32>,
}

impl Prediction {
    /// Softmax of the logits.
    pub fn probabilities(&self) -> Vec<f32> {
        softmax(&self.logits)
    }

    /// The `k` likeliest labels and their probabilities, likeliest first.
    pub fn top(&self, k: usize) -> Vec<(String, f32)> {
        let name = |i: usize| self.labels.get(i).cloned().unwrap_or_else(|| i.to_string());
        top_k(&self.probabilities(), k).into_iter().map(|(i, p)| (name(i), p)).collect()
    }
}

/// Applies `head` to the output it reads: one prediction a row. A head without labels gives the output as
/// it is. `mask` says which tokens count, where
/// the base takes one: [`Engine::given`](super::Engine::given).
///
/// # Errors
/// The output is missing or of another shape ([`crate::error::ErrorKind::Mismatch`]).
pub fn apply_head(
    engine: &Engine,
    head: &Head,
    mask: Option<View<'_>>,
    outputs: &[(String, Array)],
) -> Result<Vec<Prediction>> {
    let (_, output) = outputs.iter().find(|(name, _)| *name == head.output).ok_or_else(|| {
        let names: Vec<&str> = outputs.iter().map(|(n, _)| n.as_str()).collect();
        let mut others = engine.base().record().graphs.iter().flat_map(|graph| &graph.outputs);
        let decodes = others.any(|other| other.name == head.output);
        Error::mismatch(format!("head '{}' reads the output '{}'", head.name, head.output)).hint(
            match decodes {
                true => "a decoder gives it: generate runs that".to_string(),
                false => format!("the base's outputs are {}", names.join(", ")),
            },
        )
    })?;
    let width = head.features as usize;
    let output = &*read(engine, &head.output, output)?;
    let (output, mask) = (&*as_tokens(output, width)?, mask.filter(|_| output.shape().len() != 4));
    let features = pool(head.pool, output, mask)?;
    // Without pooling an output (B, T, features) is answered for token by token.
    let per_token = head.pool == Pool::None && output.shape().len() == 3;
    let fits = match per_token {
        true => output.shape().last() == Some(&width),
        false => features.iter().all(|row| row.len() == width),
    };
    if !fits {
        return Err(Error::mismatch(format!(
            "head '{}' expects {width} features, output '{}' has the shape {:?}",
            head.name,
            head.output,
            output.shape()
        )));
    }
    let labels = &head.labels;
    let answer = |x: &[f32]| {
        if head.labels.is_empty() {
            return x.to_vec();
        }
        let rows = head.weight.chunks(width).zip(&head.bias);
        rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b).collect::<Vec<_>>()
    };
    // The base's own output has the base's own names.
    let own = labels.is_empty() && engine.labels().len() == width;
    let labels = if own { engine.labels() } else { labels };
    Ok(features
        .iter()
        .map(|row| {
            let logits: Vec<f32> = row.chunks(width).flat_map(answer).collect();
            let known = head.known.as_ref().filter(|_| !per_token);
            let over: Vec<f32> = logits.iter().map(|v| v / head.temperature).collect();
            let likeness = known.map(|known| known.score(row, &over));
            Prediction { logits, labels: labels.clone(), likeness }
        })
        .collect())
}

/// The output of this name as a head reads it.
pub(crate) fn read<'a>(engine: &Engine, name: &str, output: &'a Array) -> Result<Cow<'a, Array>> {
    let at = engine.outputs().iter().position(|o| o.name == name);
    at.map_or(Reading::Plain, |at| Reading::of(engine, at)).array(output)
}

/// The base's own classes, where it has label names: the last output with one row of as many values; of a
/// base that spells texts or labels tokens the last with such a row a step.
pub fn base_predictions(engine: &Engine, outputs: &[(String, Array)]) -> Vec<Prediction> {
    let labels = engine.labels();
    let problem = engine.base().preprocess().problem;
    let steps = matches!(problem, Some(Problem::Text | Problem::Tokens));
    let row = |shape: &[usize]| match (steps, shape) {
        (false, &[_, classes]) if classes == labels.len() => classes,
        (true, &[_, steps, symbols]) if symbols == labels.len() => steps * symbols,
        _ => 0,
    };
    let rows = |(name, array): &(String, Array)| {
        let array = read(engine, name, array).ok()?;
        let (row, values) = (row(array.shape()), array.as_f32().ok()?);
        if row > 0 {
            let predict = |row: &[f32]| Prediction {
                logits: row.to_vec(),
                labels: labels.clone(),
                likeness: None,
            };
            return Some(values.chunks(row).map(predict).collect::<Vec<_>>());
        }
        None
    };
    outputs.iter().rev().find_map(rows).unwrap_or_default()
}

/// Which tokens count: those with a mask above 0, whatever its type.
pub(crate) fn counted(mask: View<'_>) -> Vec<bool> {
    match mask.values() {
        Values::F32(v) => v.iter().map(|&m| m > 0.0).collect(),
        Values::I64(v) => v.iter().map(|&m| m > 0).collect(),
        Values::I32(v) => v.iter().map(|&m| m > 0).collect(),
        Values::U8(v) => v.iter().map(|&m| m > 0).collect(),
        Values::Bool(v) => v.to_vec(),
    }
}

/// The axis of the features in a map of four axes, of whose axes 1 and 3 these are the sizes, where
/// they are known.
///
/// # Errors
/// Mismatch: neither of them has `width` features, or both.
pub(crate) fn feature_axis(sizes: [Option<usize>; 2], width: usize) -> Result<usize> {
    match sizes.map(|size| size == Some(width)) {
        [true, false] => Ok(1),
        [false, true] => Ok(3),
        [true, true] => Err(Error::mismatch(format!(
            "two axes of the map have the length {width}, which of them holds the features can't be told"
        ))
        .hint("inputs of another height or width make them differ")),
        [false, false] => {
            Err(Error::mismatch(format!("no axis of the map holds {width} features")))
        }
    }
}

/// A map of features (B, F, H, W) or (B, H, W, F) as (B, H·W, F); other outputs as they are.
pub(crate) fn as_tokens(output: &Array, width: usize) -> Result<Cow<'_, Array>> {
    let &[batch, second, third, last] = output.shape() else { return Ok(Cow::Borrowed(output)) };
    let values = output.as_f32()?;
    if feature_axis([Some(second), Some(last)], width)? == 3 {
        let tokens = Array::f32([batch, second * third, last], values.to_vec())?;
        return Ok(Cow::Owned(tokens));
    }
    let area = third * last;
    let mut turned = Vec::with_capacity(values.len());
    for map in values.chunks((second * area).max(1)) {
        for pixel in 0..area {
            turned.extend((0..second).map(|feature| map[feature * area + pixel]));
        }
    }
    Ok(Cow::Owned(Array::f32([batch, area, second], turned)?))
}

/// Rows of features: (B, T, F) pooled over the tokens that count. Without pooling (B, F) as it is, and
/// of (B, T, F) the features of the tokens that count, one after another.
///
/// Training has the same in its graph; a test holds the two against each other.
pub fn pool(pool: Pool, output: &Array, mask: Option<View<'_>>) -> Result<Vec<Vec<f32>>> {
    let values = output.as_f32()?;
    let shape = output.shape();
    let wrong = |why: &str| Error::mismatch(format!("an output of shape {shape:?} {why}"));
    let &[batch, tokens, width] = shape else {
        if pool != Pool::None {
            return Err(wrong("can't be pooled over tokens").hint("use pool none"));
        }
        let batch = *shape.first().ok_or_else(|| wrong("has no rows"))?;
        let width = values.len() / batch.max(1);
        return Ok(values.chunks(width.max(1)).map(<[f32]>::to_vec).collect());
    };
    let kept = match mask {
        Some(mask) if mask.shape() == [batch, tokens] => Some(counted(mask)),
        // The first token and single ones are there whatever else a mask is for.
        Some(mask) if matches!(pool, Pool::Mean | Pool::Max) => {
            return Err(wrong(&format!("and a mask of shape {:?}", mask.shape())));
        }
        _ => None,
    };
    let mut rows = vec![];
    for b in 0..batch {
        let token = |t: usize| &values[(b * tokens + t) * width..][..width];
        let counts = |t: usize| kept.as_ref().is_none_or(|kept| kept[b * tokens + t]);
        let mut row = match pool {
            Pool::None => (0..tokens).filter(|t| counts(*t)).flat_map(token).copied().collect(),
            Pool::Cls if tokens > 0 => token(0).to_vec(),
            Pool::Max => vec![MASKED; width],
            Pool::Cls | Pool::Mean => vec![0.0; width],
        };
        let mut count = 0.0f32;
        for t in (0..tokens).filter(|t| counts(*t)) {
            count += 1.0;
            for (r, x) in row.iter_mut().zip(token(t)) {
                match pool {
                    Pool::Max => *r = if count == 1.0 { *x } else { r.max(*x) },
                    Pool::Mean => *r += x,
                    Pool::Cls | Pool::None => {}
                }
            }
        }
        if pool == Pool::Mean {
            row.iter_mut().for_each(|r| *r /= count.max(LEAST_COUNT));
        }
        rows.push(row);
    }
    Ok(rows)
}
