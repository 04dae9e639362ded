//! A scripted week: portions of feedback, generations that are better each time, a poisoned
//! portion that is trained and not promoted, a bad generation that the watch takes back.

use crate::device::{Device, PATIENCE, POINTS, Points, answer, willing};
use offshoot::store::{Input, JobState, Origin, Reference, Selector};
use offshoot::testing::daemon::{Serving, Verdict};
use offshoot::{Adapter, Named};
use std::time::{Duration, Instant};

/// What people teach: input and label.
pub type Portion = Vec<(Input, String)>;

pub struct Row {
    day: String,
    generation: Option<u64>,
    verdict: Option<Verdict>,
    /// Share right on the test set: of the generation, and of what is served then.
    own: Option<f64>,
    test: f64,
    seconds: f64,
    peak_mib: f64,
    what: String,
}

pub struct Week {
    pub device: Device,
    pub name: &'static str,
    pub test: Portion,
    patience: Duration,
    last: i64,
    rows: Vec<Row>,
}

impl Week {
    pub fn new(device: Device, name: &'static str, test: Portion, patience: Duration) -> Week {
        let mut week = Week { device, name, test, patience, last: 0, rows: vec![] };
        week.device.store.create_name(name).unwrap();
        week.device.start();
        week
    }

    /// Share right of what is served, on samples that the device never gets.
    pub fn accuracy(&self) -> f64 {
        self.share(|inputs| self.device.desk.predict(self.name, inputs).0)
    }

    /// The same of a generation.
    fn accuracy_of(&self, generation: u64) -> f64 {
        let reference = Reference::parse(&format!("{}@{generation}", self.name)).unwrap();
        let adapter = self.device.store.load(&reference).unwrap().adapter;
        let engine = self.device.desk.engine();
        let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
        self.share(|inputs| answer(engine, &bound, inputs))
    }

    fn share(&self, answer: impl Fn(&Named) -> String) -> f64 {
        let right =
            |(input, label): &&(Input, String)| answer(&self.device.inputs(input)) == *label;
        self.test.iter().filter(right).count() as f64 / self.test.len() as f64
    }

    fn trains(&self, enabled: bool) {
        self.device.settings.write().unwrap().train.enabled = enabled;
    }

    /// A day's feedback, and the night's training.
    pub fn day(&mut self, day: &str, portion: &Portion) {
        self.teach(day, portion, |device, name, (input, label)| {
            device.feedback(name, input, label, "anna");
        });
    }

    /// Somebody brings wrong labels in bulk.
    pub fn poisoned_day(&mut self, day: &str, portion: &Portion) {
        self.teach(day, portion, |device, name, (input, label)| {
            device.bring(name, input, label, "mallory");
        });
    }

    fn teach(
        &mut self,
        day: &str,
        portion: &Portion,
        one: impl Fn(&Device, &str, &(Input, String)),
    ) {
        let began = Instant::now();
        self.trains(false);
        portion.iter().for_each(|sample| one(&self.device, self.name, sample));
        self.night(day, began);
    }

    /// The poison goes, and with it the candidate that learned from it.
    pub fn forget_the_poison(&mut self) {
        self.trains(false);
        let active = self.device.active(self.name);
        let forgotten = Selector { source: Some("mallory".into()), ..Selector::default() };
        self.device.store.forget(&forgotten).unwrap();
        assert_eq!(self.device.active(self.name), active);
    }

    fn night(&mut self, day: &str, began: Instant) {
        self.trains(true);
        self.device.learner().wake();
        let job = self.device.ended(self.last, self.patience);
        self.last = job.id;
        assert_eq!(job.state, JobState::Done, "{job:?}");
        let progress = job.progress.unwrap();
        let generation = progress["generation"].as_u64();
        let generations = self.device.store.generations(self.name).unwrap();
        let of = generations.iter().find(|g| Some(g.number) == generation);
        let verdict = of.and_then(|g| g.verdict.clone());
        let verdict = verdict.map(|v| serde_json::from_value::<Verdict>(v).unwrap());
        let promoted = progress["promoted"] == true;
        self.rows.push(Row {
            day: day.into(),
            generation,
            verdict,
            own: generation.map(|g| self.accuracy_of(g)),
            test: self.accuracy(),
            seconds: began.elapsed().as_secs_f64(),
            peak_mib: progress["peak_rss_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
            what: if promoted { "promoted".into() } else { "not promoted".into() },
        });
        // Its trial ends.
        let patience = Duration::from_secs(20);
        self.device.until("the trial ends", patience, || {
            self.device.store.name(self.name).unwrap().trial.is_none()
        });
    }

    pub fn promoted(&self) -> bool {
        self.rows.last().unwrap().what == "promoted"
    }

    /// A generation whose head's rows are turned by one is made active by hand; people correct it.
    pub fn bad_generation(&mut self, portion: &Portion) {
        let began = Instant::now();
        self.trains(false);
        // What people say of the good one.
        for (input, label) in portion.iter().take(20) {
            self.device.judge(self.name, input, label);
        }
        let good = self.device.active(self.name).unwrap();
        let loaded = self.device.store.load(&Reference::parse(self.name).unwrap()).unwrap();
        let mut adapter: Adapter = loaded.adapter;
        let head = &mut adapter.heads[0];
        head.weight.rotate_left(head.features as usize);
        head.bias.rotate_left(1);
        let added = self.device.store.add(self.name, &adapter, &Origin::default()).unwrap();
        self.device.store.activate(self.name, added.generation, None, None).unwrap();
        self.device.desk.refresh(self.name).unwrap();
        let test = self.accuracy();
        let mut asked = 0;
        for (input, label) in portion {
            asked += 1;
            self.device.judge(self.name, input, label);
            std::thread::sleep(Duration::from_millis(150));
            if self.device.active(self.name) != Some(added.generation) {
                break;
            }
        }
        assert_eq!(self.device.active(self.name), Some(good), "after {asked} answers");
        let events = self.device.events("watch");
        assert!(events.last().unwrap().contains("live feedback is worse"), "{events:?}");
        self.rows.push(Row {
            day: "forced".into(),
            generation: Some(added.generation),
            verdict: None,
            own: Some(test),
            test: self.accuracy(),
            seconds: began.elapsed().as_secs_f64(),
            peak_mib: 0.0,
            what: format!("taken back by the watch after {asked} answers"),
        });
    }

    pub fn print(&self) {
        println!(
            "day | generation | samples held out | hold-out before -> after | loss low | retention | latency | test: its own, served | seconds | child's peak MiB | what"
        );
        for r in &self.rows {
            let generation = r.generation.map_or("-".into(), |g| g.to_string());
            let verdict = r.verdict.as_ref().map_or("- | - | - | - | -".into(), |v| {
                let share = |s: Option<f64>| format!("{:.1} %", 100.0 * s.unwrap_or(f64::NAN));
                let latency = v.checks.iter().find(|c| c.name == "latency").unwrap().value;
                format!(
                    "{} | {} -> {} | {:.3} | {:.3} | {latency:.2}",
                    v.samples,
                    share(v.reference_accuracy),
                    share(v.accuracy),
                    v.loss_gain_low.unwrap_or(f64::NAN),
                    v.retention
                )
            });
            println!(
                "{} | {generation} | {verdict} | {:.1} %, {:.1} % | {:.1} | {:.0} | {}",
                r.day,
                100.0 * r.own.unwrap_or(f64::NAN),
                100.0 * r.test,
                r.seconds,
                r.peak_mib,
                r.what
            );
            if let (Some(v), "not promoted") = (&r.verdict, r.what.as_str()) {
                println!("    {}", v.sentence);
            }
        }
    }

    /// Hold-out accuracy rises with each promoted generation; retention is above its floor.
    pub fn check(&self) {
        let promoted: Vec<&Verdict> = self
            .rows
            .iter()
            .filter(|r| r.what == "promoted")
            .map(|r| r.verdict.as_ref().unwrap())
            .collect();
        for v in &promoted {
            assert!(v.passed && v.accuracy > v.reference_accuracy, "{v:?}");
            assert!(v.retention >= v.settings.retention_cosine, "{v:?}");
            assert!(v.checks.iter().all(|c| c.passed));
        }
        // The kernel holds the child to what no file backs; resident are the base and the program too.
        let base = self.device.desk.engine().base().file_len();
        let program = std::fs::metadata(env!("CARGO_BIN_EXE_offshoot")).unwrap().len();
        let files = (base + program) as f64 / f64::from(1 << 20);
        let limit = self.device.settings.read().unwrap().train.memory_mib as f64 + files;
        for r in self.rows.iter().filter(|r| r.verdict.is_some()) {
            let told = r.peak_mib > 0.0 && r.peak_mib <= limit;
            assert!(told, "the child of {} took {} MiB", r.day, r.peak_mib);
        }
    }
}

/// Labels turned by a varying number of places: none is right.
pub fn poisoned(portion: &Portion, labels: &[String]) -> Portion {
    let turned = portion.iter().enumerate().map(|(i, (input, label))| {
        let at = labels.iter().position(|l| l == label).unwrap();
        (input.clone(), labels[(at + 1 + i % (labels.len() - 1)) % labels.len()].clone())
    });
    turned.collect()
}

#[test]
fn a_week_with_a_tiny_model() {
    let mut settings = willing();
    settings.train.learning_rate = 2e-3;
    settings.train.rank = 4;
    let mut stream = Points::new(1);
    let mut points = |classes: &[usize], count: usize| -> Portion {
        let class = |i: usize| classes[i % classes.len()];
        (0..count).map(|i| (stream.around(class(i)), POINTS[class(i)].into())).collect()
    };
    let test = points(&[0, 1, 2], 60);
    let mut week = Week::new(Device::tiny("mlp", settings), "home", test, PATIENCE);
    week.day("monday", &points(&[0, 1], 60));
    assert!(week.promoted(), "{:?}", week.rows[0].verdict);
    let first = week.rows[0].test;
    week.day("tuesday", &points(&[0, 1, 2], 150));
    assert!(week.promoted(), "{:?}", week.rows[1].verdict);
    let second = week.rows[1].test;
    assert!(second > first + 0.2 && second > 0.85, "{first} {second}");
    let active = week.device.active("home");
    let labels: Vec<String> = POINTS.map(String::from).to_vec();
    week.poisoned_day("wednesday (poisoned)", &poisoned(&points(&[0, 1, 2], 60), &labels));
    assert!(!week.promoted(), "{:?}", week.rows[2].verdict);
    assert_eq!(week.device.active("home"), active);
    assert_eq!(week.rows[2].test, second);
    week.forget_the_poison();
    week.bad_generation(&points(&[0, 1, 2], 40));
    week.print();
    week.check();
}
