//! The training child: this program called by itself. It lowers itself, trains, measures, and
//! leaves what it found in the job's folder; it never changes the store.

use super::assignment::{
    ASSIGNMENT, Assignment, CANDIDATE, CHECKPOINT, INSTANT, MEASURED, dataset,
};
use super::gate::{Measured, Reference as Answers};
use super::limit::Limit;
use super::measure::{Sides, measure};
use crate::adapter::{Adapter, TensorType};
use crate::error::{Cause, Error, ErrorKind, Result};
use crate::fs::{Access, peak_rss_bytes, read_limited, write_atomic_bytes};
use crate::pack::prepare_heap;
use crate::runtime::Engine;
use crate::store::{Key, Options, Reference, Store};
use crate::train::data::Dataset;
use crate::train::instant::instant_adapter;
use crate::train::progress::{Event, Progress};
use crate::train::{
    Lesson, Task, answering_bytes, learn, longest_sentence, misfit, too_large, try_sample,
    usual_share,
};
use rustix::process::{Signal, getppid, nice, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The hidden first argument.
pub const VERB: &str = "train-worker";
/// The exit code of a child that was asked to stop and can go on later (`EX_TEMPFAIL`).
pub const STOPPED: u8 = 75;
/// Words of its command line: program, verb, folder, limit, memory, parent.
const WORDS: usize = 6;
/// Tokens of a sentence below which it isn't cut to make room.
const SHORTEST: usize = 16;
/// Why a sample is too long.
const NO_ROOM: &str = "train.memory_mib has no room for one as long";
/// Least time between two lines about steps.
const PACE: Duration = Duration::from_millis(500);

/// Newest new samples that are asked to see whether they were learned.
const MOST_LESSONS: usize = 64;

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Of what was trained, against what answers today.
    pub trained: Option<Measured>,
    /// Of the instant head of the same samples, against the active generation.
    pub instant: Option<Measured>,
}

impl Found {
    /// Tests that a look at it makes, each with its share of the error: whether what was trained is better,
    /// and of what learned the samples, the instant head where there is one, whether it is better or makes
    /// nothing worse.
    pub fn tests(&self) -> f64 {
        if self.instant.is_some() { 3.0 } else { 2.0 }
    }
}

/// One line of the child's standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// How far training is.
    Progress {
        /// Steps done.
        step: u64,
        /// Steps to do in all.
        steps: u64,
        /// The last step's loss; `None` before the first.
        loss: Option<f64>,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Steps done.
        step: u64,
    },
    /// Training is done; the candidate is measured.
    Measuring,
    /// Something that people should know.
    Note {
        /// In words.
        text: String,
    },
    /// A sample that can't be trained on, before the job fails for it.
    Unusable {
        /// Its number.
        sample: i64,
        /// Why.
        why: String,
    },
    /// The end.
    Peak {
        /// Most bytes resident at once.
        bytes: u64,
    },
}

/// Whether this process is a training child.
pub fn is_call(arguments: &[OsString]) -> bool {
    arguments.len() == WORDS && arguments.get(1).is_some_and(|a| a == VERB)
}

/// The child's own side: `arguments` are those of the process. Returns the exit code.
pub fn main(arguments: &[OsString]) -> u8 {
    match run(arguments) {
        Ok(true) => 0,
        Ok(false) => STOPPED,
        Err(e) => {
            // Whether the parent still listens does not matter to the exit code.
            let _ = writeln!(std::io::stderr(), "{e}");
            e.kind().exit_code()
        }
    }
}

/// `false`: stopped, to go on later.
fn run(arguments: &[OsString]) -> Result<bool> {
    let wrong = || Error::usage(format!("'{VERB}' is for the program's own use"));
    let [_, _, folder, limit, memory, parent] = arguments else { return Err(wrong()) };
    let text = |word: &OsString| word.to_str().map(String::from).ok_or_else(wrong);
    let limit: Limit = serde_json::from_str(&text(limit)?).map_err(|_| wrong())?;
    let memory: u64 = text(memory)?.parse().map_err(|_| wrong())?;
    let parent: i32 = text(parent)?.parse().map_err(|_| wrong())?;
    let lowering = |e| Error::failed(format!("the training process can't lower itself: {e}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(lowering)?;
    if getppid().map(|p| p.as_raw_nonzero().get()) != Some(parent) {
        return Err(Error::failed("the daemon that started this is gone"));
    }
    nice(19).map_err(lowering)?;
    // The kernel's first choice where memory runs out; not everywhere allowed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit.enter()?;
    let stop = stop_flag()?;
    let done = work(Path::new(folder), memory, &stop)?;
    print(&Line::Peak { bytes: peak_rss_bytes().unwrap_or(0) });
    Ok(done)
}

/// Set at SIGTERM and SIGINT.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| Error::failed(format!("signals can't be waited for: {e}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut term, mut int) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
        )
    };
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let waiting = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        set.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new()
        .name("signals".into())
        .stack_size(256 << 10)
        .spawn(waiting)
        .map_err(failed)?;
    Ok(flag)
}

fn work(folder: &Path, memory: u64, stop: &Arc<AtomicBool>) -> Result<bool> {
    let work = Assignment::read(folder)?.ok_or_else(|| {
        Error::bad_input(format!("there is no '{ASSIGNMENT}'")).at(folder.display())
    })?;
    let key = work.key.as_deref().map(Key::read).transpose()?;
    let store = Store::open_with(&work.state, Options { key, ..Options::default() })?;
    prepare_heap();
    let engine = Engine::open(&work.base)?;
    let fingerprint = engine.base().fingerprint();
    if !work.is_for(&fingerprint) {
        return Err(Error::mismatch(format!(
            "'{}' is base {}, the job is for another",
            work.base.display(),
            fingerprint.short()
        )));
    }
    let previous = match work.previous {
        Some(number) => {
            let reference = Reference::parse(&format!("{}@{number}", work.name))?;
            Some(store.load(&reference)?.adapter)
        }
        None => None,
    };
    let done = teach(folder, &work, &store, &engine, previous.as_ref(), memory, stop);
    // Only then: a look at every sample takes its time.
    if done.as_ref().is_err_and(|e| of_a_sample(e.kind())) {
        name_unusable(&work, &store, &engine, stop);
    }
    done
}

/// Trains and measures; `false`: stopped, to go on later.
fn teach(
    folder: &Path,
    work: &Assignment,
    store: &Store,
    engine: &Engine,
    previous: Option<&Adapter>,
    memory: u64,
    stop: &Arc<AtomicBool>,
) -> Result<bool> {
    let ids: Vec<i64> = work.new.iter().chain(&work.replayed).copied().collect();
    // What a name has learned it goes on learning.
    let task = match previous.and_then(Adapter::head) {
        Some(head) => Some(Task::of_head(&head.task)?),
        None => None,
    };
    let train = dataset(store, engine, &ids, task)?;
    let held = dataset(store, engine, &work.held, Some(train.task))?;
    if train.label_width() != held.label_width() {
        return Err(Error::bad_input("held-out labels have another count of numbers than others"));
    }
    set_long_aside(engine, work, &held, memory)?;
    let path = folder.join(CANDIDATE);
    let candidate = if path.exists() {
        // An earlier run of this job was stopped while it measured.
        let bytes = read_limited(&path, crate::adapter::MAX_FILE)?;
        Adapter::from_bytes(&bytes).map_err(|e| e.at(path.display()))?
    } else {
        match candidate(engine, work, previous, &train, folder, memory, stop)? {
            Some(candidate) => candidate,
            None => return Ok(false),
        }
    };
    print(&Line::Measuring);
    let mut go_on = || !stop.load(Ordering::Relaxed);
    let new = work.new.iter().copied();
    let some: Vec<i64> = new.skip(work.new.len().saturating_sub(MOST_LESSONS)).collect();
    let lessons = dataset(store, engine, &some, Some(train.task))?;
    let before = previous.zip(work.previous.map(Answers::Generation));
    let sides = Sides {
        candidate: &candidate,
        reference: before,
        train: &train,
        held: &held,
        lessons: Some(&lessons),
    };
    let Some(instant) = instant(engine, work, previous, &train, &mut go_on)? else {
        return Ok(false);
    };
    // What is trained must surpass what answers today: the better of the two.
    let mut found = Found::default();
    let mut today = before;
    if let Some(instant) = &instant {
        let sides = Sides { candidate: instant, ..sides };
        let Some(measured) = measure(engine, work, &sides, &mut go_on)? else { return Ok(false) };
        if measured.is_no_less() {
            today = Some((instant, Answers::Instant));
        }
        found.instant = Some(measured);
        let bytes = instant.to_bytes(TensorType::F32)?;
        write_atomic_bytes(&folder.join(INSTANT), Access::Private, &bytes)?;
    }
    let sides = Sides { reference: today, ..sides };
    found.trained = measure(engine, work, &sides, &mut go_on)?;
    if found.trained.is_none() {
        return Ok(false);
    }
    let bytes = serde_json::to_vec(&found)
        .map_err(|e| Error::failed(format!("what was measured can't be written: {e}")))?;
    write_atomic_bytes(&folder.join(MEASURED), Access::Private, &bytes)?;
    Ok(true)
}

/// An error, and the samples named, where there is no room to answer held-out ones, unless all are like
/// that.
fn set_long_aside(engine: &Engine, work: &Assignment, held: &Dataset, memory: u64) -> Result<()> {
    let mut long = vec![];
    for (&sample, one) in work.held.iter().zip(&held.samples) {
        // Four are answered at once, beside all that is there.
        if answering_bytes(engine, one)? > memory / 8 {
            long.push(sample);
        }
    }
    if long.is_empty() || long.len() == work.held.len() {
        return Ok(());
    }
    for sample in long {
        print(&Line::Unusable { sample, why: NO_ROOM.into() });
    }
    Err(Error::refused(format!("held-out samples: {NO_ROOM}")))
}

/// The instant head of the samples trained on, where the settings and the task have one and nothing is
/// lost by it. The outer `None`: `go_on` said stop.
fn instant(
    engine: &Engine,
    work: &Assignment,
    previous: Option<&Adapter>,
    train: &Dataset,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Option<Adapter>>> {
    let known = |label: &String| train.labels.contains(label);
    let covered =
        previous.is_none_or(|p| work.whole && p.heads.iter().all(|h| h.labels.iter().all(known)));
    if !work.train.instant || !covered {
        return Ok(Some(None));
    }
    let max_tokens = (work.train.max_tokens > 0).then_some(work.train.max_tokens);
    match instant_adapter(engine, &work.name, previous, train, max_tokens, go_on) {
        Err(e) if !of_a_sample(e.kind()) => {
            print(&Line::Note { text: format!("there is no instant head: {}", e.message()) });
            Ok(Some(None))
        }
        other => other,
    }
}

/// Whether an error may be that of a sample.
fn of_a_sample(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadInput | ErrorKind::Mismatch)
}

/// Tells the parent which samples can't be read or answered, unless none can: then it is not them.
fn name_unusable(work: &Assignment, store: &Store, engine: &Engine, stop: &Arc<AtomicBool>) {
    let max_tokens = (work.train.max_tokens > 0).then_some(work.train.max_tokens);
    let mut unusable = vec![];
    let mut usable: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
    for &id in work.new.iter().chain(&work.replayed).chain(&work.held) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let tried = dataset(store, engine, &[id], None).and_then(|one| {
            try_sample(engine, &one, 0, max_tokens)?;
            Ok(one.label_width())
        });
        match tried {
            Err(e) if of_a_sample(e.kind()) => {
                unusable.push(Line::Unusable { sample: id, why: e.message().to_string() });
            }
            Err(_) => {}
            Ok(width) => usable.entry(width).or_default().push(id),
        }
    }
    // What was learned before says how many numbers a label has.
    let learned = |ids: &[i64]| ids.iter().filter(|id| work.replayed.contains(id)).count();
    let most = usable.iter().max_by_key(|(_, ids)| (learned(ids), ids.len())).map(|(w, _)| *w);
    let Some(most) = most else { return };
    for (width, ids) in usable.iter().filter(|(width, _)| **width != most) {
        let why = format!("its label has {width} numbers, most have {most}");
        unusable.extend(ids.iter().map(|&sample| Line::Unusable { sample, why: why.clone() }));
    }
    unusable.iter().for_each(print);
}

fn candidate(
    engine: &Engine,
    work: &Assignment,
    previous: Option<&Adapter>,
    train: &Dataset,
    folder: &Path,
    memory: u64,
    stop: &Arc<AtomicBool>,
) -> Result<Option<Adapter>> {
    let mut options = work.options(folder, train.task, memory);
    if work.train.keep_knowledge.is_none() {
        options.keep_knowledge = usual_share(engine, &options)?;
    }
    let mut lesson = Lesson { data: train, replayed: work.replayed.len(), holdout: None, previous };
    if options.warm_start
        && let Some(why) = misfit(engine, &lesson, &options)?
    {
        // Nothing of it is kept: all samples are as good as new.
        (options.warm_start, lesson.replayed) = (false, 0);
        print(&Line::Note { text: format!("it starts afresh: {}", why.message()) });
    }
    if previous.is_some_and(|p| p.heads.is_empty()) {
        // Without a head it has no answers to stay near to.
        options.keep = 0.0;
    }
    let mut news = News { stop: stop.clone(), told: None };
    let mut result = learn(engine, &lesson, &options, &mut news);
    if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Mismatch || damaged(e)) {
        // A state of other settings or of a damaged card: from the start rather than not at all.
        let checkpoint = folder.join(CHECKPOINT);
        if checkpoint.exists() {
            std::fs::remove_file(&checkpoint).map_err(|e| Error::io(&checkpoint, e))?;
            result = learn(engine, &lesson, &options, &mut news);
        }
    }
    while no_room(&result)
        && !stop.load(Ordering::Relaxed)
        && let Some(longest) = longest_sentence(engine, train, options.max_tokens)?
        && longest > SHORTEST
    {
        let most = (longest / 2).max(SHORTEST);
        options.max_tokens = Some(most);
        result = learn(engine, &lesson, &options, &mut news);
        if !no_room(&result) {
            let text = format!(
                "sentences are cut after {most} tokens: train.memory_mib has room for no more"
            );
            print(&Line::Note { text });
        }
    }
    if no_room(&result) {
        let without = too_large(engine, &lesson, &options)?;
        let ids: Vec<i64> = work.new.iter().chain(&work.replayed).copied().collect();
        let samples = without.iter().filter(|_| without.len() < ids.len());
        for &sample in samples.filter_map(|place| ids.get(*place)) {
            print(&Line::Unusable { sample, why: NO_ROOM.into() });
        }
    }
    let trained = match result {
        Ok(trained) => trained,
        Err(_) if stop.load(Ordering::Relaxed) => return Ok(None),
        Err(e) => return Err(e),
    };
    let bytes = trained.adapter.to_bytes(TensorType::F32)?;
    write_atomic_bytes(&folder.join(CANDIDATE), Access::Private, &bytes)?;
    Ok(Some(trained.adapter))
}

/// Whether a run failed for want of memory, by its plan.
fn no_room<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|e| e.cause() == Some(Cause::TooLarge))
}

/// Whether it is the checkpoint that is at fault.
fn damaged(error: &Error) -> bool {
    error.cause() == Some(Cause::Checkpoint)
}

fn print(line: &Line) {
    if let Ok(text) = serde_json::to_string(line) {
        // A parent that is gone kills this process anyway.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Tells the parent, seldom; listens to the signal.
struct News {
    stop: Arc<AtomicBool>,
    told: Option<Instant>,
}

impl Progress for News {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { steps, resumed_at, .. } => {
                print(&Line::Progress { step: *resumed_at, steps: *steps, loss: None });
            }
            Event::Step { step, steps, loss, .. } => {
                let now = Instant::now();
                if step == steps || self.told.is_none_or(|t| now - t >= PACE) {
                    self.told = Some(now);
                    print(&Line::Progress { step: *step, steps: *steps, loss: Some(*loss) });
                }
            }
            Event::Checkpoint { step } => print(&Line::Checkpoint { step: *step }),
            _ => {}
        }
    }

    fn stop(&mut self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
