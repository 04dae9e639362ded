//! When a sample is not trusted: rates and shares of sources, labels that are not set, one text in
//! many spellings.

use super::db::{Outcome, now, signed};
use super::insert::{NewSample, Row};
use super::rules::Rules;
use super::samples::Label;
use rusqlite::{Connection, params};

/// Why a sample waits whose label is of the other sort; a correction frees it.
pub const ODD_LABEL: &str = "its label is a number among classes, or a class among numbers";
/// Why a sample waits whose label is not one of those that are set; a correction frees it.
pub(super) const UNKNOWN_LABEL: &str = "its label is not one of those that are set";
/// Spellings of a text that are used.
const SPELLINGS: u32 = 3;

/// The rules for sources: so many an hour, and a greatest share of the newest samples.
pub(super) fn too_much(c: &Connection, rules: &Rules, row: &Row<'_>) -> Outcome<Option<String>> {
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
            return Ok(Some(format!("its source brings more than {limit} an hour")));
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
            return Ok(Some(format!("its source brought more than {percent:.0} % of the newest")));
        }
    }
    Ok(None)
}

/// The rule for labels: a fixed set, if there is one.
pub(super) fn unknown_label(rules: &Rules, sample: &NewSample) -> Option<String> {
    match &sample.label {
        Some(Label::Class(class)) if !rules.labels.is_empty() && !rules.labels.contains(class) => {
            Some(UNKNOWN_LABEL.into())
        }
        _ => None,
    }
}

/// Texts in other spelling go where the first one is, so who brings many could fill a part, and one
/// sentence would be much evidence.
pub(super) fn spellings(c: &Connection, row: &Row<'_>) -> Outcome<Option<String>> {
    let Some(alike) = row.alike else { return Ok(None) };
    let there: u32 = c
        .prepare_cached(
            "SELECT count(*) FROM samples WHERE name_id = ?1 AND alike = ?2 AND state = 0",
        )?
        .query_row(params![row.name, alike], |row| row.get(0))?;
    Ok((there >= SPELLINGS).then(|| format!("it is there in {SPELLINGS} spellings already")))
}
