//! What a sample costs the card: bytes written until it is acknowledged, and later.

use super::sample_tests::sample;
use super::*;
use std::path::Path;
use std::process::Command;

/// Text samples, and pictures of [`PICTURE`] bytes.
const SAMPLES: u64 = 2000;
const PICTURES: u64 = 100;
const PICTURE: usize = 60_000;

/// Bytes that this process has handed to the kernel, and of those what it sent to a medium.
fn written() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let field = |name: &str| -> u64 {
        text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    (field("wchar:"), field("write_bytes:"))
}

/// Runs in a child started by the test below; alone it does nothing. `OFFSHOOT_TEST_LOG`: bytes of
/// the log before it is moved.
#[test]
fn wear_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_WEAR") else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    if let Some(limit) = std::env::var("OFFSHOOT_TEST_LOG").ok().and_then(|l| l.parse().ok()) {
        store.limit_log(limit);
    }
    let before = written();
    for i in 0..SAMPLES {
        let text = format!("turn the lamp number {i} in the kitchen on, please");
        let answered = NewSample {
            predicted: Some("lamp".into()),
            generation: Some(1),
            ..sample(&text, ["lamp", "music", "door"][i as usize % 3], "app")
        };
        store.add_sample(&answered).unwrap();
    }
    let texts = written();
    for i in 0..PICTURES {
        let bytes = blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof();
        let mut picture = vec![0; PICTURE];
        let mut bytes = bytes;
        bytes.fill(&mut picture);
        let input = Input::File { bytes: picture, mime: "image/jpeg".into() };
        store.add_sample(&NewSample { input, ..sample("", "lamp", "app") }).unwrap();
    }
    let pictures = written();
    println!("text: {} {}", (texts.0 - before.0) / SAMPLES, (texts.1 - before.1) / SAMPLES);
    println!(
        "picture: {} {}",
        (pictures.0 - texts.0) / PICTURES,
        (pictures.1 - texts.1) / PICTURES
    );
    println!("database: {}", std::fs::metadata(store.root().join("state.db")).unwrap().len());
}

#[test]
fn a_sample_costs_the_card_little() {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::wear_tests::wear_child", "--nocapture"])
        .env("OFFSHOOT_TEST_WEAR", dir.path().join("store"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let bytes = |what: &str| -> u64 {
        let line = said.lines().find_map(|l| l.split_once(&format!("{what}: "))).unwrap().1;
        line.split(' ').next().unwrap().parse().unwrap()
    };
    let (text, picture) = (bytes("text"), bytes("picture"));
    println!("{text} bytes a sentence, {picture} a picture of {PICTURE}\n{said}");
    assert!(text <= 12 << 10, "{text}");
    assert!(picture <= 3 * PICTURE as u64, "{picture}");
}

/// Each change is synced in the log, and once more in the second record, which changes no length and
/// so spares the file system's journal.
#[test]
fn a_sample_is_synced_twice() {
    let dir = tempfile::tempdir().unwrap();
    let counts = dir.path().join("counts");
    let out = Command::new("strace")
        .args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&counts)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store::wear_tests::wear_child", "--nocapture"])
        .env("OFFSHOOT_TEST_WEAR", dir.path().join("store"))
        .output();
    let traced = out.is_ok_and(|out| out.status.success());
    let Some(text) = std::fs::read_to_string(&counts).ok().filter(|_| traced) else {
        return println!("skipped: no strace here");
    };
    let syncs: u64 = text
        .lines()
        .filter(|line| line.ends_with("fsync") || line.ends_with("fdatasync"))
        .map(|line| line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap())
        .sum();
    let each = syncs as f64 / (SAMPLES + PICTURES) as f64;
    println!("{each:.2} syncs a sample\n{text}");
    assert!((2.0..2.2).contains(&each), "{each}");
}
