//! Sums of products of two plain f32 tensors over shared axes, where they lie.

use super::dispatch::kernels;
use super::kernels::{Dense, Kernels};
use super::layout::PANEL;

/// One axis of a contraction: its length, and from one element to the next in x, in w and in y; 0 in
/// a tensor that lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContractedAxis {
    /// Length.
    pub len: usize,
    /// Strides in x, w and y, in elements.
    pub strides: [usize; 3],
}

/// y = Σ x · w over the axes that y lacks. Every axis must be in two tensors at least. The order of
/// the sums depends on the lengths of the axes alone, not on the kernels' tiles.
///
/// # Panics
/// If an element lies outside its slice, or an axis is in fewer than two tensors.
pub fn contract(axes: &[ContractedAxis], x: &[f32], w: &[f32], y: &mut [f32]) {
    contract_with(kernels(), axes, x, w, y);
}

/// Which tensors an axis is in: x, w, y.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// x and y.
    M,
    /// x and w: summed over.
    K,
    /// w and y.
    N,
    /// All three.
    Batch,
}

fn role(axis: &ContractedAxis) -> Role {
    match axis.strides.map(|s| s > 0) {
        [true, true, true] => Role::Batch,
        [true, true, false] => Role::K,
        [true, false, true] => Role::M,
        [false, true, true] => Role::N,
        _ => panic!("an axis is in fewer than two tensors: {axis:?}"),
    }
}

fn contract_with(k: &Kernels, axes: &[ContractedAxis], x: &[f32], w: &[f32], y: &mut [f32]) {
    if axes.iter().any(|a| a.len == 0) {
        return y.fill(0.0);
    }
    let axes = joined(axes);
    let swapped: Vec<ContractedAxis> = axes
        .iter()
        .map(|a| ContractedAxis { strides: [a.strides[1], a.strides[0], a.strides[2]], ..*a })
        .collect();
    let (plan, other) = (Plan::new(&axes), Plan::new(&swapped));
    match plan.cost <= other.cost {
        true => plan.run(k, x, w, y),
        false => other.run(k, w, x, y),
    }
}

/// Without axes of length 1; neighbours that lie one inside the other in every tensor become one.
fn joined(axes: &[ContractedAxis]) -> Vec<ContractedAxis> {
    let mut axes: Vec<ContractedAxis> = axes.iter().filter(|a| a.len != 1).copied().collect();
    loop {
        let inside = |outer: &ContractedAxis, inner: &ContractedAxis| {
            role(outer) == role(inner)
                && (0..3).all(|t| outer.strides[t] == inner.len * inner.strides[t])
        };
        let pairs = (0..axes.len()).flat_map(|o| (0..axes.len()).map(move |i| (o, i)));
        let found = pairs.into_iter().find(|&(o, i)| o != i && inside(&axes[o], &axes[i]));
        let Some((outer, inner)) = found else { return axes };
        axes[inner].len *= axes[outer].len;
        axes.remove(outer);
    }
}

/// A contraction as products of matrices: one axis of each role makes the matrices, the others are
/// gone through from outside.
struct Plan {
    m: ContractedAxis,
    k: ContractedAxis,
    n: ContractedAxis,
    /// M, N and batch axes.
    outer: Vec<ContractedAxis>,
    /// Further axes that are summed over.
    sums: Vec<ContractedAxis>,
    /// An estimate of the time, to compare two ways.
    cost: usize,
}

const NONE: ContractedAxis = ContractedAxis { len: 1, strides: [0; 3] };

impl Plan {
    fn new(axes: &[ContractedAxis]) -> Plan {
        // The kernels want w's and y's n side by side; x may have any strides.
        let rank = |a: &ContractedAxis, role: Role| match role {
            Role::N => (a.strides[1] == 1 && a.strides[2] == 1, a.strides[1] == 1, a.len),
            _ => (false, false, a.len),
        };
        let pick = |wanted: Role| {
            let of_role = axes.iter().filter(|a| role(a) == wanted);
            of_role.max_by_key(|a| rank(a, wanted)).copied()
        };
        let (m, k, n) = (pick(Role::M), pick(Role::K), pick(Role::N));
        let rest = axes.iter().filter(|a| ![m, k, n].contains(&Some(**a))).copied();
        let (sums, outer): (Vec<_>, Vec<_>) = rest.partition(|a| role(a) == Role::K);
        let (m, k, n) = (m.unwrap_or(NONE), k.unwrap_or(NONE), n.unwrap_or(NONE));
        let repeats: usize = outer.iter().chain(&sums).map(|a| a.len).product();
        let panels = n.len.div_ceil(PANEL);
        // Instructions: one fused multiply-add for 16 lanes, a load of w for each 8 rows; moving
        // elements that don't lie side by side costs about one each.
        let products = m.len * panels * k.len + m.len.div_ceil(8) * panels * k.len;
        let gather = if n.strides[1] == 1 { 0 } else { k.len * n.len / 2 };
        let scatter = if n.strides[2] == 1 { 0 } else { m.len * n.len };
        Plan { m, k, n, outer, sums, cost: repeats * (products + gather + scatter) }
    }

    fn run(&self, kernels: &Kernels, x: &[f32], w: &[f32], y: &mut [f32]) {
        each(&self.outer, [0; 3], &mut |at| {
            let mut keep = false;
            each(&self.sums, at, &mut |at| {
                kernels.dense(&mut Dense {
                    sizes: [self.m.len, self.k.len, self.n.len],
                    x: &x[at[0]..],
                    x_strides: [self.m.strides[0], self.k.strides[0]],
                    w: &w[at[1]..],
                    w_strides: [self.k.strides[1], self.n.strides[1].max(1)],
                    y: &mut y[at[2]..],
                    y_strides: [self.m.strides[2], self.n.strides[2].max(1)],
                    keep,
                });
                keep = true;
            });
        });
    }
}

/// Calls `run` with the offsets of every element of `axes`, beginning at `at`.
fn each(axes: &[ContractedAxis], at: [usize; 3], run: &mut dyn FnMut([usize; 3])) {
    let Some((first, rest)) = axes.split_first() else { return run(at) };
    for i in 0..first.len {
        let next = [0, 1, 2].map(|t| at[t] + i * first.strides[t]);
        each(rest, next, run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::{noise, some};

    /// Axes of a formula such as `"mk,nk->mn"`, all tensors row-major; lengths by letter.
    fn axes(formula: &str, len: &dyn Fn(char) -> usize) -> (Vec<ContractedAxis>, [usize; 3]) {
        let tensors: Vec<&str> =
            formula.split([',', '>']).map(|t| t.trim_end_matches('-')).collect();
        let stride = |t: &str, letter: char| match t.find(letter) {
            Some(at) => t[at + 1..].chars().map(len).product(),
            None => 0,
        };
        let mut letters: Vec<char> = formula.chars().filter(|c| c.is_alphabetic()).collect();
        letters.sort();
        letters.dedup();
        let axis = |&l: &char| ContractedAxis {
            len: len(l),
            strides: [0, 1, 2].map(|t| stride(tensors[t], l)),
        };
        let volume = |t: usize| tensors[t].chars().map(len).product();
        (letters.iter().map(axis).collect(), [volume(0), volume(1), volume(2)])
    }

    /// Element by element, in f64, with the sum of magnitudes.
    fn slow(axes: &[ContractedAxis], x: &[f32], w: &[f32], y: usize) -> Vec<(f64, f64)> {
        let mut out = vec![(0.0, 0.0); y];
        each(axes, [0; 3], &mut |at| {
            let term = f64::from(x[at[0]]) * f64::from(w[at[1]]);
            out[at[2]].0 += term;
            out[at[2]].1 += term.abs();
        });
        out
    }

    #[test]
    fn every_kernel_agrees_with_the_sum_of_products() {
        let formulas = [
            "mk,nk->mn",
            "mk,kn->mn",
            "km,kn->mn",
            "km,kn->nm",
            "mk,nk->nm",
            "k,kn->n",
            "mk,k->m",
            "m,n->mn",
            "bqhd,bkhd->bhqk",
            "bhqk,bkhd->bqhd",
            "bhqk,bqhd->bkhd",
            "btk,btr->rk",
            "btk,btr->kr",
            "btr,nr->btn",
            "bmk,bkn->bmn",
            "abk,cdk->adcb",
        ];
        // Just past the edges of tiles, panels and chunks.
        let lengths: [&[usize]; 3] = [&[1, 2, 3, 5], &[7, 9, 17, 16], &[33, 31, 8, 300]];
        for formula in some(formulas, 5) {
            for round in some(0..12, 7) {
                let pick = |letter: char| {
                    let at = letter as usize + round;
                    let small = "ab".contains(letter) || formula.len() > 13 && letter != 'k';
                    lengths[if small { at % 2 } else { at % 3 }][(at / 3) % 4]
                };
                let (axes, [x, w, y]) = axes(formula, &pick);
                let (x, w) = (noise(x, 1), noise(w, 2));
                let want = slow(&axes, &x, &w, y);
                let terms: usize =
                    axes.iter().filter(|a| a.strides[2] == 0).map(|a| a.len).product();
                for k in Kernels::available() {
                    let mut got = vec![f32::NAN; y];
                    contract_with(k, &axes, &x, &w, &mut got);
                    for (i, (g, (w, size))) in got.iter().zip(&want).enumerate() {
                        let bound = (terms + 2) as f64 * 6e-8 * (size + 1.0);
                        let off = (f64::from(*g) - w).abs();
                        assert!(off <= bound, "{} {formula} {axes:?} [{i}]: {g} for {w}", k.name);
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_sum_is_zero_and_scalars_are_products() {
        let mut y = [f32::NAN; 6];
        let axis = |len, strides| ContractedAxis { len, strides };
        contract(&[axis(2, [0, 0, 3]), axis(0, [1, 1, 0])], &[], &[], &mut y[..1]);
        assert_eq!(y[0], 0.0);
        contract(&[], &[3.0], &[4.0], &mut y[..1]);
        assert_eq!(y[0], 12.0);
    }

    #[test]
    #[should_panic(expected = "inside their slices")]
    fn elements_outside_are_a_fault() {
        let axis = |len, strides| ContractedAxis { len, strides };
        contract(&[axis(3, [1, 0, 1]), axis(2, [3, 1, 0])], &[1.0; 5], &[1.0; 2], &mut [0.0; 3]);
    }
}
