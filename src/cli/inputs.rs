//! A base's inputs from the command line: a sentence, a picture, a clip, or `.npy` files.

use crate::error::{Error, Result};
use crate::limits;
use crate::npy;
use crate::runtime::{Engine, Named, Preprocessor};
use std::ffi::OsString;
use std::path::PathBuf;

/// What goes into the base.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Source {
    /// A sentence
    #[arg(long, value_name = "SENTENCE")]
    text: Option<String>,
    /// A picture (PNG, JPEG, WebP or GIF)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// A sound (WAV of 8 to 48 kHz)
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// An input as an array; once for each input
    #[arg(long, value_name = "NAME=FILE.npy", value_parser = pair)]
    input: Vec<(String, PathBuf)>,
}

impl Source {
    /// Whether anything is given.
    pub fn is_given(&self) -> bool {
        let file = self.image.is_some() || self.audio.is_some();
        self.text.is_some() || file || !self.input.is_empty()
    }

    /// The sentence, if that is what is given.
    pub fn sentence(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The same on a command line.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let text = self.text.iter().map(|t| ("--text", OsString::from(t)));
        let image = self.image.iter().map(|f| ("--image", f.clone().into_os_string()));
        let audio = self.audio.iter().map(|f| ("--audio", f.clone().into_os_string()));
        let input = self.input.iter().map(|(name, file)| {
            let mut pair = OsString::from(format!("{name}="));
            pair.push(file);
            ("--input", pair)
        });
        // With '=', so that a value may begin with '-'.
        let one = |(flag, value): (&str, OsString)| {
            let mut word = OsString::from(format!("{flag}="));
            word.push(value);
            word
        };
        text.chain(image).chain(audio).chain(input).map(one).collect()
    }

    /// An error if nothing is given; for verbs that make nothing up, before they open anything.
    pub fn required(&self) -> Result<()> {
        match self.is_given() {
            true => Ok(()),
            false => Err(Error::usage("the base's inputs are missing")
                .hint("give --text, --image, --audio or --input NAME=FILE.npy")),
        }
    }

    /// The inputs by name.
    pub fn load(&self, engine: &Engine) -> Result<Named> {
        if let Some(sentence) = &self.text {
            if sentence.trim().is_empty() {
                return Err(Error::usage("the sentence is empty"));
            }
            return Preprocessor::new(engine).text(&[sentence]);
        }
        if let Some(picture) = &self.image {
            return Preprocessor::new(engine).images(&[picture]);
        }
        if let Some(clip) = &self.audio {
            let preprocessor = Preprocessor::new(engine);
            return preprocessor.stack(&[&preprocessor.audio(clip)?]);
        }
        let mut named = Named::new();
        for (name, path) in &self.input {
            if named.iter().any(|(n, _)| n == name) {
                return Err(Error::usage(format!("input '{name}' is given twice")));
            }
            named.push((name.clone(), npy::read(path, limits::ARRAYS)?));
        }
        Ok(named)
    }
}

fn pair(text: &str) -> Result<(String, PathBuf)> {
    // Names may hold '=' signs; for file names that do, there is the folder './'.
    match text.rsplit_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err(Error::usage("expected NAME=FILE.npy")),
    }
}
