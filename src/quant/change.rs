//! What an adapter does to a layer.

use super::kernels::{Job, Kernels, Piece, Quantized, Start};
use super::low_rank::{LowRank, Room};
use super::{Packed, PackedRef, Scheme};
use crate::error::{Error, Result};
use std::ops::Range;

/// y = scale ⊙ ((input ⊙ x) · Wᵀ + (x · aᵀ) · bᵀ) + keep ⊙ bias + shift, then
/// y + relu(y · downᵀ + down_bias) · upᵀ + up_bias; each part where it is there, else as the layer has
/// it. The parts that a base alone would take keep its bits.
#[derive(Clone, Default)]
pub struct Change {
    /// A low-rank product that is added.
    pub low_rank: Option<LowRank>,
    /// What x is multiplied with before W, one value a column. Not with a low-rank product.
    pub input: Option<Vec<f32>>,
    /// What the products are multiplied with, one value an output.
    pub scale: Option<Vec<f32>>,
    /// What the layer's bias is multiplied with, one value an output.
    pub keep: Option<Vec<f32>>,
    /// What is added at the end, one value an output.
    pub shift: Option<Vec<f32>>,
    /// Rows of W that are replaced.
    pub rows: Option<Rows>,
    /// What follows the layer.
    pub after: Option<Bottleneck>,
}

/// Rows in place of those of W.
#[derive(Clone)]
pub struct Rows {
    /// Which of W's rows, ascending.
    at: Vec<usize>,
    /// (at.len(), cols), f32.
    w: Packed,
}

impl Rows {
    /// `values` (at.len(), cols) row-major in place of the rows `at`, ascending, of a matrix.
    ///
    /// # Errors
    /// Bad input: lengths that don't fit, values that are not finite, rows out of order.
    pub fn new(at: Vec<usize>, cols: usize, values: &[f32]) -> Result<Rows> {
        if at.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::bad_input("replaced rows are not in order"));
        }
        let w = Packed::pack(Scheme::F32, at.len(), cols, values)?;
        Ok(Rows { at, w })
    }

    /// Whether they are rows of a matrix of (rows, cols).
    pub fn fits(&self, rows: usize, cols: usize) -> bool {
        self.w.cols() == cols && self.at.last().is_none_or(|at| *at < rows)
    }

    /// Row `row` of W into `out`, where it is replaced.
    pub fn row(&self, row: usize, out: &mut [f32]) -> bool {
        match self.at.binary_search(&row) {
            Ok(place) => {
                self.w.view().row(place, out);
                true
            }
            Err(_) => false,
        }
    }
}

/// y + relu(y · downᵀ + down_bias) · upᵀ + up_bias (Houlsby et al. 2019, arXiv:1902.00751).
#[derive(Clone)]
pub struct Bottleneck {
    down: Packed,
    down_bias: Vec<f32>,
    up: Packed,
    up_bias: Vec<f32>,
}

impl Bottleneck {
    /// `down` (width, features) and `up` (features, width), row-major, with their biases.
    ///
    /// # Errors
    /// Bad input: lengths that don't fit, or values that are not finite.
    pub fn new(
        [width, features]: [usize; 2],
        [down, down_bias, up, up_bias]: [&[f32]; 4],
    ) -> Result<Bottleneck> {
        if down_bias.len() != width || up_bias.len() != features {
            return Err(Error::bad_input("biases of other lengths than their layers"));
        }
        Ok(Bottleneck {
            down: Packed::pack(Scheme::F32, width, features, down)?,
            down_bias: down_bias.to_vec(),
            up: Packed::pack(Scheme::F32, features, width, up)?,
            up_bias: up_bias.to_vec(),
        })
    }

    fn apply(&self, k: &Kernels, y: &mut [f32]) {
        let count = y.len().checked_div(self.up.rows()).unwrap_or(0);
        let mut inner = vec![0.0; count * self.down.rows()];
        let start = Start::Bias(&self.down_bias);
        k.product(&mut Job { w: self.down.view(), x: y, start, y: &mut inner });
        inner.iter_mut().for_each(|v| *v = v.max(0.0));
        let mut outer = vec![0.0; y.len()];
        let start = Start::Bias(&self.up_bias);
        k.product(&mut Job { w: self.up.view(), x: &inner, start, y: &mut outer });
        y.iter_mut().zip(&outer).for_each(|(y, v)| *y += v);
    }
}

impl From<LowRank> for Change {
    fn from(low_rank: LowRank) -> Change {
        Change { low_rank: Some(low_rank), ..Change::default() }
    }
}

impl Change {
    /// The low-rank product where that is all.
    pub(super) fn only_low_rank(&self) -> Option<&LowRank> {
        let Change { low_rank, input, scale, keep, shift, rows, after } = self;
        let vectors = [input, scale, keep, shift].iter().all(|v| v.is_none());
        low_rank.as_ref().filter(|_| vectors && rows.is_none() && after.is_none())
    }

    /// Whether it may be given to a product with [`Inputs::bounded`](super::Inputs::bounded).
    pub fn takes_bounded(&self) -> bool {
        self.only_low_rank().is_some()
    }

    /// Whether a product needs x as floats beside the integers.
    pub(super) fn needs_floats(&self) -> bool {
        self.input.is_some() || self.rows.is_some()
    }

    /// # Errors
    /// Mismatch: it is for another layer than one of `inputs` and `outputs` features.
    pub fn check(&self, inputs: usize, outputs: usize) -> Result<()> {
        let Change { low_rank, input, scale, keep, shift, rows, after } = self;
        let pair =
            low_rank.as_ref().is_none_or(|l| (l.a().cols(), l.b().rows()) == (inputs, outputs));
        let input = input.as_ref().is_none_or(|v| v.len() == inputs);
        let vectors = [scale, keep, shift].into_iter().flatten().all(|v| v.len() == outputs);
        let rows = rows.as_ref().is_none_or(|r| r.fits(outputs, inputs));
        let after = after.as_ref().is_none_or(|b| b.up.rows() == outputs);
        if pair && input && vectors && rows && after {
            return Ok(());
        }
        Err(Error::mismatch(format!(
            "the adapter's tensors don't fit a layer of {inputs} inputs and {outputs} outputs"
        )))
    }

    /// As [`Change::check`], for a table of `rows` rows of `features`, of which a row takes the place of
    /// a product.
    ///
    /// # Errors
    /// Mismatch: other shapes, or a part that has no form there.
    pub fn check_table(&self, rows: usize, features: usize) -> Result<()> {
        let Change { low_rank, input, scale, keep, shift, rows: replaced, after } = self;
        let pair =
            low_rank.as_ref().is_none_or(|l| (l.a().cols(), l.b().rows()) == (rows, features));
        let none = input.is_none() && keep.is_none() && after.is_none();
        let vectors = [scale, shift].into_iter().flatten().all(|v| v.len() == features);
        if pair && none && vectors && replaced.as_ref().is_none_or(|r| r.fits(rows, features)) {
            return Ok(());
        }
        Err(Error::mismatch(format!(
            "the adapter's tensors don't fit a table of {rows} rows of {features}"
        )))
    }

    /// What the layer's bias becomes, with what is added; `None` where nothing is.
    fn end(&self, bias: Option<&[f32]>, outputs: usize) -> Option<Vec<f32>> {
        if bias.is_none() && self.shift.is_none() {
            return None;
        }
        let at = |v: &Option<Vec<f32>>, o: usize, none: f32| v.as_ref().map_or(none, |v| v[o]);
        let bias = |o: usize| bias.map_or(0.0, |b| b[o]);
        let end = (0..outputs).map(|o| bias(o) * at(&self.keep, o, 1.0) + at(&self.shift, o, 0.0));
        Some(end.collect())
    }

    /// The rest of a row: y = scale ⊙ y + end, and what follows. Plain loops that vectorise; every
    /// instruction set gives the same bits.
    fn finish(&self, k: &Kernels, end: Option<&[f32]>, outputs: usize, y: &mut [f32]) {
        for row in y.chunks_exact_mut(outputs.max(1)) {
            if let Some(scale) = &self.scale {
                row.iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
            }
            if let Some(end) = end {
                row.iter_mut().zip(end).for_each(|(y, e)| *y += e);
            }
        }
        if let Some(after) = &self.after {
            after.apply(k, y);
        }
    }

    /// What it makes of one row of an embedding's table, which is in y.
    pub fn of_table(&self, column: impl FnOnce(PackedRef<'_>, &mut [f32]), y: &mut [f32]) {
        let k = super::dispatch::kernels();
        if let Some(low_rank) = &self.low_rank {
            let mut inner = vec![0.0; low_rank.rank()];
            column(low_rank.a(), &mut inner);
            k.product(&mut Job { w: low_rank.b(), x: &inner, start: Start::Keep, y });
        }
        let outputs = y.len();
        self.finish(k, self.shift.as_deref(), outputs, y);
    }
}

/// Rows of a product and what becomes of them.
#[derive(Clone)]
pub struct Update<'a> {
    /// Which rows.
    pub rows: Range<usize>,
    /// What is done to them.
    pub change: &'a Change,
}

/// The rows of x, as a kernel takes them and, where a change asks for them, as floats.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub quantized: Option<&'a Quantized>,
    pub floats: &'a [f32],
}

impl Room {
    /// y = bias + x · Wᵀ + updates. Rows have the bits that they have alone.
    pub(super) fn changed(
        &mut self,
        k: &Kernels,
        (w, bias): (PackedRef<'_>, Option<&[f32]>),
        x: Operand<'_>,
        updates: &[Update<'_>],
        y: &mut [f32],
    ) {
        let all = y.len().checked_div(w.rows()).unwrap_or(0);
        let pairs: Option<Vec<_>> =
            updates.iter().map(|u| Some((u.rows.clone(), u.change.only_low_rank()?))).collect();
        if let Some(pairs) = pairs {
            return match x.quantized {
                Some(x) => self.product_of(k, (w, bias), x, &pairs, y),
                None => self.product(k, (w, bias), x.floats, &pairs, y),
            };
        }
        let mut done = 0;
        for Update { rows, change } in updates {
            assert!(done <= rows.start, "updates follow each other");
            self.stretch(k, (w, bias), x, done..rows.start, None, y);
            self.special(k, (w, bias), x, rows.clone(), change, y);
            done = rows.end;
        }
        self.stretch(k, (w, bias), x, done..all, None, y);
    }

    /// y = bias + x · Wᵀ and a low-rank update, of some rows.
    fn stretch(
        &mut self,
        k: &Kernels,
        (w, bias): (PackedRef<'_>, Option<&[f32]>),
        x: Operand<'_>,
        rows: Range<usize>,
        pair: Option<&LowRank>,
        y: &mut [f32],
    ) {
        if rows.is_empty() {
            return;
        }
        match x.quantized {
            Some(x) => {
                self.inner.clear();
                if let Some(pair) = pair {
                    pair.inner(k, x, rows.clone(), self);
                }
                let update = pair.map(|pair| (&self.inner[..], pair.b()));
                let start = bias.map_or(Start::Zero, Start::Bias);
                k.product_of(w, x, start, &[Piece { rows, update }], y);
            }
            None => {
                let floats = &x.floats[rows.start * w.cols()..rows.end * w.cols()];
                let y = &mut y[rows.start * w.rows()..rows.end * w.rows()];
                let pairs: Vec<_> = pair.map(|pair| (0..rows.len(), pair)).into_iter().collect();
                self.product(k, (w, bias), floats, &pairs, y);
            }
        }
    }

    fn special(
        &mut self,
        k: &Kernels,
        (w, bias): (PackedRef<'_>, Option<&[f32]>),
        x: Operand<'_>,
        rows: Range<usize>,
        change: &Change,
        y: &mut [f32],
    ) {
        let (outputs, cols) = (w.rows(), w.cols());
        let own = |x: &'_ [f32]| x[rows.start * cols..rows.end * cols].to_vec();
        let replaced = change.rows.as_ref();
        if replaced.is_none_or(|r| r.at.len() < outputs) {
            if let Some(input) = &change.input {
                let mut scaled = own(x.floats);
                for row in scaled.chunks_exact_mut(cols.max(1)) {
                    row.iter_mut().zip(input).for_each(|(x, s)| *x *= s);
                }
                let quantized = x.quantized.map(|_| {
                    let mut fresh = Quantized::empty(w.scheme(), cols);
                    k.quantize(&scaled, cols, &mut fresh);
                    fresh
                });
                let x = Operand { quantized: quantized.as_ref(), floats: &scaled };
                let y = &mut y[rows.start * outputs..rows.end * outputs];
                self.stretch(k, (w, None), x, 0..rows.len(), None, y);
            } else {
                self.stretch(k, (w, None), x, rows.clone(), change.low_rank.as_ref(), y);
            }
        }
        let y = &mut y[rows.start * outputs..rows.end * outputs];
        if let Some(Rows { at, w }) = replaced {
            let mut fresh = vec![0.0; rows.len() * at.len()];
            let x = &x.floats[rows.start * cols..rows.end * cols];
            k.product(&mut Job { w: w.view(), x, start: Start::Zero, y: &mut fresh });
            let lines = y.chunks_exact_mut(outputs).zip(fresh.chunks_exact(at.len().max(1)));
            for (y, fresh) in lines {
                at.iter().zip(fresh).for_each(|(at, v)| y[*at] = *v);
            }
        }
        let end = change.end(bias, outputs);
        change.finish(k, end.as_deref(), outputs, y);
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
