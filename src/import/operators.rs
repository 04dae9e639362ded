//! The table of operators and attributes that are read right, and what lies outside it refused.
//!
//! tract's reader ignores attributes that it doesn't know; a file that has one would run and give wrong
//! numbers. The table is written by `scripts/operators.py` from the sources of the readers.

use super::validate::label;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::OnceLock;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

/// Later operator sets may mean other things by the same names.
pub(super) const MAX_OPSET: i64 = 28;

/// One operator in a range of operator sets.
struct Entry {
    from: i64,
    to: i64,
    inputs: usize,
    outputs: usize,
    /// Attributes that may be there, and the only values they may have (empty: any).
    attributes: Vec<(&'static str, Vec<&'static str>)>,
}

type Table = HashMap<(&'static str, &'static str), Vec<Entry>>;

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("operators.tsv")))
}

fn parse(text: &'static str) -> Table {
    let mut table = Table::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[domain, name, from, to, _, inputs, outputs, attributes] = fields.as_slice() else {
            continue;
        };
        let number = |text: &str| text.parse().unwrap_or(0);
        let attributes =
            attributes.split(';').filter(|a| !a.is_empty()).map(|a| match a.split_once('=') {
                Some((name, values)) => (name, values.split('|').collect()),
                None => (a, vec![]),
            });
        table.entry((domain, name)).or_default().push(Entry {
            from: number(from) as i64,
            to: number(to) as i64,
            inputs: number(inputs),
            outputs: number(outputs),
            attributes: attributes.collect(),
        });
    }
    table
}

/// Holds every node against the table.
///
/// # Errors
/// The first operator, attribute, value, input or output that can't be read right, by name.
pub(super) fn check(graph: &GraphProto, opset: i64) -> Result<()> {
    for node in &graph.node {
        check_node(node, opset)?;
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            check(inner, opset)?;
        }
    }
    Ok(())
}

/// What helps against an operation that can't be run.
fn way_out(domain: &str, operation: &str) -> Option<&'static str> {
    match (domain, operation) {
        ("ai.onnx.ml", _) => Some(
            "the model is no neural network or has steps beside it, as scikit-learn's converter writes them; \
             export the network alone",
        ),
        ("ai.onnx", "Loop") => Some(
            "exporters write LSTM, GRU, RNN or Scan for a recurrent layer that they know: tf2onnx does from \
             the Keras model, in place of a frozen graph, and with --opset 9 or later",
        ),
        ("com.microsoft", _) => {
            Some("ONNX Runtime's optimizer writes such: pack the file as it was before that")
        }
        _ => None,
    }
}

fn check_node(node: &NodeProto, opset: i64) -> Result<()> {
    let domain = if node.domain == "ai.onnx" { "" } else { node.domain.as_str() };
    let version = if domain.is_empty() { opset } else { 1 };
    let entries = table().get(&(domain, node.op_type.as_str()));
    let Some(entries) = entries else {
        let domain = if domain.is_empty() { "ai.onnx" } else { domain };
        let e = Error::unsupported(format!(
            "node '{}' uses the operation '{}' of '{domain}', which can't be run",
            node.name, node.op_type
        ));
        return Err(match way_out(domain, &node.op_type) {
            Some(hint) => e.hint(hint),
            None => e,
        });
    };
    let Some(entry) = entries.iter().find(|e| (e.from..=e.to).contains(&version)) else {
        return Err(Error::unsupported(format!(
            "{}: operator set {opset} has no such operator that can be run",
            label(node)
        )));
    };
    let refuse = |what: String| Err(Error::unsupported(format!("{}: {what}", label(node))));
    if node.input.len() > entry.inputs {
        return refuse(format!("{} inputs, at most {} are read", node.input.len(), entry.inputs));
    }
    if let Some(slot) = node.output.iter().skip(entry.outputs).position(|o| !o.is_empty()) {
        return refuse(format!("output {} is not known", slot + entry.outputs));
    }
    for attribute in &node.attribute {
        let known = entry.attributes.iter().find(|(name, _)| *name == attribute.name);
        let allowed = match known {
            Some((_, values)) => values.is_empty() || values.iter().any(|v| equals(attribute, v)),
            None => false,
        };
        if !allowed {
            let only = match known {
                Some((_, values)) => format!(", known is {}", values.join(" or ")),
                None => String::new(),
            };
            return refuse(format!(
                "attribute {} is {}{only}, which can't be read right",
                attribute.name,
                shown(attribute)
            ));
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(80).collect()
}

/// Several values as one line.
fn list<T: ToString>(values: &[T]) -> String {
    let shown: Vec<String> = values.iter().take(16).map(T::to_string).collect();
    shown.join(" ")
}

fn shown(attribute: &AttributeProto) -> String {
    match AttributeType::try_from(attribute.r#type) {
        Ok(AttributeType::Int) => attribute.i.to_string(),
        Ok(AttributeType::Float) => attribute.f.to_string(),
        Ok(AttributeType::String) => text(&attribute.s),
        Ok(AttributeType::Ints) => list(&attribute.ints),
        Ok(AttributeType::Floats) => list(&attribute.floats),
        Ok(AttributeType::Strings) => {
            list(&attribute.strings.iter().map(|s| text(s)).collect::<Vec<_>>())
        }
        _ => "set".into(),
    }
}

fn equals(attribute: &AttributeProto, value: &str) -> bool {
    match AttributeType::try_from(attribute.r#type) {
        Ok(AttributeType::Float) => value.parse() == Ok(attribute.f),
        Ok(AttributeType::String) => attribute.s.eq_ignore_ascii_case(value.as_bytes()),
        // ONNX names activations without regard to case.
        Ok(AttributeType::Strings) => shown(attribute).eq_ignore_ascii_case(value),
        _ => shown(attribute) == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::rewritten::int_attribute;

    fn node(op_type: &str, attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            name: "n".into(),
            op_type: op_type.into(),
            output: vec!["y".into()],
            attribute: attributes,
            ..NodeProto::default()
        }
    }

    #[test]
    fn every_line_is_read() {
        let text = include_str!("operators.tsv");
        let lines = text.lines().filter(|l| !l.starts_with('#')).count();
        assert!(lines > 200);
        assert_eq!(table().values().map(Vec::len).sum::<usize>(), lines);
        for entry in table().values().flatten() {
            assert!(entry.from >= 1 && entry.from <= entry.to && entry.outputs >= 1);
        }
    }

    #[test]
    fn attributes_that_nobody_reads_are_refused_by_name() {
        check_node(&node("Celu", vec![]), 12).unwrap();
        check_node(&node("GRU", vec![int_attribute("hidden_size", 4)]), 14).unwrap();
        let e = check_node(&node("GRU", vec![int_attribute("layout", 1)]), 13).unwrap_err();
        assert!(e.message().contains("GRU node 'n': attribute layout is 1"), "{e}");
        let e = check_node(&node("TopK", vec![int_attribute("k", 1)]), 1).unwrap_err();
        assert!(e.message().contains("TopK node 'n': attribute k is 1"), "{e}");
        let e = check_node(&node("Nothing", vec![]), 14).unwrap_err();
        assert!(e.message().contains("'Nothing' of 'ai.onnx'"), "{e}");
        let e = check_node(&node("Celu", vec![]), 11).unwrap_err();
        assert!(e.message().contains("operator set 11"), "{e}");
    }
}
