//! libFuzzer over one of the targets: `OFFSHOOT_FUZZ_TARGET` names it, its seeds are written into the folder
//! `OFFSHOOT_FUZZ_SEEDS` before the corpus is read.

#![no_main]
// What `cargo test --test fuzz` takes of the targets besides.
#![allow(dead_code)]

#[path = "../tests/fuzz/daemon.rs"]
mod daemon;
#[path = "../tests/fuzz/files.rs"]
mod files;
#[path = "../tests/fuzz/home.rs"]
mod home;
#[path = "../tests/fuzz/kept.rs"]
mod kept;
#[path = "../tests/fuzz/mend.rs"]
mod mend;
#[path = "../tests/fuzz/panics.rs"]
mod panics;
#[path = "../tests/fuzz/place.rs"]
mod place;
#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::backtrace::Backtrace;
use std::cell::{OnceCell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What takes an input, and the folder that it works in.
type Taking = (targets::Take, place::Place);

thread_local! {
    static TAKE: OnceCell<RefCell<Taking>> = const { OnceCell::new() };
    static PANIC: RefCell<Option<(String, Backtrace)>> = const { RefCell::new(None) };
}

fn begin() {
    let name = std::env::var("OFFSHOOT_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets::TARGETS.iter().find(|target| target.name == name) else {
        let all: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("OFFSHOOT_FUZZ_TARGET: one of {}", all.join(", "));
        std::process::exit(2);
    };
    let place = place::Place::new();
    let ready = (target.ready)(place.clone());
    if let Some(folder) = std::env::var_os("OFFSHOOT_FUZZ_SEEDS") {
        for (number, seed) in ready.seeds.iter().enumerate() {
            let path = std::path::Path::new(&folder).join(format!("seed-{number}"));
            std::fs::write(path, seed).expect("the seeds can be written");
        }
    }
    TAKE.with(|take| drop(take.set(RefCell::new((ready.take, place)))));
    // In the place of a hook that aborts: panics of libraries are caught and no finding. Names are looked up
    // where it is one, which takes longer than most inputs.
    std::panic::set_hook(Box::new(|info| {
        let trace = Backtrace::force_capture();
        if panics::is_ours(info) {
            eprintln!("{info}\n{trace}");
            std::process::abort();
        }
        PANIC.set(Some((info.to_string(), trace)));
    }));
}

libfuzzer_sys::fuzz_target!(init: begin(), |bytes: &[u8]| {
    TAKE.with(|take| {
        let take = take.get().expect("LLVMFuzzerInitialize was called");
        if catch_unwind(AssertUnwindSafe(|| (take.borrow_mut().0)(bytes))).is_err() {
            if let Some((said, trace)) = PANIC.take() {
                eprintln!("{said}\n{trace}");
            }
            std::process::abort();
        }
    });
});
