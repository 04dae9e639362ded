//! Weeks with the models that ship: each day brings new labels and more samples of those there are.
//! Settings are the defaults but for conditions, which other tests hold.

use crate::device::{Device, repo, willing};
use crate::week::{Portion, Week, poisoned};
use offshoot::data::{Dataset, LoadOptions, Split, load};
use offshoot::packing::{ImageSpec, PackOptions};
use offshoot::store::{Input, Reference, Rules};
use offshoot::testing::daemon::Serving;
use offshoot::testing::{shuffle, stream};
use offshoot::training::{Silent, TargetChoice, TrainOptions};
use offshoot::{Adapter, Engine, evaluate, train};
use std::collections::BTreeMap;
use std::time::Duration;

/// Days with feedback: the last portion comes twice, first with wrong labels.
const DAYS: usize = 4;

/// A task that the device never trains: a head on the base's own features. How well it still
/// answers through a generation's layers is what the retention floor is for.
struct Elsewhere {
    engine: Engine,
    head: Adapter,
    test: Dataset,
}

impl Elsewhere {
    fn new(engine: &Engine, path: &str) -> Elsewhere {
        let part =
            |split| load(&repo(path), &LoadOptions { split, ..LoadOptions::default() }).unwrap();
        let options = TrainOptions {
            targets: TargetChoice::None,
            learning_rate: 1e-2,
            epochs: Some(30),
            holdout: 0.0,
            ..TrainOptions::default()
        };
        let head = train(engine, &part(Split::Train), None, &options, &mut Silent).unwrap().adapter;
        Elsewhere { engine: engine.clone(), head, test: part(Split::Test) }
    }

    /// Share right through these layers, or through the base's own.
    fn accuracy(&self, layers: Option<&Adapter>) -> f64 {
        let layers = layers.unwrap_or(&self.head).clone();
        let with = Adapter { heads: self.head.heads.clone(), ..layers };
        let bound = self.engine.bind(&[(&with, 1.0)]).unwrap();
        f64::from(
            evaluate(&self.engine, Some(&bound), &self.test, 8)
                .unwrap()
                .metric("accuracy")
                .unwrap(),
        )
    }

    fn print(&self, week: &Week) {
        println!("another task: {:.1} % through the base", 100.0 * self.accuracy(None));
        for generation in week.device.store.name(week.name).unwrap().generations {
            let reference = Reference::parse(&format!("{}@{generation}", week.name)).unwrap();
            let adapter = week.device.store.load(&reference).unwrap().adapter;
            let share = 100.0 * self.accuracy(Some(&adapter));
            println!("another task: {share:.1} % through generation {generation}");
        }
    }
}

fn lines(path: &str, split: &str) -> Portion {
    let text = std::fs::read_to_string(repo(path)).unwrap();
    let rows = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let word = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_string();
    rows.filter(|r| r["split"] == split)
        .map(|r| (Input::Text(word(&r, "text")), word(&r, "label")))
        .collect()
}

/// Where clothes go: the pictures of `wardrobe` too, by what they show.
fn laundry(split: &str) -> Portion {
    let goes = |kind: &str| match kind {
        "t" | "shirt" => "wash-warm",
        "dress" | "pullover" => "wash-cold",
        "coat" | "trouser" => "dry-clean",
        "bag" | "ankle" => "wipe",
        "sandal" | "sneaker" => "brush",
        _ => panic!("{kind}"),
    };
    let sorted = |path: std::path::PathBuf| {
        let mut found: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let tasks = ["laundry", "wardrobe"].map(|t| repo(&format!("models/pictures/{t}/{split}")));
    let pictures = tasks.into_iter().flat_map(sorted).flat_map(sorted);
    pictures
        .map(|path| {
            let kind = path.file_stem().unwrap().to_str().unwrap().split('-').next().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            (Input::File { bytes, mime: "image/png".into() }, goes(kind).into())
        })
        .collect()
}

/// A third of the labels comes on each of the first three days. Half of a label's samples come on
/// its first day, the others on the days that follow. `seed` fixes which.
fn portions(mut all: Portion, labels: &[String], seed: u64) -> Vec<Portion> {
    shuffle(&mut all, &mut stream(seed, "week", 0));
    let mut by_label: BTreeMap<String, Portion> = BTreeMap::new();
    all.into_iter().for_each(|sample| by_label.entry(sample.1.clone()).or_default().push(sample));
    let mut days = vec![vec![]; DAYS];
    for (at, label) in labels.iter().enumerate() {
        let first = at * (DAYS - 1) / labels.len();
        let samples = by_label.remove(label).unwrap();
        let half = samples.len() / 2;
        for (i, sample) in samples.into_iter().enumerate() {
            let day = if i < half { first } else { first + 1 + i % (DAYS - 1 - first) };
            days[day].push(sample);
        }
    }
    // One label's samples don't all come in a row.
    let mut order = stream(seed, "days", 0);
    days.iter_mut().for_each(|day| shuffle(day, &mut order));
    days
}

fn script(mut week: Week, elsewhere: &Elsewhere, all: Portion, seed: u64) {
    // Of the small portions enough to judge by.
    week.device.store.set_rules(Rules { hold_out: 0.3, ..Rules::default() }).unwrap();
    let mut labels: Vec<String> = all.iter().map(|(_, l)| l.clone()).collect();
    labels.sort();
    labels.dedup();
    // Not by the alphabet: which labels come first differs too.
    shuffle(&mut labels, &mut stream(seed, "labels", 0));
    let days = portions(all, &labels, seed);
    println!("seed {seed}: portions of {:?}", days.iter().map(Vec::len).collect::<Vec<_>>());
    let (mut before, mut promoted) = (0.0, 0);
    for (day, portion) in ["monday", "tuesday", "wednesday"].iter().zip(&days) {
        week.day(day, portion);
        let now = week.accuracy();
        if week.promoted() {
            promoted += 1;
            assert!(now > before, "seed {seed}: {day}: {now} after {before} on the test set");
        }
        before = now;
    }
    week.print();
    // A gain of ten points is missed on fifty samples by one gate in twenty.
    assert!(promoted >= 2, "seed {seed}: {promoted} of three portions were promoted");
    let active = week.device.active(week.name);
    week.poisoned_day("thursday (poisoned)", &poisoned(&days[DAYS - 1], &labels));
    elsewhere.print(&week);
    week.print();
    assert!(!week.promoted());
    assert_eq!(week.device.active(week.name), active);
    week.forget_the_poison();
    let test = week.test.clone();
    week.bad_generation(&test);
    // The same samples, rightly labelled. Nothing in them is new: whether what they add is enough to
    // be shown on the hold-out differs from seed to seed.
    week.day("friday", &days[DAYS - 1]);
    week.print();
    week.check();
}

#[test]
#[ignore = "minutes: cargo test --release --test learn -- --ignored --nocapture minilm"]
fn weeks_with_minilm() {
    let tokenizer = std::fs::read(repo("models/minilm-l6.tokenizer.json")).unwrap();
    let options = PackOptions { tokenizer: Some(tokenizer), ..PackOptions::default() };
    for seed in 1..=3 {
        let mut settings = willing();
        settings.train.seed = 1000 * seed;
        let device = Device::new(&repo("models/minilm-l6.onnx"), &options, settings);
        let elsewhere = Elsewhere::new(device.desk.engine(), "models/rooms.jsonl");
        let test = lines("models/commands.jsonl", "test");
        let week = Week::new(device, "commands", test, Duration::from_secs(1800));
        script(week, &elsewhere, lines("models/commands.jsonl", "train"), seed);
    }
}

#[test]
#[ignore = "many minutes: cargo test --release --test learn -- --ignored --nocapture efficientnet"]
fn a_week_with_efficientnet() {
    let image = ImageSpec::default();
    let options = PackOptions { image: Some(image), ..PackOptions::default() };
    let mut settings = willing();
    // 1,280 features, none negative: a step moves an answer several times as far as MiniLM's.
    settings.train.head_rate = 3.0;
    let device = Device::new(&repo("models/efficientnet-lite0.onnx"), &options, settings);
    let elsewhere = Elsewhere::new(device.desk.engine(), "models/pictures/wardrobe");
    let week = Week::new(device, "laundry", laundry("test"), Duration::from_secs(3600));
    script(week, &elsewhere, laundry("train"), 1);
}
