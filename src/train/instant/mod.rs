//! The instant head (tier 0): a linear head in closed form on features that stay as they are. It is
//! learned in one pass, takes a sample in and out again by a rank-one change, and knows how right it
//! would have been of each sample without it.
//!
//! Two rules make a head of the same sums. With standardised features z (n samples), A = Σ z·zᵀ + λI
//! and R = Σ z·yᵀ, y being 1 for a sample's own label and else 0: **ridge** regression of y on z with a
//! free constant, and the **means** of the classes with a shared covariance that is shrunk by λ (linear
//! discriminant analysis). Both are functions of T = A⁻¹R and a few sums, because the scatter about
//! means is A less a term of low rank (Woodbury). Rule and λ are those with the least leave-one-out
//! loss, which both have in closed form (`choose`).

mod choose;
mod fit;
mod known;
mod learn;
mod live;
mod matrix;
mod rule;
mod standard;
#[cfg(test)]
mod tests;

pub use fit::{Fitted, LeaveOneOut, fit};
pub use known::{ENOUGH_HELD, known, linear, temperature};
pub use learn::InstantReport;
pub(crate) use learn::head_of;
pub(in crate::train) use learn::{Made, features_of, made_of};
#[cfg(feature = "daemon")]
pub(crate) use learn::{instant_adapter, row_of};
pub use live::Live;
pub use rule::{Form, Rule};
