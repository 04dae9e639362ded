//! ONNX files from strangers: `tests/hostile/hostile.md` says what each is and how it must end.

use crate::common::copy;
use crate::support::{Place, done, patience, repo};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest that one file may take, tests in parallel and without full optimisation.
fn limit() -> Duration {
    patience() / 3
}

#[test]
fn every_hostile_file_ends_in_one_line() {
    let place = Place::new();
    let folder = place.path("hostile");
    copy(&repo("tests/hostile"), &folder);
    symlink("/etc/passwd", folder.join("link.bin")).unwrap();
    symlink("/dev/zero", folder.join("zero.bin")).unwrap();
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::copy(folder.join("weights.bin"), place.path("elsewhere/weights.bin")).unwrap();
    symlink(place.path("elsewhere"), folder.join("linked")).unwrap();
    std::fs::hard_link(folder.join("weights.bin"), folder.join("hard.bin")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.join("fifo.bin")).status().unwrap();
    assert!(made.success());

    let expected = expected(&std::fs::read_to_string(folder.join("hostile.md")).unwrap());
    let mut faults = vec![];
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if !name.ends_with(".onnx") {
            continue;
        }
        let Some(codes) = expected.get(&name) else {
            faults.push(format!("{name}: not in hostile.md"));
            continue;
        };
        seen += 1;
        place.write("out.base", "what was there");
        let start = Instant::now();
        let out = place.path("out.base");
        let words = [Path::new("pack"), &path, Path::new("-o"), &out];
        let result = done(place.command(&words));
        let mut fault = |what: &str| faults.push(format!("{name}: {what}: {result:?}"));
        if !codes.contains(&result.code) {
            fault("exit code");
        }
        if start.elapsed() > limit() {
            fault("too slow");
        }
        if result.code != 0 {
            if result.stderr.lines().count() != 1 || result.stderr.contains("internal error") {
                fault("not one line");
            }
            if result.stderr.len() > 2000 || result.stderr.contains('\u{1b}') {
                fault("unfit for a terminal");
            }
            if place.read("out.base") != b"what was there" {
                fault("the old file is gone");
            }
        }
        let left = place.names(".");
        if left != ["elsewhere", "hostile", "out.base"] {
            fault(&format!("left behind {left:?}"));
        }
    }
    assert_eq!(seen, expected.len(), "files missing from the folder");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_files_that_they_were_spoiled_from_are_packed() {
    let place = Place::new();
    let control = repo("tests/hostile/control");
    for name in ["valid.onnx", "external.onnx"] {
        place.ok(&format!("pack {} -o {name}.base", control.join(name).display()));
    }
}

/// Files and the exit codes that they may end with.
fn expected(table: &str) -> BTreeMap<String, Vec<i32>> {
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim);
        let name = cells.nth(1)?.strip_prefix('`')?.strip_suffix('`')?.to_string();
        let codes = cells.nth(1)?.split(" or ").map(|c| c.parse().unwrap()).collect();
        Some((name, codes))
    });
    rows.collect()
}
