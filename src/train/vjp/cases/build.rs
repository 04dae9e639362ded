//! What cases are built with.

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cnn::{Conv, Deconv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::logic::Iff;
use tract_core::ops::math as m;
use tract_core::ops::nn::{DataFormat, Reduce, Reducer, Softmax, SoftmaxKind};
use tract_core::ops::scan::{InputMapping, OutputMapping, Scan, ScanInfo};

use crate::graph as g;
use crate::quant::{Packed, Scheme};

use super::super::check::{Case, random, slice, spread};

/// `random` mapped to what the op takes.
pub(in crate::train::vjp) fn mapped(shape: &[usize], seed: u64, f: impl Fn(f32) -> f32) -> Tensor {
    let values: Vec<f32> = slice(&random(shape, seed)).iter().map(|&v| f(v)).collect();
    Tensor::from_shape(shape, &values).unwrap()
}

pub(in crate::train::vjp) fn unary(
    op: ElementWiseOp,
    f: impl Fn(f32) -> f32,
) -> Vec<Case<'static>> {
    let x = mapped(&[3, 4], 5, f);
    vec![Case::op([x.clone()], op.clone()), Case::op([x], op).symbolic()]
}

/// Equal shapes, either side broadcast, both, one value against many, one trained side, symbols.
pub(in crate::train::vjp) fn binary(
    op: impl Into<TypedBinOp>,
    left: impl Fn(f32) -> f32 + Copy,
    right: impl Fn(f32) -> f32 + Copy,
) -> Vec<Case<'static>> {
    let op = op.into();
    let shapes: [[&[usize]; 2]; 5] = [
        [&[3, 4], &[3, 4]],
        [&[2, 3, 4], &[1, 3, 1]],
        [&[1, 4], &[3, 4]],
        [&[3, 1], &[1, 4]],
        [&[1, 1], &[3, 4]],
    ];
    let pair = |[x, y]: [&[usize]; 2]| [mapped(x, 11, left), mapped(y, 12, right)];
    let mut cases: Vec<Case> =
        shapes.iter().map(|shapes| Case::op(pair(*shapes), op.clone())).collect();
    cases.push(Case::op(pair([&[3, 4], &[1, 4]]), op.clone()).symbolic());
    cases.push(Case::op(pair([&[1, 4], &[3, 4]]), op.clone()).symbolic());
    cases.push(Case::op(pair([&[3, 4], &[1, 4]]), op.clone()).trained(&[0]));
    cases.push(Case::op(pair([&[3, 1], &[3, 4]]), op).trained(&[1]));
    cases
}

pub(in crate::train::vjp) fn einsum(formula: &str, shapes: &[&[usize]]) -> Case<'static> {
    let op = EinSum::new(formula.parse().unwrap(), f32::datum_type());
    let inputs: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, s)| random(s, 20 + i as u64)).collect();
    Case::op(inputs, op)
}

pub(in crate::train::vjp) fn with_constant(
    x: Tensor,
    op: TypedBinOp,
    constant: Tensor,
    slot: usize,
) -> Case<'static> {
    Case::new([x], move |model, sources| {
        let c = model.add_const("c", constant.clone()).unwrap();
        let inputs = if slot == 0 { [sources[0], c] } else { [c, sources[0]] };
        model.wire_node("op", op.clone(), &inputs).unwrap()[0]
    })
}

/// min(max(x, 0), 0.2), where max's gate is read off min's output.
pub(in crate::train::vjp) fn relu6() -> Case<'static> {
    let x: Vec<f32> = slice(&spread(&[4, 5])).iter().map(|v| v + 0.045).collect();
    Case::new([Tensor::from_shape(&[4, 5], &x).unwrap()], |model, sources| {
        let zero = model.add_const("zero", tensor2(&[[0f32]])).unwrap();
        let six = model.add_const("six", tensor2(&[[0.2f32]])).unwrap();
        let relu = model.wire_node("relu", m::max(), &[sources[0], zero]).unwrap()[0];
        model.wire_node("relu6", m::min(), &[relu, six]).unwrap()[0]
    })
}

/// Two tensors nowhere near each other.
pub(in crate::train::vjp) fn apart(is_max: bool) -> Vec<Case<'static>> {
    let op = || if is_max { m::max() } else { m::min() };
    let x = spread(&[3, 4]);
    let y = Tensor::from_shape(
        &[3, 4],
        &slice(&spread(&[3, 4])).iter().rev().map(|v| v + 0.035).collect::<Vec<_>>(),
    )
    .unwrap();
    let row = tensor2(&[[-0.835f32, 0.015, -0.345, -0.485]]);
    let bound = tensor2(&[[-0.335f32]]);
    let bounds = tensor2(&[[-0.335f32], [-0.615], [-0.475]]);
    vec![
        Case::op([x.clone(), y], op()),
        Case::op([x.clone(), row.clone()], op()),
        Case::op([row, x.clone()], op()).symbolic(),
        with_constant(x.clone(), op(), bound.clone(), 0),
        with_constant(x.clone(), op(), bound.clone(), 1),
        with_constant(x.clone(), op(), bound, 0).symbolic(),
        with_constant(x, op(), bounds, 0),
        relu6(),
    ]
}

pub(in crate::train::vjp) fn reduce(reducer: Reducer, x: Tensor) -> Vec<Case<'static>> {
    let axes: [&[usize]; 4] = [&[1], &[0], &[1, 2], &[0, 2]];
    let case = |axes: &[usize]| Case::op([x.clone()], Reduce::new(axes.into(), reducer));
    let mut cases: Vec<Case> = axes.iter().map(|a| case(a)).collect();
    cases.push(case(&[2]).symbolic());
    cases.push(case(&[0, 1]).symbolic());
    cases
}

pub(in crate::train::vjp) fn softmax(kind: SoftmaxKind, axes: &[usize]) -> Case<'static> {
    let op = Softmax { axes: axes.into(), quant_output_dt: None, kind };
    Case::op([mapped(&[3, 4, 2], 9, |v| 2.0 * v)], op)
}

pub(in crate::train::vjp) fn pool_spec(
    format: DataFormat,
    kernel: &[usize],
    padding: PaddingSpec,
) -> PoolSpec {
    PoolSpec {
        data_format: format,
        kernel_shape: kernel.into(),
        padding,
        dilations: None,
        strides: None,
        input_channels: 2,
        output_channels: 2,
    }
}

/// Layouts, strides, dilation, padding of all kinds, one to three spatial axes: with input shapes.
pub(in crate::train::vjp) fn pools() -> Vec<(PoolSpec, Vec<usize>)> {
    use DataFormat::*;
    let one = PaddingSpec::Explicit(tvec![1, 1], tvec![1, 1]);
    let ceil = |up| PaddingSpec::ExplicitOnnxPool(tvec![1, 0], tvec![0, 1], up);
    let strided =
        |spec: PoolSpec, strides: &[usize]| PoolSpec { strides: Some(strides.into()), ..spec };
    vec![
        (pool_spec(NCHW, &[2, 2], PaddingSpec::Valid), vec![2, 2, 3, 4]),
        (strided(pool_spec(NHWC, &[3, 3], one.clone()), &[2, 2]), vec![1, 5, 4, 2]),
        (strided(pool_spec(CHW, &[3, 2], ceil(true)), &[2, 3]), vec![2, 4, 5]),
        (strided(pool_spec(HWC, &[3, 2], ceil(false)), &[2, 3]), vec![4, 5, 2]),
        (strided(pool_spec(NCHW, &[3, 3], PaddingSpec::SameUpper), &[2, 1]), vec![1, 2, 4, 4]),
        (
            PoolSpec { dilations: Some(tvec![1, 2]), ..pool_spec(NCHW, &[2, 2], one) },
            vec![1, 2, 3, 4],
        ),
        (pool_spec(NCHW, &[3], PaddingSpec::SameLower), vec![2, 2, 6]),
        (pool_spec(NHWC, &[2, 1, 2], PaddingSpec::Valid), vec![1, 3, 2, 3, 2]),
    ]
}

pub(in crate::train::vjp) fn conv(
    spec: PoolSpec,
    shape: &[usize],
    fmt: KernelFormat,
    group: usize,
) -> Case<'static> {
    let (ins, outs) = (2, 4);
    let (i, o) = match fmt {
        KernelFormat::OIHW => (ins / group, outs),
        KernelFormat::HWIO | KernelFormat::OHWI => (ins, outs / group),
    };
    let hw = spec.kernel_shape.to_vec();
    let kernel_shape: Vec<usize> = match fmt {
        KernelFormat::OIHW => [vec![o, i], hw].concat(),
        KernelFormat::HWIO => [hw, vec![i, o]].concat(),
        KernelFormat::OHWI => [vec![o], hw, vec![i]].concat(),
    };
    let pool_spec = PoolSpec { input_channels: ins, output_channels: outs, ..spec };
    let op = Conv { pool_spec, kernel_fmt: fmt, group, q_params: None };
    Case::new([random(shape, 31), random(&[outs], 33)], move |model, sources| {
        let kernel = model.add_const("kernel", random(&kernel_shape, 32)).unwrap();
        model.wire_node("op", op.clone(), &[sources[0], kernel, sources[1]]).unwrap()[0]
    })
}

pub(in crate::train::vjp) fn convs() -> Vec<Case<'static>> {
    let mut cases = vec![];
    for (spec, shape) in pools() {
        // A convolution has no ceil mode.
        let spec = match &spec.padding {
            PaddingSpec::ExplicitOnnxPool(before, after, _) => {
                let padding = PaddingSpec::Explicit(before.clone(), after.clone());
                PoolSpec { padding, ..spec }
            }
            _ => spec,
        };
        for (fmt, group) in
            [(KernelFormat::OIHW, 1), (KernelFormat::OIHW, 2), (KernelFormat::HWIO, 1)]
        {
            cases.push(conv(spec.clone(), &shape, fmt, group));
        }
    }
    let valid = || pool_spec(DataFormat::NCHW, &[2, 2], PaddingSpec::Valid);
    cases.push(conv(valid(), &[3, 2, 3, 3], KernelFormat::OIHW, 2).trained(&[0]).symbolic());
    cases
}

/// (5, 4) and (4, 18) as f32.
pub(in crate::train::vjp) fn weights() -> g::FrozenWeights {
    let packed = |rows, cols, seed| {
        Packed::pack(Scheme::F32, rows, cols, slice(&random(&[rows, cols], seed))).unwrap()
    };
    g::FrozenWeights::new(vec![packed(5, 4, 91), packed(4, 18, 92)])
}

pub(in crate::train::vjp) fn frozen_linears() -> Vec<Case<'static>> {
    let op = |bias| g::FrozenLinear::new(&weights(), 0, Some(0), bias).unwrap();
    vec![
        Case::op([random(&[2, 3, 4], 1)], op(false)),
        Case::op([random(&[2, 3, 4], 1), random(&[5], 2)], op(true)),
        Case::op([random(&[3, 4], 1), random(&[5], 2)], op(true)).trained(&[1]),
        Case::op([random(&[3, 4], 1)], op(false)).symbolic(),
    ]
}

/// Over logits, over a layer's rows, with and without its bias; one row counts for nothing.
pub(in crate::train::vjp) fn token_losses() -> Vec<Case<'static>> {
    let layer = |bias| g::FrozenLinear::new(&weights(), 0, None, bias).unwrap();
    let targets = Tensor::from_shape(&[2, 3, 1], &[1f32, 5., 0., 3., 3., 2.]).unwrap();
    let case = |width: usize, head: Option<g::FrozenLinear>| {
        let bias = head.as_ref().filter(|head| head.has_bias).map(|_| random(&[5], 2));
        let inputs: Vec<Tensor> =
            [random(&[2, 3, width], 1), targets.clone()].into_iter().chain(bias).collect();
        Case::new(inputs, move |model, sources| {
            let op = g::TokenLoss { head: head.clone() };
            let sum = model.wire_node("op", op, sources).unwrap()[0];
            model.wire_node("row", AxisOp::Add(0), &[sum]).unwrap()[0]
        })
        .trained(&[0])
    };
    vec![
        case(5, None),
        case(5, None).symbolic(),
        case(4, Some(layer(false))),
        case(4, Some(layer(true))),
        case(4, Some(layer(false))).symbolic(),
    ]
}

/// With and without a bias; one row counts for nothing.
pub(in crate::train::vjp) fn token_drifts() -> Vec<Case<'static>> {
    let case = |bias: bool| {
        let weights = Tensor::from_shape(&[2, 3, 1], &[1f32, 0.5, 0., 2., 1., 3.]).unwrap();
        let bias_values = bias.then(|| random(&[5], 2));
        let features = [random(&[2, 3, 4], 1), random(&[2, 3, 4], 3), weights];
        let inputs: Vec<Tensor> = features.into_iter().chain(bias_values).collect();
        Case::new(inputs, move |model, sources| {
            let head = g::FrozenLinear::new(&self::weights(), 0, None, bias).unwrap();
            let sum = model.wire_node("op", g::TokenDrift { head }, sources).unwrap()[0];
            model.wire_node("row", AxisOp::Add(0), &[sum]).unwrap()[0]
        })
        .trained(&[0])
    };
    vec![case(false), case(true), case(false).symbolic()]
}

/// A repeat, a text that fills all steps, none, and a row that counts for nothing.
pub(in crate::train::vjp) fn ctc_losses() -> Vec<Case<'static>> {
    let targets = [3f32, 3., 0., -1., 1., 2., 4., 3., 0., 0., 0., 0., 1., 0., 0., 0.];
    let targets = Tensor::from_shape(&[4, 4, 1], &targets).unwrap();
    let inputs = [random(&[4, 4, 5], 1), targets, tensor1(&[0.5f32, 0.25, 1., 0.])];
    let case = || {
        Case::new(inputs.clone(), |model, sources| {
            let sum = model.wire_node("op", g::CtcLoss { blank: 4 }, sources).unwrap()[0];
            model.wire_node("row", AxisOp::Add(0), &[sum]).unwrap()[0]
        })
        .trained(&[0])
    };
    vec![case(), case().symbolic()]
}

/// Kernels of six taps with every kind of padding, stride and dilation.
pub(in crate::train::vjp) fn windows() -> [g::Window; 4] {
    let window =
        |kernel, stride, dilation, padding| g::Window { kernel, stride, dilation, padding };
    [
        window([3, 2], [1, 1], [1, 1], g::Padding::Valid),
        window([3, 2], [2, 1], [1, 1], g::Padding::Explicit([1, 0, 1, 1])),
        window([2, 3], [1, 2], [2, 1], g::Padding::SameUpper),
        window([2, 3], [2, 2], [1, 2], g::Padding::SameLower),
    ]
}

pub(in crate::train::vjp) fn gather(axis: usize, at: Tensor) -> Case<'static> {
    Case::op([random(&[3, 4, 2], 41), at], a::Gather::new(axis))
}

pub(in crate::train::vjp) fn reshape(at: usize, from: &[usize], to: &[usize]) -> AxisOp {
    let dims = |d: &[usize]| d.iter().map(|d| d.to_dim()).collect();
    AxisOp::Reshape(at, dims(from), dims(to))
}

pub(in crate::train::vjp) fn iff(mask: &[usize], yes: &[usize], no: &[usize]) -> Case<'static> {
    let bits: Vec<bool> = slice(&random(mask, 51)).iter().map(|&v| v > 0.0).collect();
    let mask = Tensor::from_shape(mask, &bits).unwrap();
    Case::op([mask, random(yes, 52), random(no, 53)], Iff)
}

/// How a case's loop differs from h = tanh(x·Wᵀ + h·Wᵀ) of which every step is seen.
#[derive(Clone, Copy, Default)]
pub(in crate::train::vjp) struct Loop {
    /// From the end to the beginning.
    pub backwards: bool,
    /// The last step of the state is seen, too.
    pub last: bool,
    /// No other step is.
    pub only_last: bool,
    /// No state: what each step gives is x·Wᵀ.
    pub stateless: bool,
    /// What is seen of each step is not the state, but its square.
    pub apart: bool,
}

/// Of x (B, T, 4), W (4, 4) and the first h (B, 1, 4).
pub(in crate::train::vjp) fn looped(kind: Loop) -> Case<'static> {
    let inputs = [random(&[2, 3, 4], 41), random(&[4, 4], 42), random(&[2, 1, 4], 43)];
    Case::new(inputs, move |model, sources| {
        let info = ScanInfo { axis: 1, chunk: if kind.backwards { -1 } else { 1 } };
        let mut body = TypedModel { symbols: model.symbols.clone(), ..TypedModel::default() };
        let fact = |axis: usize| {
            let mut fact = model.outlet_fact(sources[axis]).unwrap().clone();
            if axis == 0 {
                fact.shape.set(1, 1.to_dim());
            }
            fact
        };
        let x = body.add_source("x", fact(0)).unwrap();
        let w = body.add_source("w", fact(1)).unwrap();
        let product = |body: &mut TypedModel, name: &str, left| {
            let op = EinSum::new("abk,nk->abn".parse().unwrap(), f32::datum_type());
            body.wire_node(name, op, &[left, w]).unwrap()[0]
        };
        let wx = product(&mut body, "wx", x);
        let mut mapping = vec![InputMapping::Scan(info), InputMapping::Full];
        let seen = |slot: Option<usize>, last: Option<usize>, state| OutputMapping {
            scan: slot.map(|slot| (slot, info)),
            full_dim_hint: None,
            last_value_slot: last,
            state,
        };
        if kind.stateless {
            body.select_output_outlets(&[wx]).unwrap();
            let last = kind.last.then_some(1);
            let op = Scan::new(body, mapping, vec![seen(Some(0), last, false)], 0).unwrap();
            let found = model.wire_node("op", op, &sources[..2]).unwrap();
            return joined(model, &found);
        }
        let h = body.add_source("h", fact(2)).unwrap();
        mapping.push(InputMapping::State);
        let wh = product(&mut body, "wh", h);
        let sum = body.wire_node("sum", m::add(), &[wx, wh]).unwrap()[0];
        let h = body.wire_node("new", m::tanh(), &[sum]).unwrap()[0];
        let (outlets, outputs) = if kind.apart {
            let square = body.wire_node("square", m::square(), &[h]).unwrap()[0];
            let last = kind.last.then_some(1);
            (vec![square, h], vec![seen(Some(0), last, false), seen(None, None, true)])
        } else if kind.only_last {
            (vec![h], vec![seen(None, Some(0), true)])
        } else {
            (vec![h], vec![seen(Some(0), kind.last.then_some(1), true)])
        };
        body.select_output_outlets(&outlets).unwrap();
        let mut op = Scan::new(body, mapping, outputs, 0).unwrap();
        op.reset_every_turn = true;
        let found = model.wire_node("op", op, sources).unwrap();
        joined(model, &found)
    })
}

/// All that a loop gives, along its steps.
fn joined(model: &mut TypedModel, found: &[OutletId]) -> OutletId {
    match found {
        [one] => *one,
        several => model.wire_node("joined", a::TypedConcat::new(1), several).unwrap()[0],
    }
}

/// Transposed convolutions of 4 channels to 2.
pub(in crate::train::vjp) fn deconvs() -> Vec<Case<'static>> {
    let one = PaddingSpec::Explicit(tvec![1, 0], tvec![0, 1]);
    let strided = |spec: PoolSpec| PoolSpec { strides: Some(tvec![2, 1]), ..spec };
    let specs = [
        (pool_spec(DataFormat::NCHW, &[2, 3], PaddingSpec::Valid), tvec![0, 0]),
        (strided(pool_spec(DataFormat::NCHW, &[3, 2], one.clone())), tvec![1, 0]),
        (strided(pool_spec(DataFormat::NHWC, &[3, 2], one)), tvec![0, 0]),
        (strided(pool_spec(DataFormat::NCHW, &[3, 2], PaddingSpec::SameUpper)), tvec![0, 0]),
        (
            PoolSpec {
                dilations: Some(tvec![2, 1]),
                ..pool_spec(DataFormat::NCHW, &[2, 2], PaddingSpec::Valid)
            },
            tvec![0, 0],
        ),
    ];
    let mut cases = vec![];
    for (spec, adjustments) in specs {
        for group in [1, 2] {
            let spec = PoolSpec { input_channels: 4, output_channels: 2, ..spec.clone() };
            let shape = match spec.data_format {
                DataFormat::NHWC => [2, 3, 2, 4],
                _ => [2, 4, 3, 2],
            };
            let kernel = [&[2, 4 / group][..], &spec.kernel_shape].concat();
            let adjustments = adjustments.clone();
            let kernel_format = KernelFormat::OIHW;
            let op = Deconv { pool_spec: spec, kernel_format, adjustments, group };
            let inputs = [random(&shape, 31), random(&[2], 33)];
            cases.push(Case::new(inputs, move |model, sources| {
                let kernel = model.add_const("kernel", random(&kernel, 32)).unwrap();
                model.wire_node("op", op.clone(), &[sources[0], kernel, sources[1]]).unwrap()[0]
            }));
        }
    }
    cases
}

/// Up and down by every interpolation.
pub(in crate::train::vjp) fn resizes() -> Vec<Case<'static>> {
    use tract_core::ops::nn::resize::{CoordTransformer::*, Interpolator, Nearest, Resize};
    let by = [
        (Interpolator::Linear, HalfPixel),
        (Interpolator::Linear, AlignCorners),
        (Interpolator::Cubic, HalfPixel),
        (Interpolator::Nearest, Asymmetric),
    ];
    let mut cases = vec![];
    for (interpolator, coord_transformer) in by {
        for scales in [[1f32, 1.0, 2.0, 1.5], [1.0, 1.0, 0.5, 1.0]] {
            let op = Resize {
                coord_transformer: coord_transformer.clone(),
                interpolator: interpolator.clone(),
                nearest: Nearest::Floor,
                optional_scales_input: Some(1),
                optional_sizes_input: None,
            };
            cases.push(Case::new([random(&[1, 2, 4, 4], 1)], move |model, sources| {
                let scales = model.add_const("scales", tensor1(&scales)).unwrap();
                model.wire_node("op", op.clone(), &[sources[0], scales]).unwrap()[0]
            }));
        }
    }
    cases
}
