//! Files and bodies that did harm (`../shared/hostile`): an error or an answer, in ten seconds of a
//! processor and half a gigabyte.

use crate::common::{emulated, shared};
use crate::mend;
use crate::support::{Place, repo};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most processor seconds, most MB of memory of their own, of a process and its children.
const SECONDS: f64 = 10.0;
const MEGABYTES: u64 = 512;
/// Longest wait, with other tests beside it.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a command took.
struct Took {
    code: Option<i32>,
    seconds: f64,
    megabytes: u64,
    stderr: String,
}

/// The processes of a tree.
fn tree(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|n| n.parse().ok());
    std::iter::once(pid).chain(children.flat_map(tree)).collect()
}

/// Processor seconds so far, reaped children included, and memory of its own now.
fn look(pid: u32) -> Option<(f64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|n| n.parse::<u64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kb = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Some((ticks as f64 / 100.0, kb.unwrap_or(0) >> 10))
}

fn took(mut command: Command) -> Took {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let (mut seconds, mut megabytes) = (0f64, 0);
    let start = Instant::now();
    let status = loop {
        let seen: Vec<(f64, u64)> = tree(child.id()).into_iter().filter_map(look).collect();
        seconds = seconds.max(seen.iter().map(|(s, _)| s).sum());
        megabytes = megabytes.max(seen.iter().map(|(_, mb)| mb).sum());
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > PATIENCE || megabytes > 4 * MEGABYTES {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Took { code: status, seconds, megabytes, stderr }
}

fn judge(name: &str, took: &Took, faults: &mut Vec<String>) {
    let Took { code, seconds, megabytes, stderr } = took;
    let said = stderr.lines().count() == 1 || *code == Some(0);
    let fine = matches!(code, Some(0..=6)) && said && !stderr.contains("internal error");
    if !fine || *seconds > SECONDS || *megabytes > MEGABYTES {
        faults.push(format!("{name}: {code:?}, {seconds} s, {megabytes} MB: {stderr}"));
    }
}

#[test]
fn nothing_that_did_harm_does_it_again() {
    let Some(shared) = shared().filter(|_| !emulated()) else { return };
    let folder = shared.join("hostile");
    if !folder.is_dir() {
        assert!(std::env::var_os("OFFSHOOT_NEEDS_SHARED").is_none(), "../shared/hostile is absent");
        eprintln!("skipped: ../shared/hostile is absent");
        return;
    }
    let place = Place::new();
    std::fs::copy(repo("models/tiny/attention.onnx"), place.path("model.onnx")).unwrap();
    place.ok("pack {models}/convnet.onnx -o picture.base --image 32");
    let mut faults = vec![];
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let name = name.into_string().unwrap();
        let file = unpacked(&place, &folder, &name);
        let file = file.to_str().unwrap();
        // The longest text of a request, as bad for patterns and normalizers as can be.
        let long = "a".repeat(100_000);
        let packed: &[&str] = &["pack", file, "-o", "out.base"];
        let with_tokenizer: &[&str] =
            &["pack", "model.onnx", "-o", "out.base", "--tokenizer", file];
        // On made-up inputs.
        let tried: &[&str] = &["bench", "out.base", "--steps", "0", "--seconds", "0.01"];
        let asked: &[&str] = &["run", file, "--text", &long];
        let inspected: &[&str] = &["inspect", file];
        let seen: &[&str] = &["run", "picture.base", "--image", file];
        let commands: Vec<&[&str]> = match () {
            () if name.contains(".onnx") => vec![packed, tried],
            () if name.contains(".base") => vec![asked, inspected],
            () if name.contains(".tokenizer.json") => vec![with_tokenizer],
            () if name.ends_with(".png") => vec![seen],
            // Bodies: tests/serve/heavy.rs. A damaged state: src/store/damage_tests.rs.
            () => continue,
        };
        let _ = std::fs::remove_file(place.path("out.base"));
        for words in commands {
            // What a run may take is what is left of its address space.
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"]);
            let offshoot = place.command(words);
            command.arg(offshoot.get_program()).args(offshoot.get_args());
            command.current_dir(place.path("."));
            judge(&format!("{} {name}", words[0]), &took(command), &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The bases in `../shared/hostile` are of format version 1, which is refused before anything is read of them: what
/// they did harm with, tokenizers, comes in bases of today.
#[test]
fn tokenizers_that_did_harm_do_none_within_a_base() {
    let Some(shared) = shared().filter(|_| !emulated()) else { return };
    let place = Place::new();
    let tiny = repo("models/tiny-lm").display().to_string();
    place.ok(&format!("pack {tiny}/model.onnx -o lm.base --tokenizer {tiny}/tokenizer.json"));
    let whole = mend::pieces(&std::fs::read(place.path("lm.base")).unwrap());
    let own = std::fs::read(repo("models/tiny-lm/tokenizer.json")).unwrap();
    let long = "a".repeat(100_000);
    let (mut faults, mut tried) = (vec![], 0);
    for entry in std::fs::read_dir(shared.join("hostile")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.contains(".tokenizer.json") && !name.contains(".base") {
            continue;
        }
        let bytes = std::fs::read(unpacked(&place, &shared.join("hostile"), &name)).unwrap();
        let found = if name.contains(".base") { tokenizer_in(&bytes) } else { Some(bytes) };
        let Some(hostile) = found else { continue };
        let mut pieces = mend::parts(&whole);
        let at = pieces.iter().position(|piece| *piece == own).unwrap();
        pieces[at] = &hostile;
        mend::base(&mend::joined(&pieces), &place.path("hostile.base")).unwrap();
        for words in
            [["run", "hostile.base", "--text", &long], ["run", "hostile.base", "--text", "so 5"]]
        {
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"]);
            let offshoot = place.command(&words);
            command.arg(offshoot.get_program()).args(offshoot.get_args());
            command.current_dir(place.path("."));
            let took = took(command);
            // The tokenizer was read: nothing else is wrong with the base.
            assert!(
                !took.stderr.contains("hash") && !took.stderr.contains("version"),
                "{}",
                took.stderr
            );
            judge(&name, &took, &mut faults);
            tried += 1;
        }
    }
    assert!(tried >= 16, "{tried}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A tokenizer that stands as JSON in a file, or what begins as one.
fn tokenizer_in(bytes: &[u8]) -> Option<Vec<u8>> {
    let begin = b"{\"version\"";
    let start = bytes.windows(begin.len()).position(|w| w == begin)?;
    let mut values =
        serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<serde_json::Value>();
    let len = match values.next() {
        Some(Ok(_)) => values.byte_offset(),
        _ => bytes[start..].iter().rposition(|b| *b != 0)? + 1,
    };
    Some(bytes[start..start + len].to_vec())
}

/// The file as it is used.
fn unpacked(place: &Place, folder: &Path, name: &str) -> std::path::PathBuf {
    let Some(plain) = name.strip_suffix(".gz") else { return folder.join(name) };
    let to = place.path(plain);
    let out = std::fs::File::create(&to).unwrap();
    let status = Command::new("gzip").arg("-dc").arg(folder.join(name)).stdout(out).status();
    assert!(status.unwrap().success(), "{name}");
    to
}
