//! Cuts of power, modelled. A workload runs; at each step towards durability the files are looked
//! at, and from two looks in a row images are made of what a cut between them may leave:
//!
//! - The log (`state.db-wal`) has been written, not synced: each 512-byte sector is the old or the
//!   new one, in any combination, the end torn anywhere. The database is the old one. The image
//!   must be the state before or after. (SQLite syncs the header of a log that starts anew before
//!   it writes what follows, see its ticket ff5be73dee: so does the model.)
//! - The log has been synced, its pages are being moved: each sector of the database is the old or
//!   the new one. The image must be the state after.
//! - The log is being emptied: it is there or not.
//! - The second record is written in place: each sector of it is the old or the new one.
//! - Adapter files: synced ones under a synced name are there; a file that was not synced is absent,
//!   torn, or zero; a name that was not synced is there or not; a removed one may come back until
//!   its folder is synced.
//!
//! Not modelled: a medium that loses what it has acknowledged, or tears sectors into parts.

use super::sample_tests::sample;
use super::tests::adapter;
use super::*;
use crate::fs::fault::{self, Op};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const SECTOR: usize = 512;
const LOG_HEADER: usize = 32;

/// Numbers that a seed fixes (splitmix64).
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    /// Each sector of `new` or of `old`, about `share` of 8 old; what `old` lacks is zero or ends
    /// the file.
    fn torn(&mut self, old: &[u8], new: &[u8]) -> Vec<u8> {
        let share = self.below(8);
        let mut torn = new.to_vec();
        for (i, sector) in torn.chunks_mut(SECTOR).enumerate() {
            if self.below(8) < share {
                let was = old.get(i * SECTOR..).unwrap_or_default();
                sector.fill(0);
                let n = sector.len().min(was.len());
                sector[..n].copy_from_slice(&was[..n]);
            }
        }
        if torn.len() > old.len() && self.below(2) == 0 {
            torn.truncate(old.len() + self.below(torn.len() - old.len()));
        }
        torn
    }
}

/// What the medium surely or perhaps has.
#[derive(Clone, Default)]
struct Medium {
    database: Vec<u8>,
    log: Vec<u8>,
    /// The second record.
    record: Vec<u8>,
    /// Files of `adapters` under synced names.
    durable: BTreeMap<PathBuf, Vec<u8>>,
    /// Renamed, the folder not synced.
    named: BTreeMap<PathBuf, Vec<u8>>,
    /// Synced temporary files.
    synced: BTreeMap<PathBuf, Vec<u8>>,
}

struct Recorder {
    root: PathBuf,
    medium: Medium,
    looks: Vec<Medium>,
}

impl Recorder {
    fn look(&mut self) {
        let read = |name: &str| std::fs::read(self.root.join(name)).unwrap_or_default();
        self.medium.database = read("state.db");
        self.medium.log = read("state.db-wal");
        self.medium.record = read("acknowledged");
        self.looks.push(self.medium.clone());
    }

    fn step(&mut self, op: Op, path: &Path) {
        let adapters = self.root.join("adapters");
        match op {
            Op::Sync => {
                self.look();
                self.medium.synced.insert(path.into(), std::fs::read(path).unwrap());
            }
            Op::Rename => {
                // Just synced: the newest that was.
                let (temp, bytes) = self.medium.synced.pop_last().unwrap();
                assert!(temp.exists());
                self.medium.named.insert(path.into(), bytes);
            }
            Op::SyncFolder if path == adapters => {
                self.look();
                let named = std::mem::take(&mut self.medium.named);
                self.medium.durable.extend(named);
                self.medium.durable.retain(|path, _| path.exists());
            }
            Op::Create | Op::SyncFolder | Op::Append => {}
            Op::Commit | Op::Committed | Op::Witnessed => self.look(),
        }
    }
}

/// All that counts of a store, as text.
fn summary(store: &Store) -> String {
    let samples: Vec<String> = store
        .samples(&Filter::default())
        .unwrap()
        .iter()
        .map(|s| format!("{} {} {:?} {:?} {:?} {}", s.id, s.hash, s.label, s.part, s.state, s.seen))
        .collect();
    let names = store.names().unwrap();
    let generations: Vec<_> = names
        .iter()
        .map(|n| {
            let all = store.generations(&n.name).unwrap();
            let learned: Vec<_> =
                all.iter().map(|g| store.manifest(&n.name, g.number).unwrap()).collect();
            (all, learned, store.history(&n.name).unwrap())
        })
        .collect();
    let jobs = store.jobs().unwrap();
    format!("{samples:?} {names:?} {generations:?} {jobs:?}")
}

/// Makes an image in a fresh folder, opens it as after a restart, checks every file, and says what
/// state it is in.
fn opened(image: &Medium, place: &Path) -> String {
    let _ = std::fs::remove_dir_all(place);
    std::fs::create_dir_all(place.join("adapters")).unwrap();
    std::fs::write(place.join("state.db"), &image.database).unwrap();
    if !image.log.is_empty() {
        std::fs::write(place.join("state.db-wal"), &image.log).unwrap();
    }
    std::fs::write(place.join("acknowledged"), &image.record).unwrap();
    for (path, bytes) in &image.durable {
        std::fs::write(place.join("adapters").join(path.file_name().unwrap()), bytes).unwrap();
    }
    let store = Store::open(place).unwrap();
    assert_eq!(store.doubt(), None);
    store.verify().unwrap();
    for entry in store.names().unwrap() {
        if entry.active.is_some() {
            store.load(&Reference::parse(&entry.name).unwrap()).unwrap();
        }
    }
    for info in store.samples(&Filter::default()).unwrap() {
        store.sample(info.id).unwrap();
    }
    summary(&store)
}

/// Files as a cut may leave them.
fn with_files(medium: &Medium, next: &Medium, dice: &mut Dice) -> Medium {
    let mut image = medium.clone();
    if next.record != medium.record {
        image.record = dice.torn(&medium.record, &next.record);
        image.record.resize(next.record.len(), 0);
    }
    for (path, bytes) in medium.named.iter().chain(&medium.synced).chain(&next.synced) {
        let known = medium.named.contains_key(path) || medium.synced.contains_key(path);
        match dice.below(4) {
            0 => {}
            1 if !known => {
                image.durable.insert(path.clone(), vec![0; bytes.len()]);
            }
            2 if !known => {
                let cut = dice.below(bytes.len());
                image.durable.insert(path.clone(), bytes[..cut].to_vec());
            }
            _ => {
                image.durable.insert(path.clone(), bytes.clone());
            }
        }
    }
    for (path, bytes) in &next.durable {
        if !medium.durable.contains_key(path) && dice.below(2) == 0 {
            image.durable.insert(path.clone(), bytes.clone());
        }
    }
    image
}

/// One operation of the workload.
fn work(store: &Store, turn: usize, dice: &mut Dice) {
    let name = |dice: &mut Dice| ["home", "away"][dice.below(2)].to_string();
    match turn % 8 {
        0..=2 => {
            let size = [10, 400, 6000][dice.below(3)];
            let text = format!("sentence {} {}", dice.below(30), "w".repeat(size));
            let label = ["lamp", "music", "door"][dice.below(3)];
            let new = NewSample { name: name(dice), ..sample(&text, label, "app") };
            store.add_sample(&new).unwrap();
        }
        3 => {
            let name = name(dice);
            store.create_name(&name).unwrap();
            let manifest = store.training_set(&name).unwrap().manifest();
            let origin = Origin { manifest, ..Origin::default() };
            store.add(&name, &adapter(turn as f32), &origin).unwrap();
        }
        4 => {
            for entry in store.names().unwrap() {
                if let Some(&newest) = entry.generations.last() {
                    let trial = (dice.below(2) == 0).then_some(Duration::from_secs(9));
                    store.activate(&entry.name, newest, None, trial).unwrap();
                }
            }
        }
        5 => {
            let job = store.queue_job(&name(dice), "turn").unwrap();
            store.update_job(job, JobState::Done, None).unwrap();
        }
        6 => {
            for entry in store.names().unwrap() {
                if entry.active.is_some() && dice.below(3) == 0 {
                    store.rollback(&entry.name, None, "worse").unwrap();
                }
            }
        }
        _ => {
            let samples = store.samples(&Filter::default()).unwrap();
            if let Some(chosen) = samples.get(dice.below(samples.len().max(1))) {
                let ids = vec![chosen.id];
                store.forget(&Selector { ids, ..Selector::default() }).unwrap();
            }
        }
    }
}

#[test]
fn a_cut_of_power_at_any_step_leaves_the_old_state_or_the_new_one() {
    // Nothing here waits for a medium: main memory will do where there is some.
    let shm = Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let (root, place) = (dir.path().join("store"), dir.path().join("image"));
    let mut dice = Dice(7);
    let store = Store::open(&root).unwrap();
    store.create_name("home").unwrap();
    // So that pages are moved out of the log often.
    store.limit_log(12 * 1024);
    let recorder = Rc::new(RefCell::new(Recorder {
        root: root.clone(),
        medium: Medium::default(),
        looks: vec![],
    }));
    recorder.borrow_mut().look();
    let (mut images, mut torn_logs, mut torn_databases, mut states) = (0, 0, 0, BTreeSet::new());
    for turn in 0..64 {
        let hook = recorder.clone();
        let seed = dice.below(1 << 30) as u64;
        fault::with(
            move |op, path| {
                hook.borrow_mut().step(op, path);
                Ok(())
            },
            || work(&store, turn, &mut Dice(seed)),
        );
        let looks = {
            let mut recorder = recorder.borrow_mut();
            recorder.look();
            std::mem::take(&mut recorder.looks)
        };
        // What was acknowledged is on the medium.
        let after = looks.last().unwrap();
        assert_eq!(opened(after, &place), summary(&store), "turn {turn}");
        for pair in looks.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            let before = opened(&with_files(old, new, &mut dice), &place);
            let done = opened(&with_files(new, new, &mut dice), &place);
            images += 2;
            let same_log = old.log == new.log;
            for _ in 0..if same_log { 0 } else { 4 } {
                let mut image = with_files(old, new, &mut dice);
                // An emptied log is there or not; a log that grows or starts anew is torn.
                if new.log.is_empty() {
                    image.database = dice.torn(&old.database, &new.database);
                } else {
                    let mut was = old.log.clone();
                    let anew = was.get(..LOG_HEADER) != new.log.get(..LOG_HEADER);
                    if anew && dice.below(4) > 0 {
                        was.resize(was.len().max(LOG_HEADER), 0);
                        was[..LOG_HEADER].copy_from_slice(&new.log[..LOG_HEADER]);
                        image.log = dice.torn(&was, &new.log);
                    } else if anew {
                        let torn = dice.below(LOG_HEADER);
                        was.resize(was.len().max(torn), 0);
                        was[..torn].copy_from_slice(&new.log[..torn]);
                        image.log = was;
                    } else {
                        image.log = dice.torn(&was, &new.log);
                    }
                }
                let found = opened(&image, &place);
                assert!(found == before || found == done, "turn {turn}: a state that never was");
                let torn = if new.log.is_empty() { &mut torn_databases } else { &mut torn_logs };
                *torn += 1;
                images += 1;
            }
            for _ in 0..if old.database == new.database || new.log.is_empty() { 0 } else { 4 } {
                let mut image = with_files(new, new, &mut dice);
                image.database = dice.torn(&old.database, &new.database);
                image.database.resize(image.database.len().max(old.database.len()), 0);
                assert_eq!(opened(&image, &place), done, "turn {turn}: pages were being moved");
                (images, torn_databases) = (images + 1, torn_databases + 1);
            }
            states.insert(done);
        }
        recorder.borrow_mut().look();
        let mut recorder = recorder.borrow_mut();
        let last = recorder.looks.pop();
        recorder.looks = last.into_iter().collect();
    }
    println!(
        "{images} images of {} states, {torn_logs} with a torn log, {torn_databases} with a torn \
         database",
        states.len()
    );
    assert!(images >= 500 && torn_logs >= 200 && torn_databases >= 20 && states.len() >= 50);
}
