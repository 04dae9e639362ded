//! Layer 7: the command line. Everything is done through the crate's public interface.

mod adapter;
#[cfg(feature = "daemon")]
mod asked;
mod audio;
mod backup;
mod bench;
#[cfg(any(feature = "daemon", feature = "text"))]
mod chat;
mod chosen;
mod compare;
#[cfg(feature = "daemon")]
mod daemon;
mod data;
#[cfg(feature = "import")]
mod demo;
mod doctor;
mod eval;
mod forget;
#[cfg(feature = "text")]
mod generate;
mod inputs;
mod inspect;
mod listen;
mod man;
mod output;
#[cfg(feature = "import")]
mod pack;
mod plot;
mod progress;
mod run;
#[cfg(feature = "daemon")]
mod serve;
#[cfg(feature = "import")]
mod stages;
#[cfg(feature = "daemon")]
mod token;
mod train;

use crate::caught::{meaning, refused_by_system};
use crate::error::{Error, ErrorKind, Result};
use crate::pack::{prepare_heap, say_cut_files};
use crate::runtime::Engine;
use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory, Parser, Subcommand};
use output::Out;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

/// LoRA adapters for ONNX models, on the device that uses them
#[derive(Parser)]
#[command(name = "offshoot", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// Print one JSON document on stdout; errors as one JSON line on stderr
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Turn an ONNX file into a base: quantized, mapped, ready to run and to train on
    #[cfg(feature = "import")]
    Pack(pack::Args),
    /// Show what is in a .onnx, .base or .adapter file
    Inspect(inspect::Args),
    /// Run a base, with adapters or without
    Run(run::Args),
    /// Go on from a text with a language model, or write down what an encoder was given
    #[cfg(feature = "text")]
    Generate(generate::Args),
    /// Listen to a stream of sound and say what is heard
    Listen(listen::Args),
    /// Train an adapter
    Train(Box<train::Args>),
    /// Measure a base or an adapter on labelled data
    Eval(eval::Args),
    /// Learn one data set in every way there is: what each gains, leaves and costs
    Compare(compare::Args),
    /// Keep adapters in a store and switch between them
    Adapter(adapter::Args),
    /// Make a backup of a state, also while its daemon runs
    Backup(backup::BackupArgs),
    /// Put a backup in a state's place, or go on with what can be read of a damaged one
    Restore(backup::RestoreArgs),
    /// See it work: pack a model, train two adapters, switch between them
    #[cfg(feature = "import")]
    Demo(demo::Args),
    /// Measure how long a base takes and how much memory
    Bench(bench::Args),
    /// Run the daemon: answer requests, learn from feedback
    #[cfg(feature = "daemon")]
    Serve(serve::Args),
    /// Show what the daemon serves, what it waits for, and what it did
    #[cfg(feature = "daemon")]
    Status(daemon::StatusArgs),
    /// Ask the daemon
    #[cfg(feature = "daemon")]
    Predict(daemon::PredictArgs),
    /// Tell the daemon the right answer
    #[cfg(feature = "daemon")]
    Feedback(daemon::FeedbackArgs),
    /// Have the daemon train an adapter now
    #[cfg(feature = "daemon")]
    TrainNow(daemon::TrainNowArgs),
    /// Say who may use the daemon's port, and for what
    #[cfg(feature = "daemon")]
    Token(token::Args),
    /// Remove samples and every generation that learned from them, with the daemon or without
    Forget(forget::Args),
    /// Look at this machine: kernels, memory, heat, power and disk, and what to mend
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them into a folder
    Man(man::Args),
}

/// Runs the process's own command line.
pub fn main() -> ExitCode {
    say_cut_files();
    #[cfg(feature = "import")]
    if let Some(code) = crate::runtime::sandbox_main() {
        return ExitCode::from(code);
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if crate::compare::is_worker_call(&arguments) {
        return ExitCode::from(crate::compare::worker_main(&arguments));
    }
    #[cfg(feature = "daemon")]
    if crate::daemon::learn::is_worker_call(&arguments) {
        return ExitCode::from(crate::daemon::learn::worker_main(&arguments));
    }
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("no message");
        let known = meaning(info);
        // What somebody has thought of is said where it is caught.
        let unsaid = known.is_none();
        if let Some(error) = known.or_else(|| refused_by_system(text)) {
            // Where a panic can't be caught, this is the end.
            if cfg!(panic = "abort") {
                Out::new(false).error(&error);
                std::process::exit(error.kind().exit_code().into());
            }
            if unsaid {
                Out::new(false).error(&error);
            }
            return;
        }
        let at = info.location().map(|l| format!(" at {}:{}", l.file(), l.line()));
        output::error_line(&format!(
            "internal error: {text}{}: please report it with the command that you ran",
            at.unwrap_or_default()
        ));
    }));
    let code = catch_unwind(AssertUnwindSafe(|| run(&arguments)));
    ExitCode::from(code.unwrap_or(ErrorKind::Failed.exit_code()))
}

/// Runs a command line, its first word the program's name; returns the exit code.
pub fn run(arguments: &[OsString]) -> u8 {
    // Known before the arguments are parsed, for errors in them.
    let json = arguments.iter().any(|a| a == "--json");
    let out = Out::new(json);
    let result = match Cli::try_parse_from(arguments) {
        Ok(cli) => dispatch(cli, &out),
        Err(e) => parse_error(&e, &out),
    };
    match result.and_then(|()| out.finish()) {
        Ok(()) => 0,
        Err(e) => {
            out.error(&e);
            e.kind().exit_code()
        }
    }
}

/// Opens a base that is going to run.
fn open_engine(base: impl AsRef<Path>) -> Result<Engine> {
    prepare_heap();
    Engine::open(base)
}

fn dispatch(cli: Cli, out: &Out) -> Result<()> {
    match cli.verb {
        #[cfg(feature = "import")]
        Verb::Pack(args) => pack::run(&args, out),
        Verb::Inspect(args) => inspect::run(&args, out),
        Verb::Run(args) => run::run(&args, out),
        #[cfg(feature = "text")]
        Verb::Generate(args) => generate::run(&args, out),
        Verb::Listen(args) => listen::run(&args, out),
        Verb::Train(args) => train::run(&args, out),
        Verb::Eval(args) => eval::run(&args, out),
        Verb::Compare(args) => compare::run(&args, out),
        Verb::Adapter(args) => adapter::run(&args, out),
        Verb::Backup(args) => backup::backup(&args, out),
        Verb::Restore(args) => backup::restore(&args, out),
        #[cfg(feature = "import")]
        Verb::Demo(args) => demo::run(&args, out),
        Verb::Bench(args) => bench::run(&args, out),
        #[cfg(feature = "daemon")]
        Verb::Serve(args) => serve::run(&args, out),
        #[cfg(feature = "daemon")]
        Verb::Status(args) => daemon::status(&args, out),
        #[cfg(feature = "daemon")]
        Verb::Predict(args) => daemon::predict(&args, out),
        #[cfg(feature = "daemon")]
        Verb::Feedback(args) => daemon::feedback(&args, out),
        #[cfg(feature = "daemon")]
        Verb::TrainNow(args) => daemon::train_now(&args, out),
        #[cfg(feature = "daemon")]
        Verb::Token(args) => token::run(&args, out),
        Verb::Forget(args) => forget::run(&args, out),
        Verb::Doctor(args) => doctor::run(&args, out),
        Verb::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "offshoot", &mut script);
            out.raw(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Verb::Man(args) => man::run(&args, Cli::command(), out),
    }
}

/// clap's help and version go to stdout; its errors, several lines long, become one of ours.
fn parse_error(error: &clap::Error, out: &Out) -> Result<()> {
    let text = error.render().to_string();
    match error.kind() {
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => {
            out.raw(&text);
            return Ok(());
        }
        ClapKind::DisplayHelpOnMissingArgumentOrSubcommand | ClapKind::MissingSubcommand => {
            return Err(Error::usage("a command is missing").hint("see 'offshoot --help'"));
        }
        _ => {}
    }
    let body = text.split("\n\nUsage:").next().unwrap_or(&text);
    let body = body.split("\n\nFor more information").next().unwrap_or(body);
    let body = body.strip_prefix("error: ").unwrap_or(body);
    let (message, tip) = match body.split_once("tip: ") {
        Some((message, tip)) => (message, Some(tip)),
        None => (body, None),
    };
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let tip = tip.map(joined).unwrap_or_else(|| "see --help".into());
    Err(Error::usage(joined(message)).hint(tip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_in_arguments_are_one_line() {
        let out = Out::new(false);
        let error = |words: &[&str]| {
            let words = [&["offshoot"], words].concat();
            let e = Cli::try_parse_from(words).err().unwrap();
            parse_error(&e, &out).unwrap_err()
        };
        let e = error(&["pack", "x.onnx"]);
        assert_eq!(e.kind(), ErrorKind::Usage);
        assert!(e.message().contains("--out"), "{e}");
        assert!(!e.to_string().contains('\n') && !e.to_string().contains("Usage"), "{e}");
        let e = error(&["run", "x.base", "--txt", "hi"]);
        assert!(e.message().contains("--txt") && e.hint_text().unwrap().contains("--text"), "{e}");
        assert_eq!(error(&[]).message(), "a command is missing");
    }
}
