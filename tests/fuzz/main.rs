//! Changed bytes for everything that reads bytes from outside (`targets.rs`): a short run of each form, the
//! same inputs every time. `OFFSHOOT_TEST_FUZZ` says how many inputs each is given instead. The folder
//! `fuzz` has the same targets for libFuzzer.

mod daemon;
mod files;
mod home;
mod kept;
mod mend;
mod mutate;
mod panics;
mod place;
mod targets;

use mutate::mutated;
use place::Place;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use targets::TARGETS;

/// Longest that an input may take: hundreds of times what most take.
const LONGEST: Duration = Duration::from_secs(10);

thread_local! {
    /// Bytes that this thread holds, and the most since that was last looked at.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, counting by thread.
struct Counting;

fn count(change: isize) {
    // A thread that ends has none any more.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + change, most.max(now + change)));
    });
}

// SAFETY: everything is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whether some thread panicked in this crate's sources.
static OURS: AtomicBool = AtomicBool::new(false);

fn look_out_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            OURS.fetch_or(panics::is_ours(panic), Ordering::Relaxed);
            before(panic);
        }));
    });
}

/// Gives the target of this name its inputs.
fn run(name: &str) {
    look_out_for_panics();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let asked = std::env::var("OFFSHOOT_TEST_FUZZ").ok();
    let inputs = asked.map_or(target.smoke, |n| n.parse().expect("OFFSHOOT_TEST_FUZZ: a number"));
    let place = Place::new();
    let mut ready = (target.ready)(place.clone());
    let seeds = std::mem::take(&mut ready.seeds);
    let start = Instant::now();
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for number in 0..inputs.max(seeds.len() as u64) {
        let input = mutated(&seeds, number);
        HELD.set((0, 0));
        let mut timed = || {
            let begun = Instant::now();
            let taken = catch_unwind(AssertUnwindSafe(|| (ready.take)(&input)));
            (taken, begun.elapsed())
        };
        let (mut taken, mut took) = timed();
        if took > LONGEST {
            // The machine may have had other things to do.
            (taken, took) = timed();
        }
        let held = HELD.get().1 as usize;
        slowest = slowest.max(took);
        largest = largest.max(held);
        let wrong = match &taken {
            Err(_) => "panicked".to_string(),
            Ok(()) if OURS.load(Ordering::Relaxed) => "panicked (or another target)".to_string(),
            Ok(()) if took > LONGEST => format!("took {took:?}"),
            Ok(()) if held > target.memory => format!("held {held} bytes"),
            Ok(()) => continue,
        };
        let kept = std::env::temp_dir().join(format!("fuzz-{name}-{number}"));
        std::fs::write(&kept, &input).unwrap();
        eprintln!("{name}: input {number}, kept as '{}', {wrong}", kept.display());
        match taken {
            Err(panic) => resume_unwind(panic),
            Ok(()) => panic!("{wrong}"),
        }
    }
    println!(
        "{name}: {inputs} inputs of {} seeds in {:.1} s; at most {slowest:?} and {largest} bytes",
        seeds.len(),
        start.elapsed().as_secs_f32()
    );
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, tested);
        }
    };
}

targets! {
    adapter backup base chat checkpoint children config csv export home hooks http jsonl log npy npz
    onnx peft picture program recent sound state text tokenizer tokens topic voice
}
