use super::*;
use crate::adapter::TargetAdapter;
use crate::runtime::{PackOptions, pack};
use crate::store::Origin;
use std::path::Path;
use std::path::PathBuf;

struct Place {
    roster: Arc<Roster>,
    /// As another process has it.
    other: Store,
    folder: tempfile::TempDir,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/mlp.onnx");
    let base = folder.path().join("mlp.base");
    pack(&source, &base, &PackOptions::default()).unwrap();
    let store = || Store::open(folder.path().join("store")).unwrap();
    let engine = Engine::open(&base).unwrap();
    let roster = Roster::new(engine, store(), Arc::default(), 2).unwrap();
    let other = store();
    Place { roster: Arc::new(roster), other, folder }
}

impl Place {
    /// Adds a generation of `home` and makes it active.
    fn promote(&self) -> u64 {
        let base = self.roster.engine.base();
        let target = &base.targets()[0];
        let next = self.other.generations("home").map_or(1, |all| all.len() + 1);
        let (a, b) = (target.in_features as usize, target.out_features as usize);
        let (a, b) = (vec![next as f32; a], vec![0.5; b]);
        let pair = TargetAdapter::lora(&target.module_path, 1, 1.0, a, b);
        let adapter =
            Adapter { base: Some(base.fingerprint()), targets: vec![pair], ..Adapter::default() };
        let number = self.other.add("home", &adapter, &Origin::default()).unwrap().generation;
        self.other.activate("home", number, None, None).unwrap();
        number
    }

    /// What a request gets that looks.
    fn generation(&self) -> Result<Option<u64>, Problem> {
        self.roster.seen().looked = None;
        self.served()
    }

    fn served(&self) -> Result<Option<u64>, Problem> {
        let home = Selection::Named(Reference::parse("home").unwrap());
        self.roster.resolve(&home).map(|served| served.generation)
    }

    /// What is served once the store has not changed for a while and all was taken from it.
    fn settled(&self) -> Result<Option<u64>, Problem> {
        std::thread::sleep(2 * TICK);
        drop(self.generation());
        while self.roster.seen().reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.served()
    }

    fn adapters(&self) -> PathBuf {
        self.folder.path().join("store/adapters")
    }
}

#[test]
fn what_another_process_did_is_served() {
    let place = place();
    assert!(place.generation().is_err());
    for _ in 0..2 {
        let number = place.promote();
        assert_eq!(place.settled().unwrap(), Some(number));
    }
    let looks = place.roster.seen().stamp;
    assert!(looks.is_some() && looks == Some(place.roster.stamp()));
}

/// A worker, and with it the watchdog's probe, waited with the store for a process that had
/// stopped within its transaction.
#[test]
fn requests_wait_a_moment_at_most_for_a_store_that_is_held_up() {
    let place = place();
    let number = place.promote();
    assert_eq!(place.settled().unwrap(), Some(number));
    let newer = place.promote();
    let stopped = place.roster.turn.lock().unwrap();
    // The reader finds the turn taken.
    assert_eq!(place.generation().unwrap(), Some(number));
    drop(stopped);
    let database = place.folder.path().join("store/state.db");
    let stopped = rusqlite::Connection::open(database).unwrap();
    stopped.execute_batch("BEGIN IMMEDIATE").unwrap();
    let store = place.roster.store.clone();
    let writer = std::thread::spawn(move || store.create_name("late"));
    // Until it has the connection.
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    assert_eq!(place.generation().unwrap(), Some(number));
    assert!(place.roster.resolve(&Selection::Base).unwrap().bound.is_none());
    // One thread waits, and only its first request with it.
    for _ in 0..20 {
        assert_eq!(place.generation().unwrap(), Some(number));
    }
    let took = start.elapsed();
    assert!(!writer.is_finished() && took < Duration::from_secs(1), "{took:?}");
    stopped.execute_batch("ROLLBACK").unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(place.settled().unwrap(), Some(newer));
}

#[test]
fn the_base_is_answered_without_a_look() {
    let place = place();
    place.roster.resolve(&Selection::Base).unwrap();
    assert!(place.roster.seen().looked.is_none());
    place.roster.resolve(&Selection::Default).unwrap();
    assert!(place.roster.seen().looked.is_some());
}

/// A process short of descriptors for a moment refused the name until the next commit.
#[test]
fn what_could_not_be_loaded_is_tried_again() {
    let place = place();
    let number = place.promote();
    let away = place.folder.path().join("away");
    std::fs::rename(place.adapters(), &away).unwrap();
    assert_eq!(place.settled().unwrap(), None);
    // Once more: an event of it was written.
    assert_eq!(place.settled().unwrap(), None);
    std::fs::rename(&away, place.adapters()).unwrap();
    let again = place.roster.seen().again.unwrap();
    assert!(again > Instant::now() + FAULTS_AGAIN / 2);
    assert_eq!(place.generation().unwrap(), None, "not at once");
    assert_eq!(place.roster.rows()[0].instead.as_ref().unwrap().generation, number);
    place.roster.seen().again = Some(Instant::now());
    assert_eq!(place.settled().unwrap(), Some(number));
    assert!(place.roster.seen().again.is_none());
    assert!(place.roster.rows()[0].instead.is_none());
}

/// A name whose active generation was damaged was refused for ever, while the one before and the base
/// were there.
#[test]
fn where_the_active_generation_is_damaged_the_one_before_answers_and_says_so() {
    let place = place();
    let numbers = [place.promote(), place.promote(), place.promote()];
    let damage = |number: u64| {
        let all = place.other.generations("home").unwrap();
        let hash = &all.iter().find(|g| g.number == number).unwrap().hash;
        let path = place.adapters().join(format!("{hash}.adapter"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[200] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    damage(numbers[2]);
    // As at a start.
    let [roster, again] = [0, 1].map(|_| {
        let store = Store::open(place.folder.path().join("store")).unwrap();
        Arc::new(Roster::new(place.roster.engine.clone(), store, Arc::default(), 2).unwrap())
    });
    let home = || Selection::Named(Reference::parse("home").unwrap());
    let served = roster.resolve(&home()).unwrap();
    let instead = served.instead.as_ref().unwrap();
    assert_eq!((served.generation, instead.generation), (Some(numbers[1]), numbers[2]));
    assert!(served.bound.is_some() && instead.why.contains("is damaged"), "{}", instead.why);
    let said = |store: &Store| {
        let events = store.latest_events(100).unwrap();
        events.into_iter().filter(|e| e.kind == "fallback").map(|e| e.text).collect::<Vec<_>>()
    };
    // Each of the two processes says it once.
    assert_eq!(said(&place.other).len(), 2);
    assert!(said(&place.other)[0].contains("generation 2 answers in its place"));
    roster.refresh_all().unwrap();
    assert_eq!(said(&place.other).len(), 2);
    // What was served from memory goes on; a switch to a whole one ends it.
    assert_eq!(again.rows()[0].generation, Some(numbers[1]));
    place.other.activate("home", numbers[0], None, None).unwrap();
    roster.refresh("home").unwrap();
    let served = roster.resolve(&home()).unwrap();
    assert_eq!((served.generation, &served.instead), (Some(numbers[0]), &None));
    // With nothing before it the base answers.
    damage(numbers[0]);
    let store = Store::open(place.folder.path().join("store")).unwrap();
    let fresh = Roster::new(place.roster.engine.clone(), store, Arc::default(), 2).unwrap();
    damage(numbers[1]);
    let served = Arc::new(fresh).resolve(&home()).unwrap();
    assert!(served.instead.is_some());
}

#[test]
fn a_name_made_again_has_its_new_number() {
    let place = place();
    place.other.create_name("home").unwrap();
    place.other.create_name("other").unwrap();
    assert_eq!(place.settled().unwrap(), None);
    let id = |name: &str| place.roster.list().into_iter().find(|row| row.name == name).unwrap().id;
    assert_eq!((id("home"), id("other")), (0, 1));
    place.other.remove(&Reference::parse("home").unwrap(), false).unwrap();
    place.other.create_name("home").unwrap();
    assert_eq!(place.settled().unwrap(), None);
    assert_eq!((id("home"), id("other")), (2, 1));
}
