//! Symmetric matrices as packed lower triangles (row i starts at i·(i + 1)/2), in f64: products,
//! Cholesky's factor and what is solved with it.

use crate::error::{Error, Result};

/// Σ a·b over equal lengths, in eight running sums.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// y += factor·x.
pub(super) fn add(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

fn start(row: usize) -> usize {
    row * (row + 1) / 2
}

/// A symmetric matrix (size, size).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Symmetric {
    size: usize,
    values: Vec<f64>,
}

impl Symmetric {
    pub fn zeros(size: usize) -> Symmetric {
        Symmetric { size, values: vec![0.0; start(size)] }
    }

    /// The products of rows with each other: rows·rowsᵀ.
    pub fn gram(rows: &[Vec<f64>]) -> Symmetric {
        let mut made = Symmetric::zeros(rows.len());
        for (i, a) in rows.iter().enumerate() {
            for (value, b) in made.row_mut(i).iter_mut().zip(rows) {
                *value = dot(a, b);
            }
        }
        made
    }

    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[start(row)..start(row + 1)]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[start(row)..start(row + 1)]
    }

    /// Sets value (i, j), j ≤ i, to what `of` says.
    pub fn fill(&mut self, of: impl Fn(usize, usize) -> f64) {
        for i in 0..self.size {
            self.row_mut(i).iter_mut().enumerate().for_each(|(j, value)| *value = of(i, j));
        }
    }

    /// Adds factor·x·xᵀ.
    pub fn add_outer(&mut self, factor: f64, x: &[f64]) {
        for (i, xi) in x.iter().enumerate() {
            let scaled = factor * xi;
            if scaled != 0.0 {
                add(self.row_mut(i), scaled, x);
            }
        }
    }

    pub fn add_diagonal(&mut self, value: f64) {
        for i in 0..self.size {
            if let Some(last) = self.row_mut(i).last_mut() {
                *last += value;
            }
        }
    }

    /// self·x.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.size];
        for (i, xi) in x.iter().enumerate() {
            let (left, diagonal) = self.row(i).split_at(i);
            y[i] += dot(left, &x[..i]) + diagonal[0] * xi;
            add(&mut y[..i], *xi, left);
        }
        y
    }

    /// The factor L of self = L·Lᵀ.
    ///
    /// # Errors
    /// Failed: it is not positive definite, or not finite.
    pub fn factor(mut self) -> Result<Factor> {
        for i in 0..self.size {
            let (above, own) = self.values.split_at_mut(start(i));
            let own = &mut own[..=i];
            for j in 0..i {
                let other = &above[start(j)..start(j + 1)];
                own[j] = (own[j] - dot(&own[..j], &other[..j])) / other[j];
            }
            let square = own[i] - dot(&own[..i], &own[..i]);
            if !(square.is_finite() && square > 0.0) {
                return Err(Error::failed("the features of the samples are not finite"));
            }
            own[i] = square.sqrt();
        }
        Ok(Factor(self))
    }
}

/// Cholesky's factor of a symmetric matrix.
pub(super) struct Factor(Symmetric);

impl Factor {
    /// L⁻¹·x, in place.
    fn forward(&self, x: &mut [f64]) {
        for i in 0..x.len() {
            let row = self.0.row(i);
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
    }

    /// The matrix's inverse times x, in place.
    pub fn solve(&self, x: &mut [f64]) {
        self.forward(x);
        for i in (0..x.len()).rev() {
            let row = self.0.row(i);
            x[i] /= row[i];
            let factor = -x[i];
            add(&mut x[..i], factor, &row[..i]);
        }
    }

    /// The matrix's inverse.
    pub fn inverse(&self) -> Symmetric {
        let size = self.0.size;
        // The rows of (L⁻¹)ᵀ, each from its diagonal on: the inverse is (L⁻¹)ᵀ·L⁻¹.
        let columns: Vec<Vec<f64>> = (0..size).map(|j| self.inverse_column(j)).collect();
        let mut made = Symmetric::zeros(size);
        for (i, a) in columns.iter().enumerate() {
            for (j, value) in made.row_mut(i).iter_mut().enumerate() {
                *value = dot(a, &columns[j][i - j..]);
            }
        }
        made
    }

    /// The diagonal of the matrix's inverse.
    pub fn inverse_diagonal(&self) -> Vec<f64> {
        let square = |j| {
            let column = self.inverse_column(j);
            dot(&column, &column)
        };
        (0..self.0.size).map(square).collect()
    }

    /// Column `j` of L⁻¹ from its diagonal on.
    fn inverse_column(&self, j: usize) -> Vec<f64> {
        let mut column = vec![0.0; self.0.size - j];
        column[0] = 1.0 / self.0.row(j)[j];
        for i in j + 1..self.0.size {
            let row = self.0.row(i);
            column[i - j] = -dot(&row[j..i], &column[..i - j]) / row[i];
        }
        column
    }
}
