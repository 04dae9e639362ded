//! One list of cases for each rule of the table.

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::cast;
use tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_core::ops::downsample::Downsample;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::identity::Identity;
use tract_core::ops::logic::Iff;
use tract_core::ops::math as m;
use tract_core::ops::nn::{self as n, DataFormat, Reduce, Reducer, Softmax, SoftmaxKind};

use crate::graph as g;
use crate::quant::{Packed, Scheme};

use super::check::{Case, random, slice, spread};
use super::{TABLE, rule_names};

/// `random` mapped to what the op takes.
fn mapped(shape: &[usize], seed: u64, f: impl Fn(f32) -> f32) -> Tensor {
    let values: Vec<f32> = slice(&random(shape, seed)).iter().map(|&v| f(v)).collect();
    Tensor::from_shape(shape, &values).unwrap()
}

fn unary(op: ElementWiseOp, f: impl Fn(f32) -> f32) -> Vec<Case<'static>> {
    let x = mapped(&[3, 4], 5, f);
    vec![Case::op([x.clone()], op.clone()), Case::op([x], op).symbolic()]
}

/// Equal shapes, either side broadcast, both, one value against many, one trained side, symbols.
fn binary(
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

fn einsum(formula: &str, shapes: &[&[usize]]) -> Case<'static> {
    let op = EinSum::new(formula.parse().unwrap(), f32::datum_type());
    let inputs: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, s)| random(s, 20 + i as u64)).collect();
    Case::op(inputs, op)
}

fn with_constant(x: Tensor, op: TypedBinOp, constant: Tensor, slot: usize) -> Case<'static> {
    Case::new([x], move |model, sources| {
        let c = model.add_const("c", constant.clone()).unwrap();
        let inputs = if slot == 0 { [sources[0], c] } else { [c, sources[0]] };
        model.wire_node("op", op.clone(), &inputs).unwrap()[0]
    })
}

/// min(max(x, 0), 0.2), where max's gate is read off min's output.
fn relu6() -> Case<'static> {
    let x: Vec<f32> = slice(&spread(&[4, 5])).iter().map(|v| v + 0.045).collect();
    Case::new([Tensor::from_shape(&[4, 5], &x).unwrap()], |model, sources| {
        let zero = model.add_const("zero", tensor2(&[[0f32]])).unwrap();
        let six = model.add_const("six", tensor2(&[[0.2f32]])).unwrap();
        let relu = model.wire_node("relu", m::max(), &[sources[0], zero]).unwrap()[0];
        model.wire_node("relu6", m::min(), &[relu, six]).unwrap()[0]
    })
}

/// Two tensors nowhere near each other.
fn apart(is_max: bool) -> Vec<Case<'static>> {
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

fn reduce(reducer: Reducer, x: Tensor) -> Vec<Case<'static>> {
    let axes: [&[usize]; 4] = [&[1], &[0], &[1, 2], &[0, 2]];
    let case = |axes: &[usize]| Case::op([x.clone()], Reduce::new(axes.into(), reducer));
    let mut cases: Vec<Case> = axes.iter().map(|a| case(a)).collect();
    cases.push(case(&[2]).symbolic());
    cases.push(case(&[0, 1]).symbolic());
    cases
}

fn softmax(kind: SoftmaxKind, axes: &[usize]) -> Case<'static> {
    let op = Softmax { axes: axes.into(), quant_output_dt: None, kind };
    Case::op([mapped(&[3, 4, 2], 9, |v| 2.0 * v)], op)
}

fn pool_spec(format: DataFormat, kernel: &[usize], padding: PaddingSpec) -> PoolSpec {
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
fn pools() -> Vec<(PoolSpec, Vec<usize>)> {
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

fn conv(spec: PoolSpec, shape: &[usize], fmt: KernelFormat, group: usize) -> Case<'static> {
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

fn convs() -> Vec<Case<'static>> {
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
fn weights() -> g::FrozenWeights {
    let packed = |rows, cols, seed| {
        Packed::pack(Scheme::F32, rows, cols, slice(&random(&[rows, cols], seed))).unwrap()
    };
    g::FrozenWeights::new(vec![packed(5, 4, 91), packed(4, 18, 92)])
}

fn frozen_linears() -> Vec<Case<'static>> {
    let op = |bias| g::FrozenLinear::new(&weights(), 0, Some(0), bias).unwrap();
    vec![
        Case::op([random(&[2, 3, 4], 1)], op(false)),
        Case::op([random(&[2, 3, 4], 1), random(&[5], 2)], op(true)),
        Case::op([random(&[3, 4], 1), random(&[5], 2)], op(true)).trained(&[1]),
        Case::op([random(&[3, 4], 1)], op(false)).symbolic(),
    ]
}

/// Kernels of six taps with every kind of padding, stride and dilation.
fn windows() -> [g::Window; 4] {
    let window =
        |kernel, stride, dilation, padding| g::Window { kernel, stride, dilation, padding };
    [
        window([3, 2], [1, 1], [1, 1], g::Padding::Valid),
        window([3, 2], [2, 1], [1, 1], g::Padding::Explicit([1, 0, 1, 1])),
        window([2, 3], [1, 2], [2, 1], g::Padding::SameUpper),
        window([2, 3], [2, 2], [1, 2], g::Padding::SameLower),
    ]
}

fn gather(axis: usize, at: Tensor) -> Case<'static> {
    Case::op([random(&[3, 4, 2], 41), at], a::Gather::new(axis))
}

fn reshape(at: usize, from: &[usize], to: &[usize]) -> AxisOp {
    let dims = |d: &[usize]| d.iter().map(|d| d.to_dim()).collect();
    AxisOp::Reshape(at, dims(from), dims(to))
}

fn iff(mask: &[usize], yes: &[usize], no: &[usize]) -> Case<'static> {
    let bits: Vec<bool> = slice(&random(mask, 51)).iter().map(|&v| v > 0.0).collect();
    let mask = Tensor::from_shape(mask, &bits).unwrap();
    Case::op([mask, random(yes, 52), random(no, 53)], Iff)
}

fn cases(rule: &str) -> Vec<Case<'static>> {
    let any = |v: f32| v;
    let wide = |v: f32| 3.0 * v;
    let positive = |v: f32| v.abs() + 0.5;
    let inside = |v: f32| 0.8 * v;
    let off_steps = |v: f32| (v * 3.0).floor() + 0.4;
    let x = || random(&[3, 4, 2], 61);
    match rule {
        "EinSum" => vec![
            einsum("mk,kn->mn", &[&[3, 4], &[4, 2]]),
            einsum("mk,nk->nm", &[&[3, 4], &[2, 4]]),
            einsum("bmk,bnk->bmn", &[&[2, 3, 4], &[2, 5, 4]]),
            einsum("bthd,hdo->bto", &[&[2, 3, 2, 4], &[2, 4, 5]]),
            einsum("bmk,bnk->bmn", &[&[2, 3, 4], &[1, 5, 4]]),
            einsum("bhgmk,bhgnk->bhgmn", &[&[1, 2, 2, 3, 2], &[1, 2, 1, 2, 2]]),
            einsum("ab,ab->ab", &[&[3, 1], &[3, 4]]),
            einsum("ab,bc->c", &[&[3, 2], &[2, 4]]),
            einsum("ab,cd->ac", &[&[3, 2], &[2, 4]]),
            einsum("ab,bc->abc", &[&[3, 2], &[2, 4]]),
            einsum("abc->cb", &[&[2, 3, 4]]),
            einsum("ab,ab->", &[&[2, 3], &[2, 3]]),
            einsum("ab,bc,cd->ad", &[&[2, 3], &[3, 2], &[2, 4]]),
            einsum("mk,nk->mn", &[&[3, 4], &[1, 4]]),
            einsum("mk,nk->mn", &[&[1, 4], &[2, 4]]),
            einsum("bmk,nk->bmn", &[&[2, 3, 4], &[5, 4]]).trained(&[1]),
            einsum("bmk,nk->bmn", &[&[2, 3, 4], &[5, 4]]).trained(&[0]).symbolic(),
            einsum("bmk,bnk->bmn", &[&[2, 3, 4], &[2, 5, 4]]).symbolic(),
            einsum("bm,bn->mn", &[&[3, 4], &[3, 2]]).symbolic(),
        ],
        "Add" => binary(m::add(), any, any),
        "Sub" => binary(m::sub(), any, any),
        "SubF" => binary(m::subf(), any, any),
        "Mul" => {
            let mut cases = binary(m::mul(), any, any);
            cases.push(Case::new([random(&[3, 2], 4)], |model, sources| {
                model.wire_node("op", m::mul(), &[sources[0], sources[0]]).unwrap()[0]
            }));
            cases
        }
        "Div" => binary(m::div(), any, |v| v.signum() * (v.abs() + 0.5)),
        "Pow" => binary(m::pow(), positive, wide),
        "Max" => apart(true),
        "Min" => apart(false),
        "Abs" => unary(m::abs(), any),
        "Neg" => unary(m::neg(), any),
        "Exp" => unary(m::exp(), any),
        "Ln" => unary(m::ln(), positive),
        "PowConst" => [2.5, 3.0, -1.0, 0.0]
            .into_iter()
            .flat_map(|exponent| unary(m::pow_const(exponent), positive))
            .collect(),
        "Square" => unary(m::square(), any),
        "Sqrt" => unary(m::sqrt(), positive),
        "Rsqrt" => unary(m::rsqrt(), positive),
        "Recip" => unary(m::recip(), positive),
        "Cos" => unary(m::cos(), wide),
        "Sin" => unary(m::sin(), wide),
        "Tan" => unary(m::tan(), any),
        "Acos" => unary(m::acos(), inside),
        "Asin" => unary(m::asin(), inside),
        "Atan" => unary(m::atan(), wide),
        "Cosh" => unary(m::cosh(), any),
        "Sinh" => unary(m::sinh(), any),
        "Tanh" => unary(m::tanh(), any),
        "Acosh" => unary(m::acosh(), |v| v.abs() + 1.5),
        "Asinh" => unary(m::asinh(), wide),
        "Atanh" => unary(m::atanh(), inside),
        "Erf" => unary(m::erf(), any),
        "Sigmoid" => unary(n::sigmoid(), wide),
        "Silu" => unary(n::silu::silu(), wide),
        // Kinks at -3 and 3; some values outside them.
        "HardSwish" => unary(n::hard_swish(), |v| {
            let wide = 5.0 * v;
            if (wide.abs() - 3.0).abs() < 0.1 { wide + 0.3 } else { wide }
        }),
        "LeakyRelu" => unary(n::leaky_relu(0.1), any),
        "GeluExact" => unary(n::gelu_exact::gelu_exact(), wide),
        "GeluApproximate" => [true, false]
            .into_iter()
            .flat_map(|fast| unary(n::gelu_approximate::gelu_approximate(fast), wide))
            .collect(),
        "Sign" => unary(m::sign(), any),
        "Ceil" => unary(m::ceil(), off_steps),
        "Floor" => unary(m::floor(), off_steps),
        "Round" => unary(m::round(), off_steps),
        "RoundHalfToEven" => unary(m::round_half_to_even(), off_steps),
        "Softmax" => [SoftmaxKind::Softmax, SoftmaxKind::LogSoftmax]
            .into_iter()
            .flat_map(|kind| {
                [
                    softmax(kind, &[2]),
                    softmax(kind, &[0]),
                    softmax(kind, &[1, 2]),
                    softmax(kind, &[1]).symbolic(),
                ]
            })
            .collect(),
        "Reduce" => [
            (Reducer::Sum, x()),
            (Reducer::MeanOfSquares, x()),
            (Reducer::Max, spread(&[3, 4, 2])),
            (Reducer::Min, spread(&[3, 4, 2])),
        ]
        .into_iter()
        .flat_map(|(reducer, x)| reduce(reducer, x))
        .collect(),
        "RmsNorm" => {
            let op = |axis| n::RmsNorm { axis, eps: tensor0(1e-3f32).into_arc_tensor() };
            vec![
                Case::op([x()], op(2)),
                Case::op([x()], op(1)),
                Case::op([x()], op(0)),
                Case::op([x()], op(1)).symbolic(),
            ]
        }
        "AxisOp" => [
            AxisOp::Add(0),
            AxisOp::Add(3),
            AxisOp::Move(0, 2),
            AxisOp::Move(2, 0),
            AxisOp::Move(1, 0),
            AxisOp::Move(1, 2),
            reshape(1, &[4, 2], &[8]),
            reshape(1, &[4], &[2, 2]),
        ]
        .into_iter()
        .flat_map(|op| [Case::op([x()], op.clone()), Case::op([x()], op).symbolic()])
        .chain([Case::op([random(&[3, 1, 2], 1)], AxisOp::Rm(1))])
        .collect(),
        "Identity" => vec![Case::op([x()], Identity)],
        "Cast" => vec![
            Case::op([x()], cast(f32::datum_type())),
            Case::new([x()], |model, sources| {
                let wide = model.wire_node("op", cast(f64::datum_type()), sources).unwrap();
                model.wire_node("back", cast(f32::datum_type()), &wide).unwrap()[0]
            }),
        ],
        "Slice" => vec![
            Case::op([x()], a::Slice::new(1, 1, 3)),
            Case::op([x()], a::Slice::new(1, 0, 3)),
            Case::op([x()], a::Slice::new(0, 1, 3)),
            Case::op([x()], a::Slice::new(0, 1, 2)).symbolic(),
            Case::op([x()], a::Slice::new(2, 1, 2)).symbolic(),
            Case::new([x()], |model, sources| {
                let end = model.symbols.sym("B").to_dim();
                model.wire_node("op", a::Slice::new(0, 1, end), sources).unwrap()[0]
            })
            .symbolic(),
        ],
        "Concat" => vec![
            Case::op([x(), random(&[3, 1, 2], 2)], a::TypedConcat::new(1)),
            Case::op([x(), random(&[2, 4, 2], 2)], a::TypedConcat::new(0)),
            Case::op([x(), random(&[3, 1, 2], 2), x()], a::TypedConcat::new(1)).trained(&[1]),
            Case::op([x(), random(&[3, 1, 2], 2)], a::TypedConcat::new(1)).symbolic(),
        ],
        "MultiBroadcastTo" => {
            let to = |shape: &[usize]| a::MultiBroadcastTo { shape: ShapeFact::from_dims(shape) };
            vec![
                Case::op([random(&[1, 4], 1)], to(&[3, 4])),
                Case::op([random(&[3, 1], 1)], to(&[2, 3, 4])),
                Case::op([tensor0(0.5f32)], to(&[2, 3])),
                Case::new([random(&[1, 2], 1), x()], |model, sources| {
                    let shape = [model.symbols.sym("B").to_dim(), 2.to_dim()];
                    let op = a::MultiBroadcastTo { shape: ShapeFact::from_dims(shape) };
                    let wide = model.wire_node("op", op, &sources[..1]).unwrap()[0];
                    let sums =
                        model.wire_node("s", Reduce::new(tvec![1], Reducer::Sum), &[sources[1]]);
                    let sums = model.wire_node("rm", AxisOp::Rm(1), &sums.unwrap()).unwrap()[0];
                    model.wire_node("mul", m::mul(), &[wide, sums]).unwrap()[0]
                })
                .symbolic(),
            ]
        }
        "Tile" => {
            let tile = |times: &[usize]| a::Tile {
                multipliers: times.iter().map(|t| t.to_dim()).collect(),
            };
            vec![
                Case::op([x()], tile(&[1, 3, 1])),
                Case::op([x()], tile(&[2, 1, 3])),
                Case::op([x()], tile(&[1, 1, 2])).symbolic(),
            ]
        }
        "Pad" => {
            let pad = |pads: &[(usize, usize)]| a::Pad {
                pads: pads.to_vec(),
                mode: a::PadMode::Constant(tensor0(0.5f32).into_arc_tensor()),
            };
            vec![
                Case::op([x()], pad(&[(0, 0), (1, 2), (0, 0)])),
                Case::op([x()], pad(&[(2, 0), (0, 0), (0, 1)])),
                Case::op([x()], pad(&[(1, 0), (0, 3), (0, 0)])).symbolic(),
            ]
        }
        "Downsample" => {
            let every = |axis, stride, modulo| Downsample { axis, stride, modulo };
            vec![
                Case::op([random(&[3, 7], 1)], every(1, 2, 0)),
                Case::op([random(&[3, 7], 1)], every(1, 3, 1)),
                Case::op([random(&[6, 2], 1)], every(0, 2, 1)),
                Case::op([random(&[3, 6], 1)], every(1, 4, 3)).symbolic(),
            ]
        }
        "Iff" => vec![
            iff(&[3, 4], &[3, 4], &[3, 4]),
            iff(&[3, 1], &[3, 4], &[1, 4]),
            iff(&[3, 4], &[1, 1], &[3, 1]),
            iff(&[3, 4], &[3, 4], &[1, 1]).trained(&[1]),
            iff(&[3, 4], &[3, 4], &[1, 1]).symbolic(),
        ],
        "Trilu" => [(true, 0i64), (true, 1), (false, 0), (false, -1)]
            .into_iter()
            .map(|(upper, k)| Case::op([x(), tensor0(k)], a::Trilu { upper }))
            .collect(),
        "CumSum" => [(0, false, false), (1, true, false), (1, false, true), (2, true, true)]
            .into_iter()
            .map(|(axis, exclusive, reverse)| {
                Case::op([x()], a::CumSum { axis, exclusive, reverse })
            })
            .collect(),
        "Gather" => vec![
            gather(0, tensor1(&[2i64, 0, 2, 1])),
            gather(1, tensor1(&[3i64, -1, 0])),
            gather(1, tensor2(&[[3i64, -4], [0, 3]])),
            gather(2, tensor0(1i64)),
            gather(0, tensor2(&[[1i64, -1]])),
            gather(1, tensor2(&[[1i64, -1]])).symbolic(),
        ],
        "GatherElements" => vec![
            Case::op(
                [random(&[2, 3], 1), tensor2(&[[0i64, 2, 2, -1], [1, 1, 0, 0]])],
                a::GatherElements::new(1),
            ),
            Case::op([random(&[2, 3], 1), tensor2(&[[1i64, 1, -2]])], a::GatherElements::new(0)),
        ],
        "SumPool" => pools()
            .into_iter()
            .flat_map(|(pool_spec, shape)| {
                [(false, false), (false, true), (true, true)].map(
                    |(count_include_pad, normalize)| {
                        let pool_spec = pool_spec.clone();
                        Case::op(
                            [random(&shape, 71)],
                            SumPool { pool_spec, count_include_pad, normalize },
                        )
                    },
                )
            })
            .chain([Case::op(
                [random(&[3, 2, 3, 4], 71)],
                SumPool {
                    pool_spec: pools().remove(0).0,
                    count_include_pad: false,
                    normalize: true,
                },
            )
            .symbolic()])
            .collect(),
        "MaxPool" => pools()
            .into_iter()
            .map(|(pool_spec, shape)| {
                Case::op([spread(&shape)], MaxPool { pool_spec, with_index_outputs: None })
            })
            .chain([Case::op(
                [spread(&[3, 2, 3, 4])],
                MaxPool { pool_spec: pools().remove(0).0, with_index_outputs: None },
            )
            .symbolic()])
            .collect(),
        "Conv" => convs(),
        "FrozenLinear" => frozen_linears(),
        "FrozenLinearTransposed" => {
            let op = g::FrozenLinear::new(&weights(), 0, None, false).unwrap().transposed();
            vec![
                Case::op([random(&[2, 3, 5], 1)], op.clone()),
                Case::op([random(&[3, 5], 1)], op).symbolic(),
            ]
        }
        "FrozenConv" => windows()
            .into_iter()
            .flat_map(|window| {
                let op = |bias| g::FrozenConv::new(&weights(), 1, None, bias, window).unwrap();
                let x = random(&[2, 5, 6, 3], 1);
                [
                    Case::op([x.clone()], op(false)),
                    Case::op([x.clone(), random(&[4], 2)], op(true)),
                    Case::op([x], op(false)).symbolic(),
                ]
            })
            .collect(),
        "FrozenDepthwise" => windows()
            .into_iter()
            .flat_map(|window| {
                let (x, filters) = (random(&[2, 5, 6, 3], 1), random(&[6, 3], 2));
                let op = g::FrozenDepthwise { window };
                [
                    Case::op([x.clone(), filters.clone()], op.clone()).trained(&[0]),
                    Case::op([x.clone(), filters.clone(), random(&[3], 3)], op.clone())
                        .trained(&[0, 2]),
                    Case::op([x, filters], op).trained(&[0]).symbolic(),
                ]
            })
            .collect(),
        "Im2col" => windows()
            .into_iter()
            .flat_map(|window| {
                let x = random(&[2, 5, 6, 3], 1);
                let op = g::Im2col { window };
                [Case::op([x.clone()], op.clone()), Case::op([x], op).symbolic()]
            })
            .collect(),
        "Col2im" => windows()
            .into_iter()
            .map(|window| {
                let sides = [(0, 5), (1, 6)].map(|(axis, side)| {
                    window.output_side(axis, &side.to_dim()).unwrap().to_usize().unwrap()
                });
                let patches = random(&[2, sides[0], sides[1], 18], 1);
                let (height, width) = (5.to_dim(), 6.to_dim());
                Case::op([patches], g::Col2im { window, height, width, channels: 3 })
            })
            .collect(),
        _ => vec![],
    }
}

#[test]
fn every_rule_agrees_with_central_differences() {
    for rule in rule_names() {
        let cases = cases(rule);
        assert!(!cases.is_empty(), "the rule for {rule} has no test");
        let entry = TABLE.iter().find(|e| e.name == rule).unwrap();
        for (i, case) in cases.into_iter().enumerate() {
            println!("{rule} {i}");
            assert!(case.contains(entry.matches), "case {i} of {rule} doesn't hold the op");
            case.check();
        }
    }
}

#[test]
fn names_are_unique_and_each_op_has_one_rule() {
    let names: Vec<_> = rule_names().collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} twice");
    }
}

fn refused(inputs: Vec<Tensor>, op: impl Into<Box<dyn TypedOp>>) -> String {
    let mut model = TypedModel::default();
    let sources: Vec<OutletId> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| model.add_source(format!("x{i}"), TypedFact::shape_and_dt_of(t)).unwrap())
        .collect();
    let y = model.wire_node("the node", op, &sources).unwrap()[0];
    let axes = (0..model.outlet_fact(y).unwrap().rank()).collect();
    let loss = model.wire_node("loss", Reduce::new(axes, Reducer::Sum), &[y]).unwrap()[0];
    let e = crate::train::gradient::add_gradients(&mut model, loss, &sources).unwrap_err();
    assert_eq!(e.kind(), crate::error::ErrorKind::Unsupported);
    e.message().to_string()
}

#[test]
fn what_a_rule_does_not_cover_is_refused_by_name() {
    let x = || random(&[3, 4], 1);
    let edge = a::Pad { pads: vec![(0, 0), (1, 1)], mode: a::PadMode::Edge };
    let diagonal = EinSum::new("ii->i".parse().unwrap(), f32::datum_type());
    let spec = pool_spec(DataFormat::NCHW, &[2, 2], PaddingSpec::Valid);
    let conv = Conv { pool_spec: spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
    let conv_inputs = vec![random(&[1, 2, 3, 3], 1), random(&[2, 2, 2, 2], 2), random(&[2], 3)];
    for (message, op, why) in [
        (refused(vec![x()], edge), "Pad", "constant"),
        (refused(vec![random(&[3, 3], 1)], diagonal), "EinSum", "twice"),
        (refused(vec![x()], Reduce::new(tvec![1], Reducer::Prod)), "Reduce", "Prod"),
        (refused(conv_inputs, conv), "Conv", "kernel"),
    ] {
        assert!(
            message.contains(op) && message.contains("'the node'") && message.contains(why),
            "{message}"
        );
    }
}

/// Gradient of x of Σ op(x, y): at ties, where differences say nothing.
fn at_ties(op: TypedBinOp, x: Tensor, y: Tensor, y_constant: bool) -> Vec<Vec<f32>> {
    let mut model = TypedModel::default();
    let xs = model.add_source("x", TypedFact::shape_and_dt_of(&x)).unwrap();
    let (ys, trained, inputs) = if y_constant {
        (model.add_const("y", y).unwrap(), vec![xs], vec![x])
    } else {
        let ys = model.add_source("y", TypedFact::shape_and_dt_of(&y)).unwrap();
        (ys, vec![xs, ys], vec![x, y])
    };
    let z = model.wire_node("z", op, &[xs, ys]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[z]).unwrap()[0];
    let gradients = crate::train::gradient::add_gradients(&mut model, loss, &trained).unwrap();
    model.select_output_outlets(&gradients).unwrap();
    super::check::run(&model, &inputs).iter().map(|t| slice(t).to_vec()).collect()
}

#[test]
fn extrema_split_ties_and_stop_at_a_constant_bound() {
    let (x, y) = (tensor1(&[0f32, 1., 2.]), tensor1(&[1f32, 1., 1.]));
    let split = at_ties(m::max(), x.clone(), y.clone(), false);
    assert_eq!(split, [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]);
    let split = at_ties(m::min(), x.clone(), y, false);
    assert_eq!(split, [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]);
    let bound = tensor1(&[1f32]);
    assert_eq!(at_ties(m::max(), x.clone(), bound.clone(), true), [[0.0, 0.0, 1.0]]);
    assert_eq!(at_ties(m::min(), x, bound, true), [[1.0, 0.0, 0.0]]);
}

#[test]
fn pow_has_no_slope_in_the_base_where_the_exponent_is_zero() {
    let got = at_ties(m::pow(), tensor1(&[0f32, 2.]), tensor1(&[0f32, 3.]), true);
    assert_eq!(got, [[0.0, 12.0]]);
}

/// The gradient graph of Σ op(x, constants) for a batch B, bound to 2 afterwards.
fn bound_afterwards(op: impl Into<Box<dyn TypedOp>>, x: Tensor, constants: &[Tensor]) {
    let op = op.into();
    let gradient = |free: bool| {
        let mut model = TypedModel::default();
        let batch = model.symbols.sym("B");
        let mut dims: TVec<TDim> = x.shape().iter().map(|d| d.to_dim()).collect();
        if free {
            dims[0] = batch.to_dim();
        }
        let mut inputs = tvec![model.add_source("x", f32::fact(dims)).unwrap()];
        for (i, constant) in constants.iter().enumerate() {
            inputs.push(model.add_const(format!("c{i}"), constant.clone()).unwrap());
        }
        let y = model.wire_node("op", op.clone(), &inputs).unwrap()[0];
        let y = model.wire_node("exp", m::exp(), &[y]).unwrap()[0];
        let axes = (0..x.rank()).collect();
        let mut loss = model.wire_node("loss", Reduce::new(axes, Reducer::Sum), &[y]).unwrap();
        for axis in (0..x.rank()).rev() {
            loss = model.wire_node(format!("rm{axis}"), AxisOp::Rm(axis), &loss).unwrap();
        }
        let trained = [inputs[0]];
        let gradients =
            crate::train::gradient::add_gradients(&mut model, loss[0], &trained).unwrap();
        model.select_output_outlets(&gradients).unwrap();
        if free {
            let subs = HashMap::from([(batch, 2.to_dim())]);
            model = g::substitute(&model, &subs).unwrap();
            assert!(model.output_fact(0).unwrap().shape.is_concrete());
        }
        super::check::run(&model, std::slice::from_ref(&x)).remove(0)
    };
    gradient(true).close_enough(&gradient(false), Approximation::Close).unwrap();
}

#[test]
fn a_gradient_graph_may_be_bound_after_it_is_built() {
    let (pool_spec, shape) = pools().remove(0);
    let pool = SumPool { pool_spec: pool_spec.clone(), count_include_pad: false, normalize: true };
    bound_afterwards(pool, random(&shape, 1), &[]);
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
    bound_afterwards(conv, random(&shape, 1), &[random(&[2, 2, 2, 2], 2), random(&[2], 3)]);
    bound_afterwards(a::Slice::new(1, 1, 2), random(&shape, 1), &[]);
    let conv = g::FrozenConv::new(&weights(), 1, None, false, windows()[1]).unwrap();
    bound_afterwards(conv, random(&[2, 5, 6, 3], 1), &[]);
}

#[test]
fn of_relu6_only_the_output_is_kept_for_the_gradient() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([4])).unwrap();
    let zero = model.add_const("zero", tensor1(&[0f32])).unwrap();
    let six = model.add_const("six", tensor1(&[6f32])).unwrap();
    let relu = model.wire_node("relu", m::max(), &[x, zero]).unwrap()[0];
    let relu6 = model.wire_node("relu6", m::min(), &[relu, six]).unwrap()[0];
    let loss = model.wire_node("loss", Reduce::new(tvec![0], Reducer::Sum), &[relu6]).unwrap()[0];
    let gradients = crate::train::gradient::add_gradients(&mut model, loss, &[x]).unwrap();
    assert_eq!(model.outlet_successors(relu).len(), 1);
    assert_eq!(model.outlet_successors(x).len(), 1);
    model.select_output_outlets(&gradients).unwrap();
    let got = super::check::run(&model, &[tensor1(&[-1f32, 1., 5., 7.])]);
    assert_eq!(slice(&got[0]), [0.0, 1.0, 1.0, 0.0]);
}
