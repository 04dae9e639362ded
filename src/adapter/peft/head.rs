//! What an imported head reads: PEFT's files don't say it.

#![warn(clippy::arithmetic_side_effects)]

use super::super::names::shown;
use super::{HeadSpec, ImportOptions, MatchRow, Pool};
use crate::error::{Error, Result};

/// transformers' name of what the pooler gives.
const POOLED: &str = "pooler_output";
/// Families whose `ForSequenceClassification` has one linear layer, `classifier`, behind a pooler
/// (a linear layer and tanh on the first token): transformers' `modeling_*.py`.
const WITH_POOLER: [&str; 9] = [
    "bert",
    "albert",
    "mobilebert",
    "big_bird",
    "convbert",
    "deberta",
    "ernie",
    "nezha",
    "squeezebert",
];

/// Whether the modules' first names are those of a family with a pooler.
pub(super) fn behind_a_pooler(rows: &[MatchRow]) -> bool {
    let family = rows.first().and_then(|row| row.peft.split('.').next());
    family.is_some_and(|family| WITH_POOLER.contains(&family))
}

/// What the head `path` reads: as the caller says, else the pooler's output where the head belongs
/// behind it. `None` where neither is known, nor the base.
///
/// # Errors
/// Mismatch: the head belongs behind a pooler that the base has not; nothing says what it reads.
pub(super) fn spec(
    path: &str,
    options: &ImportOptions,
    pooler: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<HeadSpec>> {
    let outputs = &options.outputs;
    let axes = |name: &str| outputs.iter().find(|(n, _)| n == name).map(|(_, axes)| *axes);
    if outputs.is_empty() {
        return Ok(options.head.clone());
    }
    match &options.head {
        // A row for each token: the pooler is not in what it gives.
        Some(head) if pooler && axes(&head.output) == Some(3) => Err(no_pooler(path, outputs)),
        Some(head) => Ok(Some(head.clone())),
        None if pooler && axes(POOLED) == Some(2) => {
            warnings.push(format!(
                "head '{}' reads '{POOLED}', as transformers has it; its classes have no names",
                shown(path)
            ));
            Ok(Some(HeadSpec { output: POOLED.into(), pool: Pool::None, labels: None }))
        }
        None if pooler => Err(no_pooler(path, outputs)),
        None => Err(Error::mismatch(format!(
            "the file does not say which output head '{}' reads nor how tokens are pooled",
            shown(path)
        ))
        .hint(format!("say it with --head-output and --pool: the base has {}", list(outputs)))),
    }
}

fn no_pooler(path: &str, outputs: &[(String, usize)]) -> Error {
    Error::mismatch(format!(
        "head '{}' was trained behind the model's pooler, which is not in the base (it has {})",
        shown(path),
        list(outputs)
    ))
    .hint(
        "export the model with its pooler: torch.onnx.export of AutoModel gives last_hidden_state and \
         pooler_output; pack that and import again",
    )
}

fn list(outputs: &[(String, usize)]) -> String {
    outputs.iter().map(|(name, _)| shown(name)).collect::<Vec<_>>().join(", ")
}
