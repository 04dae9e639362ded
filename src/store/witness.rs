//! The second record of what was acknowledged. SQLite ends its log at the first bad checksum, so one
//! flipped bit in it takes back all that came later, in silence. Therefore each change makes a link
//! of a chain in the database, and the newest link also stands in a file of its own, `acknowledged`,
//! on the medium before the change is acknowledged. A database whose link is older than the file's
//! has lost something.
//!
//! The file has two slots of 512 bytes, 4096 apart, written in turn and in place: a torn write
//! leaves the other one. Little-endian: magic (8 bytes), turn (8), store (16), number (8),
//! chain (16), samples (8), generations (8), whether a hash follows (8), blake3 of `state.db` (32),
//! blake3 of all before (32).

#![warn(clippy::arithmetic_side_effects)]

use super::db::{self, Outcome};
use super::insert::next_sample;
use super::seal::random;
use crate::error::{Error, Result};
use crate::fs::fault::{self, Op};
use rusqlite::Connection;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file in the store's folder.
pub(super) const FILE: &str = "acknowledged";
const MAGIC: &[u8; 8] = b"ofstack1";
/// Where the second slot begins, and the file's length.
const APART: u64 = 4096;
const LENGTH: u64 = 2 * APART;
/// Bytes of a slot that are used.
const USED: usize = 144;
/// How long another process's turn at the file is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// In `meta`: the store's id, the number of the newest link, the newest links' chains.
const LINK: &str = "link";
/// Links that the database remembers: a process that dies between a change and its record leaves the
/// file one behind, and several processes may.
const REMEMBERED: usize = 8;
const ID: usize = 16;

/// A link of the chain: names a state of a store and all that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Which store; random.
    pub store: [u8; ID],
    /// Changes so far.
    pub number: u64,
    /// Hash over the link before and random bytes.
    pub chain: [u8; ID],
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub link: Link,
    /// The greatest number that a sample had.
    pub samples: u64,
    /// Generations that were made.
    pub generations: u64,
    /// blake3 of `state.db`, while its log is empty or was begun after it: until the log is moved
    /// into it again, not a bit of it may change.
    pub database: Option<[u8; 32]>,
}

/// The file as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Missing,
    Unreadable,
    Found(Record),
}

impl Seen {
    pub(super) fn record(&self) -> Option<&Record> {
        match self {
            Seen::Found(record) => Some(record),
            _ => None,
        }
    }
}

/// The links that a database knows, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub newest: Link,
    before: Vec<[u8; ID]>,
}

/// What the database and the file say together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The file says what the database says, or is a few links behind, as a cut leaves it.
    Agreed,
    /// There was no file, or no whole one: it is made anew.
    Renewed(&'static str),
    /// They belong to different states: in what way.
    Apart(String),
}

impl Links {
    /// `None`: a database from before there were links.
    pub(super) fn read(c: &Connection) -> rusqlite::Result<Option<Links>> {
        Ok(db::meta(c, LINK)?.and_then(|bytes| Links::parse(&bytes)))
    }

    fn parse(bytes: &[u8]) -> Option<Links> {
        let (store, rest) = bytes.split_first_chunk::<ID>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (chains, _) = rest.as_chunks::<ID>();
        let (chain, before) = chains.split_first()?;
        let newest = Link { store: *store, number: u64::from_le_bytes(*number), chain: *chain };
        Some(Links { newest, before: before.to_vec() })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Link { store, number, chain } = self.newest;
        let mut bytes = [&store[..], &number.to_le_bytes(), &chain].concat();
        bytes.extend(self.before.iter().take(REMEMBERED).flatten());
        bytes
    }

    /// The chain of the link that came `back` links before the newest.
    fn back(&self, back: u64) -> Option<[u8; ID]> {
        match usize::try_from(back).ok()? {
            0 => Some(self.newest.chain),
            back => self.before.get(back.checked_sub(1)?).copied(),
        }
    }
}

/// Adds a link to the database, within the change that it stands for. Gives what the file is to say.
pub(super) fn advance(c: &Connection) -> Outcome<Record> {
    let drawn = random()?;
    let fresh = || drawn.first_chunk::<ID>().copied().unwrap_or_default();
    let links = match Links::read(c)? {
        Some(Links { newest, before }) => {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&newest.chain).update(&drawn);
            let hash = *hasher.finalize().as_bytes();
            let chain = hash.first_chunk::<ID>().copied().unwrap_or_default();
            let before = [vec![newest.chain], before].concat();
            Links {
                newest: Link { number: newest.number.saturating_add(1), chain, ..newest },
                before,
            }
        }
        None => {
            let chain = [0; ID];
            Links { newest: Link { store: fresh(), number: 1, chain }, before: vec![] }
        }
    };
    db::set_meta(c, LINK, &links.to_bytes())?;
    Ok(record(c, links.newest)?)
}

/// Starts a chain of its own where `number` changes are behind: what a person has decided on.
pub(super) fn restart(c: &Connection, number: u64) -> Outcome<Record> {
    let drawn = random()?;
    let [store, chain] = [0, ID].map(|at| drawn[at..].first_chunk().copied().unwrap_or_default());
    let links = Links { newest: Link { store, number, chain }, before: vec![] };
    db::set_meta(c, LINK, &links.to_bytes())?;
    Ok(record(c, links.newest)?)
}

/// What the file is to say of `link`.
fn record(c: &Connection, link: Link) -> rusqlite::Result<Record> {
    let [samples, generations] = counts(c)?;
    Ok(Record { link, samples, generations, database: None })
}

/// The greatest number that a sample had, and how many generations were made.
pub(super) fn counts(c: &Connection) -> rusqlite::Result<[u64; 2]> {
    let generations: i64 = c
        .prepare_cached("SELECT ifnull(sum(next - 1), 0) FROM names")?
        .query_row([], |row| row.get(0))?;
    let samples = next_sample(c)?.saturating_sub(1);
    Ok([samples, generations].map(db::unsigned))
}

/// Holds what the file said before the database was opened against what that says.
pub(super) fn judge(seen: &Seen, links: Option<&Links>, found: [u64; 2]) -> Standing {
    let Seen::Found(record) = seen else {
        return Standing::Renewed(match (seen, links) {
            (Seen::Unreadable, _) => "the second record of what was acknowledged is damaged",
            (_, Some(_)) => "the second record of what was acknowledged is missing",
            (_, None) => "",
        });
    };
    let Record { link, samples, generations, .. } = record;
    let [last, made] = found;
    let both = format!(
        "acknowledged are {} changes, samples up to number {samples} and {generations} \
         generations; the database has {}, {last} and {made}",
        link.number,
        links.map_or(0, |l| l.newest.number),
    );
    let Some(links) = links else { return Standing::Apart(both) };
    if links.newest.store != link.store {
        return Standing::Apart("the database is another store's".into());
    }
    match links.newest.number.checked_sub(link.number) {
        None => Standing::Apart(both),
        Some(ahead) => match links.back(ahead) {
            Some(chain) if chain == link.chain => Standing::Agreed,
            Some(_) => Standing::Apart(format!("the database went another way: {both}")),
            None => Standing::Renewed("the second record of what was acknowledged was long behind"),
        },
    }
}

/// Reads the file. What can't be read is no error here: the database may be whole.
pub(super) fn read(root: &Path) -> Seen {
    match File::open(root.join(FILE)) {
        Ok(file) => match slots(&file) {
            Ok(slots) => match newest(&slots) {
                Some((_, _, record)) => Seen::Found(record),
                None => Seen::Unreadable,
            },
            Err(_) => Seen::Unreadable,
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Seen::Missing,
        Err(_) => Seen::Unreadable,
    }
}

/// Turn and record of both slots, where they are whole.
fn slots(file: &File) -> io::Result<[Option<(u64, Record)>; 2]> {
    let mut found = [None, None];
    for (at, slot) in [0, APART].into_iter().zip(&mut found) {
        let mut bytes = [0; USED];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => *slot = parse(&bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The newest slot's place, turn and record.
fn newest(slots: &[Option<(u64, Record)>; 2]) -> Option<(usize, u64, Record)> {
    let all = slots.iter().enumerate();
    let whole = all.filter_map(|(at, slot)| slot.map(|(turn, record)| (at, turn, record)));
    whole.max_by_key(|(_, turn, _)| *turn)
}

fn parse(bytes: &[u8; USED]) -> Option<(u64, Record)> {
    let (body, check) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(body).as_bytes() != check {
        return None;
    }
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (turn, rest) = rest.split_first_chunk::<8>()?;
    let (store, rest) = rest.split_first_chunk::<ID>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (chain, rest) = rest.split_first_chunk::<ID>()?;
    let (samples, rest) = rest.split_first_chunk::<8>()?;
    let (generations, rest) = rest.split_first_chunk::<8>()?;
    let (hashed, rest) = rest.split_first_chunk::<8>()?;
    let hash = rest.first_chunk::<32>()?;
    let record = Record {
        link: Link { store: *store, number: u64::from_le_bytes(*number), chain: *chain },
        samples: u64::from_le_bytes(*samples),
        generations: u64::from_le_bytes(*generations),
        database: (u64::from_le_bytes(*hashed) == 1).then_some(*hash),
    };
    (magic == MAGIC).then_some((u64::from_le_bytes(*turn), record))
}

fn to_slot(turn: u64, record: &Record) -> Vec<u8> {
    let Record { link, samples, generations, database } = record;
    let mut bytes = Vec::with_capacity(USED);
    bytes.extend(MAGIC);
    bytes.extend(turn.to_le_bytes());
    bytes.extend(link.store);
    bytes.extend(link.number.to_le_bytes());
    bytes.extend(link.chain);
    bytes.extend(samples.to_le_bytes());
    bytes.extend(generations.to_le_bytes());
    bytes.extend(u64::from(database.is_some()).to_le_bytes());
    bytes.extend(database.unwrap_or_default());
    bytes.extend(*blake3::hash(&bytes).as_bytes());
    bytes
}

/// The file, open for writing.
pub(super) struct Witness {
    path: PathBuf,
    file: File,
}

/// The file, locked against other processes.
pub(super) struct Turn<'a>(&'a Witness);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // The end of the process unlocks too.
        let _ = self.0.file.unlock();
    }
}

impl Witness {
    /// Opens the file, making it in its whole length if it is not there: writes to it change no
    /// length, which spares a card its file system's journal.
    pub(super) fn open(root: &Path) -> Result<Witness> {
        let path = root.join(FILE);
        let failed = |e| Error::io(&path, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() < LENGTH {
            file.write_all_at(&[0; LENGTH as usize], 0).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            super::folder::sync(root)?;
        }
        Ok(Witness { path, file })
    }

    /// Keeps other processes from the file until it is dropped.
    pub(super) fn turn(&self) -> Result<Turn<'_>> {
        let start = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(Turn(self)),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::failed(format!(
                        "'{}' is held by another process",
                        self.path.display()
                    )));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&self.path, e)),
            }
        }
    }

    /// Records a change, durably, unless a later one is recorded.
    pub(super) fn note(&self, record: &Record) -> Result<()> {
        let turn = self.turn()?;
        turn.write(|before| match before {
            Some(old)
                if old.link.store == record.link.store && old.link.number > record.link.number =>
            {
                None
            }
            // The log was begun anew since, or the database is as it was hashed.
            Some(old) => Some(Record { database: old.database, ..*record }),
            None => Some(*record),
        })
    }

    /// Replaces what the file says.
    pub(super) fn replace(&self, record: &Record) -> Result<()> {
        self.turn()?.write(|_| Some(*record))
    }
}

impl Turn<'_> {
    /// Writes what `change` makes of what is there, into the older slot, and syncs it.
    fn write(&self, change: impl FnOnce(Option<Record>) -> Option<Record>) -> Result<()> {
        let Witness { path, file } = self.0;
        let failed = |e| Error::io(path, e);
        let slots = slots(file).map_err(failed)?;
        let newest = newest(&slots);
        let (at, turn) = newest
            .map_or((0, 1), |(at, turn, _)| (1usize.saturating_sub(at), turn.saturating_add(1)));
        let Some(record) = change(newest.map(|(_, _, record)| record)) else { return Ok(()) };
        let at = APART.saturating_mul(at as u64);
        file.write_all_at(&to_slot(turn, &record), at).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        fault::point(Op::Witnessed, path).map_err(failed)
    }

    /// Says that `state.db` has this hash until its log is moved into it, or that nothing is known
    /// of it.
    pub(super) fn set_database(&self, hash: Option<[u8; 32]>) -> Result<()> {
        self.write(|old| old.filter(|o| o.database != hash).map(|o| Record { database: hash, ..o }))
    }
}

/// blake3 of a file's bytes.
pub(super) fn hash_of(path: &Path) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    hasher.update_reader(file).map_err(|e| Error::io(path, e))?;
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn record(number: u64) -> Record {
        let link = Link { store: [7; ID], number, chain: [number as u8; ID] };
        Record { link, samples: 3, generations: 1, database: None }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), Seen::Missing);
        let witness = Witness::open(dir.path()).unwrap();
        assert_eq!(read(dir.path()), Seen::Unreadable);
        for number in 1..=5 {
            witness.note(&record(number)).unwrap();
            assert_eq!(read(dir.path()), Seen::Found(record(number)));
        }
        // A process that was slower.
        witness.note(&record(4)).unwrap();
        assert_eq!(read(dir.path()), Seen::Found(record(5)));
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for bit in (0..8 * USED).step_by(3) {
            let mut bent = whole.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bent).unwrap();
            assert_eq!(read(dir.path()), Seen::Found(record(4)), "{bit}");
            bent[APART as usize + bit / 8] ^= 1;
            std::fs::write(&path, &bent).unwrap();
            assert_eq!(read(dir.path()), Seen::Unreadable, "{bit}");
        }
    }

    #[test]
    fn what_is_behind_or_went_another_way_is_apart() {
        let chain = |n: u64| [n as u8; ID];
        let newest = Link { store: [7; ID], number: 20, chain: chain(20) };
        let links = Links { newest, before: (12..20).rev().map(chain).collect() };
        let bytes = links.to_bytes();
        assert_eq!(Links::parse(&bytes).unwrap(), links);
        let of = |seen: &Seen| judge(seen, Some(&links), [3, 1]);
        for number in 12..=20 {
            assert_eq!(of(&Seen::Found(record(number))), Standing::Agreed, "{number}");
        }
        assert!(matches!(of(&Seen::Found(record(11))), Standing::Renewed(_)));
        assert!(matches!(of(&Seen::Found(record(21))), Standing::Apart(_)));
        let other = |link| Seen::Found(Record { link, ..record(1) });
        let link = record(15).link;
        for apart in [Link { chain: [0; ID], ..link }, Link { store: [8; ID], ..link }] {
            assert!(matches!(of(&other(apart)), Standing::Apart(_)));
        }
        assert!(matches!(judge(&other(link), None, [0, 0]), Standing::Apart(_)));
        assert_eq!(judge(&Seen::Missing, None, [0, 0]), Standing::Renewed(""));
    }
}
