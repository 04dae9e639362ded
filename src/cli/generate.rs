//! `offshoot generate`.

use super::chat::messages;
use super::chosen::{self, Choice};
use super::open_engine;
use super::output::{Out, shown};
use super::train::at_least_one;
use crate::error::{Error, Result};
use crate::fs::{peak_rss_bytes, unshared_bytes};
use crate::limits;
use crate::npy;
use crate::runtime::{GenerateOptions, Generated, Generator, Named, Preprocessor, Sampling};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// `offshoot generate`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// The text to go on from; behind an encoder what the decoder begins with
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["ids", "chat"])]
    prompt: Option<String>,
    /// A conversation to answer, by the base's chat template: JSON, a list of {role, content}
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    chat: Option<PathBuf>,
    /// The same as token numbers, with commas between them
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    ids: Vec<u32>,
    /// An encoder's input: NAME=FILE.npy, or all of them in FILE.npz
    #[arg(long, value_name = "[NAME=]FILE")]
    input: Vec<String>,
    /// A sound (WAV) for the encoder, where the base was packed with its front end
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    audio: Option<PathBuf>,
    /// An adapter: its name in the store, NAME@GENERATION, or a file; several are summed
    #[arg(long = "adapter", value_name = "NAME|FILE[:WEIGHT]", value_parser = Choice::parse)]
    adapters: Vec<Choice>,
    /// At most so many new tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// How freely tokens are chosen; 0 takes the likeliest, always
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K likeliest tokens (0: all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the fewest tokens that hold this share of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Above 1 tokens that are there already become less likely
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// A text that ends the answer and is no part of it; once for each
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    threads: usize,
}

/// Generates text; on stdout as it comes.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let engine = open_engine(&args.base)?.with_threads(args.threads)?;
    let generator = Generator::new(&engine)?;
    let adapter = chosen::bind(&engine, &args.adapters)?;
    let prompt = match (&args.prompt, &args.chat, args.ids.as_slice()) {
        (Some(text), ..) => generator.tokens(text)?,
        (None, Some(file), _) => generator.chat(&messages(file)?)?,
        (None, None, []) if generator.has_encoder() && !generator.starts().is_empty() => {
            generator.starts().to_vec()
        }
        (None, None, []) => {
            return Err(
                Error::usage("the prompt is missing").hint("give --prompt, --chat or --ids")
            );
        }
        (None, None, ids) => ids.to_vec(),
    };
    let given = !args.input.is_empty() || args.audio.is_some();
    let encoded = match (generator.has_encoder(), !given) {
        (true, false) => {
            let inputs = match &args.audio {
                Some(file) => {
                    let preprocessor = Preprocessor::new(&engine.graph_named("encoder")?);
                    preprocessor.stack(&[&preprocessor.audio(file)?])?
                }
                None => arrays(&args.input)?,
            };
            Some(generator.encode(&inputs, adapter.as_ref())?)
        }
        (true, true) => {
            return Err(Error::usage("the encoder's input is missing")
                .hint("give --audio FILE.wav or --input NAME=FILE.npy"));
        }
        (false, false) => return Err(Error::usage("--input, --audio: the base has no encoder")),
        (false, true) => None,
    };
    let options = GenerateOptions {
        tokens: args.tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
        },
        stop: args.stop.clone(),
    };
    let mut hear = |text: &str| {
        if !out.json() {
            out.raw(&shown(text));
        }
        true
    };
    let found = generator.generate_from(encoded, &prompt, adapter.as_ref(), &options, &mut hear)?;
    if out.json() {
        return out.document(&document(args, &found, adapter.map_or(vec![], |a| a.names.clone())));
    }
    if found.text.is_empty() && !found.ids.is_empty() {
        let ids: Vec<String> = found.ids.iter().map(u32::to_string).collect();
        out.raw(&ids.join(","));
    }
    out.raw("\n");
    Ok(())
}

fn document(args: &Args, found: &Generated, adapters: Vec<(String, f32)>) -> Value {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    json!({
        "base": args.base,
        "adapters": adapters,
        "text": found.text,
        "ids": found.ids,
        "ended": found.ended.name(),
        "temperature": found.temperature,
        "prompt_tokens": found.prompt_tokens,
        "prompt_ms": ms(found.prompt_time),
        "tokens_ms": ms(found.time),
        "peak_rss_bytes": peak_rss_bytes(),
        "unshared_bytes": unshared_bytes(std::process::id()),
    })
}

/// The encoder's inputs by name.
fn arrays(given: &[String]) -> Result<Named> {
    let mut named = Named::new();
    for text in given {
        // Names may hold '=' signs; for file names that do, there is the folder './'.
        match text.rsplit_once('=') {
            Some((name, file)) => named.push((name.into(), npy::read(file, limits::ARRAYS)?)),
            None => named.extend(npy::read_npz(text, limits::ARRAYS)?),
        }
    }
    let mut names: Vec<&String> = named.iter().map(|(name, _)| name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::usage(format!("input '{}' is given twice", pair[0]))),
        None => Ok(named),
    }
}
