//! Which rule and which λ: the least leave-one-out loss.
//!
//! With K = Z·Zᵀ + λI over the samples and α = K⁻¹·Y, p = λ·diag(K⁻¹), u = K⁻¹·1, what each rule says
//! of a sample that was left out follows from α, p and u alone: leaving sample i out changes A and R by
//! terms of rank one (Sherman and Morrison).

use super::matrix::{Symmetric, dot};
use super::rule::{Form, NEVER, Rule, between};
use crate::error::Result;
use crate::runtime::{sigmoid, softmax};

/// λ in units of n times the mean variance of a feature. Half a decade apart changes no data set's
/// accuracy by a point.
const GRID: [f64; 8] = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
/// The λ of few samples, on the same scale, by ridge: on six data sets with 5 to 20 samples no choice by
/// leaving out does as well.
const USUAL: f64 = 1.0;
/// Samples that must be left out for a choice.
const ENOUGH: usize = 20;

/// A rule with its λ, and what it said of the samples left out.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub rule: Rule,
    /// In units of n times the mean variance.
    pub strength: f64,
    pub lambda: f64,
    /// What outputs are divided by.
    pub temperature: f64,
    /// Mean loss of the samples left out; none where none could be.
    pub loss: Option<f64>,
    /// Outputs of each sample while it was left out, over the temperature. Empty for one that is the
    /// only one of its class.
    pub outputs: Vec<Vec<f32>>,
}

/// Outputs of samples left out, one row a sample.
type Left = Vec<Vec<f64>>;

/// Chooses for standardised `rows` and targets `y`.
pub(super) fn choose(rows: &[Vec<f64>], y: &[Vec<f64>], form: Form) -> Result<Choice> {
    let gram = Symmetric::gram(rows);
    let count = rows.len();
    let trace: f64 = (0..count).map(|i| gram.row(i)[i]).sum();
    let width = rows.first().map_or(1, Vec::len).max(1);
    // n times the mean variance; of one sample, or of equal ones, there is none.
    let unit = if trace > 0.0 { trace / width as f64 } else { 1.0 };
    let rules = match form {
        Form::OneOf => &[Rule::Means, Rule::Ridge][..],
        Form::Each | Form::Values => &[Rule::Ridge],
    };
    let judged: Vec<bool> = (0..count).map(|i| form != Form::OneOf || !alone(y, i)).collect();
    let count_judged = judged.iter().filter(|j| **j).count();
    let (some, enough) = (count_judged >= 2, count_judged >= ENOUGH || form == Form::Values);
    let mut best: Option<Choice> = None;
    for strength in GRID {
        if !(enough && some) && strength != USUAL {
            continue;
        }
        let lambda = strength * unit;
        let solved = Solved::of(&gram, y, lambda)?;
        for &rule in rules.iter().filter(|rule| enough || **rule == Rule::Ridge) {
            let left = solved.left_out(rule, y)?;
            let (temperature, loss) = match some {
                true => fitted(&left, y, &judged, form),
                false => (first_temperature(rule, form), f64::INFINITY),
            };
            if best.as_ref().is_none_or(|b| loss < b.loss.unwrap_or(f64::INFINITY)) {
                let over = |(row, judged): (&Vec<f64>, &bool)| match judged {
                    true => row.iter().map(|v| (v / temperature) as f32).collect(),
                    false => vec![],
                };
                let outputs = left.iter().zip(&judged).map(over).collect();
                let loss = some.then_some(loss);
                best = Some(Choice { rule, strength, lambda, temperature, loss, outputs });
            }
        }
    }
    best.ok_or_else(|| crate::error::Error::failed("no head fits: the features are not finite"))
}

/// Whether sample `i` is the only one of its class.
fn alone(y: &[Vec<f64>], i: usize) -> bool {
    let Some(own) = class(&y[i]) else { return true };
    y.iter().filter(|row| class(row) == Some(own)).count() < 2
}

fn class(row: &[f64]) -> Option<usize> {
    row.iter().position(|v| *v > 0.5)
}

/// Without anything to fit one on.
fn first_temperature(rule: Rule, form: Form) -> f64 {
    match (rule, form) {
        (_, Form::Values) | (Rule::Means, _) => 1.0,
        (Rule::Ridge, _) => 0.25,
    }
}

/// α, u and p of the module's text, each times λ.
struct Solved {
    alpha: Vec<Vec<f64>>,
    ones: Vec<f64>,
    kept: Vec<f64>,
    totals: Vec<f64>,
}

impl Solved {
    fn of(gram: &Symmetric, y: &[Vec<f64>], lambda: f64) -> Result<Solved> {
        let (count, outputs) = (y.len(), y.first().map_or(0, Vec::len));
        let mut matrix = gram.clone();
        matrix.add_diagonal(lambda);
        let factor = matrix.factor()?;
        let solve = |mut x: Vec<f64>| {
            factor.solve(&mut x);
            x.iter_mut().for_each(|v| *v *= lambda);
            x
        };
        let columns: Vec<Vec<f64>> =
            (0..outputs).map(|k| solve(y.iter().map(|row| row[k]).collect())).collect();
        let alpha = (0..count).map(|i| columns.iter().map(|c| c[i]).collect()).collect();
        let kept = factor.inverse_diagonal().into_iter().map(|v| v * lambda).collect();
        let totals = (0..outputs).map(|k| y.iter().map(|row| row[k]).sum()).collect();
        Ok(Solved { alpha, ones: solve(vec![1.0; count]), kept, totals })
    }

    fn left_out(&self, rule: Rule, y: &[Vec<f64>]) -> Result<Left> {
        match rule {
            Rule::Ridge => Ok(self.ridge(y)),
            Rule::Means => self.means(y),
        }
    }

    /// y less the residual over 1 - h.
    fn ridge(&self, y: &[Vec<f64>]) -> Left {
        let left: f64 = self.ones.iter().sum();
        let beta: Vec<f64> = (0..self.totals.len())
            .map(|k| self.alpha.iter().map(|row| row[k]).sum::<f64>() / left)
            .collect();
        let of = |i: usize| {
            let free = (self.kept[i] - self.ones[i] * self.ones[i] / left).max(1e-12);
            let residual = |k: usize| self.alpha[i][k] - self.ones[i] * beta[k];
            (0..beta.len()).map(|k| y[i][k] - residual(k) / free).collect()
        };
        (0..y.len()).map(of).collect()
    }

    /// Without sample i of class c, E becomes E + (E·w)(E·w)ᵀ/(p - wᵀ·E·w), w = -λ·α_i, and the
    /// sample's own Rᵀ·A⁻¹·z becomes e_c + w/p.
    fn means(&self, y: &[Vec<f64>]) -> Result<Left> {
        let classes = self.totals.len();
        let count = y.len() as f64;
        let mut gap = Symmetric::zeros(classes);
        let products = |i: usize, j: usize| -> f64 {
            if i == j && self.totals[i] < 0.5 {
                // A class without a sample here is apart from all others.
                return 1.0;
            }
            y.iter().zip(&self.alpha).map(|(y, alpha)| y[i] * alpha[j]).sum()
        };
        gap.fill(products);
        let inverse = between(gap)?;
        let of = |i: usize| {
            let (own, p) = (class(&y[i]).unwrap_or(0), self.kept[i]);
            let w: Vec<f64> = self.alpha[i].iter().map(|a| -a).collect();
            let ew = inverse.times(&w);
            let factor = 1.0 / (p - dot(&w, &ew)).max(1e-12);
            let mut t: Vec<f64> = w.iter().map(|w| w / p).collect();
            t[own] += 1.0;
            let et = inverse.times(&t);
            let tew = dot(&t, &ew);
            let logit = |k: usize| {
                let total = self.totals[k] - f64::from(u8::from(k == own));
                if total < 0.5 {
                    return NEVER;
                }
                let near = et[k] + factor * tew * ew[k];
                let square = inverse.row(k)[k] + factor * ew[k] * ew[k] - 1.0 / total;
                (count - 1.0) * (near - 0.5 * square) + (total / (count - 1.0)).ln()
            };
            (0..classes).map(logit).collect()
        };
        Ok((0..y.len()).map(of).collect())
    }
}

/// The temperature with the least loss of the judged rows, and that loss.
fn fitted(left: &Left, y: &[Vec<f64>], judged: &[bool], form: Form) -> (f64, f64) {
    let rows: Vec<(&Vec<f64>, &Vec<f64>)> =
        left.iter().zip(y).zip(judged).filter(|(_, judged)| **judged).map(|(row, _)| row).collect();
    if form == Form::Values {
        return (1.0, squares(&rows));
    }
    let at = |log: f64| loss(&rows, log.exp(), form);
    // The loss has one valley over 1/T. Golden section.
    let (mut low, mut high) = (1e-3f64.ln(), 1e4f64.ln());
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut fa, mut fb) = (at(a), at(b));
    for _ in 0..18 {
        if fa <= fb {
            (high, b, fb) = (b, a, fa);
            a = high - ratio * (high - low);
            fa = at(a);
        } else {
            (low, a, fa) = (a, b, fb);
            b = low + ratio * (high - low);
            fb = at(b);
        }
    }
    let log = (low + high) / 2.0;
    (log.exp(), at(log))
}

/// The temperature of logits of classes with the least loss.
pub(super) fn calibrated(logits: &[Vec<f32>], y: &[Vec<f32>]) -> f64 {
    let double = |rows: &[Vec<f32>]| -> Left {
        rows.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect()
    };
    fitted(&double(logits), &double(y), &vec![true; logits.len()], Form::OneOf).0
}

/// Squared error over each output's own variance.
fn squares(rows: &[(&Vec<f64>, &Vec<f64>)]) -> f64 {
    let outputs = rows.first().map_or(0, |(_, y)| y.len());
    let count = rows.len().max(1) as f64;
    let of = |k: usize| {
        let mean = rows.iter().map(|(_, y)| y[k]).sum::<f64>() / count;
        let spread: f64 = rows.iter().map(|(_, y)| (y[k] - mean).powi(2)).sum();
        let error: f64 = rows.iter().map(|(row, y)| (row[k] - y[k]).powi(2)).sum();
        error / spread.max(f64::MIN_POSITIVE)
    };
    (0..outputs).map(of).sum::<f64>() / outputs.max(1) as f64
}

/// Mean loss of outputs over `temperature`. One answer in n + 2 is counted as given by chance, or
/// outputs that happen to be all right would be as sure as numbers can be.
fn loss(rows: &[(&Vec<f64>, &Vec<f64>)], temperature: f64, form: Form) -> f64 {
    let chance = 1.0 / (rows.len() + 2) as f64;
    let log = |p: f32| f64::from(p).max(1e-30).ln();
    let mut total = 0.0;
    for (row, y) in rows {
        let logits: Vec<f32> = row.iter().map(|v| (v / temperature) as f32).collect();
        let outputs = logits.len().max(1) as f64;
        total -= match form {
            Form::OneOf => {
                let p = softmax(&logits);
                let even = p.iter().map(|p| log(*p)).sum::<f64>() / outputs;
                let own = class(y).and_then(|k| p.get(k)).map_or(0.0, |p| log(*p));
                (1.0 - chance) * own + chance * even
            }
            _ => {
                // Ridge's outputs stand around a half.
                let of = |(v, y): (&f64, &f64)| {
                    let logit = ((v - 0.5) / temperature) as f32;
                    let (yes, no) = (log(sigmoid(logit)), log(sigmoid(-logit)));
                    let y = (1.0 - chance) * y + chance * 0.5;
                    y * yes + (1.0 - y) * no
                };
                row.iter().zip(y.iter()).map(of).sum::<f64>() / outputs
            }
        };
    }
    total / rows.len().max(1) as f64
}
