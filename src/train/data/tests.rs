use super::*;
use crate::error::ErrorKind;
use crate::shape::Data;
use std::io::Write;

fn at(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

fn read(name: &str, content: impl AsRef<[u8]>, options: &LoadOptions) -> Result<Dataset> {
    let (_dir, path) = at(name, content);
    load(&path, options)
}

fn plain(name: &str, content: impl AsRef<[u8]>) -> Result<Dataset> {
    read(name, content, &LoadOptions::default())
}

/// The error of a file, with the folder's random name cut away.
fn error(name: &str, content: impl AsRef<[u8]>) -> String {
    let e = plain(name, content).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BadInput, "{e}");
    let text = e.message().to_string();
    text.find(name).map(|i| text[i..].to_string()).unwrap_or(text)
}

fn classes(d: &Dataset) -> Vec<usize> {
    let class = |s: &Sample| match s.label {
        Label::Class(class) => class,
        _ => panic!("{s:?}"),
    };
    d.samples.iter().map(class).collect()
}

#[test]
fn jsonl_rows_become_samples() {
    let text = "\u{feff}{\"text\": \"on \\u00e9\", \"label\": \"pos\", \"confidence\": 0.5}\n\n\
                {\"label\": \"neg\", \"text\": \"off\"}\r\n{\"text\":\"x\",\"label\":\"pos\"}";
    let d = plain("a.jsonl", text).unwrap();
    assert_eq!(d.labels, ["neg", "pos"]);
    assert_eq!(classes(&d), [1, 0, 1]);
    assert_eq!(d.samples[0].input, SampleInput::Text("on é".into()));
    assert!(d.samples[1].place.to_string().ends_with("a.jsonl:3"));
    assert_eq!((d.label_width(), d.task), (0, Task::default()));
}

#[test]
fn rows_of_the_same_input_are_held_out_together() {
    let row = |i: usize| format!("{{\"text\":\"row {}\",\"label\":\"{}\"}}\n", i % 12, i % 2);
    let d = plain("a.jsonl", (0..36).map(row).collect::<String>()).unwrap();
    let split = d.hold_out(0.25, 1).unwrap();
    assert_eq!((split.train.len(), split.held_out.len()), (24, 12));
    assert!(split.train.iter().all(|i| split.held_out.iter().all(|j| i % 12 != j % 12)));

    // Files by what is in them.
    let dir = tempfile::tempdir().unwrap();
    for (class, file, content) in [
        ("a", "1.png", "one"),
        ("a", "copy.png", "one"),
        ("a", "2.png", "two"),
        ("b", "3.png", "three"),
        ("b", "4.png", "four"),
    ] {
        std::fs::create_dir_all(dir.path().join(class)).unwrap();
        std::fs::write(dir.path().join(class).join(file), content).unwrap();
    }
    let d = load(dir.path(), &LoadOptions::default()).unwrap();
    let copies = |s: &&Sample| match &s.input {
        SampleInput::Image(path) => std::fs::read_to_string(path).unwrap() == "one",
        _ => false,
    };
    for seed in 0..8 {
        let split = d.hold_out(0.5, seed).unwrap();
        let held = split.held_out.iter().map(|&i| &d.samples[i]).filter(copies).count();
        assert!(held == 0 || held == 2, "{split:?}");
    }
}

#[test]
fn integer_labels_sort_by_number() {
    let text: String =
        [10, 9, -1, 2].iter().map(|l| format!("{{\"text\":\"x\",\"label\":{l}}}\n")).collect();
    let d = plain("a.jsonl", text).unwrap();
    assert_eq!(d.labels, ["-1", "2", "9", "10"]);
    assert_eq!(classes(&d), [3, 2, 0, 1]);
    let d = plain("a.csv", "text,label\nx,10\ny,9\nz,b\n").unwrap();
    assert_eq!(d.labels, ["10", "9", "b"]);
}

#[test]
fn fractions_and_lists_are_values() {
    let d =
        plain("a.jsonl", "{\"text\":\"x\",\"label\":1}\n{\"text\":\"y\",\"label\":0.5}").unwrap();
    assert_eq!(d.samples[0].label, Label::Values(vec![1.0]));
    assert_eq!((d.task.name(), d.labels.len()), ("numbers", 0));
    assert!(d.why.unwrap().contains("such as 0.5"));
    let d = plain("a.jsonl", "{\"text\":\"x\",\"label\":[1,2.5]}").unwrap();
    assert_eq!(d.label_width(), 2);
    let values = LoadOptions { task: Some(Task::parse("numbers").unwrap()), ..Default::default() };
    let d = read("a.csv", "text,label\nx, 3 \n", &values).unwrap();
    assert_eq!(d.samples[0].label, Label::Values(vec![3.0]));
    let words = LoadOptions { task: Some(Task::default()), ..Default::default() };
    let d = read("a.csv", "text,label\nx,1.5\ny,1.25\n", &words).unwrap();
    assert_eq!(d.labels, ["1.25", "1.5"]);

    // Whole numbers written with a point, as pandas writes classes beside a missing one.
    let floats = |labels: &[&str]| {
        let rows: String = labels.iter().map(|l| format!("x,{l}\n")).collect();
        plain("a.csv", format!("text,label\n{rows}")).unwrap()
    };
    let d = floats(&["0.0", "2.0", "1.0", "2.0", "0.0", "1", "2.0", "1.0"]);
    assert_eq!((d.task, &d.labels[..]), (Task::default(), &["0", "1", "2"].map(String::from)[..]));
    assert!(d.why.as_ref().unwrap().contains("--task numbers"), "{:?}", d.why);
    assert_eq!(classes(&d), [0, 2, 1, 2, 0, 1, 2, 1]);
    let d = floats(&["10.0", "20.0", "30.0"]);
    assert_eq!((d.task.name(), &d.samples[2].label), ("numbers", &Label::Values(vec![30.0])));

    assert!(error("a.csv", "text,label\nx,0.5\ny,nan\n").starts_with("a.csv:3: label 'nan'"));
    let e = error("a.jsonl", "{\"text\":\"x\",\"label\":[1]}\n{\"text\":\"x\",\"label\":[1,2]}");
    assert!(e.starts_with("a.jsonl:2: label has 2 numbers"), "{e}");
    assert!(
        error("a.jsonl", "{\"text\":\"x\",\"label\":[1e200]}").contains(":1: label is no list")
    );
    assert!(error("a.jsonl", "{\"text\":\"x\",\"label\":[]}").contains(":1: label is no list"));
    for (options, text, line) in
        [(&values, "text,label\nx,1\ny,inf\n", 3), (&values, "text,label\nx,\n", 2)]
    {
        let e = read("a.csv", text, options).unwrap_err();
        assert!(e.message().contains(&format!("a.csv:{line}: label")), "{e}");
    }
}

#[test]
fn the_line_that_is_no_json_is_named() {
    let good = "{\"text\":\"x\",\"label\":1}\n";
    let bad = |line: &str| error("a.jsonl", format!("{good}{line}\n{good}"));
    assert!(
        bad("{\"text\": \"x\", \"label\" 1}").starts_with("a.jsonl:2: not valid JSON at column ")
    );
    assert!(bad("hello").starts_with("a.jsonl:2: not valid JSON at column 1: expected value"));
    assert!(bad("{\"text\":\"x\"").contains("not valid JSON"));
    assert!(bad("[\"x\",null,1,null]").ends_with("expected a JSON object"));
    assert!(bad("{\"label\":1}").ends_with(":2: no field 'text', 'image' or 'audio'"));
    assert!(bad("{\"text\":\"x\"}").ends_with(":2: no field 'label'"));
    assert!(bad("{\"text\":\"x\",\"label\":null}").ends_with(":2: no field 'label'"));
    assert!(bad("{\"text\":5,\"label\":1}").ends_with(":2: field 'text' is no string"));
    assert!(bad("{\"text\":\" \",\"label\":1}").ends_with(":2: text is empty"));
    assert!(bad("{\"text\":\"x\",\"label\":\"\"}").ends_with(":2: label is empty"));
    assert!(bad("{\"text\":\"x\",\"label\":{}}").contains(":2: label is neither"));
    assert!(bad("{\"text\":\"x\",\"label\":[\"a\"]}").contains(":2: label is a list of something"));
    assert!(bad("{\"text\":\"x\",\"text\":\"y\",\"label\":1}").contains("duplicate field"));
    assert!(bad("{\"text\":\"x\",\"image\":\"y\",\"label\":1}").contains(":2: both fields"));
    assert!(
        bad("{\"image\":\"none.png\",\"label\":1}").ends_with(":2: no such picture 'none.png'")
    );
    let long = format!("{{\"text\":\"x\",\"label\":\"{}\"}}", "l".repeat(MAX_LABEL_BYTES + 1));
    assert!(bad(&long).contains(":2: label of 257 bytes"));
    let deep = format!("{{\"text\":\"x\",\"label\":{}", "[".repeat(100_000));
    assert!(bad(&deep).contains(":2: not valid JSON"));
    let e = error("a.jsonl", [good.as_bytes(), b"{\"text\":\"\xff\",\"label\":1}"].concat());
    assert!(e.starts_with("a.jsonl:2: not valid JSON"), "{e}");
    let e = error("a.jsonl", [0u8; 40]);
    assert!(e.starts_with("a.jsonl:1: not valid JSON"), "{e}");
}

#[test]
fn empty_and_unknown_files_are_refused() {
    for name in ["a.jsonl", "a.csv"] {
        assert!(error(name, "").ends_with("no samples"));
        assert!(error(name, "\n\n").ends_with("no samples"));
    }
    assert!(error("a.csv", "text,label\n").ends_with("no samples"));
    let e = plain("a.parquet", "x").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.hint_text().unwrap().contains(".jsonl"));
    let missing = load(Path::new("/nowhere/at/all.bin"), &LoadOptions::default()).unwrap_err();
    assert!(missing.message().starts_with("no such file"), "{missing}");
    let missing = load(Path::new("/nowhere/at/all.csv"), &LoadOptions::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::BadInput);
}

#[test]
fn long_lines_and_large_files_are_refused() {
    let long = format!("{{\"text\":\"{}\",\"label\":1}}", "x".repeat(MAX_LINE_BYTES));
    assert!(error("a.jsonl", format!("\n{long}")).starts_with("a.jsonl:2: line is longer"));
    let quote = format!("text,label\nx,1\n\"{}", "x\n".repeat(MAX_LINE_BYTES));
    let e = error("a.csv", quote);
    assert!(e.starts_with("a.csv:3: record is longer"), "{e}");
    for name in ["a.jsonl", "a.csv", "a.npz"] {
        let (_dir, path) = at(name, "");
        // Sparse: takes no space.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        let e = load(&path, &LoadOptions::default()).unwrap_err();
        assert!(e.message().contains("at most"), "{e}");
    }
}

#[test]
fn csv_columns_come_in_any_order_with_quotes() {
    let text = "\u{feff}id,label,text\n1,pos,\"a, \"\"b\"\"\nc\"\n2, neg ,d\n";
    let d = plain("a.csv", text).unwrap();
    assert_eq!(d.labels, ["neg", "pos"]);
    assert_eq!(d.samples[0].input, SampleInput::Text("a, \"b\"\nc".into()));
    assert!(d.samples[1].place.to_string().ends_with("a.csv:4"), "{}", d.samples[1].place);
}

#[test]
fn csv_faults_are_named() {
    let bad = |content: &str| error("a.csv", content);
    assert_eq!(
        bad("a,label\nx,1\n"),
        "a.csv:1: no column 'text', 'image' or 'audio', found 'a', 'label'"
    );
    assert_eq!(bad("text,b\nx,1\n"), "a.csv:1: no column 'label', found 'text', 'b'");
    assert_eq!(bad("text,label,label\nx,1,1\n"), "a.csv:1: two columns 'label'");
    assert_eq!(bad("text,label\nx,1\ny\n"), "a.csv:3: expected 2 fields, found 1");
    assert_eq!(bad("text,label\nx,1\ny,1,2\n"), "a.csv:3: expected 2 fields, found 3");
    assert_eq!(bad("text,label\nx,1\n,1\n"), "a.csv:3: text is empty");
    assert_eq!(bad("text,label\nx,1\ny, \n"), "a.csv:3: label is empty");
    assert_eq!(bad("image,label\nno.png,1\n"), "a.csv:2: no such picture 'no.png'");
    let e = error("a.csv", b"text,label\nx,1\n\xff,1\n");
    assert_eq!(e, "a.csv:3: field 1 is not UTF-8 text");
    let e = error("a.csv", b"text,\xff\nx,1\n");
    assert_eq!(e, "a.csv:1: field 2 is not UTF-8 text");
}

#[test]
fn a_given_list_of_labels_fixes_their_order() {
    let options = |labels: &[&str]| LoadOptions {
        labels: Some(labels.iter().map(|l| l.to_string()).collect()),
        ..Default::default()
    };
    let text = "{\"text\":\"x\",\"label\":\"b\"}\n{\"text\":\"y\",\"label\":\"c\"}\n";
    let d = read("a.jsonl", text, &options(&["c", "a", "b"])).unwrap();
    assert_eq!(d.labels, ["c", "a", "b"]);
    assert_eq!(classes(&d), [2, 0]);
    let e = read("a.jsonl", text, &options(&["a", "b"])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Mismatch);
    assert!(e.message().contains("a.jsonl:2: label 'c' is not one of the 2 known: a, b"), "{e}");
    let e = read("a.jsonl", text, &options(&["b", "c", "b"])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
    let e = read("a.jsonl", "{\"text\":\"x\",\"label\":[1]}", &options(&["b"])).unwrap_err();
    assert!(e.message().contains("expected a name"), "{e}");
}

#[test]
fn splits_choose_rows_and_keep_the_labels_of_all() {
    let text = "{\"text\":\"1\",\"label\":\"a\",\"split\":\"train\"}\n\
                {\"text\":\"2\",\"label\":\"b\",\"split\":\"test\"}\n\
                {\"text\":\"3\",\"label\":\"c\"}\n\
                {\"text\":\"4\",\"label\":\"c\",\"split\":\"odd\"}\n";
    let with = |split: Split| LoadOptions { split, ..Default::default() };
    let texts = |split: Split| {
        let d = read("a.jsonl", text, &with(split)).unwrap();
        assert_eq!(d.labels, ["a", "b", "c"]);
        let names: Vec<_> = d.splits.iter().map(String::as_str).collect();
        assert_eq!(names, ["odd", "test", "train"]);
        let text = |s: &Sample| match &s.input {
            SampleInput::Text(t) => t.clone(),
            _ => String::new(),
        };
        d.samples.iter().map(text).collect::<Vec<_>>().concat()
    };
    assert_eq!(texts(Split::All), "1234");
    assert_eq!(texts(Split::Train), "13");
    assert_eq!(texts(Split::Test), "2");
    assert_eq!(texts(Split::Named("odd".into())), "4");
    let e = read("a.jsonl", text, &with(Split::Named("dev".into()))).unwrap_err();
    assert!(e.message().contains("no samples of split 'dev', found splits [odd, test, train]"));
    let csv = "text,label,split\nx,1,test\ny,2,\n";
    assert_eq!(read("a.csv", csv, &with(Split::Test)).unwrap().samples.len(), 1);
    assert_eq!(read("a.csv", csv, &with(Split::Train)).unwrap().samples.len(), 1);
    // The usual words of others.
    let csv = "text,label,split\nx,1,VAL\ny,2,dev\nz,1,Training\n";
    let d = read("a.csv", csv, &with(Split::Named("valid".into()))).unwrap();
    assert_eq!(d.splits.iter().collect::<Vec<_>>(), ["train", "validation"]);
    assert_eq!(
        (d.samples.len(), read("a.csv", csv, &with(Split::Train)).unwrap().samples.len()),
        (2, 1)
    );
    // A label outside the head counts only in the rows that are wanted.
    let options =
        LoadOptions { split: Split::Test, labels: Some(vec!["b".into()]), ..Default::default() };
    assert_eq!(classes(&read("a.jsonl", text, &options).unwrap()), [0]);
}

#[test]
fn pictures_are_found_beside_the_file_and_kinds_do_not_mix() {
    let (dir, path) = at("a.jsonl", "{\"image\":\"p/1.png\",\"label\":\"a\"}\n");
    std::fs::create_dir(dir.path().join("p")).unwrap();
    std::fs::write(dir.path().join("p/1.png"), "").unwrap();
    let d = load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(d.samples[0].input, SampleInput::Image(dir.path().join("p/1.png")));
    let mut file = std::fs::File::options().append(true).open(&path).unwrap();
    file.write_all(b"{\"text\":\"x\",\"label\":\"a\"}\n").unwrap();
    let e = load(&path, &LoadOptions::default()).unwrap_err();
    assert!(e.message().contains(":2: sample is text, those before are a picture"), "{e}");
}

fn tree(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    dir
}

#[test]
fn class_folders_become_labels() {
    let dir =
        tree(&["b/2.PNG", "b/1.jpg", "a/x.jpeg", "a/.hidden.png", "a/Thumbs.db", "notes.txt"]);
    let d = load(dir.path(), &LoadOptions::default()).unwrap();
    assert_eq!(d.labels, ["a", "b"]);
    assert_eq!(classes(&d), [0, 1, 1]);
    assert_eq!(d.samples[1].input, SampleInput::Image(dir.path().join("b/1.jpg")));
    assert!(d.samples[1].place.to_string().ends_with("b/1.jpg"));
    let dir = tree(&["1.5/a.png", "0.5/b.png"]);
    assert_eq!(load(dir.path(), &LoadOptions::default()).unwrap().labels, ["0.5", "1.5"]);
}

#[test]
fn train_and_test_folders_are_splits() {
    let dir = tree(&["train/a/1.png", "train/b/2.png", "test/a/3.png"]);
    let count = |split| {
        let options = LoadOptions { split, ..Default::default() };
        let d = load(dir.path(), &options).unwrap();
        assert_eq!(d.labels, ["a", "b"]);
        d.samples.len()
    };
    assert_eq!((count(Split::All), count(Split::Train), count(Split::Test)), (3, 2, 1));
    let dir = tree(&["train/a/1.png", "val/a/2.png", "val/b/3.png", "__MACOSX/train/._a"]);
    let options = LoadOptions { split: Split::Named("validation".into()), ..Default::default() };
    assert_eq!(load(dir.path(), &options).unwrap().samples.len(), 2);
    // Classes that happen to be called so.
    let dir = tree(&["train/1.png", "plane/2.png"]);
    assert_eq!(load(dir.path(), &LoadOptions::default()).unwrap().labels, ["plane", "train"]);
}

#[test]
fn odd_folders_are_refused() {
    for (files, expected) in [
        (&[][..], "no class folders"),
        (&["1.png"], "picture '1.png' is in no class folder"),
        (&["a/1.png", "b/notes.txt"], "b: class folder without a PNG, JPEG, WebP or GIF"),
        (&["a/b/1.png"], "a: folder 'b' within a class folder"),
        (&["a/1.heic"], "a/1.heic: picture is not PNG, JPEG, WebP or GIF"),
    ] {
        let dir = tree(files);
        let e = load(dir.path(), &LoadOptions::default()).unwrap_err();
        assert!(e.message().contains(expected), "{e}");
        assert_eq!(e.kind().exit_code(), 3);
    }
}

/// An uncompressed `.npz`.
pub(in crate::train) fn npz(arrays: &[(&str, Array)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(&crate::npy::to_bytes(array)).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn npz_arrays_are_cut_along_the_first_axis() {
    let x = Array::f32([3, 2, 1], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let mask = Array::i64([3], vec![7, 8, 9]).unwrap();
    let labels = Array::new([3], Data::U8(vec![5, 1, 5])).unwrap();
    let file = npz(&[("x", x.clone()), ("labels", labels), ("mask", mask)]);
    let d = plain("a.npz", file).unwrap();
    assert_eq!(d.labels, ["1", "5"]);
    assert_eq!(classes(&d), [1, 0, 1]);
    let expected = vec![
        ("x".to_string(), Array::f32([2, 1], vec![2.0, 3.0]).unwrap()),
        ("mask".to_string(), Array::i64([], vec![8]).unwrap()),
    ];
    assert_eq!(d.samples[1].input, SampleInput::Arrays(expected));

    let labels = Array::f32([3, 2], (0..6).map(|v| v as f32).collect()).unwrap();
    let d = plain("a.npz", npz(&[("x", x), ("labels", labels)])).unwrap();
    assert_eq!(d.samples[2].label, Label::Values(vec![4.0, 5.0]));
}

#[test]
fn npz_faults_are_named() {
    let x = || Array::f32([2, 2], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
    let labels = |n: usize| Array::i64([n], vec![0; n]).unwrap();
    let bad = |arrays: &[(&str, Array)]| error("a.npz", npz(arrays));
    assert_eq!(bad(&[("x", x()), ("y", labels(2))]), "a.npz: no array 'labels', found [x, y]");
    assert_eq!(bad(&[("labels", labels(2))]), "a.npz: no array but 'labels'");
    assert!(bad(&[("x", x()), ("labels", labels(3))]).contains("array 'x' of shape [2, 2]"));
    let nan = Array::f32([2, 2], vec![0.0, 1.0, f32::NAN, 3.0]).unwrap();
    assert!(bad(&[("x", nan), ("labels", labels(2))]).ends_with("not finite in sample 1"));
    let nan = Array::f32([2], vec![0.0, f32::INFINITY]).unwrap();
    assert!(bad(&[("x", x()), ("labels", nan)]).ends_with("label of sample 1 is inf"));
    let single = Array::i64([], vec![0]).unwrap();
    assert!(bad(&[("x", x()), ("labels", single)]).contains("single value"));
    let none = Array::f32([0, 2], vec![]).unwrap();
    assert!(bad(&[("x", none), ("labels", labels(0))]).ends_with("no samples"));
    let wide = Array::i64([2, 2], vec![0; 4]).unwrap();
    let e = plain("a.npz", npz(&[("x", x()), ("labels", wide)])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    let good = npz(&[("x", x()), ("labels", labels(2))]);
    for cut in [0, 10, good.len() / 2, good.len() - 1] {
        assert_eq!(plain("a.npz", &good[..cut]).unwrap_err().kind(), ErrorKind::BadInput);
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let jsonl =
        "{\"text\":\"on\",\"label\":1,\"split\":\"test\"}\n{\"text\":\"x\",\"label\":[1.5]}\n";
    let csv = "text,label,split\n\"a, b\",1,test\nc,0.5,train\n";
    let x = Array::f32([2], vec![0.0, 1.0]).unwrap();
    let npz = npz(&[("x", x), ("labels", Array::i64([2], vec![0, 1]).unwrap())]);
    for (name, good) in [("a.jsonl", jsonl.as_bytes()), ("a.csv", csv.as_bytes()), ("a.npz", &npz)]
    {
        let (_dir, path) = at(name, good);
        for i in 0..good.len() {
            for bit in [1, 0x20, 0x80] {
                let mut bytes = good.to_vec();
                bytes[i] ^= bit;
                std::fs::write(&path, bytes).unwrap();
                if let Ok(d) = load(&path, &LoadOptions::default()) {
                    assert!(!d.samples.is_empty());
                }
            }
        }
    }
}
