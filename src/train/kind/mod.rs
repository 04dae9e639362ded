//! How each kind of adapter is trained: a file each, and a line in the table.

mod bias;
mod bottleneck;
mod dora;
mod full;
mod ia3;
mod lokr;
mod lora;

use super::features::target_nodes;
use super::forward::Layer;
use super::options::TrainOptions;
use super::plan::floats;
use crate::adapter::{Kind, NamedTensor, Target, TargetKind};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::quant::PackedRef;
use crate::runtime::Engine;
use std::collections::HashMap;
use std::sync::Arc;
use tract_core::internal::{OutletId, Tensor};

/// Those that can be trained.
static TABLE: &[&dyn Wiring] = &[
    &lora::Lora,
    &dora::Dora,
    &ia3::Ia3,
    &lokr::Lokr,
    &bias::Bias,
    &bottleneck::Bottleneck,
    &full::Full,
];

/// What training asks a kind.
pub(crate) trait Wiring: Sync {
    /// The kind's name.
    fn name(&self) -> &'static str;

    /// The tensors of a layer with their first values, in the order of the adapter's. Training starts
    /// at the base.
    ///
    /// # Errors
    /// Unsupported: a layer that the kind has no form for.
    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>>;

    /// What becomes of the layer's output. `scaling` is that of rank and alpha, 0 where the kind has
    /// none.
    fn wire(&self, layer: &mut Layer<'_>, scaling: f32) -> Result<OutletId>;

    /// How many times the learning rate that suits low-rank matrices suits it.
    fn rate(&self) -> f32 {
        1.0
    }

    /// Tensors whose gradients leave out a part that is held constant.
    #[cfg(test)]
    fn held_constant(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A layer before its first step.
pub(crate) struct Start<'a> {
    pub target: &'a Target,
    /// Its frozen weight.
    pub frozen: PackedRef<'a>,
    /// Its bias, if it has one.
    pub bias: Option<&'a [f32]>,
    /// R.
    pub rank: usize,
    pub seed: u64,
}

impl Start<'_> {
    /// In and out features.
    pub(crate) fn features(&self) -> [usize; 2] {
        [self.target.in_features as usize, self.target.out_features as usize]
    }

    /// `bias` (outputs): the layer's own, or zeros.
    pub(crate) fn own_bias(&self) -> NamedTensor {
        let [_, outputs] = self.features();
        let values = self.bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        NamedTensor::new("bias", &[outputs], values)
    }

    /// The name that fixes a tensor's random values.
    pub(crate) fn name_of(&self, tensor: &str) -> String {
        super::parameter::of_target(&self.target.module_path, tensor)
    }

    /// # Errors
    /// Unsupported: the layer is an embedding.
    pub(crate) fn no_embedding(&self, kind: &str) -> Result<()> {
        match self.target.kind {
            TargetKind::Embedding => Err(Error::unsupported(format!(
                "target '{}' is an embedding, for which kind '{kind}' has no form",
                self.target.module_path
            ))),
            _ => Ok(()),
        }
    }
}

/// The layers of a base before their first step.
pub(crate) struct Frozen<'a> {
    engine: &'a Engine,
    /// Of each target, where it has one.
    biases: HashMap<usize, Arc<Tensor>>,
}

impl<'a> Frozen<'a> {
    pub(crate) fn of(engine: &'a Engine) -> Result<Frozen<'a>> {
        let graph = engine.graph();
        let mut biases = HashMap::new();
        for (target, place) in target_nodes(graph)? {
            let within = place.graph(graph)?;
            let bias = within.node(place.node).inputs.get(1);
            let bias = bias.map(|bias| within.outlet_fact(*bias));
            let bias = bias.transpose().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
            biases.extend(bias.and_then(|fact| Some((target, fact.konst.clone()?))));
        }
        Ok(Frozen { engine, biases })
    }

    /// The target at `place` of the table.
    pub(crate) fn start(&'a self, place: usize, options: &TrainOptions) -> Result<Start<'a>> {
        let base = self.engine.base();
        let target = &base.targets()[place];
        let bias = self.biases.get(&place).map(|bias| floats(bias)).transpose()?;
        let frozen = base.weight(target.weight as usize)?;
        Ok(Start { target, frozen, bias, rank: options.rank as usize, seed: options.seed })
    }
}

/// How many times the learning rate that suits the first kind suits `kind`.
pub(crate) fn suited_rate(kind: Kind) -> f32 {
    wiring(kind).map_or(1.0, Wiring::rate)
}

/// How `kind` is trained.
///
/// # Errors
/// Unsupported: it can't be.
pub(crate) fn wiring(kind: Kind) -> Result<&'static dyn Wiring> {
    let found = TABLE.iter().find(|w| w.name() == kind.name()).copied();
    found.ok_or_else(|| {
        Error::unsupported(format!("kind '{}' can be used, but not trained here", kind.name()))
    })
}
