//! Vector-Jacobian products: one table from op to rule, each rule written in tract's own ops.
//!
//! A rule gets a forward node and the gradients of its outputs, and wires the gradients of its
//! inputs. It knows nothing about what is trained, which loss, or how gradients add up.

mod binary;

#[cfg(test)]
mod cases;
mod cells;
#[cfg(test)]
pub(crate) mod check;
mod cnn;
mod einsum;
mod frozen;
mod layout;
mod moved;
mod normalize;
pub mod ops;
pub mod rows;
mod scan;
#[cfg(test)]
mod tests;
mod unary;
mod window;

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::cast::Cast;
use tract_core::ops::cnn::{Conv, Deconv, MaxPool, SumPool};
use tract_core::ops::downsample::Downsample;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::identity::Identity;
use tract_core::ops::logic::Iff;
use tract_core::ops::math as m;
use tract_core::ops::nn as n;
use tract_core::ops::scan::Scan;

use crate::error::{Error, Result};
use crate::graph as g;
use crate::train::wires::Wires;

/// A forward node whose backward part is wanted.
pub struct Site<'a> {
    /// The forward node.
    pub node: &'a TypedNode,
    /// Gradient of each output, `None` where the loss doesn't depend on it.
    pub gradients: &'a [Option<OutletId>],
    /// Which inputs need a gradient; a rule may skip the others.
    pub wanted: &'a [bool],
}

impl Site<'_> {
    /// The op of type `T`, which the table has matched.
    pub fn op<T: TypedOp>(&self) -> Result<&T> {
        self.node.op_as::<T>().ok_or_else(|| self.unsupported("the table names another type"))
    }

    /// Input `slot`.
    pub fn input(&self, slot: usize) -> Result<OutletId> {
        let found = self.node.inputs.get(slot).copied();
        found.ok_or_else(|| self.unsupported("an input is missing"))
    }

    /// The first output.
    pub fn output(&self) -> OutletId {
        OutletId::new(self.node.id, 0)
    }

    /// Gradient of the first output; an error where only other outputs have one.
    pub fn gradient(&self) -> Result<OutletId> {
        let first = self.gradients.first().copied().flatten();
        first.ok_or_else(|| self.unsupported("the gradient comes from a further output"))
    }

    /// Whether input `slot` needs a gradient.
    pub fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }

    /// The error of a rule that doesn't cover this node.
    pub fn unsupported(&self, why: &str) -> Error {
        Error::unsupported(format!(
            "no gradient for op {} at node '{}': {why}",
            self.node.op.name(),
            self.node.name
        ))
    }
}

/// Gradients of a node's inputs, one slot an input.
pub type InputGradients = TVec<Option<OutletId>>;

/// Wires the gradients of a node's inputs from those of its outputs.
pub type Rule = fn(&mut Wires, &Site) -> Result<InputGradients>;

struct Entry {
    /// Under which it has its cases.
    #[cfg(test)]
    name: &'static str,
    matches: fn(&dyn TypedOp) -> bool,
    rule: Rule,
}

fn op<T: TypedOp>(op: &dyn TypedOp) -> bool {
    op.is::<T>()
}

fn bin<T: BinMiniOp>(op: &dyn TypedOp) -> bool {
    op.downcast_ref::<TypedBinOp>().is_some_and(|op| op.0.is::<T>())
}

fn ew<T: ElementWiseMiniOp>(op: &dyn TypedOp) -> bool {
    op.downcast_ref::<ElementWiseOp>().is_some_and(|op| op.0.is::<T>())
}

const fn entry(_name: &'static str, matches: fn(&dyn TypedOp) -> bool, rule: Rule) -> Entry {
    Entry {
        #[cfg(test)]
        name: _name,
        matches,
        rule,
    }
}

static TABLE: &[Entry] = &[
    entry("EinSum", op::<EinSum>, einsum::einsum),
    entry("Add", bin::<m::Add>, binary::add),
    entry("Sub", bin::<m::Sub>, binary::sub),
    entry("SubF", bin::<m::SubF>, binary::sub_flipped),
    entry("Mul", bin::<m::Mul>, binary::mul),
    entry("Div", bin::<m::Div>, binary::div),
    entry("Quotient", bin::<g::Quotient>, binary::div),
    entry("Pow", bin::<m::Pow>, binary::pow),
    entry("Max", bin::<m::Max>, binary::max),
    entry("Min", bin::<m::Min>, binary::min),
    entry("Abs", ew::<m::Abs>, unary::abs),
    entry("Neg", ew::<m::Neg>, unary::neg),
    entry("Exp", ew::<m::Exp>, unary::exp),
    entry("Ln", ew::<m::Ln>, unary::ln),
    entry("PowConst", ew::<m::PowConst>, unary::pow_const),
    entry("Square", ew::<m::Square>, unary::square),
    entry("Sqrt", ew::<m::Sqrt>, unary::sqrt),
    entry("Rsqrt", ew::<m::Rsqrt>, unary::rsqrt),
    entry("Recip", ew::<m::Recip>, unary::recip),
    entry("Cos", ew::<m::Cos>, unary::cos),
    entry("Sin", ew::<m::Sin>, unary::sin),
    entry("Tan", ew::<m::Tan>, unary::tan),
    entry("Acos", ew::<m::Acos>, unary::acos),
    entry("Asin", ew::<m::Asin>, unary::asin),
    entry("Atan", ew::<m::Atan>, unary::atan),
    entry("Cosh", ew::<m::Cosh>, unary::cosh),
    entry("Sinh", ew::<m::Sinh>, unary::sinh),
    entry("Tanh", ew::<m::Tanh>, unary::tanh),
    entry("Acosh", ew::<m::Acosh>, unary::acosh),
    entry("Asinh", ew::<m::Asinh>, unary::asinh),
    entry("Atanh", ew::<m::Atanh>, unary::atanh),
    entry("Erf", ew::<m::Erf>, unary::erf),
    entry("Sigmoid", ew::<n::Sigmoid>, unary::sigmoid),
    entry("Silu", ew::<n::Silu>, unary::silu),
    entry("HardSwish", ew::<n::HardSwish>, unary::hard_swish),
    entry("LeakyRelu", ew::<n::LeakyRelu>, unary::leaky_relu),
    entry("GeluExact", ew::<n::GeluExact>, unary::gelu_exact),
    entry("GeluApproximate", ew::<n::GeluApproximate>, unary::gelu_approximate),
    entry("Sign", ew::<m::Sign>, unary::flat),
    entry("Ceil", ew::<m::Ceil>, unary::flat),
    entry("Floor", ew::<m::Floor>, unary::flat),
    entry("Round", ew::<m::Round>, unary::flat),
    entry("RoundHalfToEven", ew::<m::RoundHalfToEven>, unary::flat),
    entry("RoundThrough", op::<g::RoundThrough>, layout::identity),
    entry("Softmax", op::<n::Softmax>, normalize::softmax),
    entry("Reduce", op::<n::Reduce>, normalize::reduce),
    entry("RmsNorm", op::<n::RmsNorm>, normalize::rms_norm),
    entry("AxisOp", op::<AxisOp>, layout::axis_op),
    entry("Identity", op::<Identity>, layout::identity),
    entry("Cast", op::<Cast>, layout::cast),
    entry("Slice", op::<a::Slice>, layout::slice),
    entry("DynSlice", op::<a::DynSlice>, layout::dyn_slice),
    entry("Scan", op::<Scan>, scan::scan),
    entry("Concat", op::<a::TypedConcat>, layout::concat),
    entry("MultiBroadcastTo", op::<a::MultiBroadcastTo>, layout::broadcast),
    entry("Tile", op::<a::Tile>, layout::tile),
    entry("Pad", op::<a::Pad>, layout::pad),
    entry("Downsample", op::<Downsample>, layout::downsample),
    entry("Iff", op::<Iff>, layout::iff),
    entry("Trilu", op::<a::Trilu>, layout::trilu),
    entry("CumSum", op::<a::CumSum>, layout::cum_sum),
    entry("Gather", op::<a::Gather>, layout::gather),
    entry("GatherElements", op::<a::GatherElements>, layout::gather_elements),
    entry("GatherNd", op::<a::GatherNd>, moved::moved),
    entry("ScatterElements", op::<a::ScatterElements>, moved::scatter_elements),
    entry("ScatterNd", op::<a::ScatterNd>, moved::scatter_nd),
    entry("Topk", op::<a::Topk>, moved::top_k),
    entry("Resize", op::<n::resize::Resize>, moved::resize),
    entry("NearestUpsample", op::<n::resize::NearestUpsample>, moved::moved),
    entry("SumPool", op::<SumPool>, cnn::sum_pool),
    entry("MaxPool", op::<MaxPool>, cnn::max_pool),
    entry("Conv", op::<Conv>, cnn::conv),
    entry("Deconv", op::<Deconv>, cnn::deconv),
    entry("FrozenLinear", op::<g::FrozenLinear>, frozen::linear),
    entry("FrozenLinearTransposed", op::<g::FrozenLinearTransposed>, frozen::linear_transposed),
    entry("TokenLoss", op::<g::TokenLoss>, frozen::loss),
    entry("TokenDrift", op::<g::TokenDrift>, frozen::loss),
    entry("CtcLoss", op::<g::CtcLoss>, frozen::loss),
    entry("FrozenConv", op::<g::FrozenConv>, frozen::conv),
    entry("FrozenDepthwise", op::<g::FrozenDepthwise>, frozen::depthwise),
    entry("LstmCell", op::<g::LstmCell>, cells::lstm),
    entry("GruCell", op::<g::GruCell>, cells::gru),
    entry("Im2col", op::<g::Im2col>, frozen::im2col),
    entry("Col2im", op::<g::Col2im>, frozen::col2im),
];

/// Applies the rule for the node's op.
pub(super) fn apply(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op: &dyn TypedOp = site.node.op.as_ref();
    match TABLE.iter().find(|e| (e.matches)(op)) {
        Some(entry) => (entry.rule)(b, site),
        None => Err(site.unsupported("no rule")),
    }
}
