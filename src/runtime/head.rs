//! Heads at run time: pooling, the linear layer, probabilities and labels.

use crate::adapter::{Head, Pool};
use crate::error::{Error, Result};
use crate::pack::Base;
use crate::shape::Array;

/// What a head says of one row of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The head's raw outputs.
    pub logits: Vec<f32>,
    /// Names of the outputs, in order.
    pub labels: Vec<String>,
}

impl Prediction {
    /// Softmax of the logits.
    pub fn probabilities(&self) -> Vec<f32> {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f32> = self.logits.iter().map(|l| (l - max).exp()).collect();
        let sum: f32 = exp.iter().sum();
        exp.into_iter().map(|e| e / sum).collect()
    }

    /// The `k` likeliest labels and their probabilities, likeliest first.
    pub fn top(&self, k: usize) -> Vec<(String, f32)> {
        let mut ranked: Vec<(usize, f32)> = self.probabilities().into_iter().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(k);
        let name = |i: usize| self.labels.get(i).cloned().unwrap_or_else(|| i.to_string());
        ranked.into_iter().map(|(i, p)| (name(i), p)).collect()
    }
}

/// Applies `head` to the output it reads: one prediction a row. `mask` says which tokens count, where
/// the base takes one: [`Engine::given`](super::Engine::given).
///
/// # Errors
/// The output is missing or of another shape ([`crate::error::ErrorKind::Mismatch`]).
pub fn apply_head(
    head: &Head,
    mask: Option<&Array>,
    outputs: &[(String, Array)],
) -> Result<Vec<Prediction>> {
    let (_, output) = outputs.iter().find(|(name, _)| *name == head.output).ok_or_else(|| {
        let names: Vec<&str> = outputs.iter().map(|(n, _)| n.as_str()).collect();
        Error::mismatch(format!("head '{}' reads the output '{}'", head.name, head.output))
            .hint(format!("the base's outputs are {}", names.join(", ")))
    })?;
    let features = pool(head.pool, output, mask)?;
    let width = head.features as usize;
    if features.first().is_some_and(|row| row.len() != width) {
        return Err(Error::mismatch(format!(
            "head '{}' expects {width} features, output '{}' has the shape {:?}",
            head.name,
            head.output,
            output.shape()
        )));
    }
    Ok(features
        .iter()
        .map(|row| {
            let logits = head
                .weight
                .chunks(width)
                .zip(&head.bias)
                .map(|(w, b)| w.iter().zip(row).map(|(w, x)| w * x).sum::<f32>() + b)
                .collect();
            Prediction { logits, labels: head.labels.clone() }
        })
        .collect())
}

/// The base's own classes, where it has label names: the last output with one row of as many values.
pub fn base_predictions(base: &Base, outputs: &[(String, Array)]) -> Vec<Prediction> {
    let labels = &base.preprocess().labels;
    let rows = |array: &Array| match (array.shape(), array.as_f32()) {
        (&[_, classes], Ok(values)) if classes == labels.len() && classes > 0 => {
            let predict = |row: &[f32]| Prediction { logits: row.to_vec(), labels: labels.clone() };
            Some(values.chunks(classes).map(predict).collect::<Vec<_>>())
        }
        _ => None,
    };
    outputs.iter().rev().find_map(|(_, array)| rows(array)).unwrap_or_default()
}

/// Rows of features: (B, T, F) pooled over the tokens that count, or (B, F) as it is.
pub fn pool(pool: Pool, output: &Array, mask: Option<&Array>) -> Result<Vec<Vec<f32>>> {
    let values = output.as_f32()?;
    let shape = output.shape();
    let wrong = |why: &str| Error::mismatch(format!("an output of shape {shape:?} {why}"));
    if pool == Pool::None {
        let batch = *shape.first().ok_or_else(|| wrong("has no rows"))?;
        let width = values.len() / batch.max(1);
        return Ok(values.chunks(width.max(1)).map(<[f32]>::to_vec).collect());
    }
    let &[batch, tokens, width] = shape else {
        return Err(wrong("can't be pooled over tokens").hint("use pool none"));
    };
    let counts = |b: usize, t: usize| -> Result<bool> {
        let Some(mask) = mask else { return Ok(true) };
        if mask.shape() != [batch, tokens] {
            return Err(wrong(&format!("and a mask of shape {:?}", mask.shape())));
        }
        Ok(mask.as_i64()?[b * tokens + t] > 0)
    };
    let mut rows = vec![];
    for b in 0..batch {
        let token = |t: usize| &values[(b * tokens + t) * width..][..width];
        if pool == Pool::Cls {
            rows.push(if tokens == 0 { vec![0.0; width] } else { token(0).to_vec() });
            continue;
        }
        let start = if pool == Pool::Max { f32::NEG_INFINITY } else { 0.0 };
        let mut row = vec![start; width];
        let mut counted = 0usize;
        for t in 0..tokens {
            if !counts(b, t)? {
                continue;
            }
            counted += 1;
            for (r, x) in row.iter_mut().zip(token(t)) {
                *r = if pool == Pool::Max { r.max(*x) } else { *r + x };
            }
        }
        if counted == 0 {
            row.fill(0.0);
        } else if pool == Pool::Mean {
            row.iter_mut().for_each(|r| *r /= counted as f32);
        }
        rows.push(row);
    }
    Ok(rows)
}
