//! The parser of graph texts: exactly the part of NNEF that tract's writer uses.
//!
//! tract's own parser reads every bracketed expression twice, so its time doubles with each level of
//! nesting; it recurses without a bound, and takes 20 ms for MiniLM's graph. This one reads each
//! byte once and refuses what is nested too deep.

#![warn(clippy::arithmetic_side_effects)]

use tract_nnef::ast::{
    Argument, Assignment, Document, FragmentDecl, FragmentDef, GraphDef, Identifier, Invocation,
    LValue, Literal, Parameter, RValue, Result_, TypeName, TypeSpec,
};

use crate::error::{Error, Result};
use crate::limits;

/// Most nested brackets. Dimensions after many strided layers nest about twenty.
const MAX_DEPTH: usize = 64;

/// Parses a whole text.
///
/// # Errors
/// The line, what was expected and what was found.
pub fn parse(text: &str) -> Result<Document> {
    if text.len() as u64 > limits::GRAPH_TEXT {
        return Err(Error::bad_input(format!(
            "graph text of {} bytes, expected at most {}",
            text.len(),
            limits::GRAPH_TEXT
        )));
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    let doc = parser.document()?;
    match parser.peek() {
        None => Ok(doc),
        Some(_) => Err(parser.expected("the end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    /// A character boundary of `text`.
    at: usize,
    depth: usize,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_space(&mut self) {
        let space = self.rest().len().saturating_sub(self.rest().trim_ascii_start().len());
        self.at = self.at.saturating_add(space);
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_space();
        self.rest().chars().next()
    }

    fn expected(&mut self, what: &str) -> Error {
        self.skip_space();
        let before = self.text.get(..self.at).unwrap_or("");
        let line = before.bytes().filter(|b| *b == b'\n').count().saturating_add(1);
        let found: String = self.rest().chars().take(20).collect();
        let found = match found.trim_end() {
            "" => "the end".to_string(),
            found => format!("'{found}'"),
        };
        Error::bad_input(format!("graph text, line {line}: expected {what}, found {found}"))
    }

    fn accept(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at = self.at.saturating_add(token.len());
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.accept(token) { Ok(()) } else { Err(self.expected(&format!("'{token}'"))) }
    }

    /// Takes the longest run of characters that `take` accepts.
    fn run(&mut self, take: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let run = rest.split_once(|c| !take(c)).map_or(rest, |(run, _)| run);
        self.at = self.at.saturating_add(run.len());
        run
    }

    fn identifier(&mut self) -> Result<Identifier> {
        self.word().map(Identifier::from).ok_or_else(|| self.expected("a name"))
    }

    /// For what need not be a name: an error takes the time to count lines.
    fn word(&mut self) -> Option<&'a str> {
        let found = self.peek().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        found.then(|| self.run(is_word))
    }

    fn keyword(&mut self, word: &str) -> bool {
        let start = self.at;
        if self.word() == Some(word) {
            return true;
        }
        self.at = start;
        false
    }

    /// Items between `open`, already taken, and `close`, with commas.
    fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = vec![];
        if self.accept(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.accept(close) {
                return Ok(items);
            }
            if !self.accept(",") {
                return Err(self.expected(&format!("',' or '{close}'")));
            }
        }
    }

    fn document(&mut self) -> Result<Document> {
        if !self.keyword("version") {
            return Err(self.expected("'version'"));
        }
        self.skip_space();
        let version = self.run(|c| c.is_ascii_digit() || c == '.').to_string();
        self.expect(";")?;
        let (mut extension, mut fragments) = (vec![], vec![]);
        while self.keyword("extension") {
            let id = self.identifier()?;
            self.skip_space();
            let value = self.run(|c| c != ';' && c != '\n').to_string();
            self.expect(";")?;
            extension.push((id, value));
        }
        while self.keyword("fragment") {
            fragments.push(self.fragment()?);
        }
        if !self.keyword("graph") {
            return Err(self.expected("'fragment' or 'graph'"));
        }
        let id = self.identifier()?;
        self.expect("(")?;
        let parameters = self.list(")", Self::identifier)?;
        self.expect("->")?;
        self.expect("(")?;
        let results = self.list(")", Self::identifier)?;
        let body = self.body()?;
        let graph_def = GraphDef { id, parameters, results, body };
        Ok(Document { version, extension, fragments, graph_def })
    }

    fn fragment(&mut self) -> Result<FragmentDef> {
        let id = self.identifier()?;
        self.expect("(")?;
        let parameters = self.list(")", |p| {
            let (id, spec) = p.typed()?;
            let lit = if p.accept("=") { Some(p.literal()?) } else { None };
            Ok(Parameter { id, spec, lit, doc: None })
        })?;
        self.expect("->")?;
        self.expect("(")?;
        let results = self.list(")", |p| {
            let (id, spec) = p.typed()?;
            Ok(Result_ { id, spec })
        })?;
        let decl = FragmentDecl { id, generic_decl: None, parameters, results };
        Ok(FragmentDef { decl, body: Some(self.body()?) })
    }

    fn typed(&mut self) -> Result<(Identifier, TypeSpec)> {
        let id = self.identifier()?;
        self.expect(":")?;
        let mut spec = if self.accept("(") {
            TypeSpec::Tuple(self.list(")", |p| Ok(TypeSpec::Single(p.type_name()?)))?)
        } else if self.accept("tensor") {
            self.expect("<")?;
            let name = self.type_name()?;
            self.expect(">")?;
            name.tensor()
        } else {
            TypeSpec::Single(self.type_name()?)
        };
        if self.accept("[") {
            self.expect("]")?;
            spec = spec.array();
        }
        Ok((id, spec))
    }

    /// A parameter's default: the fragments of NNEF's standard library that a graph uses, such as
    /// `avg_pool`, are written with theirs.
    fn literal(&mut self) -> Result<Literal> {
        let start = self.at;
        let literal = as_literal(self.value()?);
        literal.ok_or_else(|| {
            self.at = start;
            self.expected("a literal")
        })
    }

    fn type_name(&mut self) -> Result<TypeName> {
        let names = [
            ("integer", TypeName::Integer),
            ("scalar", TypeName::Scalar),
            ("logical", TypeName::Logical),
            ("string", TypeName::String),
            ("?", TypeName::Any),
        ];
        for (text, name) in names {
            if self.accept(text) {
                return Ok(name);
            }
        }
        Err(self.expected("a type"))
    }

    fn body(&mut self) -> Result<Vec<Assignment>> {
        self.expect("{")?;
        let mut body = vec![];
        while !self.accept("}") {
            let left = if self.accept("(") {
                let ids = self.list(")", Self::identifier)?;
                LValue::Tuple(ids.into_iter().map(LValue::Identifier).collect())
            } else {
                LValue::Identifier(self.identifier()?)
            };
            if matches!(&left, LValue::Tuple(ids) if ids.is_empty()) {
                return Err(self.expected("at least one name before '='"));
            }
            self.expect("=")?;
            let right = self.value()?;
            self.expect(";")?;
            body.push(Assignment { left, right });
        }
        Ok(body)
    }

    fn value(&mut self) -> Result<RValue> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Err(self.expected(&format!("at most {MAX_DEPTH} nested brackets")));
        }
        let value = self.nested_value()?;
        self.depth = self.depth.saturating_sub(1);
        Ok(value)
    }

    fn nested_value(&mut self) -> Result<RValue> {
        match self.peek() {
            Some('(') => self.parenthesis(),
            Some('[') => {
                self.expect("[")?;
                Ok(RValue::Array(self.list("]", Self::value)?))
            }
            Some('"') => Ok(RValue::Literal(Literal::String(self.string()?))),
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            _ => self.named(),
        }
    }

    /// A tuple, one value in parentheses, or two with an operator between them.
    fn parenthesis(&mut self) -> Result<RValue> {
        self.expect("(")?;
        if self.accept(")") {
            return Ok(RValue::Tuple(vec![]));
        }
        let first = self.value()?;
        for operator in ["+", "-", "*", "/"] {
            if self.accept(operator) {
                let second = self.value()?;
                self.expect(")")?;
                return Ok(RValue::Binary(first.boxed(), operator.into(), second.boxed()));
            }
        }
        if self.accept(")") {
            return Ok(first);
        }
        self.expect(",")?;
        let mut items = vec![first];
        items.extend(self.list(")", Self::value)?);
        Ok(RValue::Tuple(items))
    }

    fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut text = String::new();
        loop {
            text.push_str(self.run(|c| c != '"' && c != '\\'));
            let mut rest = self.rest().chars();
            match (rest.next(), rest.next()) {
                (Some('"'), _) => {
                    self.at = self.at.saturating_add(1);
                    return Ok(text);
                }
                (Some(_), Some(escaped)) => {
                    self.at = self.at.saturating_add(1).saturating_add(escaped.len_utf8());
                    text.push(escaped);
                }
                _ => return Err(self.expected("the end of a string")),
            }
        }
    }

    fn number(&mut self) -> Result<RValue> {
        let start = self.at;
        self.accept("-");
        if !self.rest().starts_with("inf") && !self.rest().starts_with(|c: char| c.is_ascii_digit())
        {
            self.at = start;
            return Err(self.expected("a number"));
        }
        self.run(|c| is_word(c) || c == '.');
        // The exponent's sign.
        let so_far = self.text.get(start..self.at).unwrap_or("");
        if so_far.ends_with(['e', 'E']) && self.rest().starts_with(['-', '+']) {
            self.at = self.at.saturating_add(1);
            self.run(|c| c.is_ascii_digit());
        }
        let text = self.text.get(start..self.at).unwrap_or("");
        match text.parse::<f64>() {
            Ok(_) => Ok(RValue::Literal(Literal::Numeric(text.to_string()))),
            Err(_) => {
                self.at = start;
                Err(self.expected("a number"))
            }
        }
    }

    /// A name, a call, or a word that is a literal.
    fn named(&mut self) -> Result<RValue> {
        let id = self.identifier()?;
        let literal = match id.0.as_str() {
            "true" => Some(Literal::Logical(true)),
            "false" => Some(Literal::Logical(false)),
            "inf" => Some(Literal::Numeric("inf".into())),
            _ => None,
        };
        if let Some(literal) = literal {
            return Ok(RValue::Literal(literal));
        }
        let mut generic_type_name = None;
        if self.accept("<") {
            generic_type_name = Some(self.type_name()?);
            self.expect(">")?;
            self.expect("(")?;
        } else if !self.accept("(") {
            return Ok(RValue::Identifier(id));
        }
        let arguments = self.list(")", |p| {
            let start = p.at;
            if let Some(id) = p.word()
                && p.accept("=")
            {
                return Ok(Argument { id: Some(id.into()), rvalue: p.value()? });
            }
            p.at = start;
            Ok(Argument { id: None, rvalue: p.value()? })
        })?;
        Ok(RValue::Invocation(Invocation { id, generic_type_name, arguments }))
    }
}

/// Recurses as deep as the value was parsed, [`MAX_DEPTH`] at most.
fn as_literal(value: RValue) -> Option<Literal> {
    match value {
        RValue::Literal(literal) => Some(literal),
        RValue::Array(items) => {
            items.into_iter().map(as_literal).collect::<Option<_>>().map(Literal::Array)
        }
        RValue::Tuple(items) => {
            items.into_iter().map(as_literal).collect::<Option<_>>().map(Literal::Tuple)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use tract_nnef::ast::parse::parse_document;

    fn graph(body: &str) -> String {
        format!("version 1.0;\n\ngraph g(x) -> (y) {{\n  {body}\n}}\n")
    }

    #[test]
    fn it_reads_what_tracts_parser_reads() {
        let values = [
            "x",
            "f(x)",
            "f<scalar>(x, 1, a = -2.5e-7, b = inf, c = -inf)",
            "f([x, g(x), [1, -1]], n = \"a \\\"b\\\" \\\\\", t = true, u = false)",
            "((s0 + 1) * (-1 * s1))",
            "((s0 / 2) - 3)",
            "(1, \"two\", (x, y))",
            "[]",
            "((x))",
            "1e10",
            "f()",
        ];
        for value in values {
            let text = graph(&format!("y = {value};\n  ( a, b ) = split(y);"));
            assert_eq!(parse(&text).unwrap(), parse_document(&text).unwrap(), "{value}");
        }
        let text = "version 1.0;\n\nfragment pool(\n    x: tensor<scalar>,\n    size: integer[],\n    \
                    border: string = \"constant\",\n    padding: (integer, integer)[] = [],\n    \
                    low: tensor<scalar> = -0.5,\n    on: logical = true,\n    at: integer[] = [1, 2]\n) \
                    -> (y: tensor<scalar>)\n{\n  y = x;\n}\n\ngraph g() -> () {\n}\n";
        assert_eq!(parse(text).unwrap(), parse_document(text).unwrap());
        assert!(parse(&text.replace("-0.5", "f(x)")).unwrap_err().message().contains("a literal"));
        let text = "version 1.0;\nextension tract_symbol s0;\nextension tract_assert s0 >= 1;\n\n\
                    fragment scan_body_0(\n    a: tensor<scalar>,\n    b: tensor<?>\n) -> \
                    (c: tensor<logical>)\n{\n  c = add(a, b);\n}\n\ngraph g() -> () {\n}\n";
        assert_eq!(parse(text).unwrap(), parse_document(text).unwrap());
    }

    #[test]
    fn deep_texts_are_refused_without_overflowing_the_stack() {
        let nested = |open: &str, close: &str, n: usize| {
            graph(&format!("y = {}x{};", open.repeat(n), close.repeat(n)))
        };
        for (open, close) in [("(", ")"), ("[", "]"), ("f(", ")"), ("(1 + ", ")"), ("f(a = ", ")")]
        {
            assert!(parse(&nested(open, close, 40)).is_ok(), "{open}");
            let e = parse(&nested(open, close, 100_000)).unwrap_err();
            assert!(e.message().contains("nested brackets"), "{e}");
        }
    }

    /// Each argument that is no name once cost a walk over all the text before it: minutes here.
    #[test]
    fn many_literal_arguments_are_read_at_once() {
        let n = 500_000;
        let text = graph(&format!("y = f({});", "1,\n".repeat(n) + "x"));
        let doc = parse(&text).unwrap();
        assert!(matches!(&doc.graph_def.body[0].right,
            RValue::Invocation(call) if call.arguments.len() == n + 1));
    }

    #[test]
    fn errors_name_the_line_and_what_was_found() {
        let message = |body: &str| parse(&graph(body)).unwrap_err().message().to_string();
        assert_eq!(message("y = x"), "graph text, line 5: expected ';', found '}'",);
        assert_eq!(
            message("y = f(x y);"),
            "graph text, line 4: expected ',' or ')', found 'y); }'"
        );
        assert!(message("y = f(-);").contains("expected a number, found '-"));
        assert!(message("y = 1.2.3;").contains("expected a number"));
        assert!(message("y = \"abc;").contains("the end of a string"));
        assert!(message("( ) = f(x);").contains("at least one name"));
        assert!(message("y = é;").contains("expected a name, found 'é"));
        assert!(parse("").unwrap_err().message().contains("found the end"));
        assert!(parse("version 1.0;\nversion 1.0;").is_err());
        assert!(parse(&(graph("y = x;") + "z")).unwrap_err().message().contains("the end"));
    }
}
