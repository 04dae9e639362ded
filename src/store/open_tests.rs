//! What is wrong with a folder or a disk: one clear error each, and nothing lost.

use super::sample_tests::sample;
use super::tests::{adapter, store};
use super::*;
use crate::error::{Cause, ErrorKind};
use crate::fs::fault::{self, Op};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A closed store with samples and two generations.
fn closed() -> (tempfile::TempDir, std::path::PathBuf) {
    let (dir, store) = store();
    for i in 0..200 {
        store.add_sample(&sample(&format!("sentence number {i}"), "x", "app")).unwrap();
    }
    for number in 1..=2 {
        store.add("home", &adapter(number as f32), &Origin::default()).unwrap();
        store.activate("home", number, None, None).unwrap();
    }
    let root = store.root().to_path_buf();
    (dir, root)
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (_dir, root) = closed();
    let raw = rusqlite::Connection::open(root.join("state.db")).unwrap();
    let newer = super::schema::STEPS.len() as i64 + 1;
    raw.pragma_update(None, "user_version", newer).unwrap();
    let error = Store::open(&root).unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Unsupported, Some(Cause::Unreadable)));
    assert!(error.message().contains(&format!("schema version {newer}")), "{error}");
    let kept: i64 = raw.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(kept, newer);
}

/// The machinery for later versions: steps run once each, and a step that fails changes nothing.
#[test]
fn upgrades_run_once_each_or_not_at_all() {
    let (_dir, root) = closed();
    let path = root.join("state.db");
    let upgraded =
        |steps: &[&str]| super::db::open_with(&path, steps).map_err(|e| e.at(&path)).map(|_| ());
    let mut steps = super::schema::STEPS.to_vec();
    steps.push("ALTER TABLE jobs ADD COLUMN extra INTEGER; CREATE TABLE no (a; nonsense");
    assert!(upgraded(&steps).is_err());
    Store::open(&root).unwrap().verify().unwrap();
    let last = steps.len() - 1;
    steps[last] = "ALTER TABLE jobs ADD COLUMN extra INTEGER";
    upgraded(&steps).unwrap();
    upgraded(&steps).unwrap();
    assert_eq!(Store::open(&root).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_damaged_or_foreign_database_is_named() {
    let (_dir, root) = closed();
    let path = root.join("state.db");
    let whole = std::fs::read(&path).unwrap();
    let mut errors = 0;
    let page = super::db::PAGE as usize;
    for at in (0..whole.len()).step_by(page) {
        let mut bytes = whole.clone();
        bytes[at..at + page].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let found = Store::open(&root).and_then(|store| store.verify());
        if let Err(error) = found {
            assert_eq!(error.kind(), ErrorKind::BadInput, "page {}: {error}", at / page);
            errors += 1;
        }
    }
    // A page that is free may hold anything.
    assert!(10 * errors * page >= 9 * whole.len(), "{errors} of {}", whole.len() / page);
    for bytes in [&b"not a database at all, but long enough to look like one"[..], &whole[..5000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(&root).and_then(|store| store.verify()).unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::BadInput, Some(Cause::Unreadable)));
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(root.join("acknowledged")).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE notes (a)").unwrap();
    drop(foreign);
    let error = Store::open(&root).unwrap_err();
    assert!(error.message().contains("another program"), "{error}");
}

#[test]
fn one_damaged_sample_is_named_and_can_be_forgotten() {
    let (_dir, root) = closed();
    let raw = rusqlite::Connection::open(root.join("state.db")).unwrap();
    let changed = raw
        .execute(
            "UPDATE inputs SET content = replace(content, 'number', 'nUmber') \
         WHERE sample = 7",
            [],
        )
        .unwrap();
    assert_eq!(changed, 1);
    raw.execute("UPDATE inputs SET content = CAST(content AS BLOB)", []).unwrap();
    let store = Store::open(&root).unwrap();
    store.sample(8).unwrap();
    let error = store.sample(7).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.message().contains("sample 7"), "{error}");
    store.forget(&Selector { ids: vec![7], ..Selector::default() }).unwrap();
}

/// Each of our own steps fails once, in every operation that has it: the error comes out, nothing
/// has changed, and a second try succeeds.
#[test]
fn every_step_that_fails_leaves_the_store_as_it_was() {
    let mut failures = 0;
    for op in [Op::Create, Op::Sync, Op::Rename, Op::SyncFolder, Op::Commit] {
        for nth in 0..4 {
            let (_dir, store) = store();
            let first = store.add_sample(&sample("one", "x", "app")).unwrap();
            store.add("home", &adapter(1.0), &Origin::default()).unwrap();
            store.activate("home", 1, None, None).unwrap();
            let before = format!("{:?}", store.names().unwrap());
            let mut left = nth;
            let origin = Origin { manifest: vec![first.hash], ..Origin::default() };
            let added = fault::with(
                move |at, _| {
                    if at == op && left == 0 {
                        left -= 1;
                        return Err(std::io::Error::from_raw_os_error(28));
                    }
                    left -= i32::from(at == op);
                    Ok(())
                },
                || store.add("home", &adapter(2.0), &origin),
            );
            let Err(error) = added else { continue };
            failures += 1;
            assert_eq!(error.kind(), ErrorKind::Failed, "{op:?}: {error}");
            let again = Store::open(store.root()).unwrap();
            assert_eq!(before, format!("{:?}", again.names().unwrap()), "{op:?}");
            again.verify().unwrap();
            assert_eq!(again.add("home", &adapter(2.0), &origin).unwrap().generation, 2);
            again.activate("home", 2, None, None).unwrap();
        }
    }
    assert!(failures >= 5, "{failures}");
}

/// Runs in a child started by the test below; alone it does nothing.
#[test]
fn full_disk_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_FULL_STORE") else { return };
    let root = Path::new(&root).join("store");
    let store = Store::open(&root).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        let text = format!("{acknowledged} {}", "words ".repeat(500));
        match store.add_sample(&sample(&text, "x", "app")) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    println!("full after {acknowledged}: {error}");
    assert_eq!(error.cause(), Some(Cause::Full), "{error}");
    let large = crate::adapter::Adapter {
        targets: vec![crate::adapter::TargetAdapter::lora(
            "layer.0",
            1,
            1.0,
            vec![0.5; 400_000],
            vec![0.5],
        )],
        ..adapter(1.0)
    };
    let error = store.add("home", &large, &Origin::default()).unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Full), "{error}");
    // It still answers, and what was acknowledged is there.
    assert_eq!(store.counts("home").unwrap().kept, acknowledged);
    let again = Store::open(&root).unwrap();
    assert_eq!(again.counts("home").unwrap().kept, acknowledged);
    again.verify().unwrap();
    println!("all is there");
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ran = Command::new("unshare")
        .args(["-m", "/bin/sh", "-c"])
        .arg(
            "mount -t tmpfs -o size=2m none \"$OFFSHOOT_TEST_FULL_STORE\" || exit 77
             exec \"$0\" --exact store::open_tests::full_disk_child --nocapture",
        )
        .arg(std::env::current_exe().unwrap())
        .env("OFFSHOOT_TEST_FULL_STORE", dir.path())
        .output();
    match ran {
        Ok(out) if out.status.code() != Some(77) && !out.stdout.is_empty() => {
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(said.contains("all is there"), "{said}");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        _ => println!("skipped: a small tmpfs can't be mounted here (needs root)"),
    }
}

/// Runs in a child started by the test below; alone it does nothing.
#[test]
fn forget_when_full_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_FORGET_FULL") else { return };
    let folder = Path::new(&root);
    let root = folder.join("store");
    let store = Store::open(&root).unwrap();
    let mut all = vec![];
    for i in 0..200 {
        let text = format!("secret{i} {}", "words ".repeat(400));
        all.push(store.add_sample(&sample(&text, "x", "app")).unwrap());
    }
    let origin = Origin { manifest: vec![all[3].hash], ..Origin::default() };
    store.add_and_serve("home", &adapter(1.0), &origin, Serve::Now).unwrap();
    let ballast = root.join("ballast");
    assert!(ballast.exists());
    let fill = || {
        let mut file = std::fs::File::create(folder.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        while std::io::Write::write_all(&mut file, &[1]).is_ok() {}
    };
    fill();
    // The log may have room in blocks that it has.
    let error = (0..1000).find_map(|i| {
        let text = format!("more{i} {}", "words ".repeat(400));
        store.add_sample(&sample(&text, "x", "app")).err()
    });
    assert_eq!(error.unwrap().cause(), Some(Cause::Full));
    let one = Selector { ids: vec![all[3].id], ..Selector::default() };
    let report = store.forget(&one).unwrap();
    assert_eq!((report.samples, report.generations.len()), (1, 1));
    println!("one: finished {}", report.finished);
    assert_eq!(store.active("home").unwrap(), None);
    assert_eq!(std::fs::read_dir(root.join("adapters")).unwrap().count(), 0);
    drop(store);
    // A fresh process on the full disk, as the command line is.
    fill();
    let store = Store::open(&root).unwrap();
    let report = store.forget(&Selector { all: true, ..Selector::default() }).unwrap();
    println!("all: {} samples, finished {}", report.samples, report.finished);
    assert!(report.samples >= 199 && report.finished);
    for file in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(root.join(file)).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"), "{file}");
    }
    store.verify().unwrap();
    drop(store);
    std::fs::remove_file(folder.join("filler")).unwrap();
    drop(Store::open(&root).unwrap());
    assert!(ballast.exists(), "it is kept anew");
    println!("forgotten");
}

/// On a full disk nothing could be forgotten: that writes too.
#[test]
fn something_can_be_forgotten_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let ran = Command::new("unshare")
        .args(["-m", "/bin/sh", "-c"])
        .arg(
            "mount -t tmpfs -o size=24m none \"$OFFSHOOT_TEST_FORGET_FULL\" || exit 77
             exec \"$0\" --exact store::open_tests::forget_when_full_child --nocapture",
        )
        .arg(std::env::current_exe().unwrap())
        .env("OFFSHOOT_TEST_FORGET_FULL", dir.path())
        .output();
    match ran {
        Ok(out) if out.status.code() != Some(77) && !out.stdout.is_empty() => {
            let said = String::from_utf8_lossy(&out.stdout);
            let complaint = String::from_utf8_lossy(&out.stderr);
            assert!(said.contains("forgotten\n"), "{said}{complaint}");
            println!("{said}");
        }
        _ => println!("skipped: a small tmpfs can't be mounted here (needs root)"),
    }
}

/// Runs in a child started by the test below; alone it does nothing.
#[test]
fn read_only_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_READ_ONLY") else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    assert!(store.read_only());
    assert_eq!(store.load(&Reference::parse("home").unwrap()).unwrap().generation, 2);
    assert_eq!(store.counts("home").unwrap().kept, 200);
    let set = store.training_set("home").unwrap();
    assert_eq!(set.train.len() + set.held.len(), 200);
    for error in [
        store.add_sample(&sample("new", "x", "app")).unwrap_err(),
        store.activate("home", 1, None, None).unwrap_err(),
        store.add("home", &adapter(3.0), &Origin::default()).unwrap_err(),
    ] {
        assert_eq!(error.cause(), Some(Cause::ReadOnly), "{error}");
    }
    println!("read and not written");
}

/// A card that has gone read-only, as they do when they wear out: after a clean end, and with the
/// log of a store that was cut.
#[test]
fn a_read_only_disk_is_read() {
    for clean in [true, false] {
        let (_dir, root) = closed();
        let held = (!clean).then(|| {
            let store = Store::open(&root).unwrap();
            store.event("note", None, "something for the log", None).unwrap();
            store
        });
        let ran = Command::new("unshare")
            .args(["-m", "/bin/sh", "-c"])
            .arg(
                "mount --bind \"$OFFSHOOT_TEST_READ_ONLY\" \"$OFFSHOOT_TEST_READ_ONLY\" \
                 && mount -o remount,ro,bind \"$OFFSHOOT_TEST_READ_ONLY\" || exit 77
                 exec \"$0\" --exact store::open_tests::read_only_child --nocapture",
            )
            .arg(std::env::current_exe().unwrap())
            .env("OFFSHOOT_TEST_READ_ONLY", &root)
            .output();
        match ran {
            Ok(out) if out.status.code() != Some(77) && !out.stdout.is_empty() => {
                let said = String::from_utf8_lossy(&out.stdout);
                assert!(said.contains("read and not written"), "{clean}: {said}");
            }
            _ => println!("skipped: a folder can't be mounted read-only here (needs root)"),
        }
        drop(held);
    }
}

/// Runs in a child started by the test below; alone it does nothing.
#[test]
fn without_rights_child() {
    let Some(root) = std::env::var_os("OFFSHOOT_TEST_NO_RIGHTS") else { return };
    let error = Store::open(Path::new(&root)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    println!("refused: {error}");
}

/// A folder that may be read and not written, and one of another user's.
#[test]
fn a_folder_without_rights_is_an_error() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    set(dir.path(), 0o755);
    let privileged = rustix::process::geteuid().is_root();
    for mode in [0o500, 0o000] {
        set(&root, mode);
        // Root may write everywhere, so the child is somebody else.
        let program = dir.path().join("test");
        let mut command = Command::new(&program);
        if privileged {
            std::os::unix::fs::chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        set(&program, 0o755);
        command
            .args(["--exact", "store::open_tests::without_rights_child", "--nocapture"])
            .env("OFFSHOOT_TEST_NO_RIGHTS", &root)
            .current_dir("/");
        let child = loop {
            match command.output() {
                // A child that another test is just starting still has the copy open for writing.
                Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => continue,
                started => break started.unwrap(),
            }
        };
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains("refused: "), "{mode:o}: {said}");
        set(&root, 0o700);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    }
}
