//! Running the program and making its inputs.

use crate::common::emulated;
use offshoot::Array;
use offshoot::testing::npy;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest a command may take. An emulated processor is some twenty times slower.
pub fn patience() -> Duration {
    Duration::from_secs(if emulated() { 1200 } else { 60 })
}

/// The repository's file.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A folder to work in, with a store of its own.
pub struct Place(tempfile::TempDir);

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, to be run here.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(arguments).current_dir(self.0.path());
        command.env("OFFSHOOT_STORE", self.path("store")).stdin(Stdio::null());
        if emulated() {
            command.env("OFFSHOOT_IMPORT_SECONDS", "600");
        }
        command
    }

    /// Runs a command line given as words, `{models}` standing for the tiny models' folder.
    pub fn run(&self, line: &str) -> Done {
        let models = repo("models/tiny").display().to_string();
        let words: Vec<String> =
            line.split_whitespace().map(|w| w.replace("{models}", &models)).collect();
        self.run_words(&words)
    }

    pub fn run_words<S: AsRef<OsStr>>(&self, words: &[S]) -> Done {
        done(self.command(words))
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, line: &str) -> String {
        let done = self.run(line);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{line}: {done:?}");
        done.stdout
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// Runs a command that must fail with `code` and one line.
    pub fn fails(&self, line: &str, code: i32) -> String {
        let done = self.run(line);
        done.failed(code, line);
        done.stderr
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Names in a folder here, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Done {
    /// Asserts a failure as the user is to see it: the code, and one line on stderr.
    pub fn failed(&self, code: i32, what: &str) {
        assert_eq!(self.code, code, "{what}: {self:?}");
        assert!(self.stderr.starts_with("offshoot: "), "{what}: {self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{what}: {self:?}");
        assert!(!self.stderr.contains("internal error"), "{what}: {self:?}");
    }
}

/// Runs a command to its end; a signal or too much time is a failure of the test.
pub fn done(mut command: Command) -> Done {
    let start = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let done =
        Done { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) };
    assert!(status.code().is_some(), "{command:?} ended by {status}: {done:?}");
    assert!(start.elapsed() < patience(), "{command:?} took {:?}", start.elapsed());
    done
}

/// A `.npz` file of these arrays.
pub fn npz(path: &Path, arrays: &[(&str, Array)]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, array) in arrays {
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        zip.start_file(format!("{name}.npy"), stored).unwrap();
        zip.write_all(&npy::to_bytes(array)).unwrap();
    }
    zip.finish().unwrap();
}

/// `mlp.base`, and `two.npz` with 60 samples of two classes that are easy to tell apart.
pub fn learnable(place: &Place) {
    place.ok("pack {models}/mlp.onnx -o mlp.base");
    let (mut x, mut labels) = (vec![], vec![]);
    let mut state = 7u32;
    for i in 0..60 {
        let class = i % 2;
        for column in 0..12 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            x.push(noise + if column % 2 == class { 1.0 } else { -1.0 });
        }
        labels.push(class as i64);
    }
    let x = Array::f32(vec![60, 12], x).unwrap();
    npz(&place.path("two.npz"), &[("x", x), ("labels", Array::i64(vec![60], labels).unwrap())]);
}
