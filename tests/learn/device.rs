//! A device without HTTP: a store, an engine, what is served, a learner with the real program as
//! its training child, and fake `/proc` and `/sys`.

use offshoot::packing::PackOptions;
use offshoot::store::{
    Input, Job, JobState, Label, NewSample, Options, Recorded, Reference, Store,
};
use offshoot::testing::daemon::{Learner, Place, Root, Serving, Settings};
use offshoot::testing::npy;
use offshoot::{Array, Bound, Engine, Named, Preprocessor, Result, Role, apply_head, pack};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// Longest that a job of a tiny model may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// What serves: the active generation of each name, ready to run.
pub struct Desk {
    engine: Engine,
    store: Store,
    served: RwLock<HashMap<String, (u64, Arc<Bound>)>>,
}

impl Desk {
    /// Label and generation; the label is empty where the base alone is served.
    pub fn predict(&self, name: &str, inputs: &Named) -> (String, u64) {
        let served = self.served.read().unwrap().get(name).cloned();
        let Some((generation, bound)) = served else { return (String::new(), 0) };
        (answer(&self.engine, &bound, inputs), generation)
    }
}

/// The head's best label.
pub fn answer(engine: &Engine, bound: &Arc<Bound>, inputs: &Named) -> String {
    let outputs = engine.run(inputs, Some(bound)).unwrap();
    let head = bound.head.as_ref().unwrap();
    apply_head(engine, head, engine.given(inputs, Role::Mask), &outputs).unwrap()[0].top(1)[0]
        .0
        .clone()
}

impl Serving for Desk {
    fn in_flight(&self) -> usize {
        0
    }

    fn idle_for(&self) -> Duration {
        Duration::from_secs(3600)
    }

    fn refresh(&self, name: &str) -> Result<()> {
        let entry = match self.store.name(name)?.active {
            Some(generation) => {
                let reference = Reference::parse(&format!("{name}@{generation}"))?;
                let adapter = self.store.load(&reference)?.adapter;
                Some((generation, self.engine.bind(&[(&adapter, 1.0)])?))
            }
            None => None,
        };
        let mut served = self.served.write().unwrap();
        match entry {
            Some(entry) => served.insert(name.into(), entry),
            None => served.remove(name),
        };
        Ok(())
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// The whole device; its folder goes with it.
pub struct Device {
    pub store: Store,
    pub desk: Arc<Desk>,
    pub settings: Arc<RwLock<Settings>>,
    pub system: PathBuf,
    pub learner: Option<Learner>,
    pub preprocessor: Preprocessor,
    _folder: tempfile::TempDir,
}

/// Conditions that always hold on a machine that shows nothing. What is trained is the subject of most
/// tests, and sure enough at a small hold-out; `instant` has the rest.
pub fn willing() -> Settings {
    let mut settings = Settings::default();
    settings.train.instant = false;
    settings.gate.false_promotions = 1.0;
    settings.conditions.idle_seconds = 0;
    settings.conditions.min_interval_seconds = 0;
    settings.conditions.look_seconds = 1;
    settings.trial.seconds = 1;
    settings
}

impl Device {
    /// With the base packed from `model`; the learner is not started.
    pub fn new(model: &Path, options: &PackOptions, settings: Settings) -> Device {
        Device::with_state(model, options, settings, None)
    }

    /// A device with a copy of this one's state, which must be at rest.
    pub fn twin(&self, name: &str) -> Device {
        let model = repo(&format!("models/tiny/{name}.onnx"));
        let settings = self.settings.read().unwrap().clone();
        Device::with_state(&model, &PackOptions::default(), settings, Some(self.store.root()))
    }

    fn with_state(
        model: &Path,
        options: &PackOptions,
        settings: Settings,
        state: Option<&Path>,
    ) -> Device {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("model.base");
        pack(model, &base, options).unwrap();
        let engine = Engine::open(&base).unwrap();
        if let Some(state) = state {
            let to = folder.path().join("state");
            std::fs::create_dir(&to).unwrap();
            for entry in std::fs::read_dir(state).unwrap().map(|e| e.unwrap()) {
                if entry.path().is_file() {
                    std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
        let store = Store::open_with(folder.path().join("state"), Options::default()).unwrap();
        let desk = Arc::new(Desk {
            engine: engine.clone(),
            store: store.clone(),
            served: RwLock::default(),
        });
        let system = folder.path().join("system");
        std::fs::create_dir(&system).unwrap();
        Device {
            store,
            desk,
            settings: Arc::new(RwLock::new(settings)),
            system,
            learner: None,
            preprocessor: Preprocessor::new(&engine),
            _folder: folder,
        }
    }

    /// One of the tiny models.
    pub fn tiny(name: &str, settings: Settings) -> Device {
        let model = repo(&format!("models/tiny/{name}.onnx"));
        Device::new(&model, &PackOptions::default(), settings)
    }

    pub fn start(&mut self) -> &Learner {
        let place = Place {
            root: Root::at(&self.system),
            program: Some(env!("CARGO_BIN_EXE_offshoot").into()),
            key: None,
        };
        let (store, settings) = (self.store.clone(), self.settings.clone());
        let learner = Learner::start(store, settings, self.desk.clone(), place).unwrap();
        self.learner.insert(learner)
    }

    pub fn learner(&self) -> &Learner {
        self.learner.as_ref().unwrap()
    }

    /// Puts a file of the fake system; one that is being written must not be seen empty, which
    /// would mean that there is no sensor.
    pub fn shows(&self, path: &str, text: &str) {
        let at = self.system.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        let beside = self.system.join("written");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, at).unwrap();
    }

    /// What the base is given for an input.
    pub fn inputs(&self, input: &Input) -> Named {
        match input {
            Input::Text(text) => self.preprocessor.text(&[text]).unwrap(),
            Input::File { bytes, .. } => {
                self.preprocessor.stack(&[&self.preprocessor.image_bytes(bytes).unwrap()]).unwrap()
            }
            Input::Tensors(npz) => npy::read_npz_bytes(npz, 1 << 20).unwrap(),
        }
    }

    /// A person brings a sample without asking first.
    pub fn bring(&self, name: &str, input: &Input, label: &str, source: &str) -> Recorded {
        self.add(name, input, label, source, None)
    }

    /// A person asks and says what would have been right.
    pub fn feedback(&self, name: &str, input: &Input, label: &str, source: &str) -> Recorded {
        let asked = self.desk.predict(name, &self.inputs(input));
        self.add(name, input, label, source, Some(asked))
    }

    fn add(
        &self,
        name: &str,
        input: &Input,
        label: &str,
        source: &str,
        asked: Option<(String, u64)>,
    ) -> Recorded {
        let (predicted, generation) = asked.unwrap_or_default();
        let recorded = self
            .store
            .add_sample(&NewSample {
                name: name.into(),
                input: input.clone(),
                label: Some(Label::Class(label.into())),
                predicted: Some(predicted).filter(|p| !p.is_empty()),
                generation: Some(generation).filter(|&g| g > 0),
                source: source.into(),
                time: 1_800_000_000,
                consent: true,
            })
            .unwrap();
        if let Some(learner) = &self.learner {
            learner.outcome(name);
        }
        recorded
    }

    /// A person asks and says whether the answer was right; nothing is kept of the question.
    pub fn judge(&self, name: &str, input: &Input, label: &str) {
        let (predicted, generation) = self.desk.predict(name, &self.inputs(input));
        let right = predicted == label;
        self.store.record_outcome(name, generation, right, 1_800_000_000).unwrap();
        self.learner().outcome(name);
    }

    /// Waits until `wanted` holds.
    pub fn until(&self, what: &str, patience: Duration, mut wanted: impl FnMut() -> bool) {
        let start = Instant::now();
        while !wanted() {
            let events = || self.store.latest_events(12).unwrap();
            let status = self.learner.as_ref().map(|l| l.status().unwrap());
            assert!(start.elapsed() < patience, "{what}: {status:#?} {:#?}", events());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The newest job once it has ended.
    pub fn ended(&self, after: i64, patience: Duration) -> Job {
        let mut found = None;
        self.until("a job ends", patience, || {
            let jobs = self.store.jobs().unwrap();
            let open = [JobState::Queued, JobState::Running, JobState::Paused];
            found = jobs.into_iter().rev().find(|j| j.id > after && !open.contains(&j.state));
            found.is_some()
        });
        found.unwrap()
    }

    pub fn events(&self, kind: &str) -> Vec<String> {
        let all = self.store.events(1000, 0).unwrap();
        all.into_iter().filter(|e| e.kind == kind).map(|e| e.text).collect()
    }

    pub fn active(&self, name: &str) -> Option<u64> {
        self.store.name(name).unwrap().active
    }
}

/// The repository's file.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Points of `mlp`'s twelve inputs, from a stream of their own: tests run beside each other.
pub struct Points(u64);

impl Points {
    pub fn new(seed: u64) -> Points {
        Points(seed)
    }

    /// A number in 0..1.
    fn noise(&mut self) -> f32 {
        let (factor, step) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
        self.0 = self.0.wrapping_mul(factor).wrapping_add(step);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// An input of another width.
    pub fn of(width: usize) -> Input {
        Input::Tensors(npy_file(Array::f32(vec![1, width], vec![0.1; width]).unwrap()))
    }

    /// One around the centre of class 0 to 2.
    pub fn around(&mut self, class: usize) -> Input {
        let centre = |k: usize| if k % 3 == class { 1.0 } else { -0.3 };
        let values = (0..12).map(|k| centre(k) + 1.6 * (self.noise() - 0.5)).collect();
        Input::Tensors(npy_file(Array::f32(vec![1, 12], values).unwrap()))
    }
}

fn npy_file(x: Array) -> Vec<u8> {
    npz_file("x", &x)
}

/// The bytes of an `.npz` file with one array.
pub fn npz_file(name: &str, array: &Array) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file(format!("{name}.npy"), stored).unwrap();
    zip.write_all(&npy::to_bytes(array)).unwrap();
    zip.finish().unwrap().into_inner()
}

/// Labels of the points.
pub const POINTS: [&str; 3] = ["a", "b", "c"];
