//! The text form of our ops.

use tract_nnef::internal::*;
use tract_nnef::ser::{ints, tdim};

use super::WEIGHTS;
use crate::graph::weights::FrozenWeights;
use crate::graph::window::{Padding, Window};
use crate::graph::{
    ByteRange, Col2im, DepthwiseInputGradient, FrozenConv, FrozenConvInputGradient,
    FrozenDepthwise, FrozenEmbedding, FrozenLinear, FrozenLinearTransposed, GruCell, Im2col,
    LstmCell, Quotient, RoundThrough,
};

/// The weight table as a resource of the document being read.
#[derive(Debug)]
pub struct WeightResource(pub FrozenWeights);

impl Resource for WeightResource {}

pub fn register(registry: &mut Registry) {
    let tensors = |names: &[&str]| -> Vec<Parameter> {
        names.iter().map(|n| TypeName::Scalar.tensor().named(n)).collect()
    };
    let integers = |names: &[&str]| -> Vec<Parameter> {
        names.iter().map(|n| TypeName::Integer.spec().named(n)).collect()
    };
    let window = || {
        let mut parameters: Vec<Parameter> = ["kernel", "stride", "dilation", "pads"]
            .iter()
            .map(|n| TypeName::Integer.array().named(n))
            .collect();
        parameters.push(TypeName::String.named("padding"));
        parameters
    };
    let features = ["weight", "in_features", "out_features"];
    let mut add = |id: &str, parts: Vec<Vec<Parameter>>, load: ToTract| {
        registry.register_primitive(id, &parts.concat(), &[("y", TypeName::Scalar.tensor())], load);
    };
    add(
        "offshoot_linear",
        vec![tensors(&["x", "bias"]), integers(&features), integers(&["target"])],
        read_linear,
    );
    add("offshoot_linear_transposed", vec![tensors(&["x"]), integers(&features)], read_transposed);
    add(
        "offshoot_conv",
        vec![tensors(&["x", "bias"]), integers(&features), integers(&["target"]), window()],
        read_conv,
    );
    add(
        "offshoot_conv_input_gradient",
        vec![tensors(&["x"]), integers(&features), integers(&["height", "width"]), window()],
        read_conv_gradient,
    );
    add("offshoot_depthwise", vec![tensors(&["x", "filters", "bias"]), window()], read_depthwise);
    add(
        "offshoot_depthwise_input_gradient",
        vec![tensors(&["x", "filters"]), integers(&["height", "width"]), window()],
        read_depthwise_gradient,
    );
    add("offshoot_im2col", vec![tensors(&["x"]), window()], read_im2col);
    add(
        "offshoot_col2im",
        vec![tensors(&["x"]), integers(&["height", "width", "channels"]), window()],
        read_col2im,
    );
    add(
        "offshoot_embedding",
        vec![tensors(&["x"]), integers(&["weight", "rows", "features", "target"])],
        read_embedding,
    );
    add("offshoot_round", vec![tensors(&["x"])], read_round);
    for (id, outputs, load) in [
        ("offshoot_lstm_cell", &["h", "c"][..], read_lstm_cell as ToTract),
        ("offshoot_gru_cell", &["h"], read_gru_cell),
    ] {
        let outputs: Vec<_> = outputs.iter().map(|n| (*n, TypeName::Scalar.tensor())).collect();
        registry.register_primitive(id, &tensors(&CELL), &outputs, load);
    }
    let range = ["scale", "point"].map(|n| (n, TypeName::Scalar.tensor()));
    registry.register_primitive("offshoot_byte_range", &tensors(&["x"]), &range, read_byte_range);
    registry.register_binary("offshoot_quotient", &Quotient);
    registry.register_dumper(|ast, node, _: &RoundThrough| {
        Ok(Some(invocation("offshoot_round", &[], &inputs(ast, node, &["x"]))))
    });
    registry.register_dumper(|ast, node, _: &ByteRange| {
        Ok(Some(invocation("offshoot_byte_range", &[], &inputs(ast, node, &["x"]))))
    });
    registry.register_dumper(|ast, node, _: &LstmCell| {
        Ok(Some(invocation("offshoot_lstm_cell", &[], &inputs(ast, node, &CELL))))
    });
    registry.register_dumper(|ast, node, _: &GruCell| {
        Ok(Some(invocation("offshoot_gru_cell", &[], &inputs(ast, node, &CELL))))
    });
    registry.register_dumper(|ast, node, op: &FrozenLinear| {
        let mut args = inputs(ast, node, &["x", "bias"]);
        args.extend(weight_args(op.weight, op.in_features, op.out_features));
        args.extend(target_arg(op.target));
        Ok(Some(invocation("offshoot_linear", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &FrozenLinearTransposed| {
        let mut args = inputs(ast, node, &["x"]);
        args.extend(weight_args(op.weight, op.in_features, op.out_features));
        Ok(Some(invocation("offshoot_linear_transposed", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &FrozenConv| {
        let mut args = inputs(ast, node, &["x", "bias"]);
        args.extend(weight_args(op.weight, op.in_features, op.out_features));
        args.extend(target_arg(op.target));
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_conv", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &FrozenConvInputGradient| {
        let mut args = inputs(ast, node, &["x"]);
        args.extend(weight_args(op.weight, op.in_features, op.out_features));
        args.extend([("height", tdim(&op.height)), ("width", tdim(&op.width))]);
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_conv_input_gradient", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &FrozenDepthwise| {
        let mut args = inputs(ast, node, &["x", "filters", "bias"]);
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_depthwise", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &DepthwiseInputGradient| {
        let mut args = inputs(ast, node, &["x", "filters"]);
        args.extend([("height", tdim(&op.height)), ("width", tdim(&op.width))]);
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_depthwise_input_gradient", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &Im2col| {
        let mut args = inputs(ast, node, &["x"]);
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_im2col", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &Col2im| {
        let mut args = inputs(ast, node, &["x"]);
        args.extend([("height", tdim(&op.height)), ("width", tdim(&op.width))]);
        args.push(("channels", numeric(op.channels)));
        args.extend(window_args(&op.window));
        Ok(Some(invocation("offshoot_col2im", &[], &args)))
    });
    registry.register_dumper(|ast, node, op: &FrozenEmbedding| {
        let mut args = inputs(ast, node, &["x"]);
        args.push(("weight", numeric(op.weight)));
        args.extend([("rows", numeric(op.rows)), ("features", numeric(op.features))]);
        args.extend(target_arg(op.target));
        Ok(Some(invocation("offshoot_embedding", &[], &args)))
    });
}

type Args = Vec<(&'static str, RValue)>;

fn inputs(ast: &IntoAst, node: &TypedNode, names: &[&'static str]) -> Args {
    names
        .iter()
        .zip(&node.inputs)
        .map(|(name, input)| (*name, ast.mapping[input].as_ref().clone()))
        .collect()
}

fn weight_args(weight: usize, inputs: usize, outputs: usize) -> Args {
    vec![
        ("weight", numeric(weight)),
        ("in_features", numeric(inputs)),
        ("out_features", numeric(outputs)),
    ]
}

fn target_arg(target: Option<usize>) -> Option<(&'static str, RValue)> {
    target.map(|t| ("target", numeric(t)))
}

fn window_args(window: &Window) -> Args {
    let mut args = vec![
        ("kernel", ints(&window.kernel)),
        ("stride", ints(&window.stride)),
        ("dilation", ints(&window.dilation)),
    ];
    args.push(match window.padding {
        Padding::Explicit(pads) => ("pads", ints(&pads)),
        Padding::SameUpper => ("padding", string("same_upper")),
        Padding::SameLower => ("padding", string("same_lower")),
        Padding::Valid => ("padding", string("valid")),
    });
    args
}

/// An integer argument that must not be negative.
fn count(b: &mut ModelBuilder, i: &ResolvedInvocation, name: &str) -> TractResult<usize> {
    let value: i64 = i.named_arg_as(b, name)?;
    usize::try_from(value).map_err(|_| format_err!("{name} is {value}, expected at least 0"))
}

fn target(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Option<usize>> {
    match i.get_named_arg("target") {
        Some(_) => count(b, i, "target").map(Some),
        None => Ok(None),
    }
}

fn counts<const N: usize>(
    b: &mut ModelBuilder,
    i: &ResolvedInvocation,
    name: &str,
) -> TractResult<[usize; N]> {
    let values: TVec<i64> = i.named_arg_as(b, name)?;
    let counts: Vec<usize> = values.iter().filter_map(|v| usize::try_from(*v).ok()).collect();
    counts.try_into().map_err(|_| format_err!("{name} is {values:?}, expected {N} sizes"))
}

fn window(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Window> {
    let padding = match i.get_named_arg("pads") {
        Some(_) => Padding::Explicit(counts(b, i, "pads")?),
        None => match i.named_arg_as::<String>(b, "padding")?.as_str() {
            "same_upper" => Padding::SameUpper,
            "same_lower" => Padding::SameLower,
            "valid" => Padding::Valid,
            other => bail!("padding is '{other}', expected same_upper, same_lower or valid"),
        },
    };
    let window = Window {
        kernel: counts(b, i, "kernel")?,
        stride: counts(b, i, "stride")?,
        dilation: counts(b, i, "dilation")?,
        padding,
    };
    window.check()?;
    Ok(window)
}

/// The named inputs that are there.
fn wires(
    b: &mut ModelBuilder,
    i: &ResolvedInvocation,
    names: &[&str],
) -> TractResult<TVec<OutletId>> {
    let mut wires = tvec!();
    for name in names {
        if i.get_named_arg(name).is_some() {
            wires.push(i.named_arg_as(b, name)?);
        }
    }
    Ok(wires)
}

/// The weight an op names, once its shape is what the op says.
fn weight(
    b: &mut ModelBuilder,
    i: &ResolvedInvocation,
    [rows, cols]: [&str; 2],
) -> TractResult<(FrozenWeights, usize)> {
    let weights = b
        .proto_model
        .resources
        .get(WEIGHTS)
        .and_then(|r| r.downcast_ref::<WeightResource>())
        .context("the graph has no weight table")?
        .0
        .clone();
    let index = count(b, i, "weight")?;
    let expected = (count(b, i, rows)?, count(b, i, cols)?);
    let node = b.naming_scopes.iter().map(|n| n.0.as_str()).next_back().unwrap_or_default();
    let found = weights.weight(index).with_context(|| format!("node '{node}'"))?;
    let found = (found.rows(), found.cols());
    ensure!(
        found == expected,
        "node '{node}': weight {index} expected of shape {expected:?}, found {found:?}"
    );
    Ok((weights, index))
}

/// What a recurrent cell reads: both products, and the state.
const CELL: [&str; 3] = ["x", "from_h", "before"];

fn read_lstm_cell(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let wires = wires(b, i, &CELL)?;
    b.wire(LstmCell, &wires)
}

fn read_gru_cell(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let wires = wires(b, i, &CELL)?;
    b.wire(GruCell, &wires)
}

fn read_round(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let wires = wires(b, i, &["x"])?;
    b.wire(RoundThrough, &wires)
}

fn read_byte_range(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let wires = wires(b, i, &["x"])?;
    b.wire(ByteRange, &wires)
}

const LINEAR: [&str; 2] = ["out_features", "in_features"];

fn read_linear(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (weights, index) = weight(b, i, LINEAR)?;
    let wires = wires(b, i, &["x", "bias"])?;
    let op = FrozenLinear::new(&weights, index, target(b, i)?, wires.len() == 2)?;
    b.wire(op, &wires)
}

fn read_transposed(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (weights, index) = weight(b, i, LINEAR)?;
    let wires = wires(b, i, &["x"])?;
    b.wire(FrozenLinear::new(&weights, index, None, false)?.transposed(), &wires)
}

fn read_conv(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (weights, index) = weight(b, i, LINEAR)?;
    let window = window(b, i)?;
    let wires = wires(b, i, &["x", "bias"])?;
    let op = FrozenConv::new(&weights, index, target(b, i)?, wires.len() == 2, window)?;
    b.wire(op, &wires)
}

fn read_conv_gradient(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (weights, index) = weight(b, i, LINEAR)?;
    let op = FrozenConv::new(&weights, index, None, false, window(b, i)?)?;
    let (height, width) = (i.named_arg_as(b, "height")?, i.named_arg_as(b, "width")?);
    let wires = wires(b, i, &["x"])?;
    b.wire(op.input_gradient(height, width), &wires)
}

fn read_depthwise(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let window = window(b, i)?;
    let wires = wires(b, i, &["x", "filters", "bias"])?;
    b.wire(FrozenDepthwise { window }, &wires)
}

fn read_depthwise_gradient(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let window = window(b, i)?;
    let (height, width) = (i.named_arg_as(b, "height")?, i.named_arg_as(b, "width")?);
    let wires = wires(b, i, &["x", "filters"])?;
    b.wire(DepthwiseInputGradient { window, height, width }, &wires)
}

fn read_im2col(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let window = window(b, i)?;
    let wires = wires(b, i, &["x"])?;
    b.wire(Im2col { window }, &wires)
}

fn read_col2im(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let window = window(b, i)?;
    let (height, width) = (i.named_arg_as(b, "height")?, i.named_arg_as(b, "width")?);
    let channels = count(b, i, "channels")?;
    let wires = wires(b, i, &["x"])?;
    b.wire(Col2im { window, height, width, channels }, &wires)
}

fn read_embedding(b: &mut ModelBuilder, i: &ResolvedInvocation) -> TractResult<Value> {
    let (weights, index) = weight(b, i, ["rows", "features"])?;
    let op = FrozenEmbedding::new(&weights, index, target(b, i)?)?;
    let wires = wires(b, i, &["x"])?;
    b.wire(op, &wires)
}
