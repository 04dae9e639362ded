//! A folder of class folders of pictures or of sound, or of `train`, `validation` and `test` folders of those.

use super::collect::Collector;
use super::{MAX_SAMPLES, Place, Row, SampleInput, canonical_split};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

const READ: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];
const SOUND: [&str; 1] = ["wav"];
const SPLITS: [&str; 3] = ["train", "validation", "test"];
const NOT_READ: [&str; 7] = ["bmp", "tif", "tiff", "heic", "heif", "avif", "jxl"];
const NOT_HEARD: [&str; 7] = ["mp3", "flac", "ogg", "opus", "m4a", "aac", "aiff"];

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    collector.prefer_classes();
    let (folders, files) = list(path)?;
    if let Some(file) = files.iter().find(|f| has_ending(f, &READ) || has_ending(f, &SOUND)) {
        let what = if has_ending(file, &READ) { "picture" } else { "sound" };
        let error = format!("{what} '{file}' is in no class folder");
        return Err(Error::bad_input(error).at(path.display()));
    }
    if folders.is_empty() {
        let error = "no class folders of pictures or sound";
        return Err(Error::bad_input(error).at(path.display()));
    }
    let is_split = |f: &String| SPLITS.contains(&canonical_split(f));
    let has_train = folders.iter().any(|f| canonical_split(f) == "train");
    if !has_train || !folders.iter().all(is_split) {
        return classes(path, &folders, None, collector);
    }
    for split in &folders {
        let folder = path.join(split);
        let (classes_of_split, _) = list(&folder)?;
        if classes_of_split.is_empty() {
            let error = "no class folders of pictures or sound";
            return Err(Error::bad_input(error).at(folder.display()));
        }
        classes(&folder, &classes_of_split, Some(split), collector)?;
    }
    Ok(())
}

fn classes(
    path: &Path,
    folders: &[String],
    split: Option<&str>,
    collector: &mut Collector,
) -> Result<()> {
    for class in folders {
        let mut fields = serde_json::Map::new();
        fields.insert("label".into(), class.as_str().into());
        let folder = path.join(class);
        let (inner, files) = list(&folder)?;
        if let Some(inner) = inner.first() {
            let error = format!("folder '{inner}' within a class folder");
            return Err(Error::bad_input(error).at(folder.display()).hint(
                "the layout is CLASS/*.png, or train/CLASS, validation/CLASS and test/CLASS",
            ));
        }
        let mut found = false;
        for file in files {
            let picture = folder.join(&file);
            let place = Place::new(&picture.display().to_string().into(), 0);
            if has_ending(&file, &NOT_READ) {
                let error = "picture is not PNG, JPEG, WebP or GIF";
                return Err(Error::unsupported(error).at(place));
            }
            if has_ending(&file, &NOT_HEARD) {
                let error = Error::unsupported("sound is not WAV").at(place);
                return Err(error.hint("ffmpeg -i FILE -ar 16000 -ac 1 FILE.wav makes it one"));
            }
            let input = match (has_ending(&file, &READ), has_ending(&file, &SOUND)) {
                (true, _) => SampleInput::Image(picture),
                (_, true) => SampleInput::Audio(picture),
                _ => continue,
            };
            found = true;
            collector.add(input, Row::untyped(&fields), split, place)?;
        }
        if !found {
            let error = "class folder without a PNG, JPEG, WebP or GIF picture or WAV sound";
            return Err(Error::bad_input(error).at(folder.display()));
        }
    }
    Ok(())
}

/// The pictures or sounds that stand in a folder itself, sorted by name.
///
/// # Errors
/// A folder that can't be read.
pub(crate) fn files_in(path: &Path) -> Result<Vec<SampleInput>> {
    let (_, files) = list(path)?;
    let pictures = files.iter().filter(|f| has_ending(f, &READ));
    let sounds = files.iter().filter(|f| has_ending(f, &SOUND));
    let pictures = pictures.map(|f| SampleInput::Image(path.join(f)));
    Ok(pictures.chain(sounds.map(|f| SampleInput::Audio(path.join(f)))).collect())
}

fn has_ending(name: &str, endings: &[&str]) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    endings.iter().any(|e| ending.eq_ignore_ascii_case(e))
}

/// Names of the folders and of the regular files, sorted. What is hidden is left out, and `__MACOSX`,
/// which a Mac puts beside everything that it packs.
fn list(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        let name = entry.file_name().into_string().map_err(|name| {
            let error = format!("name '{}' is not UTF-8", PathBuf::from(name).display());
            Error::bad_input(error).at(path.display())
        })?;
        if name.starts_with('.') || name == "__MACOSX" {
            continue;
        }
        let full = entry.path();
        if full.is_dir() {
            folders.push(name);
        } else if full.is_file() {
            files.push(name);
        }
        if files.len() > MAX_SAMPLES || folders.len() > MAX_SAMPLES {
            return Err(
                Error::bad_input(format!("more than {MAX_SAMPLES} files")).at(path.display())
            );
        }
    }
    folders.sort_unstable();
    files.sort_unstable();
    Ok((folders, files))
}
