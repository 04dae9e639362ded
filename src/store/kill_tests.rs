//! A writer that is killed at any instant: what it had acknowledged is there.

use super::cut_tests::Dice;
use super::sample_tests::sample;
use super::tests::adapter;
use super::*;
use crate::common::emulated;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Kills, unless `OFFSHOOT_TEST_KILLS` says otherwise, and microseconds that the longest lives.
const KILLS: (usize, usize) = (1000, 40_000);
/// The same on an emulated processor, which starts in seconds.
const KILLS_EMULATED: (usize, usize) = (60, 1_000_000);

/// Runs in children started by the test below; alone it does nothing. It works until it is killed,
/// and says before and after each change what it is.
#[test]
fn killed_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_KILLED") else { return };
    let seed = std::env::var("OFFSHOOT_TEST_SEED").unwrap().parse().unwrap();
    let mut dice = Dice(seed);
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{line}").unwrap();
        out.flush().unwrap();
    };
    say("start".into());
    let store = Store::open(Path::new(&root)).unwrap();
    store.create_name("home").unwrap();
    for turn in 0.. {
        match dice.below(12) {
            0..=6 => {
                let text = format!("{seed}-{turn} {}", "w".repeat(dice.below(3000)));
                let source = format!("source{}", dice.below(6));
                let added = store.add_sample(&sample(&text, "x", &source)).unwrap();
                say(format!("sample {} {source}", added.hash));
            }
            7 | 8 => {
                let manifest = store.training_set("home").unwrap().manifest();
                let origin = Origin { manifest, ..Origin::default() };
                let value = dice.below(1 << 20) as f32;
                let added = store.add("home", &adapter(value), &origin).unwrap();
                say(format!("added {}", added.generation));
            }
            9 => {
                if let Some(&newest) = store.name("home").unwrap().generations.last() {
                    say(format!("activating {newest}"));
                    store.activate("home", newest, None, None).unwrap();
                    say(format!("active {newest}"));
                }
            }
            10 => {
                let source = format!("source{}", dice.below(6));
                say(format!("forgetting {source}"));
                store
                    .forget(&Selector { source: Some(source.clone()), ..Selector::default() })
                    .unwrap();
                let active = store.active("home").unwrap().unwrap_or(0);
                say(format!("forgotten {source} {active}"));
            }
            _ => {
                let job = store.queue_job("home", "turn").unwrap();
                store.update_job(job, JobState::Done, None).unwrap();
            }
        }
    }
}

#[derive(Default)]
struct Known {
    /// Hash to source, acknowledged.
    samples: BTreeMap<String, String>,
    /// Which generations may be active.
    active: BTreeSet<u64>,
    /// Kills in the middle of something.
    within: BTreeMap<&'static str, usize>,
}

impl Known {
    fn read(&mut self, said: &str) {
        let mut open = "opening or adding";
        let lines: Vec<&str> = said.lines().filter(|l| !l.is_empty()).collect();
        // A last line without its end was not said.
        let whole = if said.ends_with('\n') { lines.len() } else { lines.len() - 1 };
        for line in &lines[..whole] {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["sample", hash, source] => {
                    self.samples.insert((*hash).into(), (*source).into());
                    open = "between";
                }
                ["activating", number] => {
                    self.active.insert(number.parse().unwrap());
                    open = "activating";
                }
                ["active", number] => {
                    self.active = [number.parse().unwrap()].into();
                    open = "between";
                }
                ["forgetting", source] => {
                    self.samples.retain(|_, s| s != source);
                    open = "forgetting";
                }
                ["forgotten", _, active] => {
                    self.active = [active.parse().unwrap()].into();
                    open = "between";
                }
                _ => {}
            }
        }
        *self.within.entry(open).or_default() += 1;
    }

    fn check(&mut self, root: &Path, thorough: bool) {
        let store = Store::open(root).unwrap();
        let found: BTreeSet<String> =
            store.samples(&Filter::default()).unwrap().iter().map(|s| s.hash.to_string()).collect();
        for (hash, source) in &self.samples {
            assert!(found.contains(hash), "sample {hash} of {source} is lost");
        }
        let Ok(entry) = store.name("home") else { return };
        if let Some(active) = entry.active {
            let all = store.generations("home").unwrap();
            let state = all.iter().find(|g| g.number == active).unwrap().state;
            assert_eq!(state, GenerationState::Promoted);
            store.load(&Reference::parse("home").unwrap()).unwrap();
        }
        self.active.insert(entry.active.unwrap_or(0));
        self.active = [entry.active.unwrap_or(0)].into();
        if thorough {
            store.verify().unwrap();
            let files = std::fs::read_dir(root.join("adapters")).map_or(0, |d| d.count());
            assert!(files <= entry.generations.len(), "{files} files");
        }
    }

    /// Before the check: what the killed one may have left active.
    fn allowed(&self, root: &Path, forgetting: bool) {
        let store = Store::open(root).unwrap();
        let active = store.active("home").unwrap().unwrap_or(0);
        // In the middle of forgetting it may have fallen back to any that was promoted.
        assert!(forgetting || self.active.contains(&active), "{active} of {:?}", self.active);
    }
}

#[test]
fn a_killed_writer_loses_nothing_acknowledged() {
    let (enough, life) = if emulated() { KILLS_EMULATED } else { KILLS };
    let kills = std::env::var("OFFSHOOT_TEST_KILLS").ok().and_then(|n| n.parse().ok());
    let kills: usize = kills.unwrap_or(enough);
    let shm = Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let root = dir.path().join("store");
    let mut known = Known::default();
    known.active.insert(0);
    let mut dice = Dice(1);
    for kill in 0..kills {
        if kill % 100 == 0 {
            // A new one, so that its making is cut too, and it stays small.
            let _ = std::fs::remove_dir_all(&root);
            (known.samples, known.active) = (BTreeMap::new(), [0].into());
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::kill_tests::killed_child", "--nocapture"])
            .env("OFFSHOOT_TEST_KILLED", &root)
            .env("OFFSHOOT_TEST_SEED", kill.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut said = vec![];
        // The time to load the program doesn't count.
        while !said.windows(7).any(|w| w == b"\nstart\n") {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        std::thread::sleep(Duration::from_micros(dice.below(life) as u64));
        child.kill().unwrap();
        out.read_to_end(&mut said).unwrap();
        let mut complaint = String::new();
        child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        child.wait().unwrap();
        assert!(!complaint.contains("panicked"), "{complaint}");
        let said = String::from_utf8_lossy(&said);
        known.read(&said);
        let last = said.trim_end().lines().last().unwrap_or_default();
        if root.join("state.db").exists() {
            known.allowed(&root, last.starts_with("forgetting"));
            known.check(&root, kill % 10 == 0);
        }
    }
    println!("{kills} kills: {:?}", known.within);
    if kills >= enough {
        assert!(known.within["forgetting"] > 0 && known.within["between"] > 0);
    }
}
