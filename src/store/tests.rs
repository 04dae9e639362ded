use super::*;
use crate::adapter::TargetAdapter;
use std::os::unix::fs::PermissionsExt;

fn adapter(value: f32) -> Adapter {
    Adapter {
        name: "any".into(),
        targets: vec![TargetAdapter {
            module_path: "layer.0".into(),
            rank: 1,
            alpha: 1.0,
            lora_a: vec![1.0, 2.0],
            lora_b: vec![value, 0.5],
        }],
        ..Adapter::default()
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("new/store"));
    (dir, store)
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

#[test]
fn a_life_of_three_generations() {
    let (_dir, store) = store();
    assert_eq!(store.list().unwrap(), []);
    let one = store.add("home", &adapter(1.0), false).unwrap();
    assert_eq!(one, Added { generation: 1, new: true, active: true });
    let two = store.add("home", &adapter(2.0), false).unwrap();
    assert_eq!(two, Added { generation: 2, new: true, active: false });
    assert_eq!(store.load(&reference("home")).unwrap().generation, 1);
    let again = store.add("home", &adapter(2.0), true).unwrap();
    assert_eq!(again, Added { generation: 2, new: false, active: true });

    let loaded = store.load(&reference("home")).unwrap();
    assert_eq!((loaded.generation, loaded.adapter.targets[0].lora_b[0]), (2, 2.0));
    assert_eq!(loaded.adapter.name, "home");
    let mode = std::fs::metadata(&loaded.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);

    assert_eq!(store.activate(&reference("home@1")).unwrap(), (1, Some(2)));
    assert_eq!(store.remove(&reference("home@2"), false).unwrap(), [2]);
    let three = store.add("home", &adapter(3.0), false).unwrap();
    assert_eq!(three.generation, 3, "number 2 is not given again");
    assert_eq!(store.activate(&reference("home")).unwrap(), (3, Some(1)));
    let listed = Entry { name: "home".into(), active: Some(3), generations: vec![1, 3] };
    assert_eq!(store.list().unwrap(), [listed]);
}

#[test]
fn the_active_one_is_removed_by_force_only() {
    let (_dir, store) = store();
    store.add("home", &adapter(1.0), false).unwrap();
    store.add("home", &adapter(2.0), false).unwrap();
    for text in ["home@1", "home"] {
        let error = store.remove(&reference(text), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
    assert_eq!(store.remove(&reference("home@1"), true).unwrap(), [1]);
    let error = store.load(&reference("home")).unwrap_err();
    assert!(error.message().contains("no generation of 'home' is active"), "{error}");
    assert_eq!(store.remove(&reference("home"), false).unwrap(), [2]);
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.add("home", &adapter(1.0), false).unwrap().generation, 3);
}

#[test]
fn unknown_names_say_what_there_is() {
    let (_dir, store) = store();
    let error = store.load(&reference("home")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    store.add("away", &adapter(1.0), false).unwrap();
    let error = store.activate(&reference("home")).unwrap_err();
    assert_eq!(error.hint_text(), Some("there are away"));
    let error = store.remove(&reference("away@7"), true).unwrap_err();
    assert_eq!(error.hint_text(), Some("it has 1"));
    assert!(store.add("../x", &adapter(1.0), false).is_err());
}

/// A power cut between the new file and the pointer leaves the old generation active, and a
/// temporary file that the next change takes away.
#[test]
fn what_a_crash_leaves_behind() {
    let (_dir, store) = store();
    store.add("home", &adapter(1.0), false).unwrap();
    let folder = store.folder("home");
    let temp = folder.join(".000002.adapter.999999999.0.tmp");
    std::fs::write(&temp, b"half").unwrap();
    std::fs::write(folder.join("000002.adapter"), adapter(2.0).to_bytes(TensorType::F32).unwrap())
        .unwrap();
    assert_eq!(store.load(&reference("home")).unwrap().generation, 1);
    assert_eq!(store.add("home", &adapter(3.0), false).unwrap().generation, 3);
    assert!(!temp.exists());
}

#[test]
fn damage_is_found_and_never_activated() {
    let (_dir, store) = store();
    store.add("home", &adapter(1.0), false).unwrap();
    store.add("home", &adapter(2.0), false).unwrap();
    let file = store.file("home", 2);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let error = store.activate(&reference("home@2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert_eq!(store.active("home").unwrap(), Some(1));

    std::fs::write(store.folder("home").join(ACTIVE), "many").unwrap();
    assert_eq!(store.load(&reference("home")).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(store.activate(&reference("home@1")).unwrap(), (1, None));
    assert_eq!(store.load(&reference("home")).unwrap().generation, 1);
}

#[test]
fn values_that_are_not_finite_stay_outside() {
    let (_dir, store) = store();
    let error = store.add("home", &adapter(f32::NAN), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn a_change_waits_for_another_one() {
    let (_dir, store) = store();
    store.add("home", &adapter(1.0), false).unwrap();
    let held = store.lock().unwrap();
    let (other, waiting) = (store.clone(), adapter(2.0));
    let thread = std::thread::spawn(move || other.add("home", &waiting, true));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(store.active("home").unwrap(), Some(1));
    drop(held);
    thread.join().unwrap().unwrap();
    assert_eq!(store.active("home").unwrap(), Some(2));
}

#[test]
fn many_writers_lose_nothing() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let store = &store;
            scope.spawn(move || store.add("home", &adapter(i as f32), false).unwrap());
        }
    });
    assert_eq!(store.list().unwrap()[0].generations, (1..=8).collect::<Vec<_>>());
}

/// `/dev/full` can't be a folder; a file in the place of one is the nearest that any user can make.
#[test]
fn a_store_that_is_no_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("file");
    std::fs::write(&root, "x").unwrap();
    let store = Store::new(&root);
    assert!(store.add("home", &adapter(1.0), false).is_err());
    assert_eq!(std::fs::read(&root).unwrap(), b"x");
}
