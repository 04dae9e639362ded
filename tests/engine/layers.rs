//! The sources hold to the layers: a module imports only from lower ones or its own folder, tract
//! and `unsafe` stay where they are allowed, files stay short.

use std::path::{Path, PathBuf};

/// Lowest first. The modules of layer 0 are single files that may use each other.
const LAYERS: &[&[&str]] = &[
    &["caught", "error", "shape", "fingerprint", "fs", "host", "limits", "npy", "plot"],
    &["quant", "adapter"],
    &["pack", "import"],
    &["graph"],
    &["runtime"],
    &["train"],
    &["store", "daemon", "bench", "compare"],
    &["cli"],
];

/// `tests/common`: a module of the library only where that is built for its tests.
const FOR_TESTS: &str = "common";

/// Who may use whom within a layer: never the other way round.
const WITHIN: &[(&str, &str)] = &[("adapter", "quant"), ("daemon", "store")];

/// Where tract's types may appear.
const TRACT: &[&str] = &["import", "graph", "runtime", "train"];

/// Where `unsafe` may stand: path prefixes below `src`.
const UNSAFE: &[&str] = &["quant/kernels", "pack/mapping"];

const MAX_LINES: usize = 500;

struct Source {
    /// Below `src`, with `/`.
    path: String,
    /// Without comments and the contents of string literals.
    code: String,
    lines: usize,
}

impl Source {
    /// The first folder, or the file's stem: the module that the layers speak of.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let parts = path.strip_prefix(&root).unwrap().iter();
                let parts: Vec<_> = parts.map(|p| p.to_str().unwrap()).collect();
                let lines = text.lines().count();
                found.push(Source { path: parts.join("/"), code: code_only(&text), lines });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "only {} sources found", found.len());
    found
}

/// Drops comments, string contents and character literals; newlines stay.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if raw_string(&code, rest).is_some() {
            raw_string(&code, rest).unwrap_or(1)
        } else if c == '"' {
            quoted(rest)
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        if skip == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.push(' ');
            rest = &rest[skip..];
        }
    }
    code
}

/// Length of the string literal that `text` starts with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the raw string literal that `text` starts with, if it does.
fn raw_string(before: &str, text: &str) -> Option<usize> {
    let inside_word = before.chars().last().is_some_and(|c| c.is_alphanumeric() || c == '_');
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'));
    let after = after.filter(|_| !inside_word || before.ends_with('b'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - after.len() + hashes + 1;
    Some(text[start..].find(&close).map_or(text.len(), |at| start + at + close.len()))
}

/// Length of the character literal that `text` starts with; 0 where it is a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3.min(text.len())..].find('\'').map_or(0, |at| at + 4),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Whether `word` stands in `code` as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == word)
}

/// The crate's modules that `code` names: `crate::X`, and each first name of `crate::{X, Y::Z}`.
fn imports(code: &str) -> Vec<String> {
    let mut found = vec![];
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let name = |text: &str| -> String {
            text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.push(name(&group[start..i]));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn allowed(user: &str, used: &str) -> bool {
    let (Some(own), Some(other)) = (layer(user), layer(used)) else { return false };
    user == used || other < own || own + other == 0 || WITHIN.contains(&(user, used))
}

#[test]
fn modules_import_from_below() {
    let mut wrong = vec![];
    let mut seen = 0;
    for source in sources() {
        let module = source.module();
        if matches!(module, "lib" | "main" | "testing") {
            continue;
        }
        if layer(module).is_none() {
            wrong.push(format!("{}: '{module}' is in no layer", source.path));
            continue;
        }
        for used in imports(&source.code) {
            seen += 1;
            if used != FOR_TESTS && !allowed(module, &used) {
                wrong.push(format!("{}: '{module}' uses '{used}'", source.path));
            }
        }
    }
    assert!(seen > 50, "only {seen} imports found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tract_stays_in_its_layers() {
    for source in sources().iter().filter(|s| !TRACT.contains(&s.module())) {
        for name in ["tract_core", "tract_onnx", "tract_nnef", "TractError", "TypedModel"] {
            assert!(!has_word(&source.code, name), "{} names {name}", source.path);
        }
    }
}

#[test]
fn unsafe_stays_on_its_islands() {
    let (allowed, other): (Vec<_>, Vec<_>) =
        sources().into_iter().partition(|s| UNSAFE.iter().any(|p| s.path.starts_with(p)));
    for source in &other {
        assert!(!has_word(&source.code, "unsafe"), "{} has unsafe code", source.path);
    }
    assert!(allowed.iter().any(|s| has_word(&s.code, "unsafe")));
}

#[test]
fn files_stay_short() {
    for source in sources() {
        assert!(
            source.lines <= MAX_LINES,
            "{} has {} lines, at most {MAX_LINES}",
            source.path,
            source.lines
        );
    }
}

/// What reads bytes from outside. Released programs don't look for sums that overflow; there clippy does.
const PARSERS: &[&str] = &[
    "adapter/blocks.rs",
    "adapter/file.rs",
    "adapter/peft/config.rs",
    "adapter/peft/head.rs",
    "adapter/peft/json.rs",
    "adapter/peft/matching.rs",
    "adapter/peft/tensors.rs",
    "adapter/tensor.rs",
    "daemon/serve/ask.rs",
    "daemon/serve/mqtt/topics.rs",
    "daemon/serve/wyoming/event.rs",
    "graph/nnef/guard.rs",
    "graph/nnef/parse.rs",
    "host/elf.rs",
    "import/names.rs",
    "import/tensor.rs",
    "import/validate.rs",
    "npy.rs",
    "pack/base.rs",
    "pack/header.rs",
    "pack/preprocess.rs",
    "pack/record.rs",
    "runtime/audio/wav.rs",
    "runtime/generate/chat/cut.rs",
    "runtime/generate/chat/parse.rs",
    "runtime/generate/chat/render.rs",
    "runtime/generate/chat/value.rs",
    "runtime/tokenizer_limits.rs",
    "store/log.rs",
    "store/witness.rs",
    "train/checkpoint.rs",
];

#[test]
fn sums_in_parsers_are_checked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for parser in PARSERS {
        let text = std::fs::read_to_string(root.join(parser)).unwrap();
        let asked = text.contains("#![warn(clippy::arithmetic_side_effects)]");
        assert!(asked, "{parser} doesn't ask for clippy::arithmetic_side_effects");
    }
}

/// Where a task is named, but for its own file and the list of all. Of the others none can tell one task
/// from another: their types are private to `train/tasks`.
const NAME_TASKS: &[&str] =
    &["adapter/config.rs", "adapter/peft/export.rs", "cli/train.rs", "train/tasks/"];

#[test]
fn tasks_are_told_apart_in_their_own_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names: Vec<String> = std::fs::read_dir(root.join("train/tasks"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
        .filter(|stem| !["mod", "rules", "answer"].contains(&stem.as_str()))
        .collect();
    assert!(names.len() >= 2, "{names:?}");
    let mut seen = 0;
    for source in sources() {
        let text = std::fs::read_to_string(root.join(&source.path)).unwrap();
        let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
        let named = |line: &str, name: &String| {
            line.contains(&format!("\"{name}\"")) && line.to_lowercase().contains("task")
        };
        for line in text[..tests].lines().filter(|line| !line.trim_start().starts_with("//")) {
            let Some(name) = names.iter().find(|name| named(line, name)) else { continue };
            seen += 1;
            let of_tests = source.path.ends_with("tests.rs") || source.path.ends_with("testing.rs");
            let allowed = of_tests || NAME_TASKS.iter().any(|place| source.path.starts_with(place));
            assert!(allowed, "{} names the task '{name}': {line}", source.path);
        }
    }
    assert!(seen > 0, "no task is named anywhere");
}

#[test]
fn the_reader_of_sources_sees_what_counts() {
    let text = "use crate::{quant::{A, B}, error, r#fs::C};\n// unsafe crate::cli\n\
        let a = \"unsafe \\\" crate::cli\"; let b = '\"'; fn f<'a>() {} let c = r#\"crate::x \" \"#;\n\
        $crate::y; unsafe { crate::pack::Z }";
    let code = code_only(text);
    assert_eq!(imports(&code)[..2], ["quant", "error"]);
    assert_eq!(imports(&code).last().unwrap(), "pack");
    assert!(!imports(&code).iter().any(|i| ["cli", "x", "y"].contains(&i.as_str())));
    assert_eq!(code.matches("unsafe").count(), 1);
    assert!(allowed("train", "graph") && allowed("adapter", "quant") && allowed("npy", "fs"));
    assert!(
        !allowed("quant", "adapter") && !allowed("graph", "runtime") && !allowed("pack", "import")
    );
    assert!(!allowed("graph", "nowhere"));
}

/// Where kinds of adapters may be known by their names; a new kind is a file in each of the two
/// folders and a line in each of their tables.
const KNOW_KINDS: &[&str] = &["adapter/kind/", "train/kind/"];

/// What a bound change is made of, which has the name of a kind.
const CHANGES: &[(&str, &str)] = &[
    ("quant/change.rs", "bottleneck"),
    ("quant/mod.rs", "bottleneck"),
    ("adapter/sum.rs", "bottleneck"),
];

/// The words of a source, comments apart, in lower case.
fn words(text: &str) -> std::collections::HashSet<String> {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let split = |c: char| !c.is_alphanumeric() && c != '_';
    code.split(split).map(str::to_lowercase).collect()
}

#[test]
fn kinds_are_known_by_name_in_few_places() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // `lora` is also the name of the layers' low-rank tensors, `full` and `bias` are plain words.
    let plain = ["lora", "full", "bias"];
    let names: Vec<&str> = offshoot::adapters::Kind::all()
        .map(offshoot::adapters::Kind::name)
        .filter(|name| !plain.contains(name))
        .collect();
    assert!(names.len() > 1, "{names:?}");
    for source in sources() {
        let known = KNOW_KINDS.iter().any(|place| source.path.starts_with(place));
        if known || source.path.ends_with("tests.rs") {
            continue;
        }
        let found = words(&std::fs::read_to_string(root.join(&source.path)).unwrap());
        for name in &names {
            let change = CHANGES.contains(&(source.path.as_str(), name));
            assert!(change || !found.contains(*name), "{} knows the kind '{name}'", source.path);
        }
    }
}
