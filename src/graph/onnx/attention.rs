//! Attention, of ONNX (operator sets 23 on) and of ONNX Runtime.
//!
//! What a mask closes counts −f32::MAX (infinities would make NaN of a row that is closed throughout;
//! such a row gives 0, as the operator's definition says).

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::{DataFormat, Reducer};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "Attention" => attention;
    "CausalConvWithState" => causal_convolution;
    "com.microsoft.Attention" => packed;
    "com.microsoft.MultiHeadAttention" => multi_head;
}

const CLOSED: f64 = f32::MIN as f64;

/// (B, T, heads · d) → (B, heads, T, d)
fn heads_first(w: &mut Wiring<'_>, x: Wire, heads: usize) -> TractResult<Wire> {
    let width = w.shape(x)?[2].clone();
    ensure!(
        width.to_i64().map_or(true, |n| heads > 0 && n % heads as i64 == 0),
        "{width} features in {heads} heads"
    );
    let x = w.split_axis(x, 2, &[heads.to_dim(), width / heads])?;
    w.op(AxisOp::Move(2, 1), &[x])
}

/// (B, heads, T, d) → (B, T, heads · d)
fn heads_last(w: &mut Wiring<'_>, x: Wire) -> TractResult<Wire> {
    let x = w.op(AxisOp::Move(1, 2), &[x])?;
    w.merge_axes(x, 2, 2)
}

/// What is added to the scores (.., T, S), and whether it may close a whole row.
#[derive(Default)]
struct Bias {
    sum: Option<Wire>,
    whole_rows: bool,
}

impl Bias {
    fn add(&mut self, w: &mut Wiring<'_>, bias: Wire, whole_rows: bool) -> TractResult<()> {
        self.whole_rows |= whole_rows;
        self.sum = Some(match self.sum {
            Some(sum) => w.add(sum, bias)?,
            None => bias,
        });
        Ok(())
    }

    /// 0 where `open`, closed elsewhere.
    fn close(
        &mut self,
        w: &mut Wiring<'_>,
        open: Wire,
        like: Wire,
        whole_rows: bool,
    ) -> TractResult<()> {
        let (yes, no) = (w.number(0.0, like)?, w.number(CLOSED, like)?);
        let bias = w.select(open, yes, no)?;
        self.add(w, bias, whole_rows)
    }
}

/// softmax(scores + bias) over the last axis; rows that are closed throughout become 0.
fn weights(w: &mut Wiring<'_>, scores: Wire, bias: &Bias) -> TractResult<Wire> {
    let last = w.rank(scores)? - 1;
    let Some(sum) = bias.sum else { return w.softmax(scores, last) };
    let biased = w.add(scores, sum)?;
    if !bias.whole_rows {
        return w.softmax(biased, last);
    }
    let axis = w.rank(sum)? - 1;
    let open = w.reduce(Reducer::Max, sum, &[axis], true)?;
    let half = w.number(CLOSED / 2.0, sum)?;
    let closed = w.less(open, half)?;
    let zero = w.number(0.0, scores)?;
    let shape = w.shape(biased)?;
    let (closed, zero) = (w.broadcast(closed, &shape)?, w.broadcast(zero, &shape)?);
    let biased = w.select(closed, zero, biased)?;
    let probabilities = w.softmax(biased, last)?;
    w.select(closed, zero, probabilities)
}

/// Each head `count` times over: (B, H, ..) → (B, H · count, ..).
fn repeated(w: &mut Wiring<'_>, x: Wire, count: usize) -> TractResult<Wire> {
    if count == 1 {
        return Ok(x);
    }
    let x = w.add_axis(x, 2)?;
    let mut shape = w.shape(x)?;
    shape[2] = count.to_dim();
    let x = w.broadcast(x, &shape)?;
    w.merge_axes(x, 1, 2)
}

fn attention(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (mut q, mut k, mut v) = (w.input(0)?, w.input(1)?, w.input(2)?);
    let flat = w.rank(q)? == 3;
    if flat {
        let query_heads = w.int("q_num_heads", 0) as usize;
        let key_heads = w.int("kv_num_heads", 0) as usize;
        ensure!(query_heads > 0 && key_heads > 0, "the numbers of heads are not stated");
        q = heads_first(w, q, query_heads)?;
        k = heads_first(w, k, key_heads)?;
        v = heads_first(w, v, key_heads)?;
    }
    ensure!(w.rank(q)? == 4, "queries of {} axes, 3 or 4 are known", w.rank(q)?);
    let mut past = 0.to_dim();
    if let (Some(key), Some(value)) = (w.optional(4), w.optional(5)) {
        past = w.shape(key)?[2].clone();
        k = w.concat(2, &[key, k])?;
        v = w.concat(2, &[value, v])?;
    }
    let present = (k, v);
    let dtype = w.dtype(q)?;
    let width = w.shape(q)?[3].to_i64().context("the width of a head must be fixed")?;
    let scale = match w.float("scale", 0.0) {
        s if w.has("scale") => s as f64,
        _ => 1.0 / (width as f64).sqrt(),
    };
    let heads = |w: &Wiring<'_>, x| w.shape(x).map(|s| s[1].to_usize());
    let (query_heads, key_heads) = (heads(w, q)??, heads(w, k)??);
    ensure!(
        key_heads > 0 && query_heads % key_heads == 0,
        "{query_heads} heads of queries and {key_heads} of keys"
    );
    let k = repeated(w, k, query_heads / key_heads)?;
    let v = repeated(w, v, query_heads / key_heads)?;
    // As the definition has it, for half precision's sake.
    let root = scale.sqrt();
    let (q, k) = (w.scaled(q, root)?, w.scaled(k, root)?);
    let raw = w.einsum("bhtd,bhsd->bhts", &[q, k])?;
    let softcap = w.float("softcap", 0.0) as f64;
    let mut scores = raw;
    if softcap > 0.0 {
        scores = w.scaled(scores, 1.0 / softcap)?;
        scores = w.tanh(scores)?;
        scores = w.scaled(scores, softcap)?;
    }
    // Whatever softmax_precision says: others differ in rounding alone, and half precision has no number
    // for what is closed.
    scores = w.cast(scores, f32::datum_type())?;
    let bias = bias(w, scores, &past)?;
    let mode = w.int("qk_matmul_output_mode", 0);
    let biased = match bias.sum {
        Some(sum) if mode == 2 && w.has_output(3) => {
            let biased = w.add(scores, sum)?;
            let half = w.number(CLOSED / 2.0, biased)?;
            let closed = w.less(biased, half)?;
            let shape = w.shape(biased)?;
            let never = w.number(f64::NEG_INFINITY, biased)?;
            let never = w.broadcast(never, &shape)?;
            w.select(closed, never, biased)?
        }
        _ => scores,
    };
    let probabilities = weights(w, scores, &bias)?;
    let probabilities = w.cast(probabilities, dtype)?;
    let mut y = w.einsum("bhts,bhsd->bhtd", &[probabilities, v])?;
    if flat {
        y = heads_last(w, y)?;
    }
    let seen = match mode {
        0 | 1 => scores,
        2 => biased,
        3 => probabilities,
        _ => bail!("qk_matmul_output_mode is {mode}"),
    };
    let seen = w.cast(seen, dtype)?;
    Ok(tvec!(y, present.0, present.1, seen))
}

/// What attention's masks add to the scores (B, H, T, S), after `past` earlier keys.
fn bias(w: &mut Wiring<'_>, scores: Wire, past: &TDim) -> TractResult<Bias> {
    let shape = w.shape(scores)?;
    let (queries, keys) = (shape[2].clone(), shape[3].clone());
    let mut bias = Bias::default();
    if let Some(mask) = w.optional(3) {
        let rank = w.rank(mask)?;
        let own = w.shape(mask)?[rank - 1].clone();
        let short = keys.clone() - &own;
        let boolean = w.dtype(mask)? == bool::datum_type();
        let mut mask = mask;
        if short != 0.to_dim() && own != 1.to_dim() {
            let short =
                short.to_usize().context("the mask is shorter than the keys by an open number")?;
            let mut pads = vec![(0, 0); rank];
            pads[rank - 1].1 = short;
            let closed = if boolean { tensor0(false) } else { tensor0(f32::MIN) };
            mask = w.pad(mask, &pads, closed)?;
        }
        if boolean {
            bias.close(w, mask, scores, true)?;
        } else {
            let dtype = w.dtype(scores)?;
            let mask = w.cast(mask, dtype)?;
            // −∞ in the file's own mask.
            let low = w.number(CLOSED, mask)?;
            let mask = w.max(mask, low)?;
            bias.add(w, mask, true)?;
        }
    }
    let causal = w.int("is_causal", 0) != 0;
    let (left, right) = (w.int("left_window_size", -1), w.int("right_window_size", -1));
    let lengths = w.optional(6);
    if causal || left >= 0 || right >= 0 {
        let rows = w.counting(&queries)?;
        let rows = w.add_axis(rows, 1)?;
        let columns = w.counting(&keys)?;
        // Where the first query stands among the keys.
        let first = match lengths {
            Some(lengths) => {
                let mut lengths = w.cast(lengths, i64::datum_type())?;
                for axis in 1..4 {
                    lengths = w.add_axis(lengths, axis)?;
                }
                let count = w.tensor(tensor0(queries.clone()))?;
                let count = w.cast(count, i64::datum_type())?;
                w.sub(lengths, count)?
            }
            None => {
                let past = w.tensor(tensor0(past.clone()))?;
                w.cast(past, i64::datum_type())?
            }
        };
        let places = w.add(rows, first)?;
        let whole_rows = lengths.is_some();
        if causal {
            let open = w.at_most(columns, places)?;
            bias.close(w, open, scores, whole_rows)?;
        }
        let behind = w.sub(places, columns)?;
        if left >= 0 {
            let most = w.number_of(left as f64, i64::datum_type())?;
            let open = w.at_most(behind, most)?;
            bias.close(w, open, scores, true)?;
        }
        if right >= 0 {
            let most = w.number_of(-right as f64, i64::datum_type())?;
            let open = w.at_least(behind, most)?;
            bias.close(w, open, scores, true)?;
        }
    }
    if let Some(lengths) = lengths {
        let mut lengths = w.cast(lengths, i64::datum_type())?;
        for axis in 1..4 {
            lengths = w.add_axis(lengths, axis)?;
        }
        let columns = w.counting(&keys)?;
        let open = w.less(columns, lengths)?;
        bias.close(w, open, scores, true)?;
    }
    Ok(bias)
}

/// ONNX Runtime's masks of keys: (B, S) of 0 and 1, or (B, T, S).
fn key_mask(w: &mut Wiring<'_>, bias: &mut Bias, mask: Wire, scores: Wire) -> TractResult<()> {
    let mut mask = w.cast(mask, i64::datum_type())?;
    match w.rank(mask)? {
        2 => {
            mask = w.add_axis(mask, 1)?;
            mask = w.add_axis(mask, 1)?;
        }
        3 => mask = w.add_axis(mask, 1)?,
        rank => bail!("a mask of {rank} axes, 2 and 3 are known"),
    }
    let zero = w.number_of(0.0, i64::datum_type())?;
    let open = w.greater(mask, zero)?;
    bias.close(w, open, scores, true)
}

/// com.microsoft.Attention after its product: queries, keys and values side by side (B, T, 3 · F).
fn packed(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    ensure!(w.optional(4).is_none(), "past states (input 4) are not known");
    ensure!(w.int("do_rotary", 0) == 0, "do_rotary is not known");
    ensure!(!w.has("qkv_hidden_sizes"), "qkv_hidden_sizes is not known");
    let heads = w.int("num_heads", 0) as usize;
    ensure!(heads > 0, "num_heads is not stated");
    // The import makes the product a layer of its own.
    ensure!(w.optional(1).is_none(), "the weight is computed while the graph runs");
    let all = w.input(0)?;
    let width = w.shape(all)?[2].clone() / 3;
    let part = |w: &mut Wiring<'_>, i: usize| -> TractResult<Wire> {
        let x = w.slice(all, 2, width.clone() * i, width.clone() * (i + 1))?;
        heads_first(w, x, heads)
    };
    let (q, k, v) = (part(w, 0)?, part(w, 1)?, part(w, 2)?);
    let (mask, added) = (w.optional(3), w.optional(5));
    let causal = w.int("unidirectional", 0) != 0;
    Ok(tvec!(contracted(w, q, k, v, mask, added, causal)?))
}

/// com.microsoft.MultiHeadAttention without past states: q (B, T, F), k and v (B, S, F).
fn multi_head(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    ensure!(w.optional(6).is_none() && w.optional(7).is_none(), "past states are not known");
    let heads = w.int("num_heads", 0) as usize;
    ensure!(heads > 0, "num_heads is not stated");
    let (mut q, mut k, mut v) = (w.input(0)?, w.input(1)?, w.input(2)?);
    ensure!(
        w.rank(q)? == 3 && w.rank(k)? == 3 && w.rank(v)? == 3,
        "queries, keys or values packed into one are not known"
    );
    if let Some(bias) = w.optional(3) {
        let (a, b) = (w.shape(q)?[2].clone(), w.shape(v)?[2].clone());
        let parts = [
            w.slice(bias, 0, 0, a.clone())?,
            w.slice(bias, 0, a.clone(), a.clone() * 2)?,
            w.slice(bias, 0, a.clone() * 2, a * 2 + b)?,
        ];
        q = w.add(q, parts[0])?;
        k = w.add(k, parts[1])?;
        v = w.add(v, parts[2])?;
    }
    let q = heads_first(w, q, heads)?;
    let k = heads_first(w, k, heads)?;
    let v = heads_first(w, v, heads)?;
    let (mask, added) = (w.optional(4), w.optional(5));
    let causal = w.int("unidirectional", 0) != 0;
    Ok(tvec!(contracted(w, q, k, v, mask, added, causal)?))
}

fn contracted(
    w: &mut Wiring<'_>,
    q: Wire,
    k: Wire,
    v: Wire,
    mask: Option<Wire>,
    added: Option<Wire>,
    causal: bool,
) -> TractResult<Wire> {
    let width = w.shape(q)?[3].to_i64().context("the width of a head must be fixed")?;
    let stated = w.float("scale", 0.0) as f64;
    let scale = if stated == 0.0 { 1.0 / (width as f64).sqrt() } else { stated };
    let scores = w.einsum("bhtd,bhsd->bhts", &[q, k])?;
    let dtype = w.dtype(scores)?;
    let scores = w.scaled(scores, scale)?;
    let scores = w.cast(scores, f32::datum_type())?;
    let mut bias = Bias::default();
    if let Some(mask) = mask {
        key_mask(w, &mut bias, mask, scores)?;
    }
    if let Some(added) = added {
        bias.add(w, added, false)?;
    }
    if causal {
        let shape = w.shape(scores)?;
        let rows = w.counting(&shape[2])?;
        let rows = w.add_axis(rows, 1)?;
        let columns = w.counting(&shape[3])?;
        let open = w.at_most(columns, rows)?;
        bias.close(w, open, scores, false)?;
    }
    let probabilities = weights(w, scores, &bias)?;
    let probabilities = w.cast(probabilities, dtype)?;
    let y = w.einsum("bhts,bhsd->bhtd", &[probabilities, v])?;
    heads_last(w, y)
}

/// A depthwise convolution over the last positions and those kept from before.
fn causal_convolution(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, weight) = (w.input(0)?, w.input(1)?);
    let dims = w.dims(weight)?;
    ensure!(dims.len() == 3 && dims[1] == 1 && dims[2] > 0, "a weight of the shape {dims:?}");
    let (channels, taps) = (dims[0], dims[2]);
    let padded = match w.optional(3) {
        Some(past) => w.concat(2, &[past, x])?,
        None => w.pad(x, &[(0, 0), (0, 0), (taps - 1, 0)], tensor0(0f32))?,
    };
    let bias = match w.optional(2) {
        Some(bias) => bias,
        None => w.number(0.0, x)?,
    };
    let pool_spec = PoolSpec::new(
        DataFormat::NCHW,
        tvec!(taps),
        PaddingSpec::Valid,
        None,
        None,
        channels,
        channels,
    );
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: channels, q_params: None };
    let mut y = w.op(conv, &[padded, weight, bias])?;
    match w.text("activation", "none") {
        "none" => {}
        "silu" | "swish" => {
            let gate = w.sigmoid(y)?;
            y = w.mul(y, gate)?;
        }
        other => bail!("activation is '{other}'"),
    }
    let all = w.shape(padded)?[2].clone();
    let kept = w.slice(padded, 2, all.clone() - (taps - 1), all)?;
    Ok(tvec!(y, kept))
}
