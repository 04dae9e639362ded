//! AdamW and SGD with PyTorch's semantics, and clipping by the global norm.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which rule moves the tensors, and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// `torch.optim.AdamW`: decay apart from the gradient, bias correction, eps added to the
    /// square root of the corrected second moment.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the divisor.
        eps: f64,
        /// Share of each value taken off per step, times the rate; on every tensor.
        weight_decay: f64,
    },
    /// `torch.optim.SGD` with dampening 0: v = momentum·v + (g + decay·p), p -= lr·v.
    Sgd {
        /// What is kept of the last step's direction; 0 for none.
        momentum: f64,
        /// Added to the gradient, times the value.
        weight_decay: f64,
        /// Whether to step by g + momentum·v instead of v.
        nesterov: bool,
    },
}

impl Rule {
    /// f32 values kept per trained value between steps.
    pub fn moments(&self) -> usize {
        match self {
            Rule::AdamW { .. } => 2,
            Rule::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
        }
    }

    fn check(&self) -> Result<()> {
        let share = |v: f64| (0.0..1.0).contains(&v);
        let positive = |v: f64| v.is_finite() && v >= 0.0;
        let sound = match *self {
            Rule::AdamW { beta1, beta2, eps, weight_decay } => {
                share(beta1) && share(beta2) && positive(eps) && positive(weight_decay)
            }
            Rule::Sgd { momentum, weight_decay, .. } => share(momentum) && positive(weight_decay),
        };
        if sound { Ok(()) } else { Err(Error::usage(format!("unusable optimizer {self:?}"))) }
    }
}

/// What an optimizer keeps for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The tensor's name.
    pub name: String,
    /// The tensor's number of values.
    pub len: usize,
    /// First moment (AdamW) or velocity (SGD); empty where the rule keeps none.
    pub first: Vec<f32>,
    /// Second moment (AdamW); else empty.
    pub second: Vec<f32>,
}

/// A rule with its state over a list of named f32 tensors. The whole state is serialisable: a
/// copy read back goes on bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    rule: Rule,
    steps: u64,
    slots: Vec<Slot>,
}

impl Optimizer {
    /// At step 0 for tensors of these names and lengths, in this order.
    pub fn new<N: Into<String>>(
        rule: Rule,
        tensors: impl IntoIterator<Item = (N, usize)>,
    ) -> Result<Optimizer> {
        rule.check()?;
        let slots = tensors
            .into_iter()
            .map(|(name, len)| Slot {
                name: name.into(),
                len,
                first: vec![0.0; if rule.moments() > 0 { len } else { 0 }],
                second: vec![0.0; if rule.moments() > 1 { len } else { 0 }],
            })
            .collect();
        Ok(Optimizer { rule, steps: 0, slots })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes of state.
    pub fn state_bytes(&self) -> usize {
        self.slots.iter().map(|s| 4 * (s.first.len() + s.second.len())).sum()
    }

    /// An error unless the state is one that [`Optimizer::new`] and steps could have made for
    /// tensors of these names and lengths. For state read from a file.
    pub fn check<'a>(&self, tensors: impl IntoIterator<Item = (&'a str, usize)>) -> Result<()> {
        self.rule.check()?;
        let mut slots = self.slots.iter();
        for (name, len) in tensors {
            let Some(slot) = slots.next() else {
                return Err(Error::mismatch(format!("optimizer has no state for tensor '{name}'")));
            };
            if slot.name != name || slot.len != len {
                return Err(Error::mismatch(format!(
                    "optimizer state for tensor '{name}' of {len} values expected, found '{}' of {}",
                    slot.name, slot.len
                )));
            }
        }
        if let Some(slot) = slots.next() {
            return Err(Error::mismatch(format!(
                "optimizer has state for a tensor '{}' that is not trained",
                slot.name
            )));
        }
        let moments = self.rule.moments();
        for s in &self.slots {
            let first = if moments > 0 { s.len } else { 0 };
            let second = if moments > 1 { s.len } else { 0 };
            let sized = s.first.len() == first && s.second.len() == second;
            if !sized || s.first.iter().chain(&s.second).any(|v| !v.is_finite()) {
                return Err(Error::bad_input(format!(
                    "optimizer state for tensor '{}' is damaged",
                    s.name
                )));
            }
        }
        Ok(())
    }

    /// Moves `values` against `gradients`, each tensor (by its place) at a rate of its own. All or nothing:
    /// with a gradient that is not finite or of the wrong length, no value changes.
    pub fn step_each<P: AsMut<[f32]>, G: AsRef<[f32]>>(
        &mut self,
        lr_of: impl Fn(usize) -> f64,
        values: &mut [P],
        gradients: &[G],
    ) -> Result<()> {
        if values.len() != self.slots.len() || gradients.len() != self.slots.len() {
            return Err(Error::usage(format!(
                "optimizer of {} tensors got {} and {} gradients",
                self.slots.len(),
                values.len(),
                gradients.len()
            )));
        }
        let mut rates = (0..self.slots.len()).map(&lr_of);
        if let Some(lr) = rates.find(|lr| !lr.is_finite() || *lr < 0.0) {
            return Err(Error::usage(format!("learning rate {lr} is not a positive number")));
        }
        for ((slot, v), g) in self.slots.iter().zip(values.iter_mut()).zip(gradients) {
            let (v, g) = (v.as_mut().len(), g.as_ref());
            if v != slot.len || g.len() != slot.len {
                return Err(Error::usage(format!(
                    "tensor '{}' has {} values: got {v} and a gradient of {}",
                    slot.name,
                    slot.len,
                    g.len()
                )));
            }
            if g.iter().any(|x| !x.is_finite()) {
                return Err(Error::failed(format!("gradient of '{}' is not finite", slot.name))
                    .hint("a lower learning rate"));
            }
        }
        self.steps += 1;
        for (at, ((slot, v), g)) in self.slots.iter_mut().zip(values).zip(gradients).enumerate() {
            let lr = lr_of(at);
            match self.rule {
                Rule::AdamW { beta1, beta2, eps, weight_decay } => {
                    adamw(
                        self.steps,
                        lr,
                        [beta1, beta2, eps, weight_decay],
                        slot,
                        v.as_mut(),
                        g.as_ref(),
                    );
                }
                Rule::Sgd { momentum, weight_decay, nesterov } => {
                    let constants = [momentum, weight_decay];
                    sgd(self.steps, lr, constants, nesterov, slot, v.as_mut(), g.as_ref());
                }
            }
        }
        Ok(())
    }
}

/// `torch.optim.adamw._single_tensor_adamw`: constants in f64, values in f32.
fn adamw(
    step: u64,
    lr: f64,
    [beta1, beta2, eps, weight_decay]: [f64; 4],
    slot: &mut Slot,
    values: &mut [f32],
    gradient: &[f32],
) {
    let power = |beta: f64| beta.powi(i32::try_from(step).unwrap_or(i32::MAX));
    let keep = (1.0 - lr * weight_decay) as f32;
    let size = (lr / (1.0 - power(beta1))) as f32;
    let root = (1.0 - power(beta2)).sqrt() as f32;
    let (to_first, beta2, to_second) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
    let eps = eps as f32;
    let moments = slot.first.iter_mut().zip(slot.second.iter_mut());
    for ((value, &g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
        *m += to_first * (g - *m);
        *v = beta2 * *v + to_second * g * g;
        *value = *value * keep - size * (*m / (v.sqrt() / root + eps));
    }
}

/// `torch.optim.sgd._single_tensor_sgd` with dampening 0; the first step's velocity is the
/// gradient itself.
fn sgd(
    step: u64,
    lr: f64,
    [momentum, weight_decay]: [f64; 2],
    nesterov: bool,
    slot: &mut Slot,
    values: &mut [f32],
    gradient: &[f32],
) {
    let (lr, momentum, decay) = (lr as f32, momentum as f32, weight_decay as f32);
    if slot.first.is_empty() {
        for (value, &g) in values.iter_mut().zip(gradient) {
            *value -= lr * (g + decay * *value);
        }
        return;
    }
    for ((value, &g), velocity) in values.iter_mut().zip(gradient).zip(&mut slot.first) {
        let g = g + decay * *value;
        *velocity = if step == 1 { g } else { momentum * *velocity + g };
        *value -= lr * if nesterov { g + momentum * *velocity } else { *velocity };
    }
}

/// The Euclidean norm over all gradients together, summed in f64 in order.
pub fn global_norm<G: AsRef<[f32]>>(gradients: &[G]) -> f64 {
    let squares = gradients.iter().flat_map(|g| g.as_ref()).map(|&v| f64::from(v) * f64::from(v));
    squares.sum::<f64>().sqrt()
}

/// Scales all gradients so that their global norm is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` (factor max_norm / (norm + 1e-6), at most 1). Returns the norm
/// before. A norm that is not finite is an error and changes nothing.
pub fn clip_global_norm<G: AsRef<[f32]> + AsMut<[f32]>>(
    gradients: &mut [G],
    max_norm: f64,
) -> Result<f64> {
    let norm = global_norm(gradients);
    if !norm.is_finite() {
        return Err(Error::failed("gradients are not finite").hint("a lower learning rate"));
    }
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for v in gradients.iter_mut().flat_map(|g| g.as_mut()) {
            *v *= factor as f32;
        }
    }
    Ok(norm)
}

#[cfg(test)]
impl Rule {
    /// AdamW as PyTorch's defaults.
    pub fn adamw() -> Rule {
        Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }

    /// SGD with momentum 0.9 and no decay.
    pub fn sgd() -> Rule {
        Rule::Sgd { momentum: 0.9, weight_decay: 0.0, nesterov: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook form of AdamW in f64.
    fn adamw_f64(p: &mut f64, m: &mut f64, v: &mut f64, g: f64, lr: f64, wd: f64, t: i32) {
        *p -= lr * wd * *p;
        *m = 0.9 * *m + 0.1 * g;
        *v = 0.999 * *v + 0.001 * g * g;
        let (mh, vh) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.999f64.powi(t)));
        *p -= lr * mh / (vh.sqrt() + 1e-8);
    }

    #[test]
    fn adamw_follows_the_formula_over_many_steps() {
        let start = [0.5f32, -1.25, 3.0, 0.0];
        let mut values = vec![start.to_vec()];
        let mut optimizer = Optimizer::new(Rule::adamw(), [("w", 4)]).unwrap();
        let mut p = start.map(f64::from);
        let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
        for t in 1..=200i32 {
            let g: Vec<f32> = (0..4).map(|i| ((t * (i + 3)) as f32 * 0.37).sin() * 0.1).collect();
            let lr = 1e-2 * (1.0 - f64::from(t) / 300.0);
            for i in 0..4 {
                adamw_f64(&mut p[i], &mut m[i], &mut v[i], g[i].into(), lr, 0.01, t);
            }
            optimizer.step_each(|_| lr, &mut values, &[g]).unwrap();
            for i in 0..4 {
                assert!((f64::from(values[0][i]) - p[i]).abs() < 2e-6, "step {t} value {i}");
            }
        }
        assert_eq!(optimizer.steps(), 200);
    }

    #[test]
    fn adamws_first_step_is_the_rate_against_the_sign() {
        // m/(1-b1) = g and sqrt(v/(1-b2)) = |g|: p·(1 - lr·wd) - lr·sign(g), eps aside.
        let mut values = vec![vec![2.0f32, -2.0]];
        let mut optimizer = Optimizer::new(Rule::adamw(), [("w", 2)]).unwrap();
        optimizer.step_each(|_| 0.1, &mut values, &[[1e-3f32, -5.0]]).unwrap();
        assert!((values[0][0] - (2.0 * 0.999 - 0.1)).abs() < 1e-5);
        assert!((values[0][1] - (-2.0 * 0.999 + 0.1)).abs() < 1e-5);
    }

    /// Values of a PyTorch 2.15 run (MiniLM with LoRA, lr 1e-3, decay 0.01): the first of
    /// `classifier.bias`, layer 0's query lora_A and layer 5's output lora_B, their gradients, and
    /// what one `torch.optim.AdamW` step made of them.
    #[test]
    fn adamw_meets_pytorch() {
        let init = [
            [-0.042894993f32, 0.00075203885, 0.040211868],
            [0.04464132, 0.020776207, 0.03149597],
            [-0.022387104, -0.019696362, -0.007916906],
        ];
        let gradients = [
            [-0.43789142f32, 0.07414344, 0.36374795],
            [4.256327e-5, -4.8677095e-5, -7.996165e-5],
            [0.0010094, 0.00060652406, -0.0007528308],
        ];
        let after = [
            [-0.041894566f32, -0.00024796848, 0.039211467],
            [0.04364111, 0.021775793, 0.03249553],
            [-0.023386871, -0.020696148, -0.00691684],
        ];
        let mut values = init;
        let names = ["bias", "lora_a", "lora_b"].map(|n| (n, 3));
        let mut optimizer = Optimizer::new(Rule::adamw(), names).unwrap();
        optimizer.step_each(|_| 1e-3, &mut values, &gradients).unwrap();
        for (found, expected) in values.iter().flatten().zip(after.iter().flatten()) {
            assert!((found - expected).abs() < 1e-8, "{found} {expected}");
        }
    }

    #[test]
    fn sgd_by_hand() {
        let rule = Rule::Sgd { momentum: 0.5, weight_decay: 0.1, nesterov: false };
        let mut values = vec![vec![1.0f32]];
        let mut optimizer = Optimizer::new(rule, [("w", 1)]).unwrap();
        // v = 2 + 0.1 = 2.1; p = 1 - 0.1·2.1 = 0.79
        optimizer.step_each(|_| 0.1, &mut values, &[[2.0f32]]).unwrap();
        assert!((values[0][0] - 0.79).abs() < 1e-6);
        // v = 0.5·2.1 + (1 + 0.079) = 2.129; p = 0.79 - 0.2129
        optimizer.step_each(|_| 0.1, &mut values, &[[1.0f32]]).unwrap();
        assert!((values[0][0] - 0.5771).abs() < 1e-6);

        let rule = Rule::Sgd { momentum: 0.5, weight_decay: 0.0, nesterov: true };
        let mut values = vec![vec![1.0f32]];
        let mut optimizer = Optimizer::new(rule, [("w", 1)]).unwrap();
        // v = 2, step by 2 + 0.5·2 = 3; then v = 0.5·2 + 1 = 2, step by 1 + 0.5·2 = 2
        optimizer.step_each(|_| 0.1, &mut values, &[[2.0f32]]).unwrap();
        optimizer.step_each(|_| 0.1, &mut values, &[[1.0f32]]).unwrap();
        assert!((values[0][0] - 0.5).abs() < 1e-6);

        let rule = Rule::Sgd { momentum: 0.0, weight_decay: 0.1, nesterov: false };
        let mut values = vec![vec![1.0f32]];
        let mut optimizer = Optimizer::new(rule, [("w", 1)]).unwrap();
        assert_eq!(optimizer.state_bytes(), 0);
        optimizer.step_each(|_| 0.1, &mut values, &[[2.0f32]]).unwrap();
        assert!((values[0][0] - 0.79).abs() < 1e-6);
    }

    #[test]
    fn a_bad_gradient_changes_nothing() {
        let mut values = vec![vec![1.0f32], vec![2.0f32]];
        let mut optimizer = Optimizer::new(Rule::adamw(), [("a", 1), ("b", 1)]).unwrap();
        let before = optimizer.clone();
        for bad in [f32::NAN, f32::INFINITY] {
            let e = optimizer.step_each(|_| 0.1, &mut values, &[[1.0], [bad]]).unwrap_err();
            assert!(e.message().contains("'b' is not finite"), "{e}");
        }
        assert!(optimizer.step_each(|_| 0.1, &mut values, &[vec![1.0f32], vec![]]).is_err());
        assert!(optimizer.step_each(|_| 0.1, &mut values, &[[1.0f32]]).is_err());
        assert!(optimizer.step_each(|_| f64::NAN, &mut values, &[[1.0f32], [1.0]]).is_err());
        assert_eq!(values, [[1.0], [2.0]]);
        assert_eq!(optimizer, before);
    }

    #[test]
    fn state_goes_through_bytes_bit_for_bit() {
        for rule in [Rule::adamw(), Rule::sgd()] {
            let mut values = vec![vec![1.0f32, -0.5], vec![0.25]];
            let gradient = |t: i32| [vec![0.1 * t as f32, -0.7], vec![0.3f32 / t as f32]];
            let mut whole = Optimizer::new(rule, [("a", 2), ("b", 1)]).unwrap();
            (1..=3).for_each(|t| whole.step_each(|_| 0.01, &mut values, &gradient(t)).unwrap());
            let bytes = postcard::to_stdvec(&whole).unwrap();
            let mut copy: Optimizer = postcard::from_bytes(&bytes).unwrap();
            copy.check([("a", 2), ("b", 1)]).unwrap();
            let mut other = values.clone();
            (4..=9).for_each(|t| whole.step_each(|_| 0.01, &mut values, &gradient(t)).unwrap());
            (4..=9).for_each(|t| copy.step_each(|_| 0.01, &mut other, &gradient(t)).unwrap());
            assert_eq!(values, other);
            assert_eq!(whole, copy);
        }
    }

    #[test]
    fn foreign_state_is_refused() {
        let mut o = Optimizer::new(Rule::adamw(), [("a", 2), ("b", 1)]).unwrap();
        assert!(o.check([("a", 2)]).is_err());
        assert!(o.check([("a", 2), ("b", 2)]).is_err());
        assert!(o.check([("a", 2), ("c", 1)]).is_err());
        assert!(o.check([("a", 2), ("b", 1), ("c", 1)]).is_err());
        o.slots[0].first[1] = f32::NAN;
        assert!(o.check([("a", 2), ("b", 1)]).is_err());
        o.slots[0].first.pop();
        assert!(o.check([("a", 2), ("b", 1)]).is_err());
        let bad = Rule::Sgd { momentum: 1.5, weight_decay: 0.0, nesterov: false };
        assert!(Optimizer::new(bad, [("a", 1)]).is_err());
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = vec![vec![3.0f32], vec![0.0, 4.0]];
        assert_eq!(clip_global_norm(&mut gradients, 10.0).unwrap(), 5.0);
        assert_eq!(gradients, [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(clip_global_norm(&mut gradients, 1.0).unwrap(), 5.0);
        assert!((global_norm(&gradients) - 1.0).abs() < 1e-6);
        assert!((gradients[0][0] / gradients[1][1] - 0.75).abs() < 1e-6);
        let mut bad = vec![vec![1.0f32, f32::NAN]];
        assert!(clip_global_norm(&mut bad, 1.0).is_err());
        assert_eq!(bad[0][0], 1.0);
    }
}
