//! Damaged states: nothing is deleted, everything is said, what can be read is served.
//!
//! `OFFSHOOT_TEST_SWEEP=1` flips every bit where a seeded sample of them is flipped otherwise.

use super::cut_tests::Dice;
use super::sample_tests::sample;
use super::tests::adapter;
use super::*;
use crate::common::{Files, files, put};
use crate::error::{Cause, ErrorKind};
use crate::fs::fault::{self, Op};
use std::path::{Path, PathBuf};

/// Bits of a file that are flipped where not all are.
const FLIPS: usize = 150;

/// A store with 50 samples and two generations, the second active; as files. `settled`: as after a
/// clean end; else as a kill leaves it.
fn state(settled: bool) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for i in 0..50 {
        store.add_sample(&sample(&format!("sentence number {i}"), "x", "app")).unwrap();
    }
    for number in 1..=2 {
        let named = crate::adapter::Adapter { name: "home".into(), ..adapter(number as f32) };
        store.add("home", &named, &Origin::default()).unwrap();
        store.activate("home", number, None, None).unwrap();
    }
    if settled {
        store.settle().unwrap();
    }
    files(dir.path())
}

/// All that a person would miss.
fn known(store: &Store) -> (usize, Vec<u64>, Option<u64>) {
    let samples = store.samples(&Filter::default()).unwrap_or_default();
    let whole = samples.iter().filter(|s| store.sample(s.id).is_ok()).count();
    let Ok(entry) = store.name("home") else { return (whole, vec![], None) };
    let loads = |n: &u64| store.load(&Reference::parse(&format!("home@{n}")).unwrap()).is_ok();
    (whole, entry.generations.into_iter().filter(loads).collect(), entry.active)
}

fn all() -> (usize, Vec<u64>, Option<u64>) {
    (50, vec![1, 2], Some(2))
}

fn bits(bytes: usize, dice: &mut Dice) -> Vec<usize> {
    match std::env::var_os("OFFSHOOT_TEST_SWEEP") {
        Some(_) => (0..8 * bytes).collect(),
        None => (0..FLIPS).map(|_| dice.below(8 * bytes)).collect(),
    }
}

fn flipped(state: &Files, file: &str, bit: usize) -> Files {
    let mut bent = state.clone();
    bent.get_mut(Path::new(file)).unwrap()[bit / 8] ^= 1 << (bit % 8);
    bent
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let shm = Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let root = dir.path().join("store");
    (dir, root)
}

/// One flipped bit in the log took back all that came after it, in silence, and then the adapters'
/// files were deleted.
#[test]
fn a_flipped_bit_in_the_log_is_said_and_takes_nothing_away() {
    let whole = state(false);
    let (_dir, root) = place();
    put(&root, &whole);
    assert_eq!(known(&Store::open(&root).unwrap()), all());
    let length = whole[Path::new("state.db-wal")].len();
    let (mut said, mut tried, mut complete, mut served) = (0, 0, 0, 0);
    for bit in bits(length, &mut Dice(3)) {
        let bent = flipped(&whole, "state.db-wal", bit);
        put(&root, &bent);
        let store = Store::open(&root).unwrap();
        let found = known(&store);
        tried += 1;
        complete += usize::from(found == all());
        served += usize::from(found.1.contains(&2) && found.2 == Some(2));
        let Some(why) = store.doubt() else {
            assert_eq!(found, all(), "bit {bit}");
            continue;
        };
        said += 1;
        if why.contains("all that was acknowledged can be read") {
            assert_eq!(found, all(), "bit {bit}: {why}");
        }
        let error = store.add_sample(&sample("new", "x", "app")).unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Refused, Some(Cause::Doubtful)));
        assert!(error.hint_text().unwrap().contains("offshoot restore"), "{error}");
        drop(store);
        assert!(files(&root) == bent, "bit {bit}: files have changed");
    }
    println!(
        "{tried} flipped bits of {length} bytes: {said} said, {served} serve the active generation, \
         {complete} have everything"
    );
    assert!(said * 10 > tried * 9, "{said} of {tried}");
    assert!(
        served * 20 > tried * 19 && complete * 10 > tried * 8,
        "{served} {complete} of {tried}"
    );
}

/// Syncs that failed, one after the other: each change was written over the one before it, of which the end stays
/// where that was longer. No damage: nothing of it was acknowledged.
#[test]
fn the_ends_of_changes_that_were_never_synced_are_no_damage() {
    let whole = state(false);
    let (_dir, root) = place();
    let log = Path::new("state.db-wal");
    let with = |words: usize| {
        put(&root, &whole);
        let store = Store::open(&root).unwrap();
        store.add_sample(&sample(&"word ".repeat(words), "x", "app")).unwrap();
        std::fs::read(root.join(log)).unwrap()
    };
    let [long, less, least] = [3000, 1500, 10].map(with);
    assert!(long.len() > less.len() + 2000 && less.len() > least.len() + 2000);
    let mut left = whole.clone();
    let bytes = [&least[..], &less[least.len()..], &long[less.len()..]].concat();
    left.insert(log.into(), bytes);
    put(&root, &left);
    let store = Store::open(&root).unwrap();
    assert_eq!((store.doubt(), known(&store)), (None, (51, vec![1, 2], Some(2))));
    store.verify().unwrap();
}

#[test]
fn a_flipped_bit_in_the_database_is_said_and_what_can_be_read_is_served() {
    let whole = state(true);
    let (_dir, root) = place();
    let length = whole[Path::new("state.db")].len();
    let (mut tried, mut complete, mut served) = (0, 0, 0);
    for bit in bits(length, &mut Dice(4)) {
        let bent = flipped(&whole, "state.db", bit);
        put(&root, &bent);
        let store = Store::open(&root).unwrap();
        assert!(store.doubt().is_some(), "bit {bit}");
        let found = known(&store);
        tried += 1;
        complete += usize::from(found == all());
        served += usize::from(found.1.contains(&2) && found.2 == Some(2));
        assert!(store.verify().is_err());
        drop(store);
        assert!(files(&root) == bent, "bit {bit}: files have changed");
    }
    println!(
        "{tried} flipped bits of {length} bytes: all said, {served} still serve the active \
         generation, {complete} have everything"
    );
    assert!(served * 20 > tried * 17, "{served} of {tried}");
}

/// The second record could not be opened, for once: the log was moved into the database all the same, and the next
/// that opened the state found another database than was recorded.
#[test]
fn without_a_second_record_the_log_stays_and_it_is_tried_again() {
    let whole = state(true);
    let (_dir, root) = place();
    put(&root, &whole);
    let record = root.join("acknowledged");
    let aside = root.join("aside");
    std::fs::rename(&record, &aside).unwrap();
    std::fs::create_dir(&record).unwrap();
    let store = Store::open(&root).unwrap();
    store.add_sample(&sample("one", "x", "app")).unwrap();
    assert!(store.problems()[0].contains("the second record can't be written"));
    store.settle().unwrap();
    assert!(std::fs::metadata(root.join("state.db-wal")).unwrap().len() > 0);
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    let other = Store::open(&root).unwrap();
    assert_eq!((other.doubt(), known(&other).0), (None, 51));
    store.add_sample(&sample("two", "x", "app")).unwrap();
    assert_eq!(store.problems(), Vec::<String>::new());
    drop((store, other));
    let store = Store::open(&root).unwrap();
    assert_eq!((store.doubt(), known(&store).0), (None, 52));
}

/// After a cut of power within a promotion the board was degraded for a file that it had written itself.
#[test]
fn an_adapter_that_was_being_added_is_nothing_that_was_lost() {
    let (_dir, root) = place();
    let store = Store::open(&root).unwrap();
    store.create_name("home").unwrap();
    let mut commits = 0;
    let second_fails = move |op: Op, _: &Path| {
        commits += u32::from(op == Op::Commit);
        match op == Op::Commit && commits == 2 {
            true => Err(std::io::ErrorKind::Other.into()),
            false => Ok(()),
        }
    };
    let add = || store.add("home", &adapter(1.0), &Origin::default());
    fault::with(second_fails, add).unwrap_err();
    let there =
        || files(&root).into_keys().filter(|p| p.extension().is_some_and(|e| e == "adapter"));
    assert_eq!(there().count(), 1);
    // Before the next one that is added whole clears it away too.
    let cut = files(&root);
    store.add("home", &adapter(2.0), &Origin::default()).unwrap();
    assert_eq!(there().count(), 1);
    drop(store);
    put(&root, &cut);
    let store = Store::open(&root).unwrap();
    assert_eq!((store.problems(), store.lost_count(), there().count()), (vec![], 0, 0));
    let added = store.add("home", &adapter(1.0), &Origin::default()).unwrap();
    assert_eq!((added.generation, there().count()), (1, 1));
}

/// After a kill the database may have been written to since its hash was taken: what damage does not
/// break its structure can't be told. Nothing is deleted all the same.
#[test]
fn a_flipped_bit_beside_a_log_deletes_nothing() {
    let mut whole = state(true);
    let (_dir, root) = place();
    put(&root, &whole);
    let store = Store::open(&root).unwrap();
    store.add_sample(&sample("one more", "x", "app")).unwrap();
    whole = files(&root);
    drop(store);
    let adapters = |state: &Files| {
        let is = |p: &&PathBuf| p.extension().is_some_and(|e| e == "adapter");
        let names: Vec<_> =
            state.keys().filter(is).map(|p| p.file_name().unwrap().to_owned()).collect();
        names.len()
    };
    let length = whole[Path::new("state.db")].len();
    let mut said = 0;
    let flips = bits(length, &mut Dice(5));
    for &bit in &flips {
        put(&root, &flipped(&whole, "state.db", bit));
        let store = Store::open(&root).unwrap();
        said += usize::from(store.doubt().is_some());
        known(&store);
        drop(store);
        assert_eq!(adapters(&files(&root)), 2, "bit {bit}");
    }
    println!("{} flipped bits: {said} said", flips.len());
    // The hash of before the log was begun holds still.
    assert_eq!(said, flips.len());
}

#[test]
fn a_missing_file_or_an_older_one_deletes_nothing() {
    let (settled, killed) = (state(true), state(false));
    let (_dir, root) = place();
    for whole in [&settled, &killed] {
        let names: Vec<PathBuf> = whole.keys().cloned().collect();
        for gone in &names {
            let mut left = whole.clone();
            left.remove(gone);
            put(&root, &left);
            let store = Store::open(&root).unwrap();
            let file = gone.to_str().unwrap();
            let found = known(&store);
            match file {
                "acknowledged" => assert_eq!((store.doubt(), found), (None, all())),
                "state.db-wal" if whole == &settled => assert_eq!(store.doubt(), None),
                _ if file.starts_with("adapters/") => {
                    assert_eq!((store.doubt(), found.0, found.1.len()), (None, 50, 1));
                }
                // The log alone has nearly all.
                _ => assert!(store.doubt().is_some(), "{file}"),
            }
            drop(store);
            let after = files(&root);
            for (path, bytes) in
                left.iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "adapter"))
            {
                assert_eq!(after.get(path), Some(bytes), "{file} gone, then {}", path.display());
            }
        }
    }
    // Emptied, and put back from before.
    let older = {
        put(&root, &settled);
        let store = Store::open(&root).unwrap();
        store.add("home", &adapter(3.0), &Origin::default()).unwrap();
        store.settle().unwrap();
        drop(store);
        let mut newer = files(&root);
        newer.insert("state.db".into(), settled[Path::new("state.db")].clone());
        newer
    };
    let mut emptied = killed.clone();
    emptied.insert("state.db".into(), vec![]);
    emptied.insert("state.db-wal".into(), vec![]);
    for (state, generations) in [(older, vec![1, 2]), (emptied, vec![])] {
        put(&root, &state);
        let store = Store::open(&root).unwrap();
        assert!(store.doubt().is_some());
        assert_eq!(known(&store).1, generations);
        drop(store);
        assert!(files(&root) == state);
    }
}

/// The database's own error told to move it away, and the next start deleted the adapters beside it.
#[test]
fn a_new_database_takes_nothing_away() {
    let mut state = state(true);
    for file in ["state.db", "state.db-wal", "acknowledged"] {
        state.remove(Path::new(file));
    }
    state.insert("jobs/7/checkpoint".into(), b"of a job".to_vec());
    let (_dir, root) = place();
    put(&root, &state);
    let store = Store::open(&root).unwrap();
    assert_eq!((store.doubt(), store.names().unwrap()), (None, vec![]));
    let lost = store.lost();
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert_eq!(lost.iter().filter(|l| l.name.as_deref() == Some("home")).count(), 2);
    assert!(root.join("lost/job-7/checkpoint").exists());
    let problems = store.problems();
    assert!(problems[0].contains("'offshoot adapter add'"), "{problems:?}");
    assert_eq!(store.latest_events(9).unwrap()[0].kind, "lost");
    // From there they are added; what is known again is no longer lost.
    for file in lost.iter().filter(|l| l.name.is_some()) {
        let read = crate::adapter::Adapter::read(&file.path).unwrap();
        store.add_and_serve("home", &read, &Origin::default(), Serve::First).unwrap();
    }
    let store = Store::open(&root).unwrap();
    assert_eq!(known(&store).1, [1, 2]);
    assert_eq!(store.lost().len(), 1, "{:?}", store.lost());
    // Forgetting takes what may have learned from it.
    store.add_sample(&sample("one", "x", "app")).unwrap();
    let none = Selector { ids: vec![77], ..Selector::default() };
    assert_eq!((store.forget(&none).unwrap().lost, store.lost_count()), (0, 1));
    let report = store.forget(&Selector { all: true, ..Selector::default() }).unwrap();
    assert_eq!((report.lost, store.lost_count()), (1, 0));
}

/// Of a build before there was a second record: the log alone shows it.
#[test]
fn the_state_that_one_bit_wiped_is_whole() {
    let Some(shared) = crate::common::shared() else { return };
    let whole = files(&shared.join("hostile/wal_one_bit_state"));
    let (_dir, root) = place();
    put(&root, &whole);
    let store = Store::open(&root).unwrap();
    let doubt = store.doubt().unwrap();
    println!("{doubt}");
    let entry = store.names().unwrap().remove(0);
    let samples = store.samples(&Filter::default()).unwrap();
    println!("{} samples, {entry:?}", samples.len());
    assert!(samples.len() == 6 && entry.active == Some(2));
    assert!(samples.iter().all(|s| store.sample(s.id).is_ok()));
    let there = |store: &Store| {
        let all = store.generations(&entry.name).unwrap();
        let active = all.iter().find(|g| Some(g.number) == entry.active).unwrap();
        root.join(format!("adapters/{}.adapter", active.hash)).exists()
    };
    assert!(there(&store) && entry.generations.len() == 2);
    drop(store);
    assert!(files(&root) == whole);
    let restored = Store::salvage(&root).unwrap();
    assert_eq!(restored.samples as usize, samples.len());
    let store = Store::open(&root).unwrap();
    assert_eq!((store.doubt(), store.samples(&Filter::default()).unwrap()), (None, samples));
    assert!(there(&store));
    store.verify().unwrap();
    store.add_sample(&sample("new", "x", "app")).unwrap();
}

#[test]
fn a_person_decides_to_go_on_with_what_can_be_read() {
    let whole = state(true);
    let (_dir, root) = place();
    put(&root, &whole);
    let nothing = Store::salvage(&root).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Usage, "{nothing}");
    let page = super::db::PAGE as usize;
    for first in [0, 1, 3, 7] {
        let mut bent = whole.clone();
        let database = bent.get_mut(Path::new("state.db")).unwrap();
        database[first * page..][..page].fill(0xa5);
        put(&root, &bent);
        let before = known(&Store::open(&root).unwrap());
        let lock = crate::fs::FileLock::exclusive(&root.join("daemon.lock")).unwrap();
        assert_eq!(Store::salvage(&root).unwrap_err().kind(), ErrorKind::Refused);
        drop(lock);
        let restored = Store::salvage(&root).unwrap();
        assert!(restored.before.iter().all(|p| p.exists()), "{restored:?}");
        let store = Store::open(&root).unwrap();
        assert_eq!(store.doubt(), None, "page {first}");
        let after = known(&store);
        assert!(after.0 >= before.0 && after.1.len() >= before.1.len(), "{before:?} {after:?}");
        store.add_sample(&sample("new", "x", "app")).unwrap();
        store.verify().unwrap();
        let names = files(&root);
        let adapters = names.keys().filter(|p| p.extension().is_some_and(|e| e == "adapter"));
        assert_eq!(adapters.count(), 2, "page {first}");
    }
}

#[test]
fn damage_that_shows_later_stops_changes_too() {
    let whole = state(false);
    let (_dir, root) = place();
    put(&root, &whole);
    let store = Store::open(&root).unwrap();
    store.settle().unwrap();
    assert_eq!(store.doubt(), None);
    // Behind the store's back, as a card does it. Its cache is small, and told to be empty.
    let database = root.join("state.db");
    let mut bytes = std::fs::read(&database).unwrap();
    let page = super::db::PAGE as usize;
    bytes[page..].fill(0xa5);
    std::fs::write(&database, bytes).unwrap();
    store.connection().execute_batch("PRAGMA shrink_memory").unwrap();
    store.samples(&Filter::default()).unwrap_err();
    assert!(store.doubt().unwrap().contains("is damaged"));
    let error = store.create_name("other").unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Doubtful));
}

#[test]
fn a_folder_that_everybody_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, root) = place();
    put(&root, &state(true));
    for (mode, good) in [(0o777, false), (0o702, false), (0o770, true), (0o755, true)] {
        std::fs::set_permissions(&root, PermissionsExt::from_mode(mode)).unwrap();
        let opened = Store::open(&root);
        assert_eq!(opened.is_ok(), good, "{mode:o}");
        if let Err(error) = opened {
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.message().contains("everybody can change the state"), "{error}");
        }
    }
}
