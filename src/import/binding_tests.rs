use super::*;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::{ModelProto, TensorShapeProto, TypeProto, type_proto};

/// A graph without nodes whose inputs have these dimensions.
fn prepared(inputs: &[(&str, &[&str])]) -> Prepared {
    let input = inputs.iter().map(|(name, dims)| {
        let dim = dims.iter().map(|d| Dimension {
            value: Some(match d.parse() {
                Ok(size) => Dim::DimValue(size),
                Err(_) => Dim::DimParam(d.to_string()),
            }),
            ..Dimension::default()
        });
        let shape = Some(TensorShapeProto { dim: dim.collect() });
        let tensor = type_proto::Tensor { elem_type: 1, shape };
        ValueInfoProto {
            name: name.to_string(),
            r#type: Some(TypeProto {
                value: Some(TypeValue::TensorType(tensor)),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        }
    });
    let graph = GraphProto { input: input.collect(), ..GraphProto::default() };
    Prepared {
        inputs: described_inputs(&graph),
        model: ModelProto { graph: Some(graph), ..ModelProto::default() },
        targets: vec![],
        matrices: vec![],
        outputs: vec![],
        source_hash: String::new(),
        source_bytes: 0,
        opset: 17,
        properties: vec![],
    }
}

/// What a search binds where `works` judges the inputs' dimensions, or the error.
fn bound(
    inputs: &[(&str, &[&str])],
    mut works: impl FnMut(&[Vec<String>]) -> Result<(), &'static str>,
) -> Result<Vec<String>, String> {
    let mut prepared = prepared(inputs);
    let fitted = fit(&mut prepared, |prepared| {
        let dims: Vec<Vec<String>> = prepared.inputs.iter().map(|i| i.dims.clone()).collect();
        let error = |text: &str| match text.strip_prefix("only ").and_then(|t| t.split_once('=')) {
            Some((name, size)) => {
                let e = Error::unsupported("another size").with_only(name, size.parse().unwrap());
                e.at("n.onnx")
            }
            None => Error::unsupported(text),
        };
        works(&dims).map_err(error).map(|()| dims)
    });
    let left: Vec<Vec<String>> = prepared.inputs.iter().map(|i| i.dims.clone()).collect();
    let (made, bound) = fitted.map_err(|e| e.message().to_string())?;
    assert_eq!(made, left, "the inputs are left as they were found to work");
    Ok(bound.iter().map(Bound::to_string).collect())
}

#[test]
fn nothing_is_bound_that_need_not_be() {
    let inputs = [("ids", &["batch", "seq"][..]), ("mask", &["batch", "seq"])];
    assert_eq!(bound(&inputs, |_| Ok(())).unwrap(), [""; 0]);
    let batch = |d: &[Vec<String>]| if d[0][0] == "1" { Ok(()) } else { Err("square") };
    assert_eq!(bound(&inputs, batch).unwrap(), ["batch=1"]);
    let seq = |d: &[Vec<String>]| if d[0][1] == "128" { Ok(()) } else { Err("open") };
    assert_eq!(bound(&inputs, seq).unwrap(), ["seq=128"]);
}

#[test]
fn dimensions_that_the_graph_wants_equal_become_one() {
    let inputs = [("a", &["unk__1", "8"][..]), ("b", &["unk__2", "8"])];
    let equal = |d: &[Vec<String>]| {
        if d[0] == d[1] { Ok(()) } else { Err("Impossible to unify Sym(unk__1) with Sym(unk__2)") }
    };
    assert_eq!(bound(&inputs, equal).unwrap(), ["unk__2=unk__1"]);
    // Also where the error doesn't say so.
    let silent = |d: &[Vec<String>]| if d[0] == d[1] { Ok(()) } else { Err("volume mismatch") };
    assert_eq!(bound(&inputs, silent).unwrap(), ["unk__2=unk__1"]);
    let width = |d: &[Vec<String>]| {
        if d[0][1] == "138" {
            Ok(())
        } else {
            Err("rule: Impossible to unify Sym(w) with Val(138)")
        }
    };
    assert_eq!(bound(&[("x", &["t", "w"])], width).unwrap(), ["w=138"]);
    let one = |d: &[Vec<String>]| {
        if d[0][1] == "24" { Ok(()) } else { Err("only w=24") }
    };
    assert_eq!(bound(&[("x", &["t", "w"])], one).unwrap(), ["w=24"]);
    // What nothing helps is given up after so many attempts, on any machine.
    let mut attempts = 0;
    let never = |_: &[Vec<String>]| {
        attempts += 1;
        Err("nothing fits")
    };
    assert_eq!(bound(&[("x", &["n", "3", "h", "w"])], never).unwrap_err(), "nothing fits");
    assert!((8..=ATTEMPTS.1 + 1).contains(&attempts), "{attempts}");
}

#[test]
fn pictures_keep_their_sides_free_where_a_multiple_is_enough() {
    let inputs = [("x", &["n", "3", "h", "w"][..])];
    let works = |d: &[Vec<String>]| match (d[0][2].as_str(), d[0][3].as_str()) {
        ("32*h", "32*w") => Ok(()),
        _ => Err("odd"),
    };
    assert_eq!(bound(&inputs, works).unwrap(), ["h=32*h", "w=32*w"]);
}

#[test]
fn the_first_error_stays_where_nothing_helps() {
    let mut count = 0;
    let never = |_: &[Vec<String>]| {
        count += 1;
        Err(if count == 1 { "node 'n' can't be run" } else { "other" })
    };
    let inputs = [("x", &["n", "8"][..])];
    assert_eq!(bound(&inputs, never).unwrap_err(), "node 'n' can't be run");
    assert!(count < 10);
    let fixed = [("x", &["1", "8"][..])];
    assert_eq!(bound(&fixed, |_| Err("no")).unwrap_err(), "no");
}

#[test]
fn scalars_that_are_compared_are_tried_with_those_values() {
    let mut prepared = prepared(&[("x", &["1", "8"]), ("sr", &[])]);
    let graph = prepared.model.graph.as_mut().unwrap();
    if let Some(TypeValue::TensorType(t)) = &mut graph.input[1].r#type.as_mut().unwrap().value {
        t.elem_type = 7;
    }
    graph.initializer.push(TensorProto {
        name: "rate".into(),
        data_type: 7,
        int64_data: vec![16000],
        ..TensorProto::default()
    });
    graph.node.push(tract_onnx::pb::NodeProto {
        op_type: "Equal".into(),
        input: vec!["sr".into(), "rate".into()],
        output: vec!["fast".into()],
        ..Default::default()
    });
    let (_, bound) = fit(&mut prepared, |p| match p.inputs.len() {
        1 => Ok(()),
        _ => Err(Error::unsupported("branches of two kinds")),
    })
    .unwrap();
    assert_eq!(bound[0].to_string(), "sr=16000");
    assert_eq!(prepared.model.graph.unwrap().initializer[1].name, "sr");
}
