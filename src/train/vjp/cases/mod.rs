//! One list of cases for each rule of the table.

pub(super) mod build;

use tract_core::internal::*;
use tract_core::ops::array as a;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::cast;
use tract_core::ops::cnn::{MaxPool, SumPool};
use tract_core::ops::downsample::Downsample;
use tract_core::ops::identity::Identity;
use tract_core::ops::math as m;
use tract_core::ops::nn::{self as n, Reduce, Reducer, SoftmaxKind};

use crate::graph as g;

use super::check::{Case, random, spread};
use build::*;

/// The cases of a rule; none of one that has no test.
pub(super) fn cases(rule: &str) -> Vec<Case<'static>> {
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
        "Quotient" => {
            binary(TypedBinOp(Box::new(g::Quotient), None), any, |v| v.signum() * (v.abs() + 0.5))
        }
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
            (Reducer::Prod, x()),
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
        "DynSlice" => [(1, 0i64, 2i64), (1, 1, 4), (0, 1, 2), (2, 0, 2)]
            .into_iter()
            .flat_map(|(axis, start, end)| {
                let inputs = [x(), tensor0(start), tensor0(end)];
                let op = a::DynSlice { axis, len: (end - start).to_dim() };
                [Case::op(inputs.clone(), op.clone()), Case::op(inputs, op).symbolic()]
            })
            .collect(),
        "Scan" => {
            let backwards = Loop { backwards: true, ..Loop::default() };
            vec![
                looped(Loop::default()),
                looped(backwards),
                looped(backwards).symbolic(),
                looped(Loop { last: true, ..backwards }),
                looped(Loop { last: true, ..Loop::default() }).symbolic(),
                looped(Loop { only_last: true, ..Loop::default() }),
                looped(Loop { stateless: true, ..Loop::default() }).trained(&[0, 1]),
                looped(Loop { stateless: true, last: true, ..backwards }).trained(&[0, 1]),
                looped(Loop { apart: true, ..Loop::default() }),
                looped(Loop { apart: true, last: true, ..backwards }),
                looped(Loop::default()).trained(&[0]),
                looped(Loop::default()).trained(&[1]),
                looped(Loop { last: true, ..Loop::default() }).trained(&[2]),
            ]
        }
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
            .into_iter()
            .chain([a::PadMode::Edge, a::PadMode::Reflect].into_iter().flat_map(|mode| {
                let op = a::Pad { pads: vec![(0, 0), (2, 1), (1, 0)], mode };
                [Case::op([x()], op.clone()), Case::op([x()], op).symbolic()]
            }))
            .collect()
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
        "GatherNd" => [0, 1]
            .into_iter()
            .map(|batch_dims| {
                let at = tensor3(&[[[1i64], [0]], [[1], [1]], [[2], [0]]]);
                Case::op([x(), at], a::GatherNd { batch_dims })
            })
            .collect(),
        "ScatterElements" => [
            a::ScatterReduction::None,
            a::ScatterReduction::Add,
            a::ScatterReduction::Max,
            a::ScatterReduction::Min,
        ]
        .into_iter()
        .flat_map(|reduction| {
            let at = tensor2(&[[0i64, 2], [1, -1]]);
            let inputs = [spread(&[2, 3]), at, random(&[2, 2], 2)];
            let op = a::ScatterElements { axis: 1, reduction };
            [Case::op(inputs.clone(), op.clone()), Case::op(inputs, op).trained(&[2])]
        })
        .collect(),
        "ScatterNd" => [a::ScatterReduction::None, a::ScatterReduction::Add]
            .into_iter()
            .flat_map(|reduction| {
                let at = tensor2(&[[2i64], [0]]);
                let inputs = [x(), at, random(&[2, 4, 2], 2)];
                let op = a::ScatterNd { reduction };
                [Case::op(inputs.clone(), op.clone()), Case::op(inputs, op).trained(&[0])]
            })
            .collect(),
        "Topk" => [true, false]
            .into_iter()
            .map(|largest| {
                Case::new([spread(&[3, 4])], move |model, sources| {
                    let k = model.add_const("k", tensor0(2i64)).unwrap();
                    let op = a::Topk { axis: 1, largest, fallback_k: 2.to_dim() };
                    model.wire_node("op", op, &[sources[0], k]).unwrap()[0]
                })
            })
            .collect(),
        "Resize" => resizes(),
        "NearestUpsample" => {
            let op = n::NearestUpsample { scales: tvec![1, 1, 2, 3] };
            let x = random(&[2, 1, 2, 2], 1);
            vec![Case::op([x.clone()], op.clone()), Case::op([x], op).symbolic()]
        }
        "Deconv" => deconvs(),
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
        "TokenLoss" => token_losses(),
        "TokenDrift" => token_drifts(),
        "CtcLoss" => ctc_losses(),
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
        "LstmCell" => {
            let inputs = || [random(&[2, 1, 12], 1), random(&[2, 1, 12], 2), random(&[2, 1, 3], 3)];
            let both = |slots: [usize; 2]| {
                Case::new(inputs(), move |model, sources| {
                    let found = model.wire_node("op", g::LstmCell, sources).unwrap();
                    let parts = slots.map(|slot| found[slot]);
                    model.wire_node("both", a::TypedConcat::new(1), &parts).unwrap()[0]
                })
            };
            vec![both([0, 1]), both([0, 0]), both([1, 1]), both([0, 1]).symbolic()]
        }
        "GruCell" => {
            let inputs = || [random(&[2, 1, 9], 1), random(&[2, 1, 9], 2), random(&[2, 1, 3], 3)];
            vec![Case::op(inputs(), g::GruCell), Case::op(inputs(), g::GruCell).symbolic()]
        }
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
