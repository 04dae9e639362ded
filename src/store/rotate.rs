//! What was held out long enough is learned from.

use super::db::{signed, unsigned};
use super::names::check_name;
use super::rows::known;
use super::state::Store;
use crate::error::Result;
use rusqlite::params;

impl Store {
    /// Has samples of `name` that came in before `since` trained on, which were held out: the oldest of them,
    /// a quarter of all at most, so that `least` are left. Texts that are alike go together. They count as
    /// new. Gives how many there are. Errors: no such name (usage).
    pub fn rotate(&self, name: &str, since: u64, least: usize) -> Result<u64> {
        check_name(name)?;
        self.write(|c| {
            let id = known(c, self, name)?.id;
            let held = "name_id = ?1 AND part = 1 AND state = 0 AND label_id IS NOT NULL";
            let count: i64 =
                c.query_row(&format!("SELECT count(*) FROM samples WHERE {held}"), [id], |row| {
                    row.get(0)
                })?;
            let most = (count / 4).min(count - signed(least as u64));
            let mut moved = 0;
            let mut statement = c.prepare(&format!(
                "SELECT id FROM samples WHERE {held} AND received < ?2 ORDER BY id"
            ))?;
            let ids: Vec<i64> = statement
                .query_map(params![id, signed(since)], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for sample in ids {
                let alike: i64 = c.query_row(
                    &format!(
                        "SELECT count(*) FROM samples WHERE {held} AND (id = ?2 OR alike =
                         (SELECT alike FROM samples WHERE id = ?2))"
                    ),
                    params![id, sample],
                    |row| row.get(0),
                )?;
                if moved + alike > most {
                    break;
                }
                moved += signed(c.execute(
                    "UPDATE samples SET part = 0, round = (SELECT round FROM names WHERE id = ?1)
                     WHERE name_id = ?1 AND part = 1 AND (id = ?2 OR alike =
                     (SELECT alike FROM samples WHERE id = ?2))",
                    params![id, sample],
                )? as u64);
            }
            Ok(unsigned(moved))
        })
    }
}
