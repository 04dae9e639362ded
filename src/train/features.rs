//! Where the head reads, and which targets are trained.

use super::instant::Form;
use super::options::{TargetChoice, TrainOptions};
use crate::adapter::{Pool, TargetKind};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{FrozenConv, FrozenEmbedding, FrozenLinear, Place, places, tract_error};
use crate::pack::Role;
use crate::runtime::{Engine, Preprocessor, Reading};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tract_core::internal::*;

/// The output that a head reads, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Place among the base's outputs.
    pub output: usize,
    /// Its name.
    pub name: String,
    /// How its tokens are pooled.
    pub pool: Pool,
    /// F.
    pub width: usize,
}

/// The output named `head_from`, or the one that
/// [`TrainOptions::head_from`](super::TrainOptions::head_from) describes.
///
/// # Errors
/// Usage: no such output, or one that `pool` doesn't fit. Unsupported: no output of two to four
/// axes with floats and a known number of features.
pub fn choose_features(
    engine: &Engine,
    head_from: Option<&str>,
    pool: Option<Pool>,
    per_token: bool,
) -> Result<Features> {
    let specs = engine.outputs();
    let names = || specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    let output = match head_from {
        Some(name) => specs.iter().position(|s| s.name == name).ok_or_else(|| {
            Error::usage(format!("the base has no output '{name}'"))
                .hint(format!("its outputs are {}", names()))
        })?,
        None => default_output(engine, per_token)?.ok_or_else(|| {
            Error::unsupported(match per_token {
                true => "no output of the base has three axes of floats, the batch first",
                false => {
                    "no output of the base has floats, the batch among its first axes, and a known \
                     number of features"
                }
            })
            .hint(format!("its outputs are {}", names()))
        })?,
    };
    let name = specs.get(output).map_or_else(String::new, |s| s.name.clone());
    let fact = output_fact(engine, output)?;
    let reading = Reading::of(engine, output);
    let dims = reading.dims(&fact.shape);
    let rank = dims.len();
    let usual = if rank >= 3 && !per_token { Pool::Mean } else { Pool::None };
    let pool = pool.unwrap_or(usual);
    let fits = match (per_token, pool) {
        (true, pool) => pool == Pool::None && rank == 3,
        (false, Pool::None) => rank == 2,
        (false, _) => rank == 3 || rank == 4,
    };
    if !fits || !fact.datum_type.is_float() {
        let (kind, pool) = (fact.datum_type, pool.name());
        return Err(Error::usage(format!(
            "a head can't read output '{name}' of {} axes of {kind:?} with pool {pool}",
            fact.rank()
        ))
        .hint(match per_token {
            true => "labels of tokens take (B, T, F) with pool none",
            false => {
                "pools mean, cls and max take (B, T, F) and maps of four axes, none takes (B, F)"
            }
        }));
    }
    if let Some(axis) = batch_axis(engine, output)
        && axis != 0
        && reading == Reading::Plain
    {
        let others: Vec<&str> = (0..specs.len())
            .filter(|&o| batch_axis(engine, o) == Some(0))
            .map(|o| specs[o].name.as_str())
            .collect();
        let error = Error::unsupported(format!(
            "the first axis of output '{name}' isn't the batch, which is axis {}",
            axis + 1
        ));
        return Err(match others.as_slice() {
            [] => error.hint("export the model with the batch first"),
            others => error.hint(format!("--head-from takes {}", others.join(", "))),
        });
    }
    let width = width_of(&dims).ok_or_else(|| {
        Error::unsupported(format!("the number of features of output '{name}' is open"))
            .hint("fix it with --dim when packing")
    })?;
    Ok(Features { output, name, pool, width })
}

/// The number of features: of a map of four axes the second axis, or the last where only that is known.
fn width_of(dims: &[TDim]) -> Option<usize> {
    let known = |dim: Option<&TDim>| dim.and_then(|d| d.to_usize().ok()).filter(|&w| w > 0);
    let second = known(dims.get(1)).filter(|_| dims.len() == 4);
    second.or_else(|| known(dims.last()))
}

fn output_fact(engine: &Engine, output: usize) -> Result<TypedFact> {
    let fact = engine.graph().output_fact(output);
    fact.cloned().map_err(|e| tract_error(ErrorKind::Failed, &e))
}

/// The axis of an output that has the name of the batch, where the base names it: the free first
/// dimension of its first input.
fn batch_axis(engine: &Engine, output: usize) -> Option<usize> {
    let batch = engine.inputs().first()?.dims.first()?;
    if batch.parse::<u64>().is_ok() {
        return None;
    }
    engine.outputs().get(output)?.dims.iter().position(|dim| dim == batch)
}

fn default_output(engine: &Engine, per_token: bool) -> Result<Option<usize>> {
    let mut of_rank: [Vec<usize>; 3] = [vec![], vec![], vec![]];
    let (plain, turned): (Vec<usize>, Vec<usize>) = (0..engine.outputs().len())
        .partition(|output| Reading::of(engine, *output) == Reading::Plain);
    // What need not be turned comes first.
    for output in plain.into_iter().chain(turned) {
        let fact = output_fact(engine, output)?;
        let reading = Reading::of(engine, output);
        let batched =
            reading != Reading::Plain || batch_axis(engine, output).is_none_or(|axis| axis == 0);
        let dims = reading.dims(&fact.shape);
        let read = fact.datum_type.is_float() && (2..=4).contains(&dims.len());
        if read && batched && width_of(&dims).is_some() {
            of_rank[dims.len() - 2].push(output);
        }
    }
    let [flat, tokens, maps] = of_rank;
    if per_token {
        // Of several that with a column for each symbol that the base spells with.
        let symbols = engine.labels().len();
        let spells = |output: &&usize| {
            let fact = output_fact(engine, **output);
            fact.is_ok_and(|f| f.shape.last().and_then(|d| d.to_usize().ok()) == Some(symbols))
        };
        return Ok(tokens.iter().find(spells).or(tokens.first()).copied());
    }
    let has_mask = engine.input(Role::Mask).is_some();
    if let (true, Some(&first)) = (has_mask, tokens.first()) {
        return Ok(Some(first));
    }
    let graph = engine.graph();
    let outlets = graph.output_outlets().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
    for &output in &flat {
        let own = outlets[output].node;
        let feeds =
            |other: &OutletId| other.node != own && ancestors(graph, other.node).contains(&own);
        if outlets.iter().any(feeds) {
            return Ok(Some(output));
        }
    }
    Ok(flat.first().or(tokens.first()).or(maps.first()).copied())
}

fn ancestors(graph: &TypedModel, node: usize) -> HashSet<usize> {
    let (mut found, mut open) = (HashSet::from([node]), vec![node]);
    while let Some(id) = open.pop() {
        for input in &graph.node(id).inputs {
            if found.insert(input.node) {
                open.push(input.node);
            }
        }
    }
    found
}

/// Where the targets stand in the graph, by place in the target table. One that stands twice is not
/// among them, nor one inside a condition's body.
pub(crate) fn target_nodes(graph: &TypedModel) -> Result<BTreeMap<usize, Place>> {
    let mut found = BTreeMap::new();
    let mut twice = BTreeSet::new();
    for place in places(graph) {
        let node = place.graph(graph)?.node(place.node);
        let linear = node.op_as::<FrozenLinear>().and_then(|op| op.target);
        let conv = || node.op_as::<FrozenConv>().and_then(|op| op.target);
        let embedding = || node.op_as::<FrozenEmbedding>().and_then(|op| op.target);
        if let Some(target) = linear.or_else(conv).or_else(embedding)
            && found.insert(target, place).is_some()
        {
            twice.insert(target);
        }
    }
    found.retain(|target, _| !twice.contains(target));
    Ok(found)
}

/// The target that gives the output itself, where a layer does.
pub(crate) fn output_layer(engine: &Engine, output: usize) -> Result<Option<usize>> {
    let graph = engine.graph();
    let outlets = graph.output_outlets().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
    let node = outlets.get(output).map(|outlet| graph.node(outlet.node));
    Ok(node.and_then(|node| node.op_as::<FrozenLinear>()?.target))
}

/// Whether a base of sentences learns classes.
///
/// # Errors
/// What trying the base's inputs says.
pub(crate) fn learns_sentences(engine: &Engine, options: &TrainOptions) -> Result<bool> {
    if options.task.rules().closed_form() != Some(Form::OneOf) {
        return Ok(false);
    }
    let preprocessor = Preprocessor::new(engine).with_max_tokens(options.max_tokens);
    match preprocessor.text(&["A sentence."]) {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(false),
        tried => tried.map(|_| true),
    }
}

/// What [`TargetChoice::Auto`] means here; another choice as it is.
///
/// # Errors
/// As [`learns_sentences`].
pub(crate) fn usual_targets(engine: &Engine, options: &TrainOptions) -> Result<TargetChoice> {
    Ok(match &options.targets {
        TargetChoice::Auto if !learns_sentences(engine, options)? => TargetChoice::AllLinear,
        choice => choice.clone(),
    })
}

/// Places of the targets that `choice` names, in the order of the table. With
/// [`TargetChoice::AllLinear`] those that can't be trained (`nodes` lacks them, or the output
/// doesn't depend on them) are left out.
///
/// # Errors
/// Usage: a bad pattern, one that matches nothing, or a match that can't be trained.
pub(crate) fn choose_targets(
    engine: &Engine,
    choice: &TargetChoice,
    output: usize,
) -> Result<Vec<usize>> {
    let graph = engine.graph();
    let nodes = target_nodes(graph)?;
    let outlets = graph.output_outlets().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
    let outlet = outlets.get(output).ok_or_else(|| Error::failed("the output is gone"))?;
    let before = ancestors(graph, outlet.node);
    let trainable =
        |target: usize| nodes.get(&target).is_some_and(|place| before.contains(&place.outermost()));
    let targets = engine.base().targets();
    let pattern = match choice {
        TargetChoice::None => return Ok(vec![]),
        TargetChoice::AllLinear => {
            let linear = |t: usize| targets[t].kind != TargetKind::Embedding;
            return Ok((0..targets.len()).filter(|&t| linear(t) && trainable(t)).collect());
        }
        TargetChoice::Auto => {
            let order = graph.eval_order().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
            let steps: HashMap<usize, usize> = order.into_iter().zip(0..).collect();
            let step = |t: &usize| nodes.get(t).and_then(|place| steps.get(&place.outermost()));
            let mut layers = choose_targets(engine, &TargetChoice::AllLinear, output)?;
            layers.sort_by_key(step);
            let weights =
                |&t: &usize| u64::from(targets[t].in_features) * u64::from(targets[t].out_features);
            let most = layers.iter().map(weights).sum::<u64>() / 3;
            let mut sum = 0;
            let mut fits = |t: &usize| {
                sum += weights(t);
                sum <= most
            };
            let last = layers.iter().rev().take_while(|t| fits(t)).count().max(1);
            let mut chosen = layers.split_off(layers.len().saturating_sub(last));
            chosen.sort_unstable();
            return Ok(chosen);
        }
        TargetChoice::Regex(pattern) => pattern,
    };
    let matcher = regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim().to_string();
        Error::usage(format!("'{pattern}' is no regular expression: {reason}"))
    })?;
    let matched: Vec<usize> =
        (0..targets.len()).filter(|&t| matcher.is_match(&targets[t].module_path)).collect();
    if matched.is_empty() {
        let some: Vec<&str> = targets.iter().take(3).map(|t| t.module_path.as_str()).collect();
        return Err(Error::usage(format!("'{pattern}' matches none of {} targets", targets.len()))
            .hint(format!("the whole name must match, such as {}", some.join(", "))));
    }
    if let Some(&lost) = matched.iter().find(|&&t| !trainable(t)) {
        let (path, name) = (&targets[lost].module_path, &engine.outputs()[output].name);
        return Err(Error::usage(format!(
            "target '{path}' can't be trained: the output '{name}' doesn't depend on it"
        )));
    }
    Ok(matched)
}
