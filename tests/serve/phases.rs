//! Where in its work a daemon was when it was killed, by what lies on the disk then; and the moments that kills
//! wait for, since few fall into short ones by chance.

use crate::kill::Told;
use crate::place::Place;
use offshoot::store::{GenerationState, JobState, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The files of a job's folder, in the order in which they come.
const CANDIDATE: &str = "candidate.adapter";
const MEASURED: &str = "measured.json";
/// Where a backup is made.
const STAGED: &str = ".backup.backup";

/// Longest wait for a moment.
const AWAITED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_micros(200);

/// What a kill waits for; some time after it, it comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing.
    Any,
    /// A trained candidate: it is measured next.
    Trained,
    /// What was measured: the gate judges it next.
    Measured,
    /// A file more among the adapters: it is stored, and perhaps promoted and on trial, next.
    Stored,
    /// The log is moved into the database.
    LogMoves,
    /// A backup is made.
    BackUp,
    /// A request is under way.
    Asked(&'static str),
}

impl Aim {
    /// Every round's kind of work has its own.
    pub fn of(round: u64, dice: &mut impl FnMut(usize) -> usize) -> Aim {
        match (dice(8), round % 3) {
            (0 | 1, _) if round % 4 == 3 => Aim::BackUp,
            (0, _) => Aim::Any,
            (1, _) => Aim::Trained,
            (2, _) => Aim::Measured,
            (3 | 4, _) => Aim::Stored,
            (5, _) => Aim::LogMoves,
            (6, _) => Aim::Asked("/v1/feedback"),
            (_, 0) if dice(2) == 0 => Aim::Asked("/v1/adapters/home/activate"),
            (_, 0) => Aim::Asked("/v1/adapters/home/rollback"),
            (_, 1) => Aim::Asked("/v1/forget"),
            _ => Aim::Stored,
        }
    }

    /// Waits for it and a random time more.
    pub fn wait(self, before: &Before, told: &Mutex<Told>, dice: &mut impl FnMut(usize) -> usize) {
        let Before { place, hashed, adapters } = before;
        let root = place.join("store");
        let mut log = 0;
        let mut begun = || match self {
            Aim::Any => true,
            Aim::Trained => any_job_has(&root, CANDIDATE),
            Aim::Measured => any_job_has(&root, MEASURED),
            Aim::Stored => {
                any_job_has(&root, MEASURED) && count(&root.join("adapters")) > *adapters
            }
            Aim::LogMoves => {
                let shorter = std::mem::replace(&mut log, log_length(&root)) > log;
                *hashed && !is_hashed(&root) || shorter
            }
            Aim::BackUp => place.join(STAGED).exists(),
            Aim::Asked(path) => told.lock().unwrap().asked.iter().any(|p| p == path),
        };
        let start = Instant::now();
        while !begun() && start.elapsed() < AWAITED {
            std::thread::sleep(POLL);
        }
        let most = match self {
            Aim::Any => 1_500_000,
            Aim::Trained => 600_000,
            Aim::Measured => 250_000,
            Aim::Stored if dice(4) == 0 => 1_200_000,
            Aim::Stored => 60_000,
            Aim::LogMoves => 5000,
            Aim::BackUp => 60_000,
            Aim::Asked(_) => 15_000,
        };
        std::thread::sleep(Duration::from_micros(dice(most) as u64));
    }
}

/// What there was before a kill.
pub struct Before {
    place: PathBuf,
    /// Whether the second record had the database's hash: it has not while the log is moved.
    hashed: bool,
    adapters: usize,
}

impl Before {
    pub fn of(place: &Place) -> Before {
        let root = place.path("store");
        Before {
            place: place.path(""),
            hashed: is_hashed(&root),
            adapters: count(&root.join("adapters")),
        }
    }
}

/// Kills by the phase that they fell into, some by two.
#[derive(Default)]
pub struct Phases {
    pub kills: BTreeMap<&'static str, u64>,
    /// Jobs whose files were there when they had ended.
    cleared: BTreeSet<i64>,
}

/// What a promotion consists of.
pub const PROMOTION: [&str; 3] = ["judging", "stored, not activated", "activated, job open"];

impl Phases {
    pub fn add(&mut self, phase: &'static str, fell: bool) {
        *self.kills.entry(phase).or_default() += u64::from(fell);
    }

    pub fn of(&self, phase: &str) -> u64 {
        self.kills.get(phase).copied().unwrap_or(0)
    }

    /// Looks at files alone, before anybody has opened what is there.
    pub fn look_at_files(&mut self, before: &Before) {
        let root = before.place.join("store");
        self.add("backing up", before.place.join(STAGED).exists());
        self.add("moving the log", before.hashed && !is_hashed(&root));
    }

    /// Looks at a state that was opened; `files` is how many adapters there were before.
    pub fn look_at_state(&mut self, store: &Store, files: usize) {
        let left = count(&store.root().join("adapters"));
        self.add("a file without a row", files > left);
        let generations = store.generations("home").unwrap();
        self.add("on trial", store.name("home").unwrap().trial.is_some());
        for job in store.jobs().unwrap() {
            let has = |file: &str| store.job_folder(job.id).join(file).exists();
            let made = generations.iter().find(|g| g.job == Some(job.id));
            let proven = made.and_then(|g| g.verdict.as_ref()).map(|v| v["passed"] == true);
            let candidate = made.is_some_and(|g| g.state == GenerationState::Candidate);
            let phase = match (job.state, proven) {
                (JobState::Running, None) if has(MEASURED) => "judging",
                (JobState::Running, None) if has(CANDIDATE) => "measuring",
                (JobState::Running, None) => "training",
                (JobState::Running, Some(true)) if candidate => "stored, not activated",
                (JobState::Running, Some(true)) => "activated, job open",
                (JobState::Running, Some(false)) => "refused, job open",
                (JobState::Done, _) if has(MEASURED) && self.cleared.insert(job.id) => {
                    "clearing a job"
                }
                _ => continue,
            };
            self.add(phase, true);
        }
    }
}

fn any_job_has(root: &Path, file: &str) -> bool {
    let jobs = std::fs::read_dir(root.join("jobs"));
    jobs.is_ok_and(|mut jobs| jobs.any(|job| job.is_ok_and(|j| j.path().join(file).exists())))
}

/// Whole files in a folder of adapters.
pub fn count(folder: &Path) -> usize {
    let name = |e: std::fs::DirEntry| e.file_name().into_string().unwrap();
    let all = std::fs::read_dir(folder).into_iter().flatten().flatten();
    all.map(name).filter(|n| n.ends_with(".adapter") && !n.starts_with('.')).count()
}

fn log_length(root: &Path) -> u64 {
    std::fs::metadata(root.join("state.db-wal")).map_or(0, |m| m.len())
}

/// Whether the newer slot of the second record has the database's hash (`src/store/witness.rs`).
fn is_hashed(root: &Path) -> bool {
    let bytes = std::fs::read(root.join("acknowledged")).unwrap_or_default();
    let number =
        |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()));
    let newer = if number(8) > number(4096 + 8) { 0 } else { 4096 };
    number(newer + 72) == 1
}
