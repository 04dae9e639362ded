//! What cases are built with.

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::logic::Iff;
use tract_core::ops::math as m;
use tract_core::ops::nn::{DataFormat, Reduce, Reducer, Softmax, SoftmaxKind};

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
