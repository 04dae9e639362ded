//! Connectionist temporal classification and its gradient, forwards and backwards over all alignments
//! (Graves et al. 2006), in logarithms.
//!
//! The loss is a sum over rows, so that its gradient is known, but for a factor, in the forward run.

use tract_core::internal::*;

use super::weights::{expect_f32, floats};

/// Σ weight · -log p(symbols | logits) over rows, and its gradient by the logits.
///
/// Inputs: logits (B, T, C), the symbols (B, T, 1) as f32, each row's at its start: 1 + the symbol, 0 behind
/// the last, and -1 for the steps at its end that count for nothing; and the rows' weights (B): a row of
/// weight 0 counts for nothing. Outputs: the sum (scalar) and
/// its gradient, as the logits. With weights of one over a row's symbols and the sum divided by B this is
/// PyTorch's `ctc_loss`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CtcLoss {
    /// The column of the blank.
    pub blank: usize,
}

/// Steps that a text takes at least: one a symbol, and a blank between two that are the same.
pub fn ctc_steps(symbols: &[usize]) -> usize {
    symbols.len() + symbols.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

/// -log p(symbols | logits) of one row of steps, `width` logits each; infinite where it has too few steps.
/// `gradient`, of their size, becomes the loss's by the logits; zeros where it is infinite.
pub fn ctc_loss(
    logits: &[f32],
    width: usize,
    symbols: &[usize],
    blank: usize,
    gradient: Option<&mut [f32]>,
) -> f64 {
    let steps = logits.len() / width.max(1);
    let fits = ctc_steps(symbols) <= steps && symbols.iter().chain([&blank]).all(|s| *s < width);
    if !fits {
        if let Some(gradient) = gradient {
            gradient.fill(0.0);
        }
        return f64::INFINITY;
    }
    let lattice = Lattice::new(logits, width, symbols, blank);
    let forward = lattice.forward();
    let states = lattice.path.len();
    let ends = forward.len().saturating_sub(states.min(2));
    let total = match steps {
        // Nothing to say in no time.
        0 => 0.0,
        _ => add_logs(forward[ends..].iter().copied()),
    };
    if let Some(gradient) = gradient {
        lattice.backward(logits, &forward, total, gradient);
    }
    -total
}

/// log Σ exp.
fn add_logs(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let greatest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    match greatest.is_finite() {
        true => greatest + logs.map(|v| (v - greatest).exp()).sum::<f64>().ln(),
        false => greatest,
    }
}

/// The symbols with blanks around them, and what each step says of them.
struct Lattice {
    width: usize,
    steps: usize,
    /// The column of each state.
    path: Vec<usize>,
    /// log Σ exp of each step's logits.
    sums: Vec<f64>,
    /// log p of each state's column at each step.
    logs: Vec<f64>,
}

impl Lattice {
    fn new(logits: &[f32], width: usize, symbols: &[usize], blank: usize) -> Lattice {
        let mut path = vec![blank];
        path.extend(symbols.iter().flat_map(|symbol| [*symbol, blank]));
        let rows = logits.chunks(width);
        let sums: Vec<f64> =
            rows.clone().map(|row| add_logs(row.iter().map(|v| f64::from(*v)))).collect();
        let at = |(row, sum): (&[f32], &f64)| {
            path.iter().map(|column| f64::from(row[*column]) - sum).collect::<Vec<f64>>()
        };
        let logs = rows.zip(&sums).flat_map(at).collect();
        Lattice { width, steps: sums.len(), path, sums, logs }
    }

    /// Whether a symbol may follow the one before it without a blank.
    fn skips(&self, state: usize) -> bool {
        state >= 2 && state % 2 == 1 && self.path[state] != self.path[state - 2]
    }

    /// log p of all beginnings that are in a state at a step, that step included.
    fn forward(&self) -> Vec<f64> {
        let states = self.path.len();
        let mut all = vec![f64::NEG_INFINITY; self.steps * states];
        for step in 0..self.steps {
            let (before, now) = all.split_at_mut(step * states);
            let before = &before[before.len().saturating_sub(states)..];
            for state in 0..states {
                let from = match step {
                    0 if state < 2 => 0.0,
                    0 => f64::NEG_INFINITY,
                    _ => {
                        let ways = 1 + state.min(1) + usize::from(self.skips(state));
                        add_logs((0..ways).map(|back| before[state - back]))
                    }
                };
                now[state] = from + self.logs[step * states + state];
            }
        }
        all
    }

    /// Softmax less the share of all alignments that have a column at a step.
    fn backward(&self, logits: &[f32], forward: &[f64], total: f64, gradient: &mut [f32]) {
        let states = self.path.len();
        // log p of all ends behind a step from each state.
        let mut after: Vec<f64> = (0..states)
            .map(|state| if state + 2 >= states { 0.0 } else { f64::NEG_INFINITY })
            .collect();
        let mut shares = vec![0f64; self.width];
        for step in (0..self.steps).rev() {
            let row = step * self.width..(step + 1) * self.width;
            shares.fill(0.0);
            for (state, column) in self.path.iter().enumerate() {
                shares[*column] += (forward[step * states + state] + after[state] - total).exp();
            }
            let sum = self.sums[step];
            for ((to, logit), share) in
                gradient[row.clone()].iter_mut().zip(&logits[row]).zip(&shares)
            {
                *to = ((f64::from(*logit) - sum).exp() - share) as f32;
            }
            let next: Vec<f64> =
                after.iter().zip(&self.logs[step * states..]).map(|(a, log)| a + log).collect();
            for state in 0..states {
                let far = state + 2 < states && self.skips(state + 2);
                let ways = 1 + usize::from(state + 1 < states) + usize::from(far);
                after[state] = add_logs((0..ways).map(|on| next[state + on]));
            }
        }
    }
}

impl Op for CtcLoss {
    fn name(&self) -> StaticName {
        "CtcLoss".into()
    }

    op_as_typed_op!();
}

impl EvalOp for CtcLoss {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (logits, targets) = (floats(&inputs[0])?, floats(&inputs[1])?);
        let weights = floats(&inputs[2])?;
        let &[rows, steps, width] = inputs[0].shape() else { bail!("logits are (B, T, C)") };
        ensure!(targets.len() == rows * steps && weights.len() == rows, "symbols for each row");
        let mut sum = 0f64;
        let mut gradient = Tensor::zero::<f32>(inputs[0].shape())?;
        let mut plain = gradient.try_as_plain_ram_mut()?;
        let to = plain.as_slice_mut::<f32>()?;
        for (row, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            let start = row * steps * width;
            let row = &targets[row * steps..][..steps];
            let steps = row.iter().take_while(|v| **v >= 0.0).count();
            let symbols = row.iter().take_while(|v| **v > 0.0);
            let symbols: Vec<usize> = symbols.map(|v| *v as usize - 1).collect();
            let part = start..start + steps * width;
            let to = &mut to[part.clone()];
            let loss = ctc_loss(&logits[part], width, &symbols, self.blank, Some(&mut *to));
            ensure!(
                loss.is_finite() || logits.iter().any(|v| !v.is_finite()),
                "{} symbols take {} steps, there are {steps}",
                symbols.len(),
                ctc_steps(&symbols)
            );
            to.iter_mut().for_each(|v| *v *= weight);
            sum += f64::from(*weight) * loss;
        }
        Ok(tvec![tensor0(sum as f32).into_tvalue(), gradient.into_tvalue()])
    }
}

impl TypedOp for CtcLoss {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
        for (fact, name) in inputs.iter().zip(["logits", "symbols", "weights"]) {
            expect_f32(name, fact)?;
        }
        ensure!(inputs[0].rank() == 3, "logits are (B, T, C), found {:?}", inputs[0]);
        Ok(tvec![f32::scalar_fact(), inputs[0].without_value()])
    }
}

#[cfg(test)]
#[path = "ctc_loss_tests.rs"]
mod tests;
