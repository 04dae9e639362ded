//! Hashes that name samples, and the lists of them that generations and jobs carry.

use super::db::{Fault, Outcome};
use super::samples::SampleState;
use crate::error::{Cause, Error, Result};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;

/// Names a sample's input within its store: a keyed hash, so that who has not the store's key can't
/// try out sentences. As text 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleHash(pub [u8; 32]);

impl SampleHash {
    /// Reads 64 hex digits. Errors: another form (usage).
    pub fn parse(text: &str) -> Result<SampleHash> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(SampleHash(*hash.as_bytes())),
            Err(_) => Err(Error::usage(format!("'{text}' is no sample's hash: 64 hex digits"))),
        }
    }
}

impl fmt::Display for SampleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for SampleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SampleHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SampleHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        SampleHash::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// 32 bytes each, ascending, each once.
pub(super) fn to_bytes(mut hashes: Vec<SampleHash>) -> Vec<u8> {
    hashes.sort_unstable();
    hashes.dedup();
    hashes.iter().flat_map(|h| h.0).collect()
}

pub(super) fn from_bytes(bytes: &[u8]) -> Vec<SampleHash> {
    bytes.as_chunks().0.iter().map(|chunk| SampleHash(*chunk)).collect()
}

pub(super) fn forgotten(name: &str) -> Error {
    Error::refused(format!("something that '{name}' was trained on was forgotten meanwhile"))
        .hint("train again")
        .because(Cause::Forgotten)
}

/// An error unless every hash names a sample of the name, be it one whose input was evicted.
pub(super) fn all_there(c: &Connection, name: i64, hashes: &[SampleHash]) -> Outcome<()> {
    let mut statement =
        c.prepare_cached("SELECT 1 FROM samples WHERE name_id = ?1 AND hash = ?2")?;
    for hash in hashes {
        if !statement.exists(params![name, hash.0])? {
            let name: String =
                c.query_row("SELECT name FROM names WHERE id = ?1", [name], |row| row.get(0))?;
            return Err(Fault::Ours(forgotten(&name)));
        }
    }
    Ok(())
}

/// Drops the rows of evicted samples that no manifest names any more, and labels that no sample
/// has. Not while a sample is taken in: its label is there before its row.
pub(super) fn sweep(c: &Connection) -> Outcome<()> {
    sweep_samples(c)?;
    c.execute(
        "DELETE FROM labels WHERE id NOT IN (SELECT label_id FROM samples WHERE label_id IS NOT NULL
         UNION SELECT predicted_id FROM samples WHERE predicted_id IS NOT NULL)",
        [],
    )?;
    Ok(())
}

/// Drops the rows of evicted samples that no manifest names any more.
pub(super) fn sweep_samples(c: &Connection) -> Outcome<()> {
    let mut statement = c.prepare_cached("SELECT id, hash FROM samples WHERE state = ?1")?;
    let evicted: Vec<(i64, [u8; 32])> = statement
        .query_map([SampleState::EVICTED], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    if evicted.is_empty() {
        return Ok(());
    }
    let named = named(c)?;
    for (id, hash) in evicted {
        if !named.contains(&SampleHash(hash)) {
            c.prepare_cached("DELETE FROM samples WHERE id = ?1")?.execute([id])?;
        }
    }
    Ok(())
}

/// All samples that manifests name, of generations and of jobs.
fn named(c: &Connection) -> Outcome<HashSet<SampleHash>> {
    let mut named = HashSet::new();
    let mut manifests = c.prepare_cached(
        "SELECT hashes FROM manifests UNION ALL
         SELECT manifest FROM jobs WHERE manifest IS NOT NULL",
    )?;
    let mut rows = manifests.query([])?;
    while let Some(row) = rows.next()? {
        let bytes: Vec<u8> = row.get(0)?;
        named.extend(from_bytes(&bytes));
    }
    Ok(named)
}
