//! Damaged files and things that do not belong together: the exit code of the design, one line, and
//! every existing file as it was.

use crate::support::{Done, Place, done, learnable, npz, repo};
use offshoot::Array;
use offshoot::testing::npy;
use std::process::Command;

fn rows(n: usize, width: usize) -> Array {
    Array::f32(vec![n, width], vec![0.5; n * width]).unwrap()
}

/// A base, two adapters of it, one of another base, an input, data.
fn furnished() -> Place {
    let place = Place::new();
    learnable(&place);
    place.ok("train mlp.base --data two.npz --steps 4 --threads 1 --out good.adapter");
    place.ok("pack {models}/mlp.onnx -o other.base --weights q4 --dim batch=2");
    npy::write(place.path("x.npy"), &rows(1, 12)).unwrap();
    place.ok("run mlp.base --input x=x.npy --adapter good.adapter");
    place
}

#[test]
fn files_of_the_wrong_kind_are_named_as_such() {
    let place = furnished();
    place.write("empty", "");
    std::fs::create_dir(place.path("folder")).unwrap();
    let fifo = Command::new("mkfifo").arg(place.path("fifo")).status().unwrap();
    assert!(fifo.success());
    let wrong = ["empty", "folder", "fifo", "none", "x.npy", "two.npz", "/dev/zero", "/dev/null"];
    for file in wrong.iter().chain(&["good.adapter"]) {
        place.fails(&format!("run {file} --input x=x.npy"), 3);
        place.fails(&format!("train {file} --data two.npz --out new.adapter"), 3);
        place.fails(&format!("pack {file} -o new.base"), 3);
    }
    for file in wrong.iter().chain(&["mlp.base"]) {
        let path = if file.starts_with('/') { file.to_string() } else { format!("./{file}") };
        place.fails(&format!("run mlp.base --input x=x.npy --adapter {path}"), 3);
        place.fails(&format!("adapter add {path} --name a"), 3);
    }
    for file in wrong {
        place.fails(&format!("inspect {file}"), 3);
        if file != "x.npy" {
            place.fails(&format!("run mlp.base --input x={file}"), 3);
        }
    }
    assert!(!place.path("new.base").exists() && !place.path("new.adapter").exists());
}

/// Cut at every length that matters and with single bits turned: an error, or for a bit that no
/// check of a quick start covers, an answer; never a panic, never a signal.
#[test]
fn cut_and_flipped_bases_and_adapters() {
    let place = furnished();
    for (name, line) in [
        ("mlp.base", "run broken --input x=x.npy"),
        ("good.adapter", "run mlp.base --input x=x.npy --adapter ./broken"),
    ] {
        let good = place.read(name);
        for len in [0, 1, 7, 8, 16, 64, good.len() / 2, good.len() - 1] {
            place.write("broken", &good[..len]);
            place.fails(line, 3);
        }
        place.write("broken", [&good[..], b"x"].concat());
        place.fails(line, 3);
        for at in (0..good.len()).step_by(good.len() / 40) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            place.write("broken", &bytes);
            let run = place.run(line);
            if run.code != 0 {
                run.failed(3, &format!("{name} byte {at}"));
            }
            // Read as a whole, every bit counts.
            let whole = match name {
                "mlp.base" => place.run("inspect broken --verify"),
                _ => place.run("adapter verify ./broken"),
            };
            whole.failed(3, &format!("{name} byte {at}, verified"));
        }
    }
}

#[test]
fn cut_and_flipped_onnx_files_leave_the_old_base() {
    let place = Place::new();
    let good = std::fs::read(repo("models/tiny/qdq.onnx")).unwrap();
    place.write("old.base", "old");
    let check = |bytes: &[u8], what: String| {
        place.write("broken.onnx", bytes);
        let done = place.run("pack broken.onnx -o old.base");
        if done.code == 0 {
            place.write("old.base", "old");
        } else {
            done.failed(3, &what);
            assert_eq!(place.read("old.base"), b"old", "{what}");
        }
        assert_eq!(place.names("."), ["broken.onnx", "old.base"], "{what}");
    };
    for part in 0..12 {
        let len = good.len() * part / 12;
        check(&good[..len], format!("cut to {len}"));
    }
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        check(&bytes, format!("byte {at}"));
    }
}

#[test]
fn inputs_that_do_not_fit() {
    let place = furnished();
    npy::write(place.path("wide.npy"), &rows(1, 13)).unwrap();
    npy::write(place.path("ids.npy"), &Array::i64(vec![1, 12], vec![1; 12]).unwrap()).unwrap();
    let error = place.fails("run mlp.base --input x=wide.npy", 3);
    assert!(error.contains("12") && error.contains("13"), "{error}");
    place.fails("run mlp.base --input x=ids.npy", 3);
    place.fails("run mlp.base --input z=x.npy", 3);
    let good = place.read("x.npy");
    for len in [0, 5, 10, 40, good.len() - 1] {
        place.write("cut.npy", &good[..len]);
        place.fails("run mlp.base --input x=cut.npy", 3);
    }
    // Requests that the base can't meet.
    place.fails("run mlp.base --text hello", 3);
    place.fails("run mlp.base --image x.npy", 3);
    place.fails("run mlp.base", 2);
    place.fails("run mlp.base --text a --input x=x.npy", 2);
}

#[test]
fn pictures_that_are_none() {
    let place = Place::new();
    place.ok("pack {models}/convnet.onnx -o c.base --image 32");
    let folder = repo("models/pictures/wardrobe/test/bag");
    let picture = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(picture).unwrap();
    place.write("good.png", &good);
    place.ok("run c.base --image good.png");
    for (name, bytes) in [
        ("empty.png", vec![]),
        ("text.png", b"no picture".to_vec()),
        ("cut.png", good[..good.len() / 2].to_vec()),
    ] {
        place.write(name, bytes);
        let error = place.fails(&format!("run c.base --image {name}"), 3);
        assert!(error.contains(name), "{error}");
    }
    std::fs::create_dir_all(place.path("data/a")).unwrap();
    std::fs::create_dir_all(place.path("data/b")).unwrap();
    place.write("data/a/1.png", &good);
    place.write("data/b/1.png", "no picture");
    let error = place.fails("train c.base --data data --steps 2 --holdout 0 --out a.adapter", 3);
    assert!(error.contains("data/b/1.png"), "{error}");
    assert!(!place.path("a.adapter").exists());
}

#[test]
fn adapters_of_another_base_are_a_mismatch() {
    let place = furnished();
    place.write("kept.adapter", "kept");
    let error = place.fails("run other.base --input x=x.npy --adapter good.adapter", 4);
    assert!(error.contains("base"), "{error}");
    place.fails("adapter add good.adapter --name a --base other.base", 4);
    place.fails("adapter verify ./good.adapter --base other.base", 4);
    assert!(!place.path("store").exists());
    // One of its names in the store is bad before anything is written.
    place.fails("adapter add good.adapter --name ../up", 2);
    place.fails("adapter add good.adapter --name Upper", 2);
    place.fails("adapter import . --base mlp.base -o kept.adapter", 3);
    assert_eq!(place.read("kept.adapter"), b"kept");
}

#[test]
fn data_that_can_not_be_learned() {
    let place = furnished();
    place.write("out.adapter", "old");
    let train = |data: &str, code| {
        let line = format!("train mlp.base --steps 2 --threads 1 --out out.adapter --data {data}");
        let error = place.fails(&line, code);
        assert_eq!(place.read("out.adapter"), b"old", "{data}");
        error
    };
    place.write("bad.jsonl", "{\"text\": \"a\", \"label\": \"b\"}\nno json\n");
    assert!(train("bad.jsonl", 3).contains("bad.jsonl:2"));
    place.write("empty.jsonl", "");
    train("empty.jsonl", 3);
    place.write("keys.jsonl", "{\"txt\": \"a\", \"label\": \"b\"}\n");
    train("keys.jsonl", 3);
    place.write("bad.csv", "text,label\na\n");
    train("bad.csv", 3);
    place.write("data.xyz", "?");
    train("data.xyz", 3);
    train("none.jsonl", 3);
    place.write("cut.npz", &place.read("two.npz")[..900]);
    train("cut.npz", 3);
    let labels = |n: i64| Array::i64(vec![4], vec![0, 1, 0, n]).unwrap();
    let mut nan = vec![0.0; 48];
    nan[17] = f32::NAN;
    let nan = Array::f32(vec![4, 12], nan).unwrap();
    npz(&place.path("nan.npz"), &[("x", nan), ("labels", labels(1))]);
    train("nan.npz", 3);
    npz(&place.path("wide.npz"), &[("x", rows(4, 13)), ("labels", labels(1))]);
    train("wide.npz", 3);

    // A label that the head does not have.
    npz(&place.path("more.npz"), &[("x", rows(4, 12)), ("labels", labels(7))]);
    let error = place.fails("eval mlp.base --data more.npz --adapter good.adapter", 4);
    assert!(error.contains('7'), "{error}");
    // Nothing that could answer.
    place.fails("eval mlp.base --data two.npz", 2);
}

#[test]
fn training_requests_that_can_not_be_met() {
    let place = furnished();
    place.write("out.adapter", "old");
    for (options, code) in [
        ("--targets no_such_layer", 2),
        ("--targets (", 2),
        ("--rank 0", 2),
        ("--rank many", 2),
        ("--kind nonsense", 2),
        ("--lr NaN", 2),
        ("--steps 3 --epochs 3", 2),
        ("--head-from nothing", 2),
        ("--ram 1K", 5),
    ] {
        let line = format!("train mlp.base --data two.npz --out out.adapter {options}");
        place.fails(&line, code);
        assert_eq!(place.read("out.adapter"), b"old", "{options}");
    }
    place.fails("train mlp.base --data two.npz --out no/such/folder.adapter", 1);
}

/// A file size limit is the nearest to a full disk that any user can make: a write fails in the
/// middle of the file.
#[test]
fn a_write_that_fails_in_the_middle_leaves_the_old_file() {
    let place = furnished();
    place.write("old.base", "old");
    place.write("old.adapter", "old");
    let program = env!("CARGO_BIN_EXE_offshoot");
    let limited = |arguments: String| -> Done {
        let mut command = Command::new("bash");
        // Blocks of 1024 bytes; without the trap the signal would end the process.
        command.arg("-c").arg(format!("ulimit -f 1; trap '' XFSZ; exec {program} {arguments}"));
        command.current_dir(place.path(".")).env("OFFSHOOT_STORE", place.path("store"));
        done(command)
    };
    let before = place.names(".");
    let model = repo("models/tiny/mlp.onnx");
    limited(format!("pack {} -o old.base", model.display())).failed(1, "pack");
    limited("train mlp.base --data two.npz --steps 2 --threads 1 --out old.adapter".into())
        .failed(1, "train");
    assert_eq!(place.read("old.base"), b"old");
    assert_eq!(place.read("old.adapter"), b"old");
    limited("adapter add good.adapter --name home".into()).failed(1, "adapter add");
    assert!(place.ok("adapter list").contains("no adapters"));
    let after: Vec<String> = place.names(".").into_iter().filter(|n| n != "store").collect();
    assert_eq!(after, before);
}
