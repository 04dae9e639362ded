//! Backups: whole, made while others write, put back.

use super::sample_tests::sample;
use super::tests::{adapter, store};
use super::*;
use crate::error::{Cause, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

fn samples(root: &Path) -> usize {
    let store = Store::open(root).unwrap();
    assert_eq!(store.doubt(), None);
    store.verify().unwrap();
    store.samples(&Filter::default()).unwrap().len()
}

#[test]
fn a_backup_while_others_write_has_all_that_was_acknowledged_before() {
    let (dir, store) = store();
    let acknowledged = AtomicUsize::new(0);
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As another process has it.
            let other = Store::open(store.root()).unwrap();
            for i in 0.. {
                if stop.load(Ordering::SeqCst) > 0 {
                    break;
                }
                other.add_sample(&sample(&format!("sentence {i}"), "x", "app")).unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
                if i % 10 == 0 {
                    let value = (i / 10) as f32;
                    let origin = Origin::default();
                    other.add_and_serve("home", &adapter(value), &origin, Serve::Now).unwrap();
                }
            }
        });
        for n in 0..5 {
            while acknowledged.load(Ordering::SeqCst) < 12 * (n + 1) {
                std::thread::yield_now();
            }
            let to = dir.path().join(format!("backup{n}"));
            let before = acknowledged.load(Ordering::SeqCst);
            let made = store.backup(&to).unwrap();
            let after = acknowledged.load(Ordering::SeqCst) + 1;
            assert_eq!(made.left_out, [] as [std::path::PathBuf; 0]);
            let root = dir.path().join(format!("restored{n}"));
            let restored = Store::restore(&root, &to).unwrap();
            assert_eq!(restored.before, [] as [std::path::PathBuf; 0]);
            let found = samples(&root);
            assert!((before..=after).contains(&found), "{before} <= {found} <= {after}");
            let opened = Store::open(&root).unwrap();
            let home = Reference::parse("home").unwrap();
            assert_eq!(
                opened.load(&home).unwrap().generation,
                opened.active("home").unwrap().unwrap()
            );
        }
        stop.store(1, Ordering::SeqCst);
    });
}

#[test]
fn what_is_put_back_takes_the_place_of_what_was_there() {
    let (dir, store) = store();
    let root = store.root().to_path_buf();
    let promote = |value: f32| {
        store.add_and_serve("home", &adapter(value), &Origin::default(), Serve::Now).unwrap();
    };
    store.add_sample(&sample("one", "x", "app")).unwrap();
    promote(1.0);
    let to = dir.path().join("backup");
    let made = store.backup(&to).unwrap();
    assert_eq!((made.adapters, made.path.as_path()), (1, to.as_path()));
    assert_eq!(store.backup(&to).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(store.backup(&dir.path().join("no/b")).unwrap_err().kind(), ErrorKind::Usage);
    store.add_sample(&sample("two", "x", "app")).unwrap();
    promote(2.0);
    drop(store);
    let restored = Store::restore(&root, &to).unwrap();
    assert_eq!((restored.samples, restored.generations), (1, 1));
    assert_eq!(samples(&root), 1);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.active("home").unwrap(), Some(1));
    // The newer generation's file is not known to the backup, and not deleted.
    let lost: Vec<_> = store.lost().into_iter().filter(|l| l.name.is_some()).collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    let read = crate::adapter::Adapter::read(&lost[0].path).unwrap();
    assert_eq!(read.targets, adapter(2.0).targets);
    assert!(store.lost().iter().any(|l| l.path.ends_with("state.db")), "{:?}", store.lost());
    drop(store);

    // Nothing is put in its place that is not whole.
    let mut pages = std::fs::read(to.join("state.db")).unwrap();
    pages[2000] ^= 1;
    std::fs::write(to.join("state.db"), &pages).unwrap();
    let error = Store::restore(&root, &to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    let error = Store::restore(&root, dir.path()).unwrap_err();
    assert!(error.message().contains("is no backup"), "{error}");
    assert_eq!(samples(&root), 1);
}

#[test]
fn a_damaged_adapter_is_left_out_and_a_doubtful_state_not_backed_up() {
    let (dir, store) = store();
    let root = store.root().to_path_buf();
    for value in [1.0, 2.0] {
        store.add_and_serve("home", &adapter(value), &Origin::default(), Serve::Now).unwrap();
    }
    let hash = store.generations("home").unwrap()[0].hash.clone();
    let path = root.join(format!("adapters/{hash}.adapter"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"not one").unwrap();
    let made = store.backup(&dir.path().join("backup")).unwrap();
    assert_eq!((made.adapters, made.left_out), (1, vec![path]));
    drop(store);
    std::fs::remove_file(root.join("state.db")).unwrap();
    let _ = std::fs::remove_file(root.join("state.db-wal"));
    let store = Store::open(&root).unwrap();
    let error = store.backup(&dir.path().join("other")).unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Doubtful));
    drop(store);
    Store::restore(&root, &dir.path().join("backup")).unwrap();
    assert_eq!(Store::open(&root).unwrap().active("home").unwrap(), Some(2));
}
