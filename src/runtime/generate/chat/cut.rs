//! A chat template cut into texts and tags, and tags into words, numbers, strings and signs.

#![warn(clippy::arithmetic_side_effects)]

use super::fail;
use crate::error::Result;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Word(String),
    Int(i64),
    Text(String),
    Sign(&'static str),
}

/// Longest first.
const SIGNS: [&str; 25] = [
    "==", "!=", "<=", ">=", "**", "//", "<", ">", "=", "+", "-", "*", "/", "%", "~", "(", ")", "[",
    "]", "{", "}", ",", ".", ":", "|",
];
/// Most parts of one tag.
const MAX_TOKENS: usize = 1000;

/// What stands between texts.
pub(super) enum Piece {
    Text(String),
    Print(Vec<Token>),
    Block(Vec<Token>),
}

/// Cuts at the tags, with the blanks that `-`, and transformers' trim_blocks and lstrip_blocks, take away.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece>> {
    let mut found = vec![];
    let mut rest = template.strip_suffix('\n').unwrap_or(template);
    let (mut trim_next, mut line_start) = (false, true);
    while !rest.is_empty() {
        let open = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min();
        let (text, tag) = rest.split_at(open.unwrap_or(rest.len()));
        let mut text = if trim_next { text.trim_start() } else { text };
        let Some(kind) = tag.get(..2) else {
            found.push(Piece::Text(text.into()));
            break;
        };
        let close = match kind {
            "{{" => "}}",
            "{%" => "%}",
            _ => "#}",
        };
        let end = closing(tag, close).ok_or_else(|| fail(format!("'{kind}' without '{close}'")))?;
        let (inside, after) = (&tag[2..end], &tag[end.saturating_add(2)..]);
        if inside.starts_with('-') {
            text = text.trim_end();
        } else if kind != "{{" && !inside.starts_with('+') {
            // A tag on a line of its own takes the blanks before it.
            let line = text.trim_end_matches([' ', '\t']);
            if line.is_empty() && line_start || line.ends_with('\n') {
                text = line;
            }
        }
        found.push(Piece::Text(text.into()));
        trim_next = inside.len() > 1 && inside.ends_with('-');
        let line = after.strip_prefix('\n').filter(|_| kind != "{{" && !trim_next);
        line_start = line.is_some();
        rest = line.unwrap_or(after);
        let inside = inside.trim_matches(['-', '+']);
        match kind {
            "{{" => found.push(Piece::Print(tokens(inside)?)),
            "{%" => found.push(Piece::Block(tokens(inside)?)),
            _ => {}
        }
    }
    Ok(found)
}

/// Where a tag ends, strings within it apart.
fn closing(tag: &str, close: &str) -> Option<usize> {
    if close == "#}" {
        // Behind its own sign: "{#}" ends nothing.
        return tag.get(2..)?.find(close)?.checked_add(2);
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, _) if tag[at..].starts_with(close) => return Some(at),
            _ => {}
        }
    }
    None
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut found = vec![];
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if first == '"' || first == '\'' {
            let (text, after) = string(&rest[1..], first)?;
            found.push(Token::Text(text));
            rest = after;
        } else if word(first) {
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            let (text, after) = rest.split_at(end);
            found.push(match first.is_ascii_digit() {
                true => Token::Int(text.parse().map_err(|_| fail(format!("the number '{text}'")))?),
                false => Token::Word(text.into()),
            });
            rest = after;
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| fail(format!("the sign '{first}'")))?;
            found.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        }
        rest = rest.trim_start();
        if found.len() > MAX_TOKENS {
            return Err(fail("so long a tag"));
        }
    }
    Ok(found)
}

/// The string that ends at `quote`, and what stands behind it.
fn string(text: &str, quote: char) -> Result<(String, &str)> {
    let mut found = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, 'n')) => found.push('\n'),
                Some((_, 't')) => found.push('\t'),
                Some((_, 'r')) => found.push('\r'),
                Some((_, c @ ('\\' | '\'' | '"'))) => found.push(c),
                Some((_, c)) => return Err(fail(format!("the escape '\\{c}'"))),
                None => break,
            },
            c if c == quote => return Ok((found, &text[at.saturating_add(c.len_utf8())..])),
            c => found.push(c),
        }
    }
    Err(fail("a string without its end"))
}
