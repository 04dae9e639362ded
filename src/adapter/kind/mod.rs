//! The kinds of change that an adapter can make to a layer: a file each, and a line in the table.

mod bias;
mod bottleneck;
mod dora;
mod full;
mod ia3;
pub(crate) mod lokr;
mod lora;

use super::config::{NamedTensor, TargetAdapter};
use super::sum::Sum;
use super::target::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::quant::{PackedRef, WeightSource};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::hash::{Hash, Hasher};

/// All of them. The first is the default.
static TABLE: &[&dyn Rules] = &[
    &lora::Lora,
    &dora::Dora,
    &ia3::Ia3,
    &lokr::Lokr,
    &bias::Bias,
    &bottleneck::Bottleneck,
    &full::Full,
];

/// What a kind says of itself.
pub(crate) trait Rules: Sync {
    /// Its name in files and on the command line.
    fn name(&self) -> &'static str;

    /// Whether its targets have a rank and an alpha.
    fn is_ranked(&self) -> bool;

    /// Whether training it asks for a rank.
    fn takes_rank(&self) -> bool {
        self.is_ranked()
    }

    /// Whether its scaling may divide by sqrt(rank).
    fn has_rslora(&self) -> bool {
        self.is_ranked()
    }

    /// The input and output features that the tensors are for, as far as they tell.
    ///
    /// # Errors
    /// Bad input: tensors missing, unknown, or at odds with each other or with the rank.
    fn features(&self, target: &TargetAdapter) -> Result<Features>;

    /// Adds what a target's tensors do to `sum`; nothing where they change nothing.
    ///
    /// # Errors
    /// Unsupported: a layer that the kind has no form for, or that can't be summed with what is there.
    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()>;

    /// How PEFT saves it; `None` where PEFT has no such thing.
    fn peft(&self) -> Option<&dyn PeftForm> {
        None
    }
}

/// The form of a kind in PEFT's directories (PEFT 0.21).
pub(crate) trait PeftForm {
    /// The value of `peft_type`, and the key that is true for this kind alone.
    fn selected_by(&self) -> (&'static str, Option<&'static str>);

    /// The key of alpha; that of the rank is `r`.
    fn alpha_key(&self) -> &'static str {
        "alpha"
    }

    /// Keys of the configuration that say nothing about what the tensors mean.
    fn without_effect(&self) -> &'static [&'static str];

    /// What the names of a module's tensors end with.
    fn endings(&self) -> &'static [&'static str];

    /// A module's tensors, named by their endings and in PEFT's shapes, as ours.
    ///
    /// # Errors
    /// Bad input: a tensor is missing, or of another rank. Mismatch: shapes that are not the layer's.
    /// Unsupported: a layer that the kind has no form for.
    fn read(&self, tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>>;

    /// The other way round.
    ///
    /// # Errors
    /// Unsupported: what PEFT's form can't hold.
    fn write(&self, target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>>;

    /// The kind's own keys of the configuration for these targets and their layers.
    ///
    /// # Errors
    /// Unsupported: no configuration says this.
    fn settings(&self, targets: &[(&TargetAdapter, &Target)]) -> Result<serde_json::Value>;
}

/// What a PEFT module is read for.
pub(crate) struct Site<'a> {
    pub layer: &'a Target,
    /// R of the configuration.
    pub rank: u32,
    /// Whether the configuration names the module among `feedforward_modules`.
    pub feedforward: bool,
}

impl Site<'_> {
    /// Kernel area, input channels and output features; 1 and in_features but for a convolution.
    pub(crate) fn window(&self) -> (usize, usize, usize) {
        let (inputs, outputs) = (self.layer.in_features as usize, self.layer.out_features as usize);
        let area: usize = kernel(self.layer).iter().product();
        (area, inputs.checked_div(area).unwrap_or(0), outputs)
    }
}

/// The kernel's sides in PEFT's shapes: none, one or two.
pub(crate) fn kernel(layer: &Target) -> Vec<usize> {
    match layer.kind {
        TargetKind::Linear | TargetKind::Embedding => vec![],
        TargetKind::Conv { kernel: [_, w], one_axis: true } => vec![w as usize],
        TargetKind::Conv { kernel: [h, w], one_axis: false } => vec![h as usize, w as usize],
    }
}

/// One of a module's tensors.
pub(crate) fn saved<'a>(tensors: &'a [NamedTensor], ending: &str) -> Option<&'a NamedTensor> {
    tensors.iter().find(|t| t.name == ending)
}

/// The tensor of this ending, which must have this shape.
pub(crate) fn expected<'a>(
    tensors: &'a [NamedTensor],
    ending: &str,
    shape: &[usize],
) -> Result<&'a NamedTensor> {
    let name = ending.trim_start_matches('.').trim_end_matches(".weight");
    let found =
        saved(tensors, ending).ok_or_else(|| Error::bad_input(format!("{name} is missing")))?;
    if found.shape != shape {
        let found = &found.shape;
        return Err(Error::mismatch(format!(
            "{name} has shape {found:?}, the base expects {shape:?}"
        )));
    }
    Ok(found)
}

/// (rows, channels, window) to (rows, window, channels).
pub(crate) fn channels_last(values: &[f32], channels: usize, window: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for filter in values.chunks_exact((channels * window).max(1)) {
        for at in 0..window {
            out.extend(filter.iter().skip(at).step_by(window));
        }
    }
    out
}

/// In and out features of a layer, `None` where tensors don't tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Columns of the weight.
    pub inputs: Option<usize>,
    /// Rows of the weight.
    pub outputs: Option<usize>,
}

impl Features {
    /// Both known.
    pub(crate) fn both(inputs: usize, outputs: usize) -> Features {
        Features { inputs: Some(inputs), outputs: Some(outputs) }
    }

    /// Whether both may be of one layer.
    pub(crate) fn agree(self, other: Features) -> bool {
        let side = |a: Option<usize>, b: Option<usize>| a.zip(b).is_none_or(|(a, b)| a == b);
        side(self.inputs, other.inputs) && side(self.outputs, other.outputs)
    }
}

/// A target's tensors and how much they count.
pub(crate) struct Part<'a> {
    pub target: &'a TargetAdapter,
    /// What the user multiplies the adapter with.
    pub weight: f32,
    /// The layer that they change, where a base is there.
    pub layer: Option<Layer<'a>>,
}

/// A layer of a base.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub target: &'a Target,
    pub weights: &'a dyn WeightSource,
}

impl<'a> Layer<'a> {
    /// The frozen weight (outputs, inputs), of an embedding (rows, row length).
    pub(crate) fn frozen(&self) -> Result<PackedRef<'a>> {
        self.weights.weight(self.target.weight as usize)
    }
}

impl<'a> Part<'a> {
    /// The layer.
    ///
    /// # Errors
    /// Unsupported: no base is there.
    pub(crate) fn layer(&self) -> Result<&Layer<'a>> {
        self.layer.as_ref().ok_or_else(|| {
            Error::unsupported(format!(
                "kind '{}' can't be summed without its base",
                self.target.kind.name()
            ))
            .hint("use the adapters together: they are summed when they are bound")
        })
    }
}

/// How an adapter changes a layer.
#[derive(Clone, Copy)]
pub struct Kind(&'static dyn Rules);

impl Kind {
    /// All kinds.
    pub fn all() -> impl Iterator<Item = Kind> {
        TABLE.iter().map(|rules| Kind(*rules))
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::all().find(|k| k.name() == name)
    }

    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether its targets have a rank and an alpha.
    pub fn is_ranked(self) -> bool {
        self.0.is_ranked()
    }

    /// Whether training it asks for a rank.
    pub fn takes_rank(self) -> bool {
        self.0.takes_rank()
    }

    /// Whether its scaling may divide by sqrt(rank).
    pub fn has_rslora(self) -> bool {
        self.0.has_rslora()
    }

    pub(crate) fn rules(self) -> &'static dyn Rules {
        self.0
    }
}

impl Default for Kind {
    fn default() -> Kind {
        Kind(&lora::Lora)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Kind {}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Kind, D::Error> {
        let name = String::deserialize(deserializer)?;
        Kind::parse(&name).ok_or_else(|| {
            let names: Vec<&str> = Kind::all().map(Kind::name).collect();
            let (name, names) = (super::names::shown(&name), names.join(", "));
            D::Error::custom(format!("kind '{name}' is unknown, expected one of {names}"))
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The dimensions of the tensors of a target, which must be these, in this order.
///
/// # Errors
/// Bad input: another tensor, or one that is missing.
pub(crate) fn shapes<'a, const N: usize>(
    target: &'a TargetAdapter,
    names: [&str; N],
) -> Result<[&'a [usize]; N]> {
    for (at, name) in names.iter().enumerate() {
        match target.tensors.get(at) {
            Some(tensor) if tensor.name == *name => {}
            Some(tensor) => {
                return Err(Error::bad_input(format!(
                    "tensor '{}' where '{name}' is expected",
                    super::names::shown(&tensor.name)
                )));
            }
            None => return Err(Error::bad_input(format!("tensor '{name}' is missing"))),
        }
    }
    if let Some(tensor) = target.tensors.get(N) {
        let name = super::names::shown(&tensor.name);
        return Err(Error::bad_input(format!("tensor '{name}' belongs to nothing")));
    }
    Ok(std::array::from_fn(|at| target.tensors[at].shape.as_slice()))
}

/// The error of a tensor of another shape than the kind's.
pub(crate) fn wrong_shape(name: &str, found: &[usize], expected: &str) -> Error {
    Error::bad_input(format!("tensor '{name}' has shape {found:?}, expected {expected}"))
}
