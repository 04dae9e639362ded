//! A medium that fails: the n-th call of a sort gets an error of the system, or all from the n-th on do, until
//! the command completes without one. Whatever fails, each file and the state are the old or the new ones, what
//! was said to be done is done, and the next command leaves nothing of it behind.
//!
//! A seeded share is tried; `cargo test --test it -- --ignored every_fault` tries every call.

use crate::common::copy;
use crate::preload::{self, Counts, Fault, every_fault, share};
use crate::support::{Done, Place, learnable};
use offshoot::adapters::TensorType;
use offshoot::store::{Filter, Input, Label, NewSample, Options, Origin, Reference, Serve, Store};
use offshoot::testing::npy;
use offshoot::{Adapter, Array};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest a command may take whose calls fail.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command, what it writes, and the state after it.
struct Operation {
    line: &'static str,
    /// A file or a folder; there it is whole or as it was.
    out: Option<&'static str>,
    after: State,
}

/// Active generation and samples.
type State = (Option<u64>, usize);

const BEFORE: State = (Some(2), 9);

const OPERATIONS: &[Operation] = &[
    Operation { line: "pack mlp.onnx -o old.base", out: Some("old.base"), after: BEFORE },
    Operation { line: "pack mlp.onnx -o new.base", out: Some("new.base"), after: BEFORE },
    Operation {
        line: "run mlp.base --input x=row.npy --adapter home --output got",
        out: Some("got"),
        after: BEFORE,
    },
    Operation {
        line: "train mlp.base --data two.npz --out 1.adapter --steps 2 --batch 8 --seed 5",
        out: Some("1.adapter"),
        after: BEFORE,
    },
    Operation {
        line: "adapter import peft --base mlp.base -o back.adapter",
        out: Some("back.adapter"),
        after: BEFORE,
    },
    Operation {
        line: "adapter export home@1 --base mlp.base -o made",
        out: Some("made"),
        after: BEFORE,
    },
    Operation { line: "adapter add 3.adapter --name home --use", out: None, after: (Some(3), 9) },
    Operation { line: "adapter rollback home", out: None, after: (Some(1), 9) },
    Operation { line: "adapter remove home --force", out: None, after: (None, 9) },
    Operation { line: "forget --id 3 --state store", out: None, after: (Some(2), 8) },
    Operation { line: "backup b --state store", out: Some("b"), after: BEFORE },
    Operation { line: "restore b0 --state store", out: None, after: (Some(2), 8) },
];

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

/// A folder with all that the commands read.
fn begin() -> Place {
    let place = Place::new();
    std::fs::copy(crate::support::repo("models/tiny/mlp.onnx"), place.path("mlp.onnx")).unwrap();
    learnable(&place);
    place.ok("pack {models}/bn.onnx -o old.base");
    let row = Array::f32(vec![1, 12], vec![0.5; 12]).unwrap();
    npy::write(place.path("row.npy"), &row).unwrap();
    for seed in [1, 2, 3] {
        let words = "train mlp.base --data two.npz --steps 2 --batch 8";
        place.ok(&format!("{words} --out {seed}.adapter --seed {seed}"));
    }
    let headless = Adapter { heads: vec![], ..Adapter::read(place.path("1.adapter")).unwrap() };
    headless.write(place.path("headless.adapter"), TensorType::F32).unwrap();
    must(&place, "adapter export headless.adapter --base mlp.base -o peft");
    let store = Store::open(place.path("store")).unwrap();
    for seed in [1, 2] {
        let adapter = Adapter::read(place.path(&format!("{seed}.adapter"))).unwrap();
        store.add_and_serve("home", &adapter, &Origin::default(), Serve::Now).unwrap();
    }
    (0..8).for_each(|i| drop(store.add_sample(&sample(i)).unwrap()));
    store.backup(&place.path("b0")).unwrap();
    store.add_sample(&sample(8)).unwrap();
    place
}

/// Runs what must succeed, and may warn.
fn must(place: &Place, line: &str) {
    let done = place.run(line);
    assert_eq!(done.code, 0, "{line}: {done:?}");
}

fn state(root: &Path) -> Result<State, String> {
    let open = || {
        let store = Store::open_with(root, Options::default())?;
        if let Some(doubt) = store.doubt() {
            return Err(offshoot::Error::failed(doubt.to_string()));
        }
        store.verify()?;
        let active = match store.names()?.is_empty() {
            true => None,
            false => store.active("home")?,
        };
        if let Some(number) = active {
            store.load(&Reference::parse(&format!("home@{number}"))?)?;
        }
        Ok((active, store.samples(&Filter::default())?.len()))
    };
    open().map_err(|e: offshoot::Error| format!("the state can't be used: {e}"))
}

/// What is at a path: of each file its bytes, of adapters what they do (they say when they were made).
fn found(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            files.extend(found(&entry.unwrap().path()));
        }
    } else if let Ok(bytes) = std::fs::read(path) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let sense = match Adapter::from_bytes(&bytes) {
            Ok(a) => format!("{:?} {:?}", a.targets, a.heads).into_bytes(),
            // When a backup was made.
            Err(_) if ["backup.json", "state.db"].contains(&name) => vec![],
            Err(_) => bytes,
        };
        files.insert(path.into(), sense);
    }
    files
}

/// What is there besides the state and `out`; hidden files are apart.
fn rest(place: &Place, out: Option<&str>) -> [BTreeMap<PathBuf, Vec<u8>>; 2] {
    let skipped = [Some("store"), out].map(|name| name.map(|n| place.path(n)));
    let mut files = found(&place.path(""));
    files.retain(|path, _| !skipped.iter().flatten().any(|s| path.starts_with(s)));
    let is_hidden = |path: &Path| {
        let inside = path.strip_prefix(place.path("")).unwrap();
        inside.iter().any(|part| part.to_str().is_some_and(|p| p.starts_with('.')))
    };
    let hidden = files.extract_if(.., |path, _| is_hidden(path)).collect();
    [files, hidden]
}

/// Hidden files of ours in the state.
fn temporary(place: &Place) -> Vec<PathBuf> {
    let all = found(&place.path("store")).into_keys();
    let name = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().to_string();
    all.filter(|p| name(p).ends_with(".tmp") || name(p).ends_with(".part")).collect()
}

/// Runs it with a fault; a second folder takes what is not to be in the first.
fn run(place: &Place, beside: &Place, line: &str, fault: &Fault) -> (Done, Counts) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = place.command(&words);
    let below = place.path("").canonicalize().unwrap();
    let counts = beside.path("counts");
    fault.put(&mut command, &below, &counts);
    let file = |name: &str| std::fs::File::create(beside.path(name)).unwrap();
    command.stdout(file("stdout")).stderr(file("stderr")).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |name: &str| String::from_utf8_lossy(&beside.read(name)).into_owned();
    let code = status.code().unwrap_or(-1);
    (Done { code, stdout: text("stdout"), stderr: text("stderr") }, Counts::read(&counts))
}

/// Two folders to work in.
struct Bench {
    begin: PathBuf,
    place: Place,
    beside: Place,
}

impl Bench {
    /// Runs an operation with a fault. Whether it met one, whether it failed; complaints.
    fn try_fault(&self, operation: &Operation, new: &Expected, fault: &Fault) -> Tried {
        let Bench { begin, place, beside } = self;
        let Operation { line, out, after } = operation;
        copy(begin, &place.path(""));
        let there = |out: &Option<&str>| out.map(|out| found(&place.path(out)));
        let (old, before) = (there(out), rest(place, *out));
        let (done, counts) = run(place, beside, line, fault);
        let mut wrong: Vec<String> = vec![];
        let mut check = |holds: bool, what: &str| {
            if !holds {
                wrong.push(what.into());
            }
        };
        check((0..=6).contains(&done.code), "the exit code is none of ours");
        let words = ["internal error", "panicked"];
        check(!words.iter().any(|w| done.stderr.contains(w)), "it panicked");
        let is_error = |l: &&str| l.starts_with("offshoot: ") && !l.contains(": warning: ");
        let lines = done.stderr.lines().filter(is_error).count();
        check(done.code == 0 || lines == 1, "the error is not one line");
        check(done.code == 0 || !fault.is_harmless(), "it is not gone on with");
        let now = there(out);
        if done.code == 0 {
            check(now == new.out, "done, and what it wrote is not that");
        } else if *out == Some("got") {
            // Several files: each is whole or not there.
            let whole = new.out.as_ref().unwrap();
            let all = now.iter().flatten().all(|(path, bytes)| whole.get(path) == Some(bytes));
            check(all, "a part of a file has its name");
        } else {
            check(now == old || now == new.out, "neither the old nor the new is at its place");
        }
        check(rest(place, *out)[0] == before[0], "other files have changed");
        let root = place.path("store");
        let doubt = Store::open(&root).map(|s| s.doubt());
        match doubt {
            // In the middle of putting a backup in its place: said, and done again.
            Ok(Some(doubt)) => {
                check(line.starts_with("restore") && done.code != 0, &format!("in doubt: {doubt}"));
            }
            Ok(None) => match state(&root) {
                Ok(state) if done.code == 0 => check(state == *after, "done, and it is not"),
                Ok(state) => check([BEFORE, *after].contains(&state), &format!("{state:?}")),
                Err(e) => check(false, &e),
            },
            Err(e) => check(false, &format!("the state can't be opened: {e}")),
        }
        // Once more, without a fault. What a person would do first where it was done by half, or is.
        if done.code == 0 || state(&root) == Ok(*after) && *after != BEFORE {
            must(place, "adapter list");
        } else {
            let again = place.run(line);
            let is = |path: &str| again.stderr.contains(path) && place.path(path).exists();
            let is_there = out.is_some_and(|out| now == new.out && is(out));
            check(again.code == 0 || is_there, &format!("it can't be done again: {again:?}"));
            check(there(out) == new.out, "done again, and what it wrote is not that");
            check(state(&root) == Ok(*after), "done again, and it is not");
        }
        check(rest(place, *out)[1].is_empty(), "something hidden stays");
        let stays = temporary(place);
        check(stays.is_empty(), &format!("something stays in the state: {stays:?}"));
        let told = |w: String| format!("{line}: {fault:?}: {w}: {done:?}");
        let wrong = wrong.into_iter().map(told).collect();
        Tried { hit: counts.failed > 0, failed: done.code != 0, wrong }
    }
}

struct Tried {
    hit: bool,
    failed: bool,
    wrong: Vec<String>,
}

/// What an operation writes when nothing fails.
struct Expected {
    out: Option<BTreeMap<PathBuf, Vec<u8>>>,
}

/// Every fault of every operation, or one of so many; how many there were, and how many the user heard of.
fn all(share: u64) -> (u64, usize) {
    let begin = begin();
    let next = AtomicUsize::new(0);
    let totals = Mutex::new((0, 0, vec![]));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let (place, beside) = (Place::new(), Place::new());
                let bench = Bench { begin: begin.path(""), place, beside };
                while let Some(operation) = OPERATIONS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    copy(&bench.begin, &bench.place.path(""));
                    must(&bench.place, operation.line);
                    let out = operation.out.map(|out| found(&bench.place.path(out)));
                    let expected = Expected { out };
                    let (mut failed, mut wrong) = (0, vec![]);
                    let start = Instant::now();
                    let tried = every_fault(share, 11, |fault| {
                        let tried = bench.try_fault(operation, &expected, fault);
                        if tried.hit {
                            failed += usize::from(tried.failed);
                            tried.wrong.iter().for_each(|w| println!("{w}"));
                            wrong.extend(tried.wrong);
                        }
                        tried.hit
                    });
                    println!(
                        "{}: {tried} faults, {failed} told, {} wrong, {:.0?}",
                        operation.line,
                        wrong.len(),
                        start.elapsed()
                    );
                    let mut totals = totals.lock().unwrap();
                    totals.0 += tried;
                    totals.1 += failed;
                    totals.2.extend(wrong);
                }
            });
        }
    });
    let (tried, failed, wrong) = totals.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {tried} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{tried} faults, {failed} of them errors to who asked; all was the old or the new");
    (tried, failed)
}

#[test]
fn whatever_call_fails_files_and_state_are_the_old_or_the_new() {
    if preload::library().is_some() {
        let (tried, failed) = all(20);
        assert!(tried > 150 && failed > 60, "{tried} {failed}");
    }
}

/// Minutes of two cores.
#[test]
#[ignore = "takes minutes"]
fn every_fault_of_every_command() {
    if preload::library().is_some() {
        let (tried, failed) = all(share(1));
        assert!(tried > 200 && failed > 100, "{tried} {failed}");
    }
}
