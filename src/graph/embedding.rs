//! The frozen embedding table.

use tract_core::internal::*;

use super::changes::{Span, spans};
use super::weights::{FrozenWeights, filled};
use crate::quant::{PANEL, PackedRef, Scheme};

/// y\[.., N\] = rows of the table (V, N) in the weight table, taken by ids\[..\] (i64 or i32); an id
/// below zero counts from the end. An active adapter adds lora_aᵀ\[id\] · lora_bᵀ to each row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenEmbedding {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of the table in the weight table.
    pub weight: usize,
    /// Index in the target table, if an adapter may change this layer.
    pub target: Option<usize>,
    /// V, the vocabulary.
    pub rows: usize,
    /// N, the length of a row.
    pub features: usize,
}

impl FrozenEmbedding {
    /// The table whose shape is that of weight `weight`; an error if there is no such weight.
    pub fn new(
        weights: &FrozenWeights,
        weight: usize,
        target: Option<usize>,
    ) -> TractResult<FrozenEmbedding> {
        let w = weights.weight(weight)?;
        let (rows, features) = (w.rows(), w.cols());
        Ok(FrozenEmbedding { weights: weights.clone(), weight, target, rows, features })
    }
}

/// Column `column` of an f32-packed matrix: `out` has a value for each row. The layout is in the
/// documentation of [`crate::quant`].
fn f32_column(matrix: PackedRef<'_>, column: usize, out: &mut [f32]) -> TractResult<()> {
    ensure!(
        matrix.scheme() == Scheme::F32 && column < matrix.cols() && out.len() == matrix.rows(),
        "column {column} of a {} matrix ({}, {})",
        matrix.scheme().name(),
        matrix.rows(),
        matrix.cols()
    );
    let panel = 4 * PANEL * matrix.cols();
    for (p, out) in out.chunks_mut(PANEL).enumerate() {
        let at = p * panel + column * 4 * PANEL;
        let bytes =
            matrix.bytes().get(at..at + 4 * out.len()).context("packed matrix too short")?;
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *out = f32::from_le_bytes(bytes.try_into()?);
        }
    }
    Ok(())
}

impl Op for FrozenEmbedding {
    fn name(&self) -> StaticName {
        "FrozenEmbedding".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let (v, n) = (self.rows, self.features);
        Ok(vec![format!("{v} rows of {n}, weight {}, target {:?}", self.weight, self.target)])
    }

    op_as_typed_op!();
}

impl EvalOp for FrozenEmbedding {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let table = self.weights.weight(self.weight)?;
        let ids = inputs[0].cast_to::<i64>()?;
        let ids = ids.try_as_plain_ram()?.as_slice::<i64>()?;
        let batch = inputs[0].shape().first().copied().unwrap_or(1);
        let spans = spans(ctx, self.target, batch)?;
        for span in &spans {
            span.change.check_table(table.rows(), table.cols()).map_err(|e| format_err!("{e}"))?;
        }
        let each = ids.len() / batch.max(1);
        let mut shape: TVec<usize> = inputs[0].shape().into();
        shape.push(table.cols());
        let y = filled(&shape, |y| {
            for (at, (id, y)) in ids.iter().zip(y.chunks_exact_mut(table.cols().max(1))).enumerate()
            {
                let index = if *id < 0 { *id + table.rows() as i64 } else { *id };
                let row = usize::try_from(index).ok().filter(|row| *row < table.rows());
                let Some(row) = row else {
                    bail!(
                        "id {id} is outside the embedding table of {} rows (node {}, weight {})",
                        table.rows(),
                        ctx.node_id,
                        self.weight
                    );
                };
                let span = spans.iter().find(|s| s.rows.contains(&(at / each.max(1))));
                let Some(Span { change, .. }) = span else {
                    table.row(row, y);
                    continue;
                };
                if !change.rows.as_ref().is_some_and(|rows| rows.row(row, y)) {
                    table.row(row, y);
                }
                let mut found = Ok(());
                change.of_table(|a, inner| found = f32_column(a, row, inner), y);
                found?;
            }
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for FrozenEmbedding {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        let dt = inputs[0].datum_type;
        ensure!(
            dt == i64::datum_type() || dt == i32::datum_type(),
            "ids: expected i64 or i32 values, found {dt:?}"
        );
        let mut shape = inputs[0].shape.to_tvec();
        shape.push(self.features.to_dim());
        Ok(tvec!(f32::fact(shape)))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let params = (self.rows * self.features).to_dim();
        Ok(tvec!(
            (Cost::Buffer(f32::datum_type()), inputs[0].shape.volume() * self.features),
            (Cost::Params(f32::datum_type()), params)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{bound, matrix, run, run_with, values};
    use crate::graph::weights::floats;

    fn table() -> (Vec<f32>, FrozenEmbedding) {
        let w = values(40 * 7, 1);
        let weights = FrozenWeights::new(vec![matrix(40, 7, &w)]);
        (w, FrozenEmbedding::new(&weights, 0, Some(0)).unwrap())
    }

    #[test]
    fn ids_take_rows_and_negative_ones_count_from_the_end() {
        let (w, op) = table();
        let ids = [3i64, 0, -1, 39, -40, 17];
        let want: Vec<f32> =
            ids.iter().flat_map(|i| w[i.rem_euclid(40) as usize * 7..][..7].to_vec()).collect();
        let long = Tensor::from_shape(&[2, 3], &ids).unwrap();
        let short = Tensor::from_shape(&[2, 3], &ids.map(|i| i as i32)).unwrap();
        for ids in [long, short] {
            let y = run(op.clone(), &[ids]).unwrap();
            assert_eq!(y.shape(), &[2, 3, 7]);
            assert_eq!(floats(&y).unwrap(), want);
        }
    }

    #[test]
    fn ids_outside_the_table_are_named() {
        let (_, op) = table();
        for id in [40, -41, i64::MIN, i64::MAX] {
            let e = run(op.clone(), &[tensor1(&[0, id])]).unwrap_err();
            let text = format!("{e:#}");
            assert!(text.contains(&format!("id {id} is outside")), "{text}");
            assert!(text.contains("40 rows") && text.contains("frozen"), "{text}");
        }
    }

    #[test]
    fn an_active_adapter_adds_to_the_rows_it_takes() {
        let (w, op) = table();
        for rank in [1, 4, 21] {
            let (a, b) = (values(rank * 40, 4), values(7 * rank, 5));
            let ids = tensor1(&[5i64, -2, 5]);
            let y = run_with(op.clone(), &[ids], Some(&bound(vec![Some((rank, &a, &b))]))).unwrap();
            let want: Vec<f32> = [5usize, 38, 5]
                .iter()
                .flat_map(|&v| {
                    let (w, a, b) = (&w, &a, &b);
                    (0..7).map(move |n| {
                        let add: f32 = (0..rank).map(|r| a[r * 40 + v] * b[n * rank + r]).sum();
                        w[v * 7 + n] + add
                    })
                })
                .collect();
            y.close_enough(&Tensor::from_shape(&[3, 7], &want).unwrap(), true).unwrap();
        }
    }
}
