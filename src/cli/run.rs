//! `offshoot run`.

use super::chosen::{self, Choice};
use super::inputs::Source;
use super::open_engine;
use super::output::{Out, dims};
use super::train::{at_least_one, beam, share};
use crate::error::{Error, Result};
use crate::fs::{peak_rss_bytes, unshared_bytes};
use crate::host::Root;
use crate::npy;
use crate::pack::Role;
use crate::runtime::{MemoryLimit, Named, Preprocessor, apply_head, base_predictions};
use crate::shape::{Array, Data};
use crate::train::Task;
use crate::train::tasks::Wanted;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Values of an output that are printed.
const FIRST: usize = 6;

/// `offshoot run`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// An adapter: its name in the store, NAME@GENERATION, or a file; several are summed
    #[arg(long = "adapter", value_name = "NAME|FILE[:WEIGHT]", value_parser = Choice::parse)]
    adapters: Vec<Choice>,
    #[command(flatten)]
    source: Source,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    threads: usize,
    /// Keep the base in memory, or fail if the system doesn't allow it
    #[arg(long)]
    lock: bool,
    /// Check the whole base against its hashes first: weights are not checked in use
    #[arg(long)]
    verify: bool,
    /// Give outputs that hold NaN or infinity too, which are an error else
    #[arg(long)]
    any_value: bool,
    /// Write each output to DIR/NAME.npy ('/' and ':' become '_')
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What is like nothing that was learned gets no label: so much at most of what was never taught
    /// passes (0.01: one in a hundred)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    reject: Option<f32>,
    /// Of a base that spells texts: how many beginnings of a text a search for the likeliest one keeps;
    /// 1: the likeliest symbol at each step
    #[arg(long, value_name = "WIDTH", default_value_t = 1, value_parser = beam)]
    beam: usize,
    /// Choose the answer among these labels alone, separated by commas
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    among: Vec<String>,
    /// How many labels to print
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
}

/// Runs the base once.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let before = since_process_start();
    args.source.required()?;
    let start = Instant::now();
    let free = crate::host::memory(&Root::system()).free().map(MemoryLimit::new);
    let engine = open_engine(&args.base)?.with_threads(args.threads)?.with_memory(free);
    if args.verify {
        engine.base().verify()?;
    }
    if args.lock {
        engine.base().lock()?;
    }
    let adapter = chosen::bind(&engine, &args.adapters)?;
    let opened = start.elapsed();
    let inputs = args.source.load(&engine)?;
    let read = start.elapsed();
    engine.prepare(&inputs)?;
    let planned = start.elapsed();
    let outputs = engine.run(&inputs, adapter.as_ref())?;
    let predictions = match adapter.as_ref().and_then(|a| a.head.as_ref()) {
        Some(head) => apply_head(&engine, head, engine.given(&inputs, Role::Mask), &outputs)?,
        None => base_predictions(&engine, &outputs),
    };
    let ran = start.elapsed();
    let finite = outputs.iter().all(|(_, a)| a.is_finite())
        && predictions.iter().flat_map(|p| &p.logits).all(|v| v.is_finite());
    if !finite && !args.any_value {
        let why = engine.not_finite(&inputs, adapter.as_ref(), None);
        return Err(why.hint("--any-value gives it all the same"));
    }
    let head = adapter.as_ref().and_then(|a| a.head.as_ref());
    let task = Task::serving(head, engine.base())?;
    let sentence = match args.source.sentence() {
        Some(text) if task.needs_words() => Some((text, Preprocessor::new(&engine).words(text)?.1)),
        _ => None,
    };
    let sentence = sentence.as_ref().map(|(text, words)| (*text, words));
    let wanted =
        Wanted { top: args.top, among: args.among.clone(), reject: args.reject, beam: args.beam };
    let answers = predictions
        .iter()
        .map(|p| task.answer(head, p, sentence, &wanted))
        .collect::<Result<Vec<_>>>()?;
    if let Some(folder) = &args.output {
        write_outputs(folder, &outputs)?;
    }
    if out.json() {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        return out.document(&json!({
            "base": args.base,
            "fingerprint": engine.base().fingerprint().to_string(),
            "adapters": adapter.as_ref().map_or(vec![], |a| a.names.clone()),
            "inputs": shapes(&inputs),
            "outputs": shapes(&outputs),
            "predictions": predictions.iter().zip(answers).map(|(p, mut answer)| {
                answer.json["logits"] = json!(p.logits);
                answer.json
            }).collect::<Vec<_>>(),
            "open_ms": ms(opened),
            "input_ms": ms(read - opened),
            "plan_ms": ms(planned - read),
            "run_ms": ms(ran - planned),
            "total_ms": ms(before.unwrap_or_default() + start.elapsed()),
            "peak_rss_bytes": peak_rss_bytes(),
            "unshared_bytes": unshared_bytes(std::process::id()),
        }));
    }
    answers.iter().flat_map(|answer| &answer.lines).for_each(|line| out.line(line));
    for (name, array) in &outputs {
        let shape = dims(array.shape());
        out.line(format!("{name}: {} {shape}: {}", array.dtype().name(), first_values(array)));
    }
    Ok(())
}

fn shapes(named: &Named) -> Vec<Value> {
    named
        .iter()
        .map(|(name, a)| json!({"name": name, "dtype": a.dtype(), "shape": a.shape()}))
        .collect()
}

fn first_values(array: &Array) -> String {
    fn join<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
        let shown: Vec<String> = values.iter().take(FIRST).map(text).collect();
        let more = if values.len() > FIRST { " ..." } else { "" };
        format!("{}{more}", shown.join(" "))
    }
    match array.data() {
        Data::F32(v) => join(v, |x| format!("{x:.5}")),
        Data::I64(v) => join(v, i64::to_string),
        Data::I32(v) => join(v, i32::to_string),
        Data::U8(v) => join(v, u8::to_string),
        Data::Bool(v) => join(v, bool::to_string),
    }
}

/// Writes every output, or says why none: two names that become one file are refused first.
fn write_outputs(folder: &Path, outputs: &Named) -> Result<()> {
    let mut files = vec![];
    let mut seen = HashSet::new();
    for (name, array) in outputs {
        let file = file_name(name);
        if !seen.insert(file.clone()) {
            return Err(Error::failed(format!("two outputs would be written to '{file}'")));
        }
        files.push((folder.join(file), array));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    files.iter().try_for_each(|(path, array)| npy::write(path, array))
}

/// `NAME.npy`, without anything that could lead out of the folder.
fn file_name(output: &str) -> String {
    let safe = |c: char| if c == '/' || c == ':' || c.is_control() { '_' } else { c };
    format!("{}.npy", output.chars().map(safe).collect::<String>())
}

/// How long this process has been there (Linux: `/proc`), to hundredths of a second.
fn since_process_start() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Field 22, counted from after the name, which may hold anything.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let seconds = uptime - ticks / per_second;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_names_stay_in_the_folder() {
        assert_eq!(file_name("a/b:0"), "a_b_0.npy");
        assert_eq!(file_name("../../x"), ".._.._x.npy");
        assert_eq!(file_name(".."), "...npy");
    }

    #[test]
    fn the_process_has_an_age() {
        assert!(since_process_start().unwrap() < Duration::from_secs(3600 * 24));
    }

    #[test]
    fn outputs_of_one_file_name_are_refused_before_any_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let array = Array::f32(vec![1], vec![0.0]).unwrap();
        let outputs = vec![("a/b".to_string(), array.clone()), ("a:b".to_string(), array)];
        assert!(write_outputs(&dir.path().join("out"), &outputs).is_err());
        assert!(!dir.path().join("out").exists());
    }
}
