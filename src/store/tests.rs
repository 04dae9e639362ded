use super::*;
use crate::adapter::{Adapter, TargetAdapter};
use crate::error::{Cause, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub(super) fn adapter(value: f32) -> Adapter {
    Adapter {
        name: "any".into(),
        targets: vec![TargetAdapter::lora("layer.0", 1, 1.0, vec![1.0, 2.0], vec![value, 0.5])],
        ..Adapter::default()
    }
}

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("new/store")).unwrap();
    (dir, store)
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// Adds a generation and makes it active.
fn promote(store: &Store, value: f32) -> u64 {
    let number = store.add("home", &adapter(value), &Origin::default()).unwrap().generation;
    store.activate("home", number, None, None).unwrap();
    number
}

fn state_of(store: &Store, number: u64) -> GenerationState {
    let all = store.generations("home").unwrap();
    all.iter().find(|g| g.number == number).unwrap().state
}

#[test]
fn a_life_of_three_generations() {
    let (_dir, store) = store();
    assert_eq!(store.names().unwrap(), []);
    let one = store.add("home", &adapter(1.0), &Origin::default()).unwrap();
    assert_eq!(one, Added { generation: 1, new: true, active: false });
    assert_eq!(store.load(&reference("home")).unwrap_err().cause(), Some(Cause::NotFound));
    store.activate("home", 1, None, None).unwrap();
    let two = store.add("home", &adapter(2.0), &Origin::default()).unwrap();
    assert_eq!(two, Added { generation: 2, new: true, active: false });
    assert_eq!(store.load(&reference("home")).unwrap().generation, 1);
    let again = store.add("home", &adapter(2.0), &Origin::default()).unwrap();
    assert_eq!(again, Added { generation: 2, new: false, active: false });
    let switched = store.activate("home", 2, Some(Some(1)), None).unwrap();
    assert_eq!((switched.active, switched.before), (Some(2), Some(1)));

    let loaded = store.load(&reference("home")).unwrap();
    assert_eq!((loaded.generation, loaded.adapter.targets[0].tensors[1].values[0]), (2, 2.0));
    assert_eq!(loaded.adapter.name, "home");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&loaded.path) & 0o777, 0o444);
    assert_eq!(mode(store.root()) & 0o777, 0o700);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        assert_eq!(mode(&store.root().join(file)) & 0o777, 0o600, "{file}");
    }

    store.activate("home", 1, None, None).unwrap();
    assert_eq!(store.remove(&reference("home@2"), false).unwrap().generations, [2]);
    assert!(!loaded.path.exists());
    let three = store.add("home", &adapter(3.0), &Origin::default()).unwrap();
    assert_eq!(three.generation, 3, "number 2 is not given again");
    assert_eq!(store.newest("home").unwrap(), 3);
    let names = store.names().unwrap();
    assert_eq!((names[0].active, names[0].generations.as_slice()), (Some(1), &[1, 3][..]));
    let hows: Vec<_> = store.history("home").unwrap().iter().map(|s| s.generation).collect();
    assert_eq!(hows, [Some(1), Some(2), Some(1)]);
}

#[test]
fn a_switch_from_another_than_expected_is_refused() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    promote(&store, 2.0);
    for expected in [None, Some(1), Some(3)] {
        let error = store.activate("home", 1, Some(expected), None).unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Refused, Some(Cause::Moved)));
    }
    assert_eq!(store.active("home").unwrap(), Some(2));
}

#[test]
fn rollback_goes_to_what_served_before() {
    let (_dir, store) = store();
    for value in [1.0, 2.0, 3.0] {
        promote(&store, value);
    }
    let switched = store.rollback("home", None, "worse").unwrap();
    assert_eq!((switched.before, switched.active), (Some(3), Some(2)));
    assert_eq!(state_of(&store, 3), GenerationState::Bad);
    promote(&store, 4.0);
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, Some(2));
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, Some(1));
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, None);
    assert_eq!(store.rollback("home", None, "worse").unwrap_err().kind(), ErrorKind::Usage);
    // By hand a bad one can be had again; then the base was chosen by hand.
    store.activate("home", 3, None, None).unwrap();
    let stale = store.deactivate("home", Some(Some(2))).unwrap_err();
    assert_eq!((stale.kind(), stale.cause()), (ErrorKind::Refused, Some(Cause::Moved)));
    assert_eq!(store.deactivate("home", Some(Some(3))).unwrap().before, Some(3));
    store.activate("home", 1, None, None).unwrap();
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, None);
    let last = store.history("home").unwrap().pop().unwrap();
    assert_eq!((last.how, last.why.as_deref()), (How::RolledBack, Some("worse")));
}

#[test]
fn rollback_stays_on_the_base() {
    let (_dir, store) = store();
    let of = |value: f32, base: u8| Adapter {
        base: Some(crate::fingerprint::BaseFingerprint([base; 32])),
        ..adapter(value)
    };
    for (number, base) in [(1, 1), (2, 2), (3, 1)] {
        store.add("home", &of(number as f32, base), &Origin::default()).unwrap();
        store.activate("home", number, None, None).unwrap();
    }
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, Some(1));
}

#[test]
fn a_trial_ends_confirmed_or_interrupted() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    let trial = Some(Duration::from_secs(60));
    let two = store.add("home", &adapter(2.0), &Origin::default()).unwrap().generation;
    store.activate("home", two, Some(Some(1)), trial).unwrap();
    assert_eq!(store.name("home").unwrap().trial.unwrap().seconds, 60);
    assert_eq!(state_of(&store, two), GenerationState::Trial);
    assert!(store.confirm_trial("home", 1).is_err());
    let again = Store::open(store.root()).unwrap();
    let ended = again.end_interrupted_trials(false).unwrap();
    assert_eq!((ended[0].before, ended[0].active), (Some(2), Some(1)));
    assert_eq!(again.end_interrupted_trials(false).unwrap(), []);
    assert_eq!(state_of(&store, two), GenerationState::Candidate);
    store.activate("home", two, None, trial).unwrap();
    store.confirm_trial("home", two).unwrap();
    assert_eq!(again.end_interrupted_trials(false).unwrap(), []);
    assert_eq!(state_of(&store, two), GenerationState::Promoted);
    // A trial without a generation before it ends at the base.
    let other = store.add("away", &adapter(1.0), &Origin::default()).unwrap().generation;
    store.activate("away", other, None, trial).unwrap();
    assert_eq!(store.end_interrupted_trials(false).unwrap()[0].active, None);
}

/// A generation that the next one replaced within its trial answers where nothing proven is left.
#[test]
fn a_name_answers_by_what_served_and_else_says_why() {
    let (_dir, store) = store();
    assert!(store.silence("home").is_err());
    let why = |part: &str| {
        let said = store.silence("home").unwrap().unwrap();
        assert!(said.contains(part), "{said}");
    };
    let sample = super::sample_tests::sample;
    let learned = store.add_sample(&sample("a", "x", "me")).unwrap();
    why("has learned nothing yet");
    let manifest = vec![learned.hash];
    let trial = Some(Duration::from_secs(60));
    for (n, manifest) in [(1, manifest.clone()), (2, vec![]), (3, manifest)] {
        let origin = Origin { manifest, ..Origin::default() };
        let added = store.add("home", &adapter(n as f32), &origin).unwrap();
        store.activate("home", added.generation, None, trial).unwrap();
    }
    assert_eq!(store.silence("home").unwrap(), None);
    assert_eq!(state_of(&store, 2), GenerationState::Candidate);
    let report = store.forget(&Selector { ids: vec![learned.id], ..Selector::default() }).unwrap();
    assert_eq!(report.fallbacks[0].to, Some(2));
    assert_eq!(store.rollback("home", None, "it is worse").unwrap().active, None);
    why("generation 2 of 'home' was rolled back (it is worse)");
    store.activate("home", 2, None, None).unwrap();
    store.deactivate("home", None).unwrap();
    why("by hand");
}

#[test]
fn an_interrupted_trial_may_be_tried_once_more() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    let two = store.add("home", &adapter(2.0), &Origin::default()).unwrap().generation;
    let hour = Some(Duration::from_secs(3600));
    store.activate("home", two, Some(Some(1)), hour).unwrap();
    assert_eq!(store.interrupted_trials().unwrap(), []);
    store.end_interrupted_trials(false).unwrap();
    let once = Switched { name: "home".into(), active: Some(1), before: Some(two) };
    assert_eq!(store.interrupted_trials().unwrap(), [(once, How::Interrupted)]);
    for _ in 0..3 {
        store.activate("home", two, Some(Some(1)), hour).unwrap();
        store.end_interrupted_trials(true).unwrap();
        assert_eq!(store.interrupted_trials().unwrap()[0].1, How::Stopped);
    }
    store.activate("home", two, Some(Some(1)), hour).unwrap();
    store.end_interrupted_trials(false).unwrap();
    assert_eq!(store.interrupted_trials().unwrap(), [], "twice is no chance");
    assert_eq!(
        store.rollback("home", Some(Some(two)), "worse").unwrap_err().cause(),
        Some(Cause::Moved)
    );
}

/// A store of the first version gets what later ones added, and keeps what it has.
#[test]
fn an_older_database_is_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let database = {
        let store = Store::open(dir.path()).unwrap();
        store.add_sample(&super::sample_tests::sample("a", "x", "me")).unwrap();
        let round = store.training_set("home").unwrap().round;
        let origin = Origin { job: Some(7), ..Origin::default() };
        store.add("home", &adapter(1.0), &origin).unwrap();
        store.trained("home", round).unwrap();
        store.database().to_path_buf()
    };
    let c = rusqlite::Connection::open(database).unwrap();
    c.execute_batch(
        "DROP INDEX samples_alike; ALTER TABLE samples DROP COLUMN alike;
         ALTER TABLE samples DROP COLUMN judged;
         DROP TRIGGER generation_removed; DROP TRIGGER generation_retired;
         DROP TRIGGER job_removed; DROP TRIGGER job_forgotten; DROP TABLE doomed;
         DELETE FROM meta WHERE key = 'link';
         ALTER TABLE generations DROP COLUMN round; PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(c);
    std::fs::remove_file(dir.path().join("acknowledged")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.generations("home").unwrap()[0].round, Some(0));
    assert_eq!(
        store.training_set("home").unwrap().manifest().len() as u64,
        store.counts("home").unwrap().kept - store.counts("home").unwrap().held
    );
    store.verify().unwrap();
}

#[test]
fn the_active_one_is_removed_by_force_only() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    store.add("home", &adapter(2.0), &Origin::default()).unwrap();
    for text in ["home@1", "home"] {
        let error = store.remove(&reference(text), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
    assert_eq!(store.remove(&reference("home@1"), true).unwrap().generations, [1]);
    let error = store.load(&reference("home")).unwrap_err();
    assert!(error.message().contains("no generation of 'home' is active"), "{error}");
    let removed = store.remove(&reference("home"), false).unwrap();
    assert_eq!(removed, Removed { generations: vec![2], known: false });
    // Nothing of the name is left but where its numbers go on.
    assert_eq!(store.name("home").unwrap_err().cause(), Some(Cause::NotFound));
    assert_eq!(store.names().unwrap(), []);
    assert_eq!(store.remove(&reference("home"), true).unwrap_err().cause(), Some(Cause::NotFound));
    assert_eq!(store.add("home", &adapter(1.0), &Origin::default()).unwrap().generation, 3);
    assert_eq!(store.history("home").unwrap(), []);
    assert_eq!(store.add("away", &adapter(1.0), &Origin::default()).unwrap().generation, 1);
}

/// Samples are the people's: they go by `forget`, not because an adapter is removed.
#[test]
fn a_name_with_samples_stays_and_serves_the_base() {
    let (_dir, store) = store();
    let sample = super::sample_tests::sample("the same", "x", "app");
    store.add_sample(&sample).unwrap();
    promote(&store, 1.0);
    let removed = store.remove(&reference("home"), true).unwrap();
    assert_eq!(removed, Removed { generations: vec![1], known: true });
    assert_eq!(store.name("home").unwrap().active, None);
    assert_eq!(store.counts("home").unwrap().kept, 1);
    let error = store.load(&reference("home")).unwrap_err();
    assert!(error.message().contains("serves the base"), "{error}");
    assert_eq!(error.cause(), Some(Cause::NotFound));
    assert_eq!(store.remove(&reference("home"), true).unwrap_err().kind(), ErrorKind::Refused);
    let all = Selector { all: true, ..Selector::default() };
    store.forget(&all).unwrap();
    // Who asks it is answered by the base until it is removed.
    assert_eq!(store.name("home").unwrap().active, None);
    let job = store.queue_job("home", "asked for").unwrap();
    assert_eq!(store.remove(&reference("home"), true).unwrap_err().kind(), ErrorKind::Refused);
    store.update_job(job, JobState::Cancelled, None).unwrap();
    let removed = store.remove(&reference("home"), false).unwrap();
    assert_eq!(removed, Removed { generations: vec![], known: false });
    assert_eq!(store.job(job).unwrap(), None);
    assert_eq!(store.add("home", &adapter(2.0), &Origin::default()).unwrap().generation, 2);
}

#[test]
fn unknown_names_say_what_there_is() {
    let (_dir, store) = store();
    let error = store.load(&reference("home")).unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Usage, Some(Cause::NotFound)));
    store.add("away", &adapter(1.0), &Origin::default()).unwrap();
    let error = store.activate("home", 1, None, None).unwrap_err();
    assert_eq!(error.hint_text(), Some("there are away"));
    let error = store.remove(&reference("away@7"), true).unwrap_err();
    assert_eq!(error.hint_text(), Some("it has 1"));
    assert!(store.add("../x", &adapter(1.0), &Origin::default()).is_err());
    assert!(store.activate("away", 7, None, None).is_err());
}

#[test]
fn old_generations_make_room_but_not_the_one_to_go_back_to() {
    let (_dir, store) = store();
    let quota = Quota { max_generations: 3, ..Quota::default() };
    store.set_rules(Rules { quota, ..Rules::default() }).unwrap();
    promote(&store, 1.0);
    promote(&store, 2.0);
    for value in 3..8 {
        store.add("home", &adapter(value as f32), &Origin::default()).unwrap();
    }
    assert_eq!(store.name("home").unwrap().generations, [1, 2, 7]);
    let files = std::fs::read_dir(store.root().join("adapters")).unwrap().count();
    assert_eq!(files, 3);
    assert_eq!(store.rollback("home", None, "worse").unwrap().active, Some(1));
}

#[test]
fn damage_is_found_and_never_activated() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    store.add("home", &adapter(2.0), &Origin::default()).unwrap();
    let file = store.load(&reference("home@2")).unwrap().path;
    store.verify().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let error = store.activate("home", 2, None, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert_eq!(store.active("home").unwrap(), Some(1));
    assert_eq!(store.verify().unwrap_err().kind(), ErrorKind::BadInput);
    // Adding the same adapter again mends it.
    assert!(!store.add("home", &adapter(2.0), &Origin::default()).unwrap().new);
    store.activate("home", 2, None, None).unwrap();
    store.verify().unwrap();
}

#[test]
fn values_that_are_not_finite_stay_outside() {
    let (_dir, store) = store();
    let error = store.add("home", &adapter(f32::NAN), &Origin::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert_eq!(store.names().unwrap(), []);
}

#[test]
fn many_writers_lose_nothing() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let root = store.root();
            scope.spawn(move || {
                let own = Store::open(root).unwrap();
                own.add("home", &adapter(i as f32), &Origin::default()).unwrap();
            });
        }
    });
    assert_eq!(store.name("home").unwrap().generations, (1..=8).collect::<Vec<_>>());
}

#[test]
fn many_open_a_new_store_at_once() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let hashes: Vec<SampleHash> = std::thread::scope(|scope| {
            let open = |_| {
                let root = &root;
                scope.spawn(move || {
                    let store = Store::open(root).unwrap();
                    let same = super::sample_tests::sample("the same", "x", "app");
                    store.add_sample(&same).unwrap().hash
                })
            };
            let threads: Vec<_> = (0..8).map(open).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(hashes.iter().all(|h| *h == hashes[0]), "all have the same secrets");
        let found = Store::open(&root).unwrap().samples(&Filter::default()).unwrap();
        assert_eq!((found.len(), found[0].seen), (1, 8));
    }
}

#[test]
fn what_a_crash_leaves_behind_goes_at_the_next_opening() {
    let (_dir, store) = store();
    promote(&store, 1.0);
    let adapters = store.root().join("adapters");
    let orphan = adapters.join(format!("{}.adapter", "ab".repeat(32)));
    let temp = adapters.join(".x.adapter.999999999.0.tmp");
    let job = store.make_job_folder(77).unwrap();
    let stranger = adapters.join("README");
    for file in [&orphan, &temp, &job.join("checkpoint"), &stranger] {
        std::fs::write(file, "x").unwrap();
    }
    let again = Store::open(store.root()).unwrap();
    assert!(!orphan.exists() && !temp.exists() && !job.exists() && stranger.exists());
    assert_eq!(again.load(&reference("home")).unwrap().generation, 1);
}

#[test]
fn a_store_of_the_old_form_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("adapters/home")).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(Store::open_existing(dir.path(), Options::default()).is_err());
    assert!(!dir.path().join("state.db").exists());
}

/// A file in the place of a folder is the nearest to a broken disk that any user can make.
#[test]
fn a_store_that_is_no_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("file");
    std::fs::write(&root, "x").unwrap();
    assert!(Store::open(&root).is_err());
    assert!(Store::open_existing(&root, Options::default()).unwrap().is_none());
    assert_eq!(std::fs::read(&root).unwrap(), b"x");
}

/// A generation that had been rolled back served again when its file was added once more.
#[test]
fn adding_again_does_not_bring_back_what_was_rolled_back() {
    let (_dir, store) = store();
    let put =
        |serve| store.add_and_serve("home", &adapter(1.0), &Origin::default(), serve).unwrap();
    let added = |new, active| Added { generation: 1, new, active };
    assert_eq!(put(Serve::First), added(true, true));
    store.rollback("home", None, "worse").unwrap();
    assert_eq!(put(Serve::First), added(false, false));
    assert_eq!(state_of(&store, 1), GenerationState::Bad);
    assert_eq!(store.name("home").unwrap().active, None);
    assert_eq!(put(Serve::Now), added(false, true));
    let second = store.add_and_serve("home", &adapter(2.0), &Origin::default(), Serve::First);
    assert_eq!(second.unwrap(), Added { generation: 2, new: true, active: false });
}

/// 'adapter add' was two changes: a cut between them left a generation that nothing served.
#[test]
fn adding_and_serving_is_one_change() {
    use crate::fs::fault::{self, Op};
    for nth in 0..3 {
        let (_dir, store) = store();
        let mut left = nth;
        let added = fault::with(
            move |op, _| {
                let fails = op == Op::Commit && left == 0;
                left -= i32::from(op == Op::Commit);
                if fails { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
            },
            || store.add_and_serve("home", &adapter(1.0), &Origin::default(), Serve::First),
        );
        match store.name("home") {
            Ok(entry) => assert_eq!((entry.active, added.unwrap().active), (Some(1), true)),
            Err(_) => drop(added.unwrap_err()),
        }
    }
}
