//! When a sample is not trusted: rates and shares of sources, labels that are not set, one text in
//! many spellings.

use super::db::{Outcome, now, signed};
use super::insert::{NewSample, Row};
use super::rules::Rules;
use super::samples::Label;
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, params};
use serde::{Serialize, Serializer};

/// Why a sample waits in quarantine. What is stored and what people read is its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its label is of another sort than the others'.
    OddLabel,
    /// Its label is not one of those that are set.
    UnknownLabel,
    /// Anything else, in words.
    Other(String),
}

impl Why {
    /// Its words.
    pub fn text(&self) -> &str {
        match self {
            Why::OddLabel => "its label is a number among classes, or a class among numbers",
            Why::UnknownLabel => "its label is not one of those that are set",
            Why::Other(text) => text,
        }
    }

    /// Whether another label frees the sample.
    pub(super) fn ends_with_the_label(&self) -> bool {
        matches!(self, Why::OddLabel | Why::UnknownLabel)
    }
}

impl From<&str> for Why {
    fn from(text: &str) -> Why {
        let known = [Why::OddLabel, Why::UnknownLabel].into_iter().find(|why| why.text() == text);
        known.unwrap_or_else(|| Why::Other(text.into()))
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl ToSql for Why {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.text().into())
    }
}

impl FromSql for Why {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Why> {
        value.as_str().map(Why::from)
    }
}

/// Spellings of a text that are used.
const SPELLINGS: u32 = 3;

/// The rules for sources: so many an hour, and a greatest share of the newest samples.
pub(super) fn too_much(c: &Connection, rules: &Rules, row: &Row<'_>) -> Outcome<Option<Why>> {
    let source = &row.sample.source;
    if rules.source_per_hour > 0 {
        let now = now();
        let hour: i64 = c
            .prepare_cached(
                "SELECT count(*) FROM samples WHERE source = ?1 AND received > ?2
                 AND received <= ?4 AND id > (SELECT max(id) FROM samples) - ?3",
            )?
            .query_row(
                params![
                    source,
                    signed(now.saturating_sub(3600)),
                    4 * i64::from(rules.source_per_hour),
                    // What came while the clock was wrong and in the future came in no hour that
                    // counts: till that date all would wait otherwise.
                    signed(now)
                ],
                |row| row.get(0),
            )?;
        if hour >= i64::from(rules.source_per_hour) {
            let limit = rules.source_per_hour;
            return Ok(Some(Why::Other(format!("its source brings more than {limit} an hour"))));
        }
    }
    if rules.source_share < 1.0 {
        let window = Rules::WINDOW;
        let (own, all): (i64, i64) = c
            .prepare_cached(
                "SELECT ifnull(sum(source = ?2), 0), count(*) FROM (SELECT source FROM samples
                 WHERE name_id = ?1 AND state < 2 ORDER BY id DESC LIMIT ?3)",
            )?
            .query_row(params![row.name, source, window], |row| Ok((row.get(0)?, row.get(1)?)))?;
        // A window that is not full says little, and one source alone has no share.
        let share = (own + 1) as f64 / (all + 1) as f64;
        if all >= i64::from(window) && own < all && share > rules.source_share {
            let percent = 100.0 * rules.source_share;
            let text = format!("its source brought more than {percent:.0} % of the newest");
            return Ok(Some(Why::Other(text)));
        }
    }
    Ok(None)
}

/// The rule for labels: a fixed set, if there is one.
pub(super) fn unknown_label(rules: &Rules, sample: &NewSample) -> Option<Why> {
    match &sample.label {
        Some(Label::Class(class)) if !rules.labels.is_empty() && !rules.labels.contains(class) => {
            Some(Why::UnknownLabel)
        }
        _ => None,
    }
}

/// Texts in other spelling go where the first one is, so who brings many could fill a part, and one
/// sentence would be much evidence.
pub(super) fn spellings(c: &Connection, row: &Row<'_>) -> Outcome<Option<Why>> {
    let Some(alike) = row.alike else { return Ok(None) };
    let there: u32 = c
        .prepare_cached(
            "SELECT count(*) FROM samples WHERE name_id = ?1 AND alike = ?2 AND state = 0",
        )?
        .query_row(params![row.name, alike], |row| row.get(0))?;
    let text = || format!("it is there in {SPELLINGS} spellings already");
    Ok((there >= SPELLINGS).then(|| Why::Other(text())))
}
