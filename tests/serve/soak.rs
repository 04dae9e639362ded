//! The daemon of a small board among bodies that mean harm: it lives, answers who asks in earnest, and ends when
//! it is told to.

use crate::common::shared;
use crate::place::{Place, repo};
use crate::support::{Daemon, read_answer, write_request};
use offshoot::Array;
use offshoot::testing::npy;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MEMORY: u64 = 256 << 20;
/// Ends of the daemon among the bodies.
const ENDS: u64 = 20;
const ATTACKERS: u64 = 8;
const CONFIG: &str = "---[limits]\nshutdown_seconds = 3.0\nrequest_seconds = 5.0\n";
const SHUTDOWN: Duration = Duration::from_secs(3);
/// What the process itself takes to be seen as ended, on a machine at other work.
const SEEN: Duration = Duration::from_millis(500);

/// A control group with so much memory; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Group> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("offshoot-soak-{}", std::process::id());
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers"));
        let (folder, limit) = match controllers.is_ok_and(|c| c.contains("memory")) {
            true => (root.join(name), "memory.max"),
            false => (root.join("memory").join(name), "memory.limit_in_bytes"),
        };
        let made = std::fs::create_dir(&folder)
            .and_then(|()| std::fs::write(folder.join(limit), bytes.to_string()));
        match made {
            Ok(()) => {
                let _ = std::fs::write(folder.join("memory.swap.max"), "0");
                println!("{}", folder.join(limit).display());
                Some(Group(folder))
            }
            Err(e) => {
                println!("skipped: no group can be made: {e}");
                None
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A body, its path and type.
type Sent = (&'static str, &'static str, Vec<u8>);

fn npz(arrays: &[(&str, Array)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, array) in arrays {
        let deflated = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .compression_level(Some(9));
        archive.start_file(format!("{name}.npy"), deflated).unwrap();
        archive.write_all(&npy::to_bytes(array)).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn tokens(rows: usize, length: usize) -> Vec<u8> {
    let of = |v: i64| Array::i64([rows, length], vec![v; rows * length]).unwrap();
    npz(&[("input_ids", of(7)), ("attention_mask", of(1)), ("token_type_ids", of(0))])
}

/// What was sent to take boards down, and its kin.
fn hostile() -> Vec<Sent> {
    let json = "application/json";
    let mut bodies: Vec<Sent> = vec![];
    let (ask, zip) = ("/v1/predict", "application/x-npz");
    for (rows, length) in
        [(256, 512), (64, 512), (8, 512), (2, 512), (1, 512), (512, 8), (20_000, 512)]
    {
        bodies.push((ask, zip, tokens(rows, length)));
    }
    let zeros = Array::f32([16 << 20], vec![0.0; 16 << 20]).unwrap();
    bodies.push((ask, zip, npz(&[("input_ids", zeros)])));
    let whole = tokens(2, 512);
    bodies.push((ask, zip, whole[..whole.len() / 2].to_vec()));
    let text = |text: String| json!({"text": text, "adapter": "home"}).to_string().into_bytes();
    for words in [
        "turn on the lamp ".repeat(60),
        "a".repeat(200_000),
        "\u{fb03}\u{1d400}".repeat(20_000),
        "\u{0}\u{202e}\n ".repeat(5000),
        "(((((".repeat(20_000),
        // Eighteen letters when it is decomposed; marks upon marks; a word each.
        "\u{fdfa}".repeat(60_000),
        format!("e{}", "\u{301}".repeat(90_000)),
        "\u{4e00}\u{9fa5}".repeat(30_000),
    ] {
        bodies.push((ask, json, text(words.clone())));
        bodies.push((ask, json, json!({"text": words}).to_string().into_bytes()));
    }
    bodies.push((ask, json, "[".repeat(100_000).into_bytes()));
    bodies.push((ask, json, br#"{"text": "#.to_vec()));
    bodies.push((ask, json, br#"{"text": 1e999}"#.to_vec()));
    bodies.push((ask, json, vec![b' '; 1 << 20]));
    let data = "0,".repeat(300_000);
    let long =
        format!(r#"{{"inputs": {{"input_ids": {{"shape": [1, 300001], "data": [{data}0]}}}}}}"#);
    bodies.push((ask, json, long.into_bytes()));
    bodies.push((ask, "image/png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff".to_vec()));
    bodies.push((ask, "audio/wav", b"RIFF\xff\xff\xff\x7fWAVEfmt ".to_vec()));
    bodies.push((ask, "text/html", vec![0; 100]));
    let feedback = |label: &str| {
        let body = json!({"text": "x ".repeat(2000), "label": label, "adapter": "home"});
        body.to_string().into_bytes()
    };
    bodies.push(("/v1/feedback", json, feedback(&"l".repeat(100_000))));
    bodies.push(("/v1/feedback", json, feedback("\n\u{0}")));
    bodies.push(("/v1/feedback", zip, tokens(256, 512)));
    bodies.push(("/v1/adapters/home", "application/octet-stream", vec![0xff; 300_000]));
    bodies.push(("/v1/adapters/..%2f..", "application/octet-stream", vec![0; 4096]));
    bodies.push(("/v1/forget", json, br#"{"ids": [-9223372036854775808]}"#.to_vec()));
    bodies.extend(shared().map(|folder| known(&folder.join("hostile"))).into_iter().flatten());
    bodies
}

/// The files that once did harm: those that are bodies as such, others as adapters and as texts.
fn known(folder: &Path) -> Vec<Sent> {
    let mut bodies: Vec<Sent> = vec![];
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        match path.extension().and_then(|e| e.to_str()) {
            Some("npz") => {
                bodies.push(("/v1/predict", "application/x-npz", bytes.clone()));
                bodies.push(("/v1/feedback?adapter=home&label=a", "application/x-npz", bytes));
            }
            Some("png") => bodies.push(("/v1/predict", "image/png", bytes)),
            Some("json") => {
                let text = json!({"text": String::from_utf8_lossy(&bytes)}).to_string();
                bodies.push(("/v1/predict", "application/json", text.into_bytes()));
                bodies.push(("/v1/predict", "application/json", bytes));
            }
            _ => bodies.push(("/v1/adapters/home", "application/octet-stream", bytes)),
        }
    }
    bodies
}

fn send(socket: &Path, (path, mime, body): &Sent) -> Option<u16> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    write_request(&mut stream, "POST", path, mime, body);
    read_answer(&mut stream).ok().map(|a| a.status)
}

/// Until a sentence is answered; who is told to come again does.
fn asked(socket: &Path, again: &AtomicU64) -> Duration {
    let start = Instant::now();
    let body = json!({"text": "turn on the lamp in the kitchen"}).to_string().into_bytes();
    let body = ("/v1/predict", "application/json", body);
    while send(socket, &body) != Some(200) {
        again.fetch_add(1, Ordering::Relaxed);
        assert!(start.elapsed() < Duration::from_secs(60), "nobody answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

fn shares(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!(
        "{:.0?} in the middle, p95 {:.0?}, p99 {:.0?}, most {:.0?}",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    )
}

/// Most resident at once less what files back now, in kB: a group counts cached files as well.
fn own_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kb = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    kb("VmHWM:").saturating_sub(kb("RssFile:"))
}

fn start(place: Place, group: &Group) -> Daemon {
    let procs = group.0.join("cgroup.procs");
    Daemon::spawn(place, CONFIG, |command| {
        let mut inside = Command::new("sh");
        let script = "echo $$ > \"$0\" && exec \"$@\" 2>> log";
        inside.args(["-c", script]).arg(procs).arg(command.get_program()).args(command.get_args());
        inside.current_dir(command.get_current_dir().unwrap());
        *command = inside;
        command.process_group(0);
    })
}

/// Ends the attack, also where something has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `BODIES=1000` says another number. On a machine at rest:
/// `cargo test --test serve -- --ignored --nocapture soak`.
#[test]
#[ignore = "takes many minutes, and a machine at rest"]
fn a_small_board_lives_through_hostile_bodies() {
    let Some(group) = Group::new(MEMORY) else { return };
    let bodies: u64 = std::env::var("BODIES").map_or(10_000, |n| n.parse().unwrap());
    let place = Place::new();
    let models = repo("models");
    let words = ["pack", "minilm-l6.onnx", "--tokenizer", "minilm-l6.tokenizer.json", "-o"];
    let mut pack = place.command(&words);
    pack.arg(place.path("mlp.base")).current_dir(models);
    assert!(pack.status().unwrap().success());
    let hostile = hostile();
    let mut daemon = start(place, &group);
    let none = AtomicU64::new(0);
    let mut alone: Vec<Duration> = (0..100).map(|_| asked(&daemon.socket(), &none)).collect();
    println!("alone: {}", shares(&mut alone));
    let sizes: Vec<usize> = hostile.iter().map(|(_, _, body)| body.len()).collect();
    println!("{} sorts of bodies, of {:?} bytes", hostile.len(), sizes);
    let mut memory = 0;
    let (mut times, mut ends, mut statuses) = (vec![], vec![], std::collections::BTreeMap::new());
    let again = AtomicU64::new(0);
    for round in 0..ENDS {
        let socket = daemon.socket();
        let (next, over, ended) =
            (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let told = Mutex::new(&mut statuses);
        std::thread::scope(|scope| {
            let _end = End(&ended);
            for _ in 0..ATTACKERS {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        // As they come; after the last the attack goes on, until the end.
                        let mixed = (n + round * bodies / ENDS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        let status =
                            send(&socket, &hostile[(mixed >> 33) as usize % hostile.len()]);
                        over.fetch_or(n + 1 >= bodies / ENDS, Ordering::Relaxed);
                        *told.lock().unwrap().entry(status).or_insert(0u64) += 1;
                        if status.is_none() {
                            // It ends: who spins takes the processors that it ends on.
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                });
            }
            while !over.load(Ordering::Relaxed) {
                times.push(asked(&socket, &again));
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(daemon.child.try_wait().unwrap().is_none(), "it died: {}", daemon.log());
            memory = memory.max(own_memory(daemon.child.id()));
            daemon.signal("-TERM");
            // On a busy machine the program that sends it takes its time.
            let begun = Instant::now();
            let code = daemon.wait();
            ends.push(begun.elapsed());
            assert_eq!(code, 0, "{}", daemon.log());
        });
        let log = daemon.log();
        assert!(!log.contains("panicked") && !log.contains("internal error"), "{log}");
        let place = std::mem::replace(&mut daemon.place, Place::new());
        daemon = start(place, &group);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let most = ends.iter().max().unwrap();
    println!(
        "{bodies} bodies, answered {statuses:?}; a normal client's {} questions: {}, told to come again \
         {again:?} times; {ENDS} ends, {most:.1?} at most; {} MiB of its own at most; load {}",
        times.len(),
        shares(&mut times),
        memory >> 10,
        load.trim(),
    );
    assert!(ends.iter().all(|took| *took < SHUTDOWN + SEEN), "{ends:?}");
    let p99 = times[(times.len() - 1) * 99 / 100];
    assert!(p99 < Duration::from_secs(1), "{p99:?}");
}
