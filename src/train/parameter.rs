//! The trained tensors of a run.

use super::init;
use super::options::TrainOptions;
use crate::error::{Error, Result};

/// Parameters that share a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The tensors of targets: the run's own rate.
    Targets,
    /// A head's tensors: [`TrainOptions::head_rate`] times that.
    Head,
}

impl Group {
    /// How many times the run's learning rate is this group's.
    pub fn factor(self, options: &TrainOptions) -> f64 {
        match self {
            Group::Targets => 1.0,
            Group::Head => options.head_rate.into(),
        }
    }
}

/// A trained tensor, all but its values after the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Unique within a run: `PATH.TENSOR` of a target, `head.weight`.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Which learning rate it has.
    pub group: Group,
    /// Its values before the first step, row-major.
    pub initial: Vec<f32>,
}

/// The name of a target's tensor among a run's parameters.
pub(crate) fn of_target(module_path: &str, tensor: &str) -> String {
    format!("{module_path}.{tensor}")
}

/// The weight (classes, width) and the bias (classes) of a head, in this order.
pub(crate) fn of_head(seed: u64, classes: usize, width: usize) -> [Parameter; 2] {
    let (weight, bias) = init::head(seed, "head", classes, width);
    let parameter = |name: &str, shape: &[usize], initial| Parameter {
        name: name.into(),
        shape: shape.to_vec(),
        group: Group::Head,
        initial,
    };
    [
        parameter(super::head::WEIGHT, &[classes, width], weight),
        parameter(super::head::BIAS, &[classes], bias),
    ]
}

/// The place of the parameter of this name.
///
/// # Errors
/// Usage: there is none.
pub(crate) fn place(parameters: &[Parameter], name: &str) -> Result<usize> {
    let at = parameters.iter().position(|p| p.name == name);
    at.ok_or_else(|| Error::usage(format!("no tensor '{name}' is trained")))
}
