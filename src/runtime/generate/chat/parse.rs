//! A chat template's text to its parts: the part of Jinja that such templates are written in. What isn't
//! known is an error that names it.

#![warn(clippy::arithmetic_side_effects)]

use super::cut::{Piece, Token, pieces};
use super::fail;
use crate::error::Result;

/// A part of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Print(Expr),
    /// Name and value, of a name or of a namespace's field.
    Set(String, Option<String>, Expr),
    /// Conditions with their parts; the last may be without one.
    If(Vec<(Option<Expr>, Vec<Part>)>),
    For(String, Expr, Option<Expr>, Vec<Part>),
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    Name(String),
    List(Vec<Expr>),
    /// Name and value.
    Map(Vec<(String, Expr)>),
    /// `a[b]` and `a.b`.
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Option<Box<Expr>>, Option<Box<Expr>>),
    /// A function, what it gets, and what it gets by name.
    Call(String, Vec<Expr>, Vec<(String, Expr)>),
    Method(Box<Expr>, String, Vec<Expr>),
    Filter(Box<Expr>, String, Vec<Expr>),
    /// `a is b`, of which the flag says not.
    Test(Box<Expr>, String, bool),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// Condition, then, else.
    Choice(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Reads a whole template.
pub(super) fn parse(template: &str) -> Result<Vec<Part>> {
    let mut pieces = pieces(template)?;
    pieces.reverse();
    let (parts, end) = block(&mut pieces, 0)?;
    match end {
        Some(end) => Err(fail(format!("'{}' without its beginning", end.word))),
        None => Ok(parts),
    }
}

/// A tag that ends or divides a block, and what follows its word.
struct End {
    word: String,
    rest: Vec<Token>,
}

/// Parts up to the tag that ends them; `pieces` stand last first.
fn block(pieces: &mut Vec<Piece>, depth: usize) -> Result<(Vec<Part>, Option<End>)> {
    if depth > MAX_DEPTH {
        return Err(fail("blocks too deep in each other"));
    }
    let mut parts = vec![];
    while let Some(piece) = pieces.pop() {
        let tokens = match piece {
            Piece::Text(text) if text.is_empty() => continue,
            Piece::Text(text) => {
                parts.push(Part::Text(text));
                continue;
            }
            Piece::Print(tokens) => {
                parts.push(Part::Print(whole(tokens)?));
                continue;
            }
            Piece::Block(tokens) => tokens,
        };
        let mut tokens = tokens.into_iter();
        let Some(Token::Word(word)) = tokens.next() else { return Err(fail("an empty tag")) };
        let rest: Vec<Token> = tokens.collect();
        match word.as_str() {
            "set" => parts.push(set(rest)?),
            "if" => {
                let mut arms = vec![];
                let mut condition = Some(whole(rest)?);
                loop {
                    let (inner, end) = block(pieces, depth.saturating_add(1))?;
                    arms.push((condition.take(), inner));
                    match end {
                        Some(End { word, rest }) if word == "elif" => {
                            condition = Some(whole(rest)?)
                        }
                        Some(End { word, .. }) if word == "else" => {}
                        Some(End { word, .. }) if word == "endif" => break,
                        _ => return Err(fail("'if' without 'endif'")),
                    }
                }
                parts.push(Part::If(arms));
            }
            "for" => {
                let mut reader = Reader { tokens: rest, at: 0, depth: 0 };
                let name = reader.word()?;
                if !reader.takes_word("in") {
                    return Err(fail("'for' over more than one name"));
                }
                let list = reader.either()?;
                let only = if reader.takes_word("if") { Some(reader.either()?) } else { None };
                reader.end()?;
                match block(pieces, depth.saturating_add(1))? {
                    (inner, Some(End { word, .. })) if word == "endfor" => {
                        parts.push(Part::For(name, list, only, inner));
                    }
                    _ => return Err(fail("'for' without 'endfor'")),
                }
            }
            // It marks what the assistant says, for training.
            "generation" | "endgeneration" => {}
            "elif" | "else" | "endif" | "endfor" => return Ok((parts, Some(End { word, rest }))),
            _ => return Err(fail(format!("the tag '{word}'"))),
        }
    }
    Ok((parts, None))
}

fn set(tokens: Vec<Token>) -> Result<Part> {
    let mut reader = Reader { tokens, at: 0, depth: 0 };
    let name = reader.word()?;
    let field = if reader.takes(".") { Some(reader.word()?) } else { None };
    if !reader.takes("=") {
        return Err(fail("'set' of more than one value"));
    }
    let value = reader.expression()?;
    reader.end()?;
    Ok(Part::Set(name, field, value))
}

fn whole(tokens: Vec<Token>) -> Result<Expr> {
    let mut reader = Reader { tokens, at: 0, depth: 0 };
    let found = reader.expression()?;
    reader.end()?;
    Ok(found)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Reader {
    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(s)) if *s == sign);
        self.at = self.at.saturating_add(usize::from(found));
        found
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(w)) if w == word);
        self.at = self.at.saturating_add(usize::from(found));
        found
    }

    fn word(&mut self) -> Result<String> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => {
                self.at = self.at.saturating_add(1);
                Ok(word.clone())
            }
            other => Err(fail(format!("{other:?} where a name should stand"))),
        }
    }

    fn end(&self) -> Result<()> {
        match self.tokens.get(self.at) {
            None => Ok(()),
            Some(token) => Err(fail(format!("{token:?} where a tag should end"))),
        }
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.takes(sign) {
            Ok(())
        } else {
            Err(fail(format!("no '{sign}' where one should stand")))
        }
    }

    fn expression(&mut self) -> Result<Expr> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Err(fail("expressions too deep in each other"));
        }
        let mut found = self.either()?;
        if self.takes_word("if") {
            let condition = Box::new(self.either()?);
            let other =
                if self.takes_word("else") { Some(Box::new(self.expression()?)) } else { None };
            found = Expr::Choice(condition, Box::new(found), other);
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(found)
    }

    fn either(&mut self) -> Result<Expr> {
        let mut left = self.both()?;
        while self.takes_word("or") {
            left = Expr::Binary("or", Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Expr> {
        let mut left = self.negation()?;
        while self.takes_word("and") {
            left = Expr::Binary("and", Box::new(left), Box::new(self.negation()?));
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Expr> {
        let mut not = false;
        while self.takes_word("not") {
            not = !not;
        }
        let found = self.comparison()?;
        Ok(if not { Expr::Not(Box::new(found)) } else { found })
    }

    fn comparison(&mut self) -> Result<Expr> {
        let mut left = self.sum()?;
        loop {
            let sign = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|sign| self.takes(sign));
            if let Some(sign) = sign {
                left = Expr::Binary(sign, Box::new(left), Box::new(self.sum()?));
            } else if self.takes_word("in") {
                left = Expr::Binary("in", Box::new(left), Box::new(self.sum()?));
            } else if self.takes_word("not") {
                if !self.takes_word("in") {
                    return Err(fail("'not' behind a value"));
                }
                let found = Expr::Binary("in", Box::new(left), Box::new(self.sum()?));
                left = Expr::Not(Box::new(found));
            } else if self.takes_word("is") {
                let not = self.takes_word("not");
                left = Expr::Test(Box::new(left), self.word()?, not);
            } else {
                return Ok(left);
            }
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.product()?;
        while let Some(sign) = ["+", "-", "~"].into_iter().find(|sign| self.takes(sign)) {
            left = Expr::Binary(sign, Box::new(left), Box::new(self.product()?));
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.unary()?;
        while let Some(sign) = ["*", "//", "%"].into_iter().find(|sign| self.takes(sign)) {
            left = Expr::Binary(sign, Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr> {
        match self.takes("-") {
            true => Ok(Expr::Negative(Box::new(self.postfix()?))),
            false => self.postfix(),
        }
    }

    fn postfix(&mut self) -> Result<Expr> {
        let mut value = self.atom()?;
        loop {
            if self.takes(".") {
                let name = self.word()?;
                value = match self.takes("(") {
                    true => Expr::Method(Box::new(value), name, self.list(")")?),
                    false => Expr::Item(Box::new(value), Box::new(Expr::Text(name))),
                };
            } else if self.takes("[") {
                let start = if self.takes(":") { None } else { Some(self.expression()?) };
                if start.is_some() && self.takes("]") {
                    value = Expr::Item(Box::new(value), Box::new(start.unwrap_or(Expr::None)));
                    continue;
                }
                if start.is_some() {
                    self.expect(":")?;
                }
                let stop = if self.takes("]") { None } else { Some(self.expression()?) };
                if stop.is_some() {
                    self.expect("]")?;
                }
                value = Expr::Slice(Box::new(value), start.map(Box::new), stop.map(Box::new));
            } else if self.takes("|") {
                let name = self.word()?;
                let arguments = if self.takes("(") { self.list(")")? } else { vec![] };
                value = Expr::Filter(Box::new(value), name, arguments);
            } else {
                return Ok(value);
            }
        }
    }

    /// Values with commas between them, up to `end`.
    fn list(&mut self, end: &str) -> Result<Vec<Expr>> {
        let mut found = vec![];
        while !self.takes(end) {
            found.push(self.expression()?);
            if !self.takes(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(found)
    }

    fn atom(&mut self) -> Result<Expr> {
        let token = self.tokens.get(self.at).cloned().ok_or_else(|| fail("an empty expression"))?;
        self.at = self.at.saturating_add(1);
        Ok(match token {
            Token::Int(value) => Expr::Int(value),
            Token::Text(mut text) => {
                // Strings beside each other are one.
                while let Some(Token::Text(more)) = self.tokens.get(self.at) {
                    text.push_str(more);
                    self.at = self.at.saturating_add(1);
                }
                Expr::Text(text)
            }
            Token::Word(word) => match word.as_str() {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ if self.takes("(") => self.call(word)?,
                _ => Expr::Name(word),
            },
            Token::Sign("(") => {
                let found = self.expression()?;
                self.expect(")")?;
                found
            }
            Token::Sign("[") => Expr::List(self.list("]")?),
            Token::Sign("{") => {
                let mut fields = vec![];
                while !self.takes("}") {
                    let Expr::Text(name) = self.atom()? else { return Err(fail("a field's name")) };
                    self.expect(":")?;
                    fields.push((name, self.expression()?));
                    if !self.takes(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                Expr::Map(fields)
            }
            Token::Sign(sign) => return Err(fail(format!("'{sign}' where a value should stand"))),
        })
    }

    fn call(&mut self, function: String) -> Result<Expr> {
        let (mut values, mut named) = (vec![], vec![]);
        while !self.takes(")") {
            let next = self.tokens.get(self.at.saturating_add(1));
            match (self.tokens.get(self.at).cloned(), next) {
                (Some(Token::Word(name)), Some(Token::Sign("="))) => {
                    self.at = self.at.saturating_add(2);
                    named.push((name, self.expression()?));
                }
                _ => values.push(self.expression()?),
            }
            if !self.takes(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(Expr::Call(function, values, named))
    }
}
