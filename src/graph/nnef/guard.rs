//! What a parsed graph text must satisfy before tract's translator sees it: the translator follows
//! bodies that contain themselves for ever.

#![warn(clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use tract_nnef::ast::{Argument, Document, Invocation, Literal, RValue, Subscript};

use crate::error::{Error, Result};

/// Most statements after all nested bodies are expanded.
const MAX_STATEMENTS: u64 = 1_000_000;
/// Most bodies and brackets within each other, outside the innermost body: the translator takes 1 to
/// 3 KB of stack for each.
const MAX_DEPTH: usize = 128;
/// How bodies of loops and conditions are named, and tract's wrappers of pools whose channels come
/// last (`tract_max_pool_nhwc_2d`); nothing else may be a fragment.
const BODY_PREFIXES: [&str; 4] = ["scan_body_", "if_body_", "tract_max_pool_", "tract_box_"];

/// A body with all that it contains.
#[derive(Clone, Copy, Default)]
struct Extent {
    statements: u64,
    /// Bodies and brackets within each other, itself counted.
    depth: usize,
}

/// Refuses documents whose bodies contain each other, lie too deep within each other, or expand to
/// too many statements.
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
    // `None` while being computed: meeting it again is a cycle.
    let mut extents: HashMap<&str, Option<Extent>> = HashMap::new();
    let mut stack: Vec<&str> = bodies.keys().copied().collect();
    stack.sort_unstable();
    while let Some(&id) = stack.last() {
        if matches!(extents.get(id), Some(Some(_))) {
            stack.pop();
            continue;
        }
        let Some((_, body)) = bodies.get(id) else {
            stack.pop();
            continue;
        };
        let mut called = Vec::new();
        for a in *body {
            references(&a.right, 0, &mut |name, level| {
                if let Some((key, _)) = bodies.get_key_value(name) {
                    called.push((*key, level));
                }
            });
        }
        let entered = extents.insert(id, None).is_some();
        let open: Vec<&str> = called
            .iter()
            .map(|(c, _)| *c)
            .filter(|c| !matches!(extents.get(c), Some(Some(_))))
            .collect();
        if !open.is_empty() {
            if entered || open.iter().any(|c| extents.contains_key(c)) {
                return Err(Error::bad_input(format!("fragment '{id}' contains itself")));
            }
            stack.extend(open);
            continue;
        }
        let mut extent = Extent { statements: body.len() as u64, depth: 1 };
        for (c, level) in called {
            let inner = extents.get(c).copied().flatten().unwrap_or_default();
            extent.statements = extent.statements.saturating_add(inner.statements);
            extent.depth = extent.depth.max(inner.depth.saturating_add(level).saturating_add(1));
        }
        if extent.depth > MAX_DEPTH {
            return Err(Error::bad_input(format!(
                "fragment '{id}' has more than {MAX_DEPTH} bodies and brackets within each other"
            )));
        }
        extents.insert(id, Some(extent));
        stack.pop();
    }
    let mut total = doc.graph_def.body.len() as u64;
    for a in &doc.graph_def.body {
        references(&a.right, 0, &mut |name, _| {
            let inner = extents.get(name).copied().flatten().unwrap_or_default();
            total = total.saturating_add(inner.statements);
        });
    }
    if total > MAX_STATEMENTS {
        return Err(Error::bad_input(format!(
            "graph text expands to {total} statements, expected at most {MAX_STATEMENTS}"
        )));
    }
    Ok(())
}

/// Calls `found` for every name an expression calls or quotes, and the brackets around it.
fn references(value: &RValue, level: usize, found: &mut impl FnMut(&str, usize)) {
    let inner = level.saturating_add(1);
    match value {
        RValue::Invocation(Invocation { id, arguments, .. }) => {
            found(&id.0, level);
            for Argument { rvalue, .. } in arguments {
                references(rvalue, inner, found);
            }
        }
        RValue::Literal(literal) => literal_references(literal, level, found),
        RValue::Array(items) | RValue::Tuple(items) => {
            items.iter().for_each(|i| references(i, inner, found));
        }
        RValue::Binary(a, _, b) => {
            references(a, inner, found);
            references(b, inner, found);
        }
        RValue::Unary(_, a) => references(a, inner, found),
        RValue::Subscript(a, s) => {
            references(a, inner, found);
            match s.as_ref() {
                Subscript::Single(a) => references(a, inner, found),
                Subscript::Range(a, b) => {
                    a.iter().chain(b.iter()).for_each(|x| references(x, inner, found));
                }
            }
        }
        RValue::IfThenElse(ite) => {
            references(&ite.cond, inner, found);
            references(&ite.then, inner, found);
            references(&ite.otherwise, inner, found);
        }
        RValue::Comprehension(c) => {
            c.loop_iters.iter().for_each(|(_, v)| references(v, inner, found));
            c.filter.iter().for_each(|v| references(v, inner, found));
            references(&c.yields, inner, found);
        }
        RValue::Identifier(_) => (),
    }
}

fn literal_references(literal: &Literal, level: usize, found: &mut impl FnMut(&str, usize)) {
    match literal {
        Literal::String(s) => found(s, level),
        Literal::Array(items) | Literal::Tuple(items) => {
            items.iter().for_each(|i| literal_references(i, level.saturating_add(1), found));
        }
        Literal::Numeric(_) | Literal::Logical(_) => (),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::graph::nnef::parse::parse;

    fn document(fragments: &str, body: &str) -> Result<()> {
        let text = format!("version 1.0;\n{fragments}\ngraph g(x) -> (y) {{ {body} }}\n");
        check_document(&parse(&text)?)
    }

    fn f(id: &str, body: &str) -> String {
        format!("fragment {id}(x: tensor<scalar>) -> (y: tensor<scalar>) {{ {body} }}\n")
    }

    #[test]
    fn bodies_deep_within_each_other_are_refused() {
        let chain = |n: usize, brackets: usize| {
            let (open, close) = ("neg(".repeat(brackets), ")".repeat(brackets));
            let mut chain = f("scan_body_1", "y = x;");
            for i in 2..=n {
                let call = format!("y = {open}scan_body_{}(x){close};", i - 1);
                chain += &f(&format!("scan_body_{i}"), &call);
            }
            document(&chain, &format!("y = scan_body_{n}(x);"))
        };
        chain(MAX_DEPTH, 0).unwrap();
        chain(4, 40).unwrap();
        for (n, brackets) in [(MAX_DEPTH + 1, 0), (100_000, 0), (5, 40)] {
            let e = chain(n, brackets).unwrap_err();
            assert!(e.message().contains("within each other"), "{e}");
        }
    }

    #[test]
    fn bodies_that_contain_each_other_are_refused() {
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
