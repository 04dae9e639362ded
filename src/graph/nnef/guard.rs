//! What a parsed graph text must satisfy before tract's translator sees it: the translator follows
//! bodies that contain themselves for ever.

use std::collections::HashMap;

use tract_nnef::ast::{Argument, Document, Invocation, Literal, RValue, Subscript};

use crate::error::{Error, Result};

/// Most statements after all nested bodies are expanded.
const MAX_STATEMENTS: u64 = 1_000_000;
/// How bodies of loops and conditions are named, and tract's wrappers of pools whose channels come
/// last (`tract_max_pool_nhwc_2d`); nothing else may be a fragment.
const BODY_PREFIXES: [&str; 4] = ["scan_body_", "if_body_", "tract_max_pool_", "tract_box_"];

/// Refuses documents whose bodies contain each other, or expand to too many statements.
pub fn check_document(doc: &Document) -> Result<()> {
    let mut bodies = HashMap::new();
    for f in &doc.fragments {
        let id = f.decl.id.0.as_str();
        if !BODY_PREFIXES.iter().any(|p| id.starts_with(p)) {
            return Err(Error::bad_input(format!("unexpected fragment '{id}' in the graph text")));
        }
        let body = f.body.as_deref().unwrap_or(&[]);
        if bodies.insert(id, (f, body)).is_some() {
            return Err(Error::bad_input(format!("fragment '{id}' is defined twice")));
        }
    }
    // Statements after expansion, `None` while being computed: meeting it again is a cycle.
    let mut sizes: HashMap<&str, Option<u64>> = HashMap::new();
    let mut stack: Vec<&str> = bodies.keys().copied().collect();
    stack.sort_unstable();
    while let Some(&id) = stack.last() {
        if matches!(sizes.get(id), Some(Some(_))) {
            stack.pop();
            continue;
        }
        let Some((_, body)) = bodies.get(id) else {
            stack.pop();
            continue;
        };
        let mut called = Vec::new();
        for a in *body {
            references(&a.right, &mut |name| {
                if let Some((key, _)) = bodies.get_key_value(name) {
                    called.push(*key);
                }
            });
        }
        let entered = sizes.insert(id, None).is_some();
        let open: Vec<&str> =
            called.iter().copied().filter(|c| !matches!(sizes.get(c), Some(Some(_)))).collect();
        if !open.is_empty() {
            if entered || open.iter().any(|c| sizes.contains_key(c)) {
                return Err(Error::bad_input(format!("fragment '{id}' contains itself")));
            }
            stack.extend(open);
            continue;
        }
        let inner = called
            .iter()
            .fold(0u64, |n, c| n.saturating_add(sizes.get(c).copied().flatten().unwrap_or(0)));
        sizes.insert(id, Some(inner.saturating_add(body.len() as u64)));
        stack.pop();
    }
    let mut total = doc.graph_def.body.len() as u64;
    for a in &doc.graph_def.body {
        references(&a.right, &mut |name| {
            total = total.saturating_add(sizes.get(name).copied().flatten().unwrap_or(0));
        });
    }
    if total > MAX_STATEMENTS {
        return Err(Error::bad_input(format!(
            "graph text expands to {total} statements, expected at most {MAX_STATEMENTS}"
        )));
    }
    Ok(())
}

/// Calls `found` for every name an expression calls or quotes.
fn references(value: &RValue, found: &mut impl FnMut(&str)) {
    match value {
        RValue::Invocation(Invocation { id, arguments, .. }) => {
            found(&id.0);
            for Argument { rvalue, .. } in arguments {
                references(rvalue, found);
            }
        }
        RValue::Literal(literal) => literal_references(literal, found),
        RValue::Array(items) | RValue::Tuple(items) => {
            items.iter().for_each(|i| references(i, found));
        }
        RValue::Binary(a, _, b) => {
            references(a, found);
            references(b, found);
        }
        RValue::Unary(_, a) => references(a, found),
        RValue::Subscript(a, s) => {
            references(a, found);
            match s.as_ref() {
                Subscript::Single(a) => references(a, found),
                Subscript::Range(a, b) => {
                    a.iter().chain(b.iter()).for_each(|x| references(x, found));
                }
            }
        }
        RValue::IfThenElse(ite) => {
            references(&ite.cond, found);
            references(&ite.then, found);
            references(&ite.otherwise, found);
        }
        RValue::Comprehension(c) => {
            c.loop_iters.iter().for_each(|(_, v)| references(v, found));
            c.filter.iter().for_each(|v| references(v, found));
            references(&c.yields, found);
        }
        RValue::Identifier(_) => (),
    }
}

fn literal_references(literal: &Literal, found: &mut impl FnMut(&str)) {
    match literal {
        Literal::String(s) => found(s),
        Literal::Array(items) | Literal::Tuple(items) => {
            items.iter().for_each(|i| literal_references(i, found));
        }
        Literal::Numeric(_) | Literal::Logical(_) => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::nnef::parse::parse;

    fn document(fragments: &str, body: &str) -> Result<()> {
        let text = format!("version 1.0;\n{fragments}\ngraph g(x) -> (y) {{ {body} }}\n");
        check_document(&parse(&text)?)
    }

    #[test]
    fn bodies_that_contain_each_other_are_refused() {
        let f = |id: &str, body: &str| {
            format!("fragment {id}(x: tensor<scalar>) -> (y: tensor<scalar>) {{ {body} }}\n")
        };
        let plain = f("scan_body_0", "y = x;");
        document(&plain, "y = scan(x, body = \"scan_body_0\");").unwrap();
        let pool = f("tract_max_pool_nhwc_2d", "y = max_pool(x, size = [1, 1, 2, 2]);");
        document(&pool, "y = tract_max_pool_nhwc_2d(x);").unwrap();
        let own = f("scan_body_0", "y = scan(x, body = \"scan_body_0\");");
        assert!(document(&own, "y = x;").unwrap_err().message().contains("contains itself"));
        let two =
            f("scan_body_0", "y = scan_body_1(x);") + &f("scan_body_1", "y = scan_body_0(x);");
        assert!(document(&two, "y = x;").unwrap_err().message().contains("contains itself"));
        let named = f("relu", "y = x;");
        assert!(document(&named, "y = x;").unwrap_err().message().contains("'relu'"));
        let twice = plain.clone() + &plain;
        assert!(document(&twice, "y = x;").unwrap_err().message().contains("twice"));
        let mut chain = f("scan_body_0", "y = x;");
        for i in 1..40 {
            let p = i - 1;
            chain += &f(
                &format!("scan_body_{i}"),
                &format!("z = scan_body_{p}(x); y = scan_body_{p}(z);"),
            );
        }
        let big = document(&chain, "y = scan_body_39(x);").unwrap_err();
        assert!(big.message().contains("statements"), "{big}");
    }
}
