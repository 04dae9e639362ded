//! Inputs that nothing is taught of, to see what an adapter leaves of the base's knowledge.

use super::scenes::scene;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::read_limited;
use crate::runtime::{Engine, Preprocessor, sentences};
use crate::train::data::{
    Dataset, Label, LoadOptions, MAX_FILE_BYTES, Place, Sample, SampleInput, StoredPicture,
    files_in, load,
};
use std::path::Path;

/// Made-up pictures.
const SCENES: u64 = 64;
/// Most of a user's inputs that are taken, spread over all.
const MOST: usize = 400;

/// Characters of texts that are joined, and how many of those there should be at least.
const STRETCH: usize = 500;
const FEWEST: usize = 16;

/// Inputs to measure on.
pub(crate) struct Probes {
    /// The inputs; their labels mean nothing.
    pub data: Dataset,
    /// Whether they are the user's own.
    pub own: bool,
    /// What they are, for people.
    pub what: String,
}

impl Probes {
    /// Texts that stand beside each other as one, for a language model: what it says next hangs on much of what
    /// stands before. Each has about `STRETCH` characters, fewer where there are few texts.
    pub fn joined(mut self) -> Probes {
        let length = |sample: &Sample| match &sample.input {
            SampleInput::Text(text) => text.len(),
            _ => 0,
        };
        let whole: usize = self.data.samples.iter().map(length).sum();
        let most = STRETCH.min(whole / FEWEST);
        let mut joined: Vec<Sample> = vec![];
        for sample in std::mem::take(&mut self.data.samples) {
            match (joined.last_mut().map(|last| &mut last.input), &sample.input) {
                (Some(SampleInput::Text(last)), SampleInput::Text(text))
                    if last.len() + text.len() < most =>
                {
                    last.push('\n');
                    last.push_str(text);
                }
                _ => joined.push(sample),
            }
        }
        self.what = format!("{} stretches of {}", joined.len(), self.what);
        self.data.samples = joined;
        self
    }
}

/// The sentences or pictures that ship with the program; `None` where the base takes neither.
///
/// # Errors
/// What preprocessing says, other than that the base doesn't take them.
pub(crate) fn shipped(engine: &Engine, max_tokens: Option<usize>) -> Result<Option<Probes>> {
    let preprocessor = Preprocessor::new(engine).with_max_tokens(max_tokens);
    let takes = |tried: Result<()>| match tried {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(false),
        other => other.map(|()| true),
    };
    let (inputs, what): (Vec<SampleInput>, _) =
        if takes(preprocessor.text(&["A sentence."]).map(drop))? {
            (sentences().map(|s| SampleInput::Text(s.into())).collect(), "sentences")
        } else if takes(scene(0).and_then(|png| preprocessor.image_bytes(&png).map(drop)))? {
            ((0..SCENES).map(picture).collect(), "made-up pictures")
        } else {
            return Ok(None);
        };
    let what = format!("{} {what} that ship with the program", inputs.len());
    Ok(Some(Probes { data: dataset(inputs, "probes"), own: false, what }))
}

fn picture(n: u64) -> SampleInput {
    let hash = *blake3::hash(format!("probe scene {n}").as_bytes()).as_bytes();
    SampleInput::Stored(StoredPicture::new(hash, move || scene(n)))
}

/// The user's own: sentences one a line (`.txt`), a folder of pictures or sound, or a data file, whose labels
/// don't matter.
///
/// # Errors
/// As [`load`]; fewer than two inputs (bad input).
pub(crate) fn of(path: &Path) -> Result<Probes> {
    let is_text = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
    let files = if path.is_dir() { files_in(path)? } else { vec![] };
    let inputs: Vec<SampleInput> = if is_text {
        let bytes = read_limited(path, MAX_FILE_BYTES)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::bad_input("it is not UTF-8 text").at(path.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| SampleInput::Text(line.into())).collect()
    } else if !files.is_empty() {
        files
    } else {
        load(path, &LoadOptions::default())?.samples.into_iter().map(|s| s.input).collect()
    };
    if inputs.len() < 2 {
        return Err(Error::bad_input("two inputs are needed to compare").at(path.display()));
    }
    let step = inputs.len().div_ceil(MOST);
    let inputs: Vec<SampleInput> = inputs.into_iter().step_by(step).collect();
    let what = format!("inputs of '{}'", path.display());
    Ok(Probes { data: dataset(inputs, &path.display().to_string()), own: true, what })
}

fn dataset(inputs: Vec<SampleInput>, place: &str) -> Dataset {
    let sample =
        |input| Sample { input, label: Label::Class(0), place: Place::named(place.to_string()) };
    Dataset {
        samples: inputs.into_iter().map(sample).collect(),
        labels: vec![String::new()],
        splits: Default::default(),
        task: Default::default(),
        why: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_probes_are_lines_rows_or_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a.txt"), "one sentence\n\n another \nand a third\n").unwrap();
        let found = of(&path("a.txt")).unwrap();
        assert_eq!(found.data.samples.len(), 3);
        assert_eq!(found.data.samples[1].input, SampleInput::Text("another".into()));
        std::fs::write(path("b.jsonl"), "{\"text\":\"a\",\"label\":\"x\"}\n").unwrap();
        assert_eq!(of(&path("b.jsonl")).err().unwrap().kind(), ErrorKind::BadInput);
        std::fs::create_dir(path("pictures")).unwrap();
        for n in 0..2 {
            std::fs::write(path("pictures").join(format!("{n}.png")), scene(n).unwrap()).unwrap();
        }
        assert_eq!(of(&path("pictures")).unwrap().data.samples.len(), 2);
        let many: String = (0..900).map(|n| format!("sentence {n}\n")).collect();
        std::fs::write(path("many.txt"), many).unwrap();
        assert_eq!(of(&path("many.txt")).unwrap().data.samples.len(), 300);
        assert!(of(&path("none.txt")).is_err());
        let joined = of(&path("many.txt")).unwrap().joined();
        let texts = joined.data.samples.iter().map(|sample| match &sample.input {
            SampleInput::Text(text) => text.as_str(),
            other => panic!("{other:?}"),
        });
        let texts: Vec<&str> = texts.collect();
        assert!((16..30).contains(&texts.len()), "{}", texts.len());
        assert!(texts[0].starts_with("sentence 0\nsentence 3\n"), "{}", texts[0]);
        let count: usize = texts.iter().map(|text| text.lines().count()).sum();
        assert!(count == 300 && texts.iter().all(|text| text.len() < 500));
        assert!(joined.what.contains(" stretches of inputs of '"), "{}", joined.what);
        // Of few texts each stays.
        assert_eq!(of(&path("a.txt")).unwrap().joined().data.samples.len(), 3);
    }
}
