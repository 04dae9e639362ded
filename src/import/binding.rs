//! Free dimensions that stop a graph from being built: the importer makes some of them one, or binds
//! them, as few as possible, and says which and why.

use super::branches::branches;
use super::options;
use super::prepare::{Prepared, described_inputs};
use super::tensor::{float_values, int_values};
use super::validate::attribute;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{GraphProto, TensorProto, ValueInfoProto};

/// Attempts in all: of so many nodes together, within these limits. No clock decides, so that a file gives the same
/// base on a slow or busy machine; what takes too long there is ended by the child's deadline, with an error.
const MAX_TRIED_NODES: usize = 60_000;
const ATTEMPTS: (usize, usize) = (12, 48);
/// Dimensions that the graph itself says are equal, one after the other.
const MAX_EQUALS: usize = 16;
/// Texts from the importer are cut here where they become a reason.
const MAX_WHY: usize = 160;

/// What the importer fixed without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// A free dimension of the inputs, or a scalar input.
    pub name: String,
    /// A number, another dimension's name or a multiple of one.
    pub to: String,
    /// The reason, for people.
    pub why: String,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.to)
    }
}

/// Names of dimensions and what takes their place, in the order of finding.
type Changes = Vec<(String, Dim)>;

/// Gives what `attempt` makes of `prepared`. Where it fails over a free dimension, the inputs of
/// `prepared` are changed until it succeeds: first dimensions that the graph wants equal become one,
/// then the batch is 1, then sides of pictures are multiples of 32, then the rest is bound; what need
/// not be bound is freed again. If that is not enough, a scalar input that the graph compares with
/// constants is made one of them.
///
/// # Errors
/// That of the first attempt, if no way helps.
pub fn fit<T>(
    prepared: &mut Prepared,
    mut attempt: impl FnMut(&Prepared) -> Result<T>,
) -> Result<(T, Vec<Bound>)> {
    let mut attempt = |prepared: &Prepared| caught(|| attempt(prepared));
    let nodes = prepared.model.graph.as_ref().map_or(1, |graph| graph.node.len().max(1));
    let mut left = (MAX_TRIED_NODES / nodes).clamp(ATTEMPTS.0, ATTEMPTS.1);
    let first = match attempt(prepared) {
        Ok(made) => return Ok((made, vec![])),
        Err(e) if matches!(e.kind(), ErrorKind::Failed | ErrorKind::Refused) => return Err(e),
        Err(e) => e,
    };
    if let Some(found) = fit_dims(prepared, &mut attempt, &first, &mut left) {
        return Ok(found);
    }
    let Some(graph) = prepared.model.graph.as_ref() else { return Err(first) };
    let inputs = graph.input.clone();
    let scalars = compared_scalars(graph);
    for (name, value) in scalars.clone() {
        let graph = prepared.model.graph.as_mut();
        let fixed = graph.and_then(|graph| options::make_constant(graph, &name, &value).ok());
        if fixed.is_none() || left == 0 {
            continue;
        }
        let now: Vec<ValueInfoProto> = inputs.iter().filter(|i| i.name != name).cloned().collect();
        put(prepared, now);
        left -= 1;
        let found = match attempt(prepared) {
            Ok(made) => Some((made, vec![])),
            Err(e) => fit_dims(prepared, &mut attempt, &e, &mut left),
        };
        if let Some((made, mut bound)) = found {
            let why = format!(
                "the graph branches on it, and is built for one of its values; {}",
                reason(&first)
            );
            bound.insert(0, Bound { name, to: value, why });
            return Ok((made, bound));
        }
        if let Some(graph) = prepared.model.graph.as_mut() {
            graph.initializer.pop();
        }
    }
    put(prepared, inputs);
    Err(match scalars.first() {
        Some((name, value)) if first.hint_text().is_none() => {
            let of: Vec<&str> =
                scalars.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
            first.hint(format!(
                "the graph branches on its input '{name}' (by {}): --const {name}={value} builds it for one of \
                 them; --input says the sizes of the others",
                of.join(", ")
            ))
        }
        _ if first.hint_text().is_none() && prepared.model.graph.as_ref().is_some_and(branches) => first
            .hint("the graph branches: where sizes decide, --input says them, and the branch taken is built"),
        _ => first,
    })
}

/// Gives what `work` gives, and a panic as an error (unsupported): tract panics over some sizes and
/// takes others.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::unsupported(format!("the importer gave up: {text}")))
    })
}

fn fit_dims<T>(
    prepared: &mut Prepared,
    attempt: &mut dyn FnMut(&Prepared) -> Result<T>,
    error: &Error,
    left: &mut usize,
) -> Option<(T, Vec<Bound>)> {
    let original = prepared.model.graph.as_ref()?.input.clone();
    let mut search = Search { original, prepared, attempt, left };
    let found = search.run(error);
    if found.is_none() {
        let original = std::mem::take(&mut search.original);
        put(prepared, original);
    }
    found
}

struct Search<'a, T> {
    original: Vec<ValueInfoProto>,
    prepared: &'a mut Prepared,
    attempt: &'a mut dyn FnMut(&Prepared) -> Result<T>,
    left: &'a mut usize,
}

impl<T> Search<'_, T> {
    fn run(&mut self, first: &Error) -> Option<(T, Vec<Bound>)> {
        let axes = free_axes(&self.original);
        if axes.is_empty() {
            return None;
        }
        let why = reason(first);
        let mut equal: Changes = vec![];
        let mut last: Option<Error> = None;
        while equal.len() < MAX_EQUALS {
            let error = last.as_ref().unwrap_or(first);
            let step = equal_by(error.message(), &axes, &equal);
            let Some(step) = step.or_else(|| only_by(error, &axes, &equal)) else { break };
            equal.push(step);
            match self.try_with(&equal)? {
                Ok(made) => return Some((made, said(&equal, "the graph takes nothing else"))),
                Err(e) => last = Some(e),
            }
        }
        for with in [equal.clone(), vec![]] {
            let aligned = extended(&with, aligned(&axes, &with));
            for changes in self.ways(&axes, &aligned, &with) {
                if let Ok(made) = self.try_with(&changes)? {
                    return Some(self.freed(made, changes, &why));
                }
            }
            if equal.is_empty() {
                break;
            }
        }
        None
    }

    /// Sets of changes to try, smaller ones first.
    fn ways(&self, axes: &[Axis], aligned: &Changes, equal: &Changes) -> Vec<Changes> {
        let batch = batch(axes);
        let mut ways = vec![];
        if aligned.len() > equal.len() {
            ways.push(aligned.clone());
        }
        let one = extended(equal, batch.iter().map(|n| (n.clone(), Dim::DimValue(1))).collect());
        ways.push(one.clone());
        let sides = sides(axes);
        if !sides.is_empty() {
            let multiples: Changes =
                sides.iter().map(|n| (n.clone(), Dim::DimParam(format!("32*{n}")))).collect();
            ways.push(extended(equal, multiples.clone()));
            ways.push(extended(&one, multiples));
        }
        let all = |side: i64, other: i64| -> Changes {
            let rest = axes.iter().filter(|a| !batch.contains(&a.name)).map(|a| {
                let value = if sides.contains(&a.name) { side } else { other };
                (a.name.clone(), Dim::DimValue(value))
            });
            extended(&one, rest.collect())
        };
        ways.extend([all(320, 128), all(224, 16), all(256, 512), all(640, 16000)]);
        // Readers of lines of text take pictures of one height.
        if let Some(height) = sides.first() {
            let lines = [48, 32, 64, 96].map(|size| vec![(height.clone(), Dim::DimValue(size))]);
            ways.extend(lines.map(|line| extended(&all(320, 128), line)));
        }
        ways.dedup();
        ways
    }

    /// What `attempt` says of the changed inputs; `None` when no attempt is left.
    fn try_with(&mut self, changes: &Changes) -> Option<Result<T>> {
        *self.left = self.left.checked_sub(1)?;
        Some(self.with(changes))
    }

    fn with(&mut self, changes: &Changes) -> Result<T> {
        put(self.prepared, changed(&self.original, changes));
        (self.attempt)(self.prepared)
    }

    /// Takes back each change that isn't needed, the last first. They are few: all are looked at, whatever
    /// the search has taken.
    fn freed(&mut self, mut made: T, mut changes: Changes, why: &str) -> (T, Vec<Bound>) {
        for at in (0..changes.len()).rev() {
            if changes.len() == 1 {
                break;
            }
            let mut fewer = changes.clone();
            fewer.remove(at);
            if let Ok(better) = self.with(&fewer) {
                (made, changes) = (better, fewer);
            }
        }
        put(self.prepared, changed(&self.original, &changes));
        (made, said(&changes, why))
    }
}

/// A free dimension and where it stands.
#[derive(Clone, Debug)]
struct Axis {
    name: String,
    /// Of the first input that has it.
    axis: usize,
    rank: usize,
    /// The fixed number of channels beside it, for inputs of rank 4: 1 or 3.
    picture: bool,
}

fn free_axes(inputs: &[ValueInfoProto]) -> Vec<Axis> {
    let mut found: Vec<Axis> = vec![];
    for info in inputs {
        let dims = dims(info);
        let number = |at: usize| match dims.get(at).and_then(|d| d.as_ref()) {
            Some(Dim::DimValue(v)) => *v,
            _ => 0,
        };
        let few = |v: i64| v == 1 || v == 3;
        let (first, last) = (few(number(1)), few(number(3)));
        for (axis, dim) in dims.iter().enumerate() {
            let Some(Dim::DimParam(name)) = dim else { continue };
            if found.iter().any(|f| f.name == *name) {
                continue;
            }
            let spatial = if first { axis >= 2 } else { last && (axis == 1 || axis == 2) };
            let picture = dims.len() == 4 && spatial;
            found.push(Axis { name: name.clone(), axis, rank: dims.len(), picture });
        }
    }
    found
}

/// The batch: what stands first in an input of two axes or more, or is called so.
fn batch(axes: &[Axis]) -> Vec<String> {
    let leads = |a: &&Axis| {
        let name = a.name.to_ascii_lowercase();
        a.axis == 0 && a.rank > 1 || name.contains("batch") || matches!(name.as_str(), "n" | "b")
    };
    axes.iter().filter(leads).map(|a| a.name.clone()).collect()
}

fn sides(axes: &[Axis]) -> Vec<String> {
    axes.iter().filter(|a| a.picture).map(|a| a.name.clone()).collect()
}

/// Dimensions at the same place of inputs of the same rank made one, where `known` leaves them free.
fn aligned(axes: &[Axis], known: &Changes) -> Changes {
    let mut first: HashMap<(usize, usize), &str> = HashMap::new();
    let mut changes = vec![];
    for a in axes.iter().filter(|a| !known.iter().any(|(n, _)| *n == a.name)) {
        // The first axis is the batch, whatever the rank.
        let place = (a.axis, if a.axis == 0 { 0 } else { a.rank });
        match first.get(&place) {
            Some(name) => changes.push((a.name.clone(), Dim::DimParam(name.to_string()))),
            None => drop(first.insert(place, &a.name)),
        }
    }
    changes
}

/// The size that an error states as the only one of a dimension.
fn only_by(error: &Error, axes: &[Axis], known: &Changes) -> Option<(String, Dim)> {
    let (name, size) = error.only()?;
    let free = axes.iter().any(|a| a.name == name) && !known.iter().any(|(n, _)| n == name);
    free.then(|| (name.to_string(), Dim::DimValue(size)))
}

/// The equality that an error states: "Impossible to unify Sym(a) with Sym(b)" or with "Val(3)".
fn equal_by(error: &str, axes: &[Axis], known: &Changes) -> Option<(String, Dim)> {
    let (_, rest) = error.rsplit_once("Impossible to unify ")?;
    let (left, right) = rest.split_once(" with ")?;
    let read = |text: &str| -> Option<Dim> {
        if let Some(name) = text.strip_prefix("Sym(") {
            let name = name.split(')').next()?;
            return axes.iter().any(|a| a.name == name).then(|| Dim::DimParam(name.into()));
        }
        let value: i64 = text.strip_prefix("Val(")?.split(')').next()?.parse().ok()?;
        (value > 0).then_some(Dim::DimValue(value))
    };
    let (name, to) = match (read(left)?, read(right)?) {
        (Dim::DimParam(a), Dim::DimParam(b)) => {
            // The one that the file names first stays.
            let place = |name: &str| axes.iter().position(|x| x.name == name);
            if place(&a) < place(&b) { (b, Dim::DimParam(a)) } else { (a, Dim::DimParam(b)) }
        }
        (Dim::DimParam(name), value) | (value, Dim::DimParam(name)) => (name, value),
        _ => return None,
    };
    let new = to != Dim::DimParam(name.clone()) && !known.iter().any(|(n, _)| *n == name);
    new.then_some((name, to))
}

fn extended(changes: &Changes, more: Changes) -> Changes {
    let mut all: Changes =
        changes.iter().filter(|(n, _)| !more.iter().any(|(m, _)| m == n)).cloned().collect();
    all.extend(more);
    all
}

/// The inputs with the changes made, chains of equal names followed.
fn changed(inputs: &[ValueInfoProto], changes: &Changes) -> Vec<ValueInfoProto> {
    let mut inputs = inputs.to_vec();
    for info in &mut inputs {
        let Some(TypeValue::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            continue;
        };
        for dim in t.shape.iter_mut().flat_map(|s| &mut s.dim) {
            for _ in 0..=changes.len() {
                let Some(Dim::DimParam(name)) = &dim.value else { break };
                let Some((_, to)) = changes.iter().find(|(n, _)| n == name) else { break };
                dim.value = Some(to.clone());
            }
        }
    }
    inputs
}

fn put(prepared: &mut Prepared, inputs: Vec<ValueInfoProto>) {
    if let Some(graph) = prepared.model.graph.as_mut() {
        graph.input = inputs;
        prepared.inputs = described_inputs(graph);
    }
}

fn dims(info: &ValueInfoProto) -> Vec<Option<Dim>> {
    match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(t)) => {
            t.shape.iter().flat_map(|s| &s.dim).map(|d| d.value.clone()).collect()
        }
        None => vec![],
    }
}

fn said(changes: &Changes, why: &str) -> Vec<Bound> {
    changes
        .iter()
        .map(|(name, to)| Bound {
            name: name.clone(),
            to: match to {
                Dim::DimValue(v) => v.to_string(),
                Dim::DimParam(p) => p.clone(),
            },
            why: why.into(),
        })
        .collect()
}

/// The last cause in an error's chain, which says most, and where it arose.
fn reason(error: &Error) -> String {
    let text = error.message();
    let place = text.split_once("node #").and_then(|(_, rest)| rest.split('"').nth(1));
    let cause = text.rsplit(": ").next().unwrap_or(text);
    let cause: String = cause.chars().take(MAX_WHY).collect();
    match place {
        Some(node) => format!("left free, node '{node}' can't be built: {cause}"),
        None => format!("left free: {cause}"),
    }
}

/// The value of a tensor of one element, as `--const` takes it.
fn scalar_text(tensor: &TensorProto) -> Option<String> {
    let text = |v: &[String]| (v.len() == 1).then(|| v[0].clone());
    if let Some(ints) = int_values(tensor) {
        return text(&ints.iter().map(i64::to_string).collect::<Vec<_>>());
    }
    text(&float_values(tensor)?.iter().map(f32::to_string).collect::<Vec<_>>())
}

/// Scalar inputs that the graph compares with constants, or branches on, and those values, in the
/// order of the nodes.
fn compared_scalars(graph: &GraphProto) -> Vec<(String, String)> {
    let mut constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    // What a value of one element is made of without being changed.
    let mut origin: HashMap<&str, &str> = HashMap::new();
    let mut found: Vec<(String, String)> = vec![];
    let given = |name: &str| {
        let info = graph.input.iter().find(|i| i.name == name)?;
        dims(info).iter().all(|d| *d == Some(Dim::DimValue(1))).then_some(info)
    };
    for node in &graph.node {
        let Some(output) = node.output.first() else { continue };
        match node.op_type.as_str() {
            "Constant" => {
                if let Some(t) = attribute(node, "value").and_then(|a| a.t.as_ref()) {
                    constants.insert(output, t);
                }
            }
            "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape" | "Gather" => {
                let Some(input) = node.input.first() else { continue };
                let from = origin.get(input.as_str()).copied().unwrap_or(input);
                origin.insert(output, from);
            }
            "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" => {
                let [a, b] = node.input.as_slice() else { continue };
                let from = |name: &'_ String| {
                    origin.get(name.as_str()).copied().unwrap_or(name).to_string()
                };
                let (a, b) = (from(a), from(b));
                for (scalar, other) in [(&a, &b), (&b, &a)] {
                    let value = constants.get(other.as_str()).and_then(|t| scalar_text(t));
                    if let (Some(_), Some(value)) = (given(scalar), value)
                        && !found.contains(&(scalar.clone(), value.clone()))
                    {
                        found.push((scalar.clone(), value));
                    }
                }
            }
            "If" => {
                let Some(condition) = node.input.first() else { continue };
                let from = origin.get(condition.as_str()).copied().unwrap_or(condition);
                if given(from).is_some() && !found.iter().any(|(n, _)| n == from) {
                    found.extend(["true", "false"].map(|v| (from.to_string(), v.to_string())));
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
#[path = "binding_tests.rs"]
mod tests;
