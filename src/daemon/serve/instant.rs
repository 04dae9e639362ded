//! What feedback changes at once: for each name an instant head over all that was said so far, on the
//! features of the generation that is active (or of the base). It is served where no generation is, and
//! in the place of one that learned from these samples alone, where it is no worse on what that has
//! not learned from.
//!
//! Nothing of it is stored: it is made of the store's samples, so that what is forgotten is forgotten
//! here too. Between two builds a sample is taken in by a change of rank one; the builder then makes
//! the head of all samples anew, so that what is served is decided by the samples alone.

use super::roster::{Roster, Served};
use crate::adapter::{Adapter, Bound, Head, Known};
use crate::daemon::learn::dataset;
use crate::error::{Error, Result};
use crate::runtime::{Engine, argmax};
use crate::store::{Filter, Form as Answers, SampleHash, SampleInfo, SampleState, Store};
use crate::train::Task;
use crate::train::instant::{Fitted, Form, Live, fit, head_of, known, linear, row_of};
use crate::train::{Features, choose_features};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Newest samples of a name that it is made of, at most.
const MOST_SAMPLES: usize = 1000;
/// Samples up to which the head of all of them is made at once: as quick as taking one in.
const FEW: usize = 48;
/// Samples whose features are still to be computed, up to which feedback waits for them.
const AT_ONCE: usize = 4;

/// Longest that feedback waits for the builder, and how often it looks.
const PATIENCE: Duration = Duration::from_millis(40);
const PAUSE: Duration = Duration::from_millis(1);

/// A sample that is in it.
struct Row {
    label: String,
    features: Vec<f32>,
    /// Whether the active generation has learned from it.
    learned: bool,
    /// Whether a head that had not seen it answered it rightly; `None`: not asked yet.
    right: Option<bool>,
}

/// What is known of a name.
struct State {
    generation: Option<u64>,
    features: Features,
    /// The active generation, or a head of its own on the base.
    under: Option<Arc<Bound>>,
    rows: BTreeMap<i64, Row>,
    labels: Vec<String>,
    made: Option<Fitted>,
    live: Option<Live>,
    known: Option<Arc<Known>>,
    /// Whether all that the active generation has learned from is among the rows.
    knows_all: bool,
    /// Whether the head is not that of a fit of all rows.
    stale: bool,
    /// [`Instants::forgets`] before the samples of its rows were read.
    forgets: u64,
}

struct Queue {
    names: BTreeSet<String>,
    stop: bool,
}

/// The instant heads of all names.
pub struct Instants {
    engine: Engine,
    store: Store,
    roster: Arc<Roster>,
    states: Mutex<BTreeMap<String, Arc<Mutex<Option<State>>>>>,
    queue: Mutex<Queue>,
    bell: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// How often samples were forgotten. What was made before the last time is not served: held while a
    /// head is put into the roster or taken out.
    forgets: Mutex<u64>,
}

impl Instants {
    /// Starts the builder, which begins with every name there is.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(engine: Engine, store: Store, roster: Arc<Roster>) -> Result<Arc<Instants>> {
        let names = roster.rows().into_iter().map(|row| row.name).collect();
        let instants = Arc::new(Instants {
            engine,
            store,
            roster,
            states: Mutex::default(),
            queue: Mutex::new(Queue { names, stop: false }),
            bell: Condvar::new(),
            thread: Mutex::default(),
            forgets: Mutex::default(),
        });
        let weak = Arc::downgrade(&instants);
        instants.roster.watch(Box::new(move || {
            if let Some(instants) = weak.upgrade() {
                instants.all_changed();
            }
        }));
        let own = instants.clone();
        let thread = std::thread::Builder::new()
            .name("instant".into())
            .spawn(move || own.run())
            .map_err(|e| Error::failed(format!("no thread for instant heads: {e}")))?;
        *lock(&instants.thread) = Some(thread);
        Ok(instants)
    }

    /// After feedback to `name` was stored as sample `id`: what is served from now on has learned it,
    /// where that can be done in the time of an answer; else it is about to.
    pub fn learn(&self, name: &str, id: i64) {
        let state = self.state(name);
        let began = Instant::now();
        let done = loop {
            match state.try_lock() {
                Ok(mut state) => break self.take_in(name, &mut state, id),
                // The builder is at it: seldom for long, and it looks again when it is done.
                Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(_) => break Ok(false),
            }
        };
        match done {
            Ok(true) => {}
            Ok(false) => self.changed(name),
            Err(e) => {
                tracing::debug!(name, "not learned at once: {e}");
                self.changed(name);
            }
        }
    }

    /// After anything else changed of a name: it is built anew, soon.
    pub fn changed(&self, name: &str) {
        lock(&self.queue).names.insert(name.into());
        self.bell.notify_all();
    }

    /// After anything may have changed of any name.
    pub fn all_changed(&self) {
        lock(&self.states).retain(|name, _| self.roster.knows(name));
        lock(&self.queue).names.extend(self.roster.rows().into_iter().map(|row| row.name));
        self.bell.notify_all();
    }

    /// After samples were forgotten: no head that learned from them is served when this returns.
    pub fn forgotten(&self) {
        {
            let mut forgets = lock(&self.forgets);
            *forgets += 1;
            self.roster.drop_instants();
        }
        self.all_changed();
    }

    /// Ends the builder.
    pub fn stop(&self) {
        lock(&self.queue).stop = true;
        self.bell.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }

    fn state(&self, name: &str) -> Arc<Mutex<Option<State>>> {
        lock(&self.states).entry(name.into()).or_default().clone()
    }

    fn stopped(&self) -> bool {
        lock(&self.queue).stop
    }

    fn run(&self) {
        loop {
            let name = {
                let mut queue = lock(&self.queue);
                loop {
                    if queue.stop {
                        return;
                    }
                    if let Some(name) = queue.names.pop_first() {
                        break name;
                    }
                    queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let state = self.state(&name);
            let built = self.build(&name, &mut lock(&state), usize::MAX);
            if let Err(e) = built {
                self.roster.set_instant(&name, None);
                tracing::debug!(name, "no instant head: {e}");
            }
        }
    }

    /// Brings a name's rows up to the store's samples and makes its head anew. `false`: more than
    /// `most` samples' features are still to be computed, or the daemon stops.
    fn build(&self, name: &str, slot: &mut Option<State>, most: usize) -> Result<bool> {
        let forgets = *lock(&self.forgets);
        let served = self.roster.own(name)?;
        if slot.as_ref().is_none_or(|s| s.generation != served.generation) {
            *slot = self.begin(&served)?;
        }
        let Some(state) = slot.as_mut() else {
            self.roster.set_instant(name, None);
            return Ok(true);
        };
        let learned: HashSet<SampleHash> = match state.generation {
            Some(generation) => self.store.manifest(name, generation)?.into_iter().collect(),
            None => HashSet::new(),
        };
        let samples = self.samples(name)?;
        let here: HashSet<SampleHash> = samples.iter().map(|s| s.hash).collect();
        state.knows_all = !learned.is_empty() && learned.is_subset(&here);
        let ids: BTreeSet<i64> = samples.iter().map(|s| s.id).collect();
        let before = state.rows.len();
        state.rows.retain(|id, _| ids.contains(id));
        state.stale |= state.rows.len() != before;
        let missing = samples.iter().filter(|s| !state.rows.contains_key(&s.id)).count();
        if missing > most {
            return Ok(false);
        }
        for sample in samples {
            if self.stopped() {
                return Ok(false);
            }
            self.row(state, &sample, learned.contains(&sample.hash))?;
        }
        if std::mem::take(&mut state.stale) {
            state.fit()?;
        }
        state.forgets = forgets;
        self.publish(name, state);
        Ok(true)
    }

    /// What can be learned of a name; `None`: it has no classes.
    fn begin(&self, served: &Served) -> Result<Option<State>> {
        let head = served.bound.as_ref().and_then(|bound| bound.head.as_ref());
        let classes = |head: &Head| {
            Task::of_head(&head.task).map(|task| task.rules().closed_form() == Some(Form::OneOf))
        };
        let features = match head {
            Some(head) if !classes(head)? => return Ok(None),
            Some(head) => {
                choose_features(&self.engine, Some(&head.output), Some(head.pool), false)?
            }
            None => choose_features(&self.engine, None, None, false)?,
        };
        Ok(Some(State {
            generation: served.generation,
            features,
            under: served.bound.clone(),
            rows: BTreeMap::new(),
            labels: vec![],
            made: None,
            live: None,
            known: None,
            knows_all: false,
            stale: true,
            forgets: 0,
        }))
    }

    /// A name's newest samples that are classes and in use, oldest first.
    fn samples(&self, name: &str) -> Result<Vec<SampleInfo>> {
        let filter =
            Filter { name: Some(name.into()), state: Some(SampleState::Kept), ..Filter::default() };
        let mut samples = self.store.samples(&filter)?;
        samples.retain(|s| s.label.is_some() && s.form == Answers::Class);
        let excess = samples.len().saturating_sub(MOST_SAMPLES);
        samples.drain(..excess);
        Ok(samples)
    }

    /// The row of a sample, its features computed once.
    fn row(&self, state: &mut State, sample: &SampleInfo, learned: bool) -> Result<()> {
        let Some(label) = &sample.label else { return Ok(()) };
        if let Some(row) = state.rows.get_mut(&sample.id) {
            row.learned = learned;
            state.stale |= row.label != *label;
            row.label.clone_from(label);
            return Ok(());
        }
        let data = dataset(&self.store, &self.engine, &[sample.id], Some(Task::default()))?;
        let features = row_of(&self.engine, state.under.as_ref(), &data, &state.features)?;
        let row = Row { label: label.clone(), features, learned, right: None };
        state.rows.insert(sample.id, row);
        state.stale = true;
        Ok(())
    }

    /// Takes one sample in; `false`: the builder must.
    fn take_in(&self, name: &str, slot: &mut Option<State>, id: i64) -> Result<bool> {
        let served = self.roster.own(name)?;
        let forgets = *lock(&self.forgets);
        let fits = |s: &State| {
            s.generation == served.generation && s.live.is_some() && s.forgets == forgets
        };
        let Some(state) = slot.as_mut().filter(|s| fits(s) && s.rows.len() >= FEW) else {
            return self.build(name, slot, AT_ONCE);
        };
        let filter = Filter { after: id.saturating_sub(1), limit: 1, ..Filter::default() };
        let found = self.store.samples(&filter)?.into_iter().find(|s| s.id == id);
        let usable = found.filter(|s| s.state == SampleState::Kept && s.form == Answers::Class);
        let Some(sample) = usable.filter(|s| s.label.is_some() && s.name == name) else {
            return Ok(false);
        };
        let before = state.rows.get(&id).map(|row| row.label.clone());
        if before == sample.label {
            return Ok(true);
        }
        self.row(state, &sample, false)?;
        state.take_in(id, before)?;
        self.publish(name, state);
        // The head of all samples anew follows.
        Ok(false)
    }

    /// Serves the head, where it may.
    fn publish(&self, name: &str, state: &State) {
        let served = state.head().and_then(|head| {
            let own = state.under.as_ref().and_then(|bound| bound.head.as_ref());
            if !own.is_none_or(|own| state.is_no_worse(own)) {
                return Ok(None);
            }
            let under = match &state.under {
                Some(bound) => bound.clone(),
                None => self.engine.bind(&[(&alone(name, &self.engine, head.clone()), 1.0)])?,
            };
            let bound = Bound { head: Some(head), ..(*under).clone() };
            Ok(Some(Arc::new(Served {
                name: Some(name.into()),
                generation: state.generation,
                bound: Some(Arc::new(bound)),
                instant: Some(state.rows.len()),
                ..Served::default()
            })))
        });
        let forgets = lock(&self.forgets);
        match served {
            Ok(served) if *forgets == state.forgets => self.roster.set_instant(name, served),
            // It may have learned from what was forgotten meanwhile; the builder makes it anew.
            Ok(_) => self.roster.set_instant(name, None),
            Err(e) => {
                self.roster.set_instant(name, None);
                tracing::debug!(name, "no instant head is served: {e}");
            }
        }
    }
}

impl State {
    /// The head of all rows, and what it says of each without it.
    fn fit(&mut self) -> Result<()> {
        let labels: BTreeSet<&String> = self.rows.values().map(|row| &row.label).collect();
        self.labels = labels.into_iter().cloned().collect();
        (self.made, self.live, self.known) = (None, None, None);
        // One label alone would be the answer to everything.
        if self.labels.len() < 2 {
            return Ok(());
        }
        let rows: Vec<Vec<f32>> = self.rows.values().map(|row| row.features.clone()).collect();
        let y: Vec<Vec<f32>> = self.rows.values().map(|row| self.target(&row.label)).collect();
        let made = fit(&rows, &y, Form::OneOf)?;
        self.known = known(&made, &rows, &y)?.map(|found| Arc::new(found.finish()));
        self.live = Some(Live::new(made.clone(), &rows, &y)?);
        let places: BTreeMap<usize, Option<usize>> =
            made.left_out.outputs.iter().map(|(at, said)| (*at, argmax(said))).collect();
        for (at, row) in self.rows.values_mut().enumerate() {
            // The only one of its label: without it nothing would say that.
            let said = places.get(&at).copied().flatten();
            row.right = Some(said.and_then(|k| self.labels.get(k)) == Some(&row.label));
        }
        self.made = Some(made);
        Ok(())
    }

    fn target(&self, label: &str) -> Vec<f32> {
        self.labels.iter().map(|l| f32::from(u8::from(l == label))).collect()
    }

    /// Takes row `id` into the live head, out of label `before` where it was there.
    fn take_in(&mut self, id: i64, before: Option<String>) -> Result<()> {
        let Some(row) = self.rows.get(&id) else { return Ok(()) };
        let (label, features) = (row.label.clone(), row.features.clone());
        let (old, known) =
            (before.map(|before| self.target(&before)), self.labels.contains(&label));
        if !known {
            self.labels.push(label.clone());
        }
        let y = self.target(&label);
        let Some(live) = &mut self.live else { return Ok(()) };
        if let Some(old) = old {
            live.remove(&features, &old)?;
        }
        let (weight, bias) = live.head()?;
        let said = argmax(&linear(&weight, &bias, &features));
        let right = said.and_then(|k| self.labels.get(k)) == Some(&label);
        if !known {
            live.add_output();
        }
        live.add(&features, &y)?;
        if let Some(row) = self.rows.get_mut(&id) {
            row.right = Some(right);
        }
        Ok(())
    }

    /// The head that has learned all rows.
    fn head(&self) -> Result<Head> {
        let (Some(made), Some(live)) = (&self.made, &self.live) else {
            return Err(Error::usage("fewer than two labels were taught"));
        };
        let mut head = head_of(made, Task::default(), &self.features, &self.labels);
        (head.weight, head.bias) = live.head()?;
        head.known.clone_from(&self.known);
        Ok(head)
    }

    /// Whether it knows all that the active generation does, and answers what that has not learned from,
    /// each sample without itself, at least as often rightly as that generation's own head. What was
    /// trained elsewhere knows what no sample here tells: it is never stood in for.
    fn is_no_worse(&self, own: &Head) -> bool {
        if !self.knows_all || !own.labels.iter().all(|label| self.labels.contains(label)) {
            return false;
        }
        let (mut mine, mut theirs, mut asked) = (0, 0, 0);
        for row in self.rows.values().filter(|row| !row.learned) {
            let Some(right) = row.right else { continue };
            let said = argmax(&linear(&own.weight, &own.bias, &row.features));
            let said = said.and_then(|k| own.labels.get(k));
            asked += 1;
            mine += usize::from(right);
            theirs += usize::from(said == Some(&row.label));
        }
        asked > 0 && mine >= theirs
    }
}

/// An adapter of a head alone.
fn alone(name: &str, engine: &Engine, head: Head) -> Adapter {
    Adapter {
        name: name.into(),
        base: Some(engine.base().fingerprint()),
        heads: vec![head],
        ..Adapter::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
