//! The database's tables, and how an older database becomes one of this version.

use super::db::{Fault, Outcome};
use crate::error::{Cause, Error};
use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as ours (`PRAGMA application_id`): "ofst".
pub(super) const APPLICATION: i64 = 0x6f66_7374;

/// One script per version, each applied in a transaction of its own; `PRAGMA user_version` counts
/// those applied. A released script never changes: what must change comes as a further one.
pub(super) const STEPS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3];

/// Times are seconds since 1970-01-01 UTC. Hashes are 32 bytes. `labels.text` and `inputs.content`
/// are sealed where `meta` has a `key`.
const VERSION_1: &str = "
-- hash_key (sealed where there is a key), key (the key's id), next_sample, forget (unfinished),
-- link (see the file 'acknowledged');
-- next:NAME: the number of the next generation of a name that was removed
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

-- next: the number of the next generation; round: stamped on samples, counts the training sets
-- taken; trained: the round of the newest training set that was trained on
CREATE TABLE names (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL,
    active INTEGER, next INTEGER NOT NULL DEFAULT 1,
    trial_since INTEGER, trial_seconds INTEGER,
    round INTEGER NOT NULL DEFAULT 0, trained INTEGER NOT NULL DEFAULT -1);

-- hash: of the adapter file's bytes; state: see GenerationState
CREATE TABLE generations (
    name_id INTEGER NOT NULL REFERENCES names(id), number INTEGER NOT NULL,
    hash BLOB NOT NULL, bytes INTEGER NOT NULL, base BLOB, state INTEGER NOT NULL,
    created INTEGER NOT NULL, parent INTEGER, job INTEGER, verdict TEXT,
    samples INTEGER NOT NULL, why TEXT,
    PRIMARY KEY (name_id, number)) WITHOUT ROWID;

-- hashes: of the samples that the generation or one it grew from learned from, ascending
CREATE TABLE manifests (
    name_id INTEGER NOT NULL, number INTEGER NOT NULL, hashes BLOB NOT NULL,
    PRIMARY KEY (name_id, number),
    FOREIGN KEY (name_id, number) REFERENCES generations(name_id, number) ON DELETE CASCADE);

CREATE TABLE history (
    id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names(id), time INTEGER NOT NULL,
    generation INTEGER, before INTEGER, how INTEGER NOT NULL, why TEXT);
CREATE INDEX history_name ON history (name_id);

-- generation 0 is the base; hour: seconds / 3600
CREATE TABLE outcomes (
    name_id INTEGER NOT NULL REFERENCES names(id), generation INTEGER NOT NULL,
    hour INTEGER NOT NULL, right INTEGER NOT NULL, total INTEGER NOT NULL,
    PRIMARY KEY (name_id, generation, hour)) WITHOUT ROWID;

-- tag: keyed hash of the text, by which it is found
CREATE TABLE labels (
    id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names(id),
    tag BLOB NOT NULL, text BLOB NOT NULL, UNIQUE (name_id, tag));

-- hash: keyed hash of the input; state: see SampleState, and 2: the input was evicted, the row
-- stays while a manifest names it, so that 'forget' finds the generations that learned from it
CREATE TABLE samples (
    id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names(id), hash BLOB NOT NULL,
    kind INTEGER NOT NULL, bytes INTEGER NOT NULL, label_id INTEGER, predicted_id INTEGER,
    part INTEGER NOT NULL, state INTEGER NOT NULL, reason TEXT, source TEXT NOT NULL,
    time INTEGER NOT NULL, received INTEGER NOT NULL, seen INTEGER NOT NULL,
    generation INTEGER, round INTEGER NOT NULL);
CREATE UNIQUE INDEX samples_hash ON samples (name_id, hash);
CREATE INDEX samples_class ON samples (name_id, state, label_id, part, bytes);

CREATE TABLE inputs (
    sample INTEGER PRIMARY KEY REFERENCES samples(id) ON DELETE CASCADE, content BLOB NOT NULL);

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names(id), reason TEXT NOT NULL,
    state INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, not_before INTEGER NOT NULL DEFAULT 0,
    progress TEXT, error TEXT, manifest BLOB);
CREATE INDEX jobs_state ON jobs (state);

CREATE TABLE events (
    id INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT,
    text TEXT NOT NULL, data TEXT, count INTEGER NOT NULL DEFAULT 1);
";

/// `generations.round`: of the training set that it learned from; samples that were stamped later
/// have changed since. Known of the newest alone. `samples.alike`: keyed hash of a text without case,
/// punctuation and spacing; `samples.judged`: the newest generation whose answer to it was counted.
const VERSION_2: &str = "
ALTER TABLE generations ADD COLUMN round INTEGER;
UPDATE generations SET round = (SELECT trained FROM names WHERE id = name_id)
    WHERE number = (SELECT max(number) FROM generations AS g
                    WHERE g.name_id = generations.name_id AND g.job IS NOT NULL);
ALTER TABLE samples ADD COLUMN alike BLOB;
ALTER TABLE samples ADD COLUMN judged INTEGER;
CREATE INDEX samples_alike ON samples (name_id, alike) WHERE alike IS NOT NULL;
";

/// `doomed`: files that nothing points to any more because this database said so, by their paths
/// below the store's folder. Only those are ever deleted: a file that a database doesn't know may be
/// all that is left of another one.
const VERSION_3: &str = "
CREATE TABLE doomed (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TRIGGER generation_removed AFTER DELETE ON generations BEGIN
    INSERT OR IGNORE INTO doomed VALUES ('adapters/' || lower(hex(OLD.hash)) || '.adapter');
END;
CREATE TRIGGER generation_retired AFTER UPDATE OF state ON generations WHEN NEW.state = 4 BEGIN
    INSERT OR IGNORE INTO doomed VALUES ('adapters/' || lower(hex(NEW.hash)) || '.adapter');
END;
CREATE TRIGGER job_removed AFTER DELETE ON jobs BEGIN
    INSERT OR IGNORE INTO doomed VALUES ('jobs/' || OLD.id);
END;
CREATE TRIGGER job_forgotten AFTER UPDATE OF state ON jobs WHEN NEW.state = 6 BEGIN
    INSERT OR IGNORE INTO doomed VALUES ('jobs/' || NEW.id);
END;
";

/// Brings the database to the last of `steps`. Several processes may try at once.
///
/// # Errors
/// A version beyond the last step: made by a newer program. A step that fails leaves the version
/// that was there.
pub(super) fn upgrade(connection: &mut Connection, steps: &[&str]) -> Outcome<()> {
    loop {
        let version = version(connection)?;
        let Ok(done) = usize::try_from(version) else {
            return Err(Fault::Ours(
                Error::bad_input(format!("the store's schema has version {version}"))
                    .because(Cause::Unreadable),
            ));
        };
        if done > steps.len() {
            return Err(Fault::Ours(
                Error::unsupported(format!(
                    "the store has schema version {version}, this program knows {}",
                    steps.len()
                ))
                .hint("a newer version of offshoot wrote it: use that one")
                .because(Cause::Unreadable),
            ));
        }
        let Some(step) = steps.get(done) else { return Ok(()) };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been quicker.
        if self::version(&transaction)? != version {
            continue;
        }
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", version + 1)?;
        transaction.commit()?;
    }
}

/// Whether the database lacks steps.
pub(super) fn is_old(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(usize::try_from(version(connection)?).is_ok_and(|version| version < STEPS.len()))
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
