//! A medium that fails: the n-th call of a sort, on the state's files, gets an error of the system, or
//! all from the n-th on do, until the command completes without it. Whatever fails, the state is the one before or the one
//! after, and what was said to be done is done. `strace` injects the errors.
//!
//! `OFFSHOOT_TEST_FAULTS=1` tries every call; a seeded share of them is tried otherwise.

use crate::support::{Done, Place, done};
use offshoot::Adapter;
use offshoot::adapters::TargetAdapter;
use offshoot::store::{Filter, Input, Label, NewSample, Options, Origin, Reference, Serve, Store};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of so many calls one is tried.
const SHARE: u64 = 23;
/// More calls of one sort than any command makes.
const MOST: u32 = 2000;

const CALLS: &[(&str, &[&str])] = &[
    ("openat", &["EIO", "EMFILE", "ENOSPC"]),
    ("read,pread64", &["EIO", "EINTR"]),
    ("write,pwrite64", &["ENOSPC", "EIO", "EINTR"]),
    ("fsync,fdatasync", &["EIO"]),
    ("rename,renameat,renameat2", &["EIO", "ENOSPC"]),
    ("mmap", &["ENOMEM"]),
    ("ftruncate", &["EIO", "ENOSPC"]),
    ("unlink,unlinkat", &["EIO"]),
    ("link,linkat", &["EIO"]),
    ("fallocate", &["ENOSPC", "EIO"]),
];

fn adapter(value: f32) -> Adapter {
    let target = TargetAdapter::lora("layer.0", 1, 1.0, vec![1.0, 2.0], vec![value, 0.5]);
    Adapter { name: "home".into(), targets: vec![target], ..Adapter::default() }
}

fn sample(i: usize) -> NewSample {
    NewSample {
        name: "home".into(),
        input: Input::Text(format!("sentence {i}")),
        label: Some(Label::Class("x".into())),
        predicted: None,
        generation: None,
        source: "app".into(),
        time: 1_700_000_000,
        consent: true,
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, target).unwrap()),
        }
    }
}

/// Active generation and samples.
type State = (Option<u64>, usize);

fn state(root: &Path) -> State {
    let store = Store::open_with(root, Options::default()).unwrap();
    assert_eq!(store.doubt(), None);
    store.verify().unwrap();
    let active = store.active("home").unwrap();
    if let Some(number) = active {
        store.load(&Reference::parse(&format!("home@{number}")).unwrap()).unwrap();
    }
    (active, store.samples(&Filter::default()).unwrap().len())
}

/// The files whose calls fail.
fn paths(place: &Place) -> Vec<PathBuf> {
    let mut found = vec![place.path("store"), place.path("store/adapters"), place.path("b")];
    for name in ["state.db", "state.db-wal", "state.db-shm", "acknowledged", "ballast", "lost"] {
        found.push(place.path("store").join(name));
    }
    for folder in ["store/adapters", "b0", "b0/adapters"] {
        let names = std::fs::read_dir(place.path(folder)).into_iter().flatten();
        found.extend(names.map(|e| e.unwrap().path()));
    }
    found
}

/// Runs `line` with the n-th of `calls` failing, or all from it on (`N+`); whether one did.
fn run(place: &Place, line: &str, calls: &str, error: &str, when: &str) -> (Done, bool) {
    let log = place.path("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(&log).arg("-e").arg(format!("trace={calls}"));
    command.arg("-e").arg(format!("inject={calls}:error={error}:when={when}"));
    for path in paths(place) {
        command.arg("-P").arg(path);
    }
    command.arg(env!("CARGO_BIN_EXE_offshoot")).args(line.split_whitespace());
    command.current_dir(place.path("")).env("OFFSHOOT_STORE", place.path("store"));
    let done = done(command);
    let injected = std::fs::read_to_string(log).unwrap().contains("(INJECTED)");
    (done, injected)
}

#[test]
fn whatever_call_fails_the_state_is_the_old_or_the_new_one() {
    let works = Command::new("strace").args(["-e", "trace=none", "true"]).output();
    if !works.is_ok_and(|out| out.status.success()) {
        return println!("skipped: no strace here");
    }
    let all = std::env::var_os("OFFSHOOT_TEST_FAULTS").is_some();
    let place = Place::new();
    adapter(2.0).write(place.path("2.adapter"), offshoot::adapters::TensorType::F32).unwrap();
    let begin = place.path("begin");
    {
        let store = Store::open(&begin).unwrap();
        store.add_and_serve("home", &adapter(1.0), &Origin::default(), Serve::Now).unwrap();
        (0..8).for_each(|i| drop(store.add_sample(&sample(i)).unwrap()));
        store.backup(&place.path("b0")).unwrap();
        store.add_sample(&sample(8)).unwrap();
    }
    let root = place.path("store");
    let before = (Some(1), 9);
    let (mut tried, mut failed, mut dice) = (0, 0, 11u64);
    for (line, after) in [
        ("adapter add 2.adapter --name home --use", (Some(2), 9)),
        ("forget --id 3 --state store", (Some(1), 8)),
        ("backup b --state store", before),
        ("restore b0 --state store", (Some(1), 8)),
    ] {
        for (calls, errors) in CALLS {
            let once_and_for_ever = errors.iter().flat_map(|e| [(*e, ""), (*e, "+")]);
            // What is interrupted for ever is tried for ever.
            for (error, ever) in
                once_and_for_ever.filter(|(e, ever)| *e != "EINTR" || ever.is_empty())
            {
                for nth in 1..MOST {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if !all && nth > 1 && (dice >> 33) % SHARE != 0 {
                        // The end is looked for now and then.
                        if nth % 64 != 0 {
                            continue;
                        }
                    }
                    copy(&begin, &root);
                    let _ = std::fs::remove_dir_all(place.path("b"));
                    let (done, injected) = run(&place, line, calls, error, &format!("{nth}{ever}"));
                    if !injected {
                        break;
                    }
                    tried += 1;
                    let what =
                        format!("{line}: {calls} number {nth}{ever} gives {error}: {done:?}");
                    check(&root, &done, [before, after], &what);
                    if done.code != 0 {
                        failed += 1;
                        assert!(!place.path("b").exists(), "{what}");
                    } else if line.starts_with("backup") {
                        let restored = place.path("restored");
                        let _ = std::fs::remove_dir_all(&restored);
                        Store::restore(&restored, &place.path("b")).unwrap();
                        assert_eq!(state(&restored), before, "{what}");
                    }
                }
            }
        }
    }
    println!(
        "{tried} faults, {failed} of them errors to who asked; no state but the old or the new"
    );
    assert!(tried > 100 && failed > 20, "{tried} {failed}");
}

fn check(root: &Path, done: &Done, [before, after]: [State; 2], what: &str) {
    assert!((0..=6).contains(&done.code), "{what}");
    assert!(!done.stderr.contains("internal error"), "{what}");
    if done.code != 0 {
        assert_eq!(
            done.stderr.lines().filter(|l| l.starts_with("offshoot: ")).count(),
            1,
            "{what}"
        );
    }
    let store = Store::open(root).unwrap();
    if let Some(doubt) = store.doubt() {
        // In the middle of putting a backup in its place: said, and done again.
        drop(store);
        assert!(what.starts_with("restore") && done.code != 0, "{doubt}: {what}");
        Store::restore(root, &root.with_file_name("b0")).unwrap();
        assert_eq!(state(root), after, "{what}");
        return;
    }
    drop(store);
    let found = state(root);
    assert!(found == before || found == after, "{found:?}: {what}");
    assert!(done.code != 0 || found == after, "said to be done: {found:?}: {what}");
}
