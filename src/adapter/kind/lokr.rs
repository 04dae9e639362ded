//! LoKr (Yeh et al. 2023, arXiv:2309.14859): y += scaling · (w1 ⊗ w2)·x, with each factor whole or a
//! product of its own. Tensors have PEFT's names and shapes.

use super::super::config::{NamedTensor, TargetAdapter};
use super::super::sum::Sum;
use super::super::target::{Target, TargetKind};
use super::{Features, Part, PeftForm, Rules, Site, kernel};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// out_features = a · c and in_channels = b · d: lokr_w1 (a, b) or lokr_w1_a (a, R) and lokr_w1_b
/// (R, b); then lokr_w2 (c, d) with the kernel's sides behind, or lokr_w2_a (c, R) and lokr_w2_b
/// (R, d · area), or for a convolution lokr_t2 (R, R, kh, kw), lokr_w2_a (R, c) and lokr_w2_b (R, d).
pub(super) struct Lokr;

/// Which tensors a target has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// w1 is a product.
    pub both: bool,
    pub second: Second,
}

/// How w2 is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Second {
    Whole,
    Product,
    Tensor,
}

impl Form {
    /// The names in their order.
    fn names(self) -> Vec<&'static str> {
        let first = if self.both { &["lokr_w1_a", "lokr_w1_b"][..] } else { &["lokr_w1"] };
        let second = match self.second {
            Second::Whole => &["lokr_w2"][..],
            Second::Product => &["lokr_w2_a", "lokr_w2_b"],
            Second::Tensor => &["lokr_t2", "lokr_w2_a", "lokr_w2_b"],
        };
        [first, second].concat()
    }

    /// That of tensors with these names.
    fn of(has: impl Fn(&str) -> bool) -> Form {
        let second = match (has("lokr_w2"), has("lokr_t2")) {
            (true, _) => Second::Whole,
            (false, true) => Second::Tensor,
            (false, false) => Second::Product,
        };
        Form { both: has("lokr_w1_a"), second }
    }

    /// Names and shapes for a layer whose sides are split so.
    fn tensors(
        self,
        [a, b, c, d]: [usize; 4],
        rank: usize,
        kernel: &[usize],
    ) -> Vec<(&'static str, Vec<usize>)> {
        let area: usize = kernel.iter().product();
        let shape = |name: &str| match (name, self.second) {
            ("lokr_w1", _) => vec![a, b],
            ("lokr_w1_a", _) => vec![a, rank],
            ("lokr_w1_b", _) => vec![rank, b],
            ("lokr_w2", _) => [&[c, d][..], kernel].concat(),
            ("lokr_t2", _) => match kernel {
                [k] => vec![rank, rank, *k, 1],
                sides => [&[rank, rank][..], sides].concat(),
            },
            ("lokr_w2_a", Second::Tensor) => vec![rank, c],
            ("lokr_w2_a", _) => vec![c, rank],
            (_, Second::Tensor) => vec![rank, d],
            _ => vec![rank, d * area],
        };
        self.names().into_iter().map(|name| (name, shape(name))).collect()
    }
}

/// PEFT's choice of m · n = `dimension` with m ≤ n, near `factor`, or near each other where that
/// is -1.
pub(crate) fn factorization(dimension: usize, factor: i64) -> (usize, usize) {
    let wanted = usize::try_from(factor).ok().filter(|f| *f > 0);
    if let Some(factor) = wanted.filter(|f| dimension.is_multiple_of(*f)) {
        return (factor, dimension / factor);
    }
    let most = wanted.unwrap_or(dimension);
    let (mut m, mut n) = (1, dimension);
    let length = m + n;
    while m < n {
        let Some(next) = (m + 1..=dimension).find(|next| dimension.is_multiple_of(*next)) else {
            break;
        };
        if next + dimension / next > length || next > most {
            break;
        }
        (m, n) = (next, dimension / next);
    }
    (m.min(n), m.max(n))
}

/// The names and shapes that PEFT gives a layer.
pub(crate) fn layout(
    layer: &Target,
    rank: usize,
    factor: i64,
    both: bool,
    tensor_form: bool,
) -> Vec<(&'static str, Vec<usize>)> {
    let kernel = kernel(layer);
    let area: usize = kernel.iter().product();
    let channels = (layer.in_features as usize).checked_div(area).unwrap_or(0);
    let (b, d) = factorization(channels, factor);
    let (a, c) = factorization(layer.out_features as usize, factor);
    let second = match (2 * rank >= c.max(d), tensor_form && area > 1) {
        (true, _) => Second::Whole,
        (false, true) => Second::Tensor,
        (false, false) => Second::Product,
    };
    let form = Form { both: both && 2 * rank < a.max(b), second };
    form.tensors([a, b, c, d], rank, &kernel)
}

/// The two factors of a target.
struct Factors {
    /// (a, p) · (p, b).
    first: [Matrix; 2],
    /// (c, q) · (q, d, area).
    second: [Matrix; 2],
    d: usize,
    area: usize,
}

struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn of(rows: usize, cols: usize, values: &[f32]) -> Matrix {
        Matrix { rows, cols, values: values.to_vec() }
    }

    fn identity(n: usize) -> Matrix {
        let mut values = vec![0.0; n * n];
        values.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
        Matrix { rows: n, cols: n, values }
    }

    /// As a product of two of the least inner size.
    fn split(self) -> [Matrix; 2] {
        match self.rows <= self.cols {
            true => [Matrix::identity(self.rows), self],
            false => {
                let right = Matrix::identity(self.cols);
                [self, right]
            }
        }
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.values[row * self.cols + col]
    }

    fn is_zero(&self) -> bool {
        self.values.iter().all(|v| *v == 0.0)
    }
}

/// a, b, c, d · area, and the area as far as the tensors tell it.
fn sides(target: &TargetAdapter) -> Result<([usize; 4], Option<usize>)> {
    let rank = target.rank as usize;
    let form = Form::of(|name| target.tensor(name).is_ok());
    let names = form.names();
    let found: Vec<&str> = target.tensors.iter().map(|t| t.name.as_str()).collect();
    if found != names {
        return Err(Error::bad_input(format!("tensors {found:?}, expected {}", names.join(", "))));
    }
    let wrong = |name: &str| {
        let shape = target.tensor(name).map(|t| t.shape.clone()).unwrap_or_default();
        Error::bad_input(format!("tensor '{name}' has shape {shape:?}, which fits no LoKr"))
    };
    let matrix = |name: &str| match target.tensor(name)?.shape.as_slice() {
        &[rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(wrong(name)),
    };
    let pair = |left: &str, right: &str| {
        let ((rows, r), (s, cols)) = (matrix(left)?, matrix(right)?);
        if (r, s) != (rank, rank) {
            return Err(wrong(left));
        }
        Ok((rows, cols))
    };
    let (a, b) = if form.both { pair("lokr_w1_a", "lokr_w1_b")? } else { matrix("lokr_w1")? };
    let (c, wide, area) = match form.second {
        Second::Product => {
            let (c, wide) = pair("lokr_w2_a", "lokr_w2_b")?;
            (c, wide, None)
        }
        Second::Whole => match target.tensor("lokr_w2")?.shape.as_slice() {
            [c, d, kernel @ ..] if *c > 0 && *d > 0 && kernel.len() <= 2 => {
                let area = crate::shape::volume(kernel).filter(|a| *a > 0);
                let area = area.ok_or_else(|| wrong("lokr_w2"))?;
                let wide = d.checked_mul(area).ok_or_else(|| wrong("lokr_w2"))?;
                (*c, wide, Some(area))
            }
            _ => return Err(wrong("lokr_w2")),
        },
        Second::Tensor => {
            let area = match target.tensor("lokr_t2")?.shape.as_slice() {
                &[r, s, kh, kw] if r == rank && s == rank => kh.checked_mul(kw),
                _ => None,
            };
            let area = area.filter(|a| *a > 0).ok_or_else(|| wrong("lokr_t2"))?;
            let ((r, c), (s, d)) = (matrix("lokr_w2_a")?, matrix("lokr_w2_b")?);
            if (r, s) != (rank, rank) {
                return Err(wrong("lokr_w2_a"));
            }
            let wide = d.checked_mul(area).ok_or_else(|| wrong("lokr_t2"))?;
            (c, wide, Some(area))
        }
    };
    Ok(([a, b, c, wide], area))
}

impl Factors {
    /// For a layer whose kernel has this area.
    fn of(target: &TargetAdapter, area: usize) -> Result<Factors> {
        let ([a, b, c, wide], own) = sides(target)?;
        let rank = target.rank as usize;
        let d = wide / area;
        if wide != d * area || own.is_some_and(|own| own != area) {
            return Err(Error::mismatch(format!("{wide} columns for a kernel of {area} places")));
        }
        let values = |name| target.values(name);
        let form = Form::of(|name| target.tensor(name).is_ok());
        let first = match form.both {
            true => [
                Matrix::of(a, rank, values("lokr_w1_a")?),
                Matrix::of(rank, b, values("lokr_w1_b")?),
            ],
            false => Matrix::of(a, b, values("lokr_w1")?).split(),
        };
        let second = match form.second {
            Second::Product => [
                Matrix::of(c, rank, values("lokr_w2_a")?),
                Matrix::of(rank, wide, values("lokr_w2_b")?),
            ],
            Second::Whole => Matrix::of(c, wide, values("lokr_w2")?).split(),
            Second::Tensor => {
                // w2[p, s, k] = Σᵢⱼ t2[i, j, k] · w2_a[i, p] · w2_b[j, s].
                let (t, wa, wb) = (values("lokr_t2")?, values("lokr_w2_a")?, values("lokr_w2_b")?);
                let mut left = Matrix::of(c, rank, &vec![0.0; c * rank]);
                let mut right = Matrix::of(rank, wide, &vec![0.0; rank * wide]);
                for i in 0..rank {
                    for p in 0..c {
                        left.values[p * rank + i] = wa[i * c + p];
                    }
                    for (j, s) in (0..rank).flat_map(|j| (0..d).map(move |s| (j, s))) {
                        let from = &t[(i * rank + j) * area..][..area];
                        let to = &mut right.values[i * wide + s * area..][..area];
                        to.iter_mut().zip(from).for_each(|(to, t)| *to += t * wb[j * d + s]);
                    }
                }
                [left, right]
            }
        };
        Ok(Factors { first, second, d, area })
    }

    /// (U·V) ⊗ (P·Q) = (U ⊗ P)·(V ⊗ Q): R, lora_a (R, area · b · d), channels innermost, and lora_b
    /// (a · c, R) times `factor`.
    fn pair(&self, factor: f32) -> (usize, Vec<f32>, Vec<f32>) {
        let ([u, v], [p, q]) = (&self.first, &self.second);
        let rank = u.cols * p.cols;
        let mut b = Vec::with_capacity(u.rows * p.rows * rank);
        for (i, j) in (0..u.rows).flat_map(|i| (0..p.rows).map(move |j| (i, j))) {
            for k in 0..u.cols {
                b.extend((0..p.cols).map(|l| factor * u.at(i, k) * p.at(j, l)));
            }
        }
        let mut a = Vec::with_capacity(rank * v.cols * q.cols);
        for (k, l) in (0..v.rows).flat_map(|k| (0..q.rows).map(move |l| (k, l))) {
            for place in 0..self.area {
                for i in 0..v.cols {
                    let column = |s: usize| q.at(l, s * self.area + place);
                    a.extend((0..self.d).map(|s| v.at(k, i) * column(s)));
                }
            }
        }
        (rank, a, b)
    }
}

impl Rules for Lokr {
    fn name(&self) -> &'static str {
        "lokr"
    }

    fn is_ranked(&self) -> bool {
        true
    }

    fn has_rslora(&self) -> bool {
        false
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        let ([a, b, c, wide], _) = sides(target)?;
        let product = |x: usize, y: usize| {
            let n = x.checked_mul(y).filter(|n| u32::try_from(*n).is_ok());
            n.ok_or_else(|| Error::bad_input("tensors for a layer that is too large"))
        };
        Ok(Features::both(product(b, wide)?, product(a, c)?))
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let (target, layer) = (part.target, part.layer()?.target);
        if layer.kind == TargetKind::Embedding {
            return Err(Error::unsupported("kind 'lokr' has no form for an embedding"));
        }
        let factor = part.weight * target.scaling();
        let factors = Factors::of(target, kernel(layer).iter().product())?;
        if factor == 0.0 || factors.first.iter().chain(&factors.second).any(Matrix::is_zero) {
            return Ok(());
        }
        let (rank, a, b) = factors.pair(factor);
        sum.low_rank(rank, a, b)
    }

    fn peft(&self) -> Option<&dyn PeftForm> {
        Some(self)
    }
}

const ENDINGS: &[&str] =
    &[".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"];

/// PEFT multiplies a whole w2 of three axes with w1 along others than those of the layer.
fn one_axis(layer: &Target, form: Form) -> Result<()> {
    match (layer.kind, form.second) {
        (TargetKind::Conv { one_axis: true, .. }, Second::Whole) => Err(Error::unsupported(
            "a whole lokr_w2 on a convolution over one axis means another product in PEFT",
        )),
        _ => Ok(()),
    }
}

impl PeftForm for Lokr {
    fn selected_by(&self) -> (&'static str, Option<&'static str>) {
        ("LOKR", None)
    }

    fn without_effect(&self) -> &'static [&'static str] {
        &[
            "rank_dropout",
            "module_dropout",
            "rank_dropout_scale",
            "init_weights",
            // They say which tensors there are, which the file tells too.
            "use_effective_conv2d",
            "decompose_both",
            "decompose_factor",
        ]
    }

    fn endings(&self) -> &'static [&'static str] {
        ENDINGS
    }

    fn read(&self, tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>> {
        if at.layer.kind == TargetKind::Embedding {
            return Err(Error::unsupported("LoKr on an embedding is not supported"));
        }
        let has = |name: &str| tensors.iter().any(|t| t.name.trim_start_matches('.') == name);
        let form = Form::of(has);
        one_axis(at.layer, form)?;
        let mut read = vec![];
        for name in form.names() {
            let ending = format!(".{name}");
            let found = tensors.iter().find(|t| t.name == ending);
            let found = found.ok_or_else(|| Error::bad_input(format!("{name} is missing")))?;
            read.push(NamedTensor::new(name, &found.shape, found.values.clone()));
        }
        if read.len() != tensors.len() {
            return Err(Error::bad_input("it has a factor both whole and as a product"));
        }
        let tensors = read.clone();
        let target = TargetAdapter { rank: at.rank, tensors, ..TargetAdapter::default() };
        Factors::of(&target, kernel(at.layer).iter().product())?;
        Ok(read)
    }

    fn write(&self, target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>> {
        one_axis(layer, Form::of(|name| target.tensor(name).is_ok()))?;
        let named =
            |t: &NamedTensor| NamedTensor::new(&format!(".{}", t.name), &t.shape, t.values.clone());
        Ok(target.tensors.iter().map(named).collect())
    }

    /// The factor and the flags with which PEFT makes tensors of these names and shapes.
    fn settings(&self, targets: &[(&TargetAdapter, &Target)]) -> Result<Value> {
        let has = |name: &str| targets.iter().any(|(t, _)| t.tensor(name).is_ok());
        let (both, tensor_form) = (has("lokr_w1_a"), has("lokr_t2"));
        let fits = |factor: i64| {
            targets.iter().all(|(target, layer)| {
                let made = layout(layer, target.rank as usize, factor, both, tensor_form);
                let own = target.tensors.iter().map(|t| (t.name.as_str(), &t.shape));
                made.iter().map(|(name, shape)| (*name, shape)).eq(own)
            })
        };
        let sides = targets.iter().filter_map(|(t, _)| Some(sides(t).ok()?.0));
        let tried = sides.flat_map(|[a, b, ..]| [a as i64, b as i64]);
        let factor = std::iter::once(-1).chain(tried).find(|factor| fits(*factor));
        let factor = factor.ok_or_else(|| {
            Error::unsupported("its layers are split in ways that no 'decompose_factor' gives")
        })?;
        Ok(json!({
            "decompose_factor": factor,
            "decompose_both": both,
            "use_effective_conv2d": tensor_form,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
            "init_weights": true,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_split_as_peft_does() {
        for (dimension, factor, expected) in [
            (256, -1, (16, 16)),
            (128, -1, (8, 16)),
            (127, -1, (1, 127)),
            (128, 4, (4, 32)),
            (384, -1, (16, 24)),
            (10, 4, (2, 5)),
            (1, -1, (1, 1)),
        ] {
            assert_eq!(factorization(dimension, factor), expected, "{dimension} {factor}");
        }
    }
}
