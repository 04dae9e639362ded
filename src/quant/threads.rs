//! Threads that share the work of one run.
//!
//! A run that has them is moved to one of theirs, where [`share`] finds the others: handing over a step
//! costs about ten microseconds there, twice that from outside, and several times that to a thread that
//! sleeps. So between two steps of a run, and where a step's last piece is still worked on, a thread
//! looks out for [`LINGER`] at most, giving its turn to others, before it sleeps (rayon-core alone waits
//! for some ten microseconds). Outside of runs all sleep.

use crate::error::{Error, Result};
use rayon_core::{ThreadPool, ThreadPoolBuilder};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Multiply-adds below which a step stays on one thread.
pub const WORTH_SHARING: usize = 1 << 21;

/// Longest that a thread with nothing to do stays awake within a run.
const LINGER: Duration = Duration::from_micros(100);

thread_local! {
    /// Threads that a step on this thread may use, itself among them.
    static AT_HAND: Cell<usize> = const { Cell::new(1) };
    /// Of the run that this thread has begun.
    static PACE: RefCell<Pace> = RefCell::default();
}

/// Counts what the threads of a run look out for: a step that begins, the end of the run.
#[derive(Clone, Default)]
struct Pace(Arc<AtomicUsize>);

impl Pace {
    fn next(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Keeps `threads` others awake until the next step.
    fn keep_awake(&self, threads: usize) {
        let now = self.0.load(Ordering::Acquire);
        let Some(here) = rayon_core::current_thread_index() else { return };
        for _ in 0..threads {
            let pace = self.clone();
            rayon_core::spawn(move || {
                // Not the run's own thread, should it come upon this.
                if rayon_core::current_thread_index() != Some(here) {
                    linger(|| pace.0.load(Ordering::Acquire) == now);
                }
            });
        }
    }
}

/// Waits as long as `idle`, [`LINGER`] at most.
fn linger(idle: impl Fn() -> bool) {
    let start = Instant::now();
    while idle() && start.elapsed() < LINGER {
        std::thread::yield_now();
    }
}

/// Threads that work on one run together, or the caller's alone. Cheap to clone; clones are the same
/// threads.
#[derive(Clone, Default)]
pub struct Threads(Option<Arc<Team>>);

struct Team {
    pool: ThreadPool,
    busy: AtomicBool,
}

impl Threads {
    /// Most threads of a run.
    pub const MOST: usize = 256;

    /// `count` threads; with 1 a run stays on the caller's.
    ///
    /// # Errors
    /// A count of 0 or above [`Threads::MOST`] (usage); threads that the system doesn't give.
    pub fn new(count: usize) -> Result<Threads> {
        if !(1..=Threads::MOST).contains(&count) {
            return Err(Error::usage(format!("{count} threads: expected 1 to {}", Threads::MOST)));
        }
        if count == 1 {
            return Ok(Threads(None));
        }
        let named = |i| format!("run-{i}");
        let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(named).build();
        let pool = pool.map_err(|e| Error::failed(format!("{count} threads: {e}")))?;
        Ok(Threads(Some(Arc::new(Team { pool, busy: AtomicBool::new(false) }))))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |team| team.pool.current_num_threads())
    }

    /// Calls `run`, whose steps share their work between these threads. While another run has them it
    /// stays on the caller's thread: it neither waits nor takes part of theirs.
    pub fn during<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let Some(team) = &self.0 else { return run() };
        if team.busy.swap(true, Ordering::Acquire) {
            return run();
        }
        let _free = Free(&team.busy);
        let count = team.pool.current_num_threads();
        team.pool.install(|| {
            let outcome = with_at_hand(count, run);
            PACE.with_borrow(Pace::next);
            outcome
        })
    }
}

/// Frees a team when it goes, be it by a panic.
struct Free<'a>(&'a AtomicBool);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn with_at_hand<T>(count: usize, run: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            AT_HAND.set(self.0);
        }
    }
    let _restore = Restore(AT_HAND.replace(count));
    run()
}

/// Threads for a step of `macs` multiply-adds (or work that takes as long) in this run.
pub fn threads_for(macs: usize) -> usize {
    if macs < WORTH_SHARING { 1 } else { AT_HAND.get() }
}

/// Rows of a piece of work where `threads` share `rows` of them: two pieces a thread, so that one that
/// comes late or is slower leaves some to the others. Smaller ones read the weights more often.
pub fn piece(threads: usize, rows: usize) -> usize {
    const PIECES: usize = 2;
    rows.div_ceil(threads * PIECES).max(1)
}

/// Calls `work` on every item, each on one of `threads` threads ([`threads_for`]). Each thread begins
/// with its own share of the items, the same in every step, so that it finds in its cache what it wrote
/// in the step before; whichever is done takes from the end of another's share. `scratch` makes what a
/// thread keeps from item to item. With one thread it is a plain loop.
///
/// # Errors
/// The first of `work`'s; items that have not begun are left.
pub fn try_share<T: Send, S, E: Send>(
    threads: usize,
    mut items: impl Iterator<Item = T> + Send,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> std::result::Result<(), E> + Sync,
) -> std::result::Result<(), E> {
    if threads < 2 {
        let mut scratch = scratch();
        return items.try_for_each(|item| work(&mut scratch, item));
    }
    let outcome = Mutex::new(Ok(()));
    let mut items = items.collect::<Vec<T>>().into_iter();
    let each = items.len().div_ceil(threads);
    let mut queue = || items.by_ref().take(each).collect::<VecDeque<T>>();
    let queues: Vec<_> = (0..threads).map(|_| Mutex::new(queue())).collect();
    let next = |own: usize| {
        let others = (1..threads).map(|i| (own + i) % threads);
        let first = lock(&queues[own]).pop_front();
        first.or_else(|| others.into_iter().find_map(|other| lock(&queues[other]).pop_back()))
    };
    let take = || {
        let own = rayon_core::current_thread_index().unwrap_or(0) % threads;
        let Some(mut item) = next(own) else { return };
        let mut scratch = scratch();
        while lock(&outcome).is_ok() {
            if let Err(e) = work(&mut scratch, item) {
                let mut outcome = lock(&outcome);
                if outcome.is_ok() {
                    *outcome = Err(e);
                }
            }
            match next(own) {
                Some(another) => item = another,
                None => return,
            }
        }
    };
    let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let pace = PACE.with_borrow(Pace::clone);
    pace.next();
    // A step within a step stays where it is.
    with_at_hand(1, || {
        rayon_core::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    take();
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
            take();
            linger(|| begun.load(Ordering::Relaxed) > ended.load(Ordering::Relaxed));
        });
    });
    pace.keep_awake(threads - 1);
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`try_share`], of work that can't fail.
pub fn share<T: Send, S>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let work = |scratch: &mut S, item| -> std::result::Result<(), Infallible> {
        work(scratch, item);
        Ok(())
    };
    let Ok(()) = try_share(threads, items, scratch, work);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::noise;
    use crate::quant::{
        Activation, Attention, ConvGeometry, Convolution, LayerNorm, Packed, Patches, Scheme,
        attention, depthwise, layer_norm,
    };
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread;

    fn all(count: usize) -> usize {
        let threads = Threads::new(count).unwrap();
        threads.during(|| threads_for(WORTH_SHARING))
    }

    #[test]
    fn steps_see_the_threads_of_their_run_only() {
        assert_eq!((all(1), all(3)), (1, 3));
        assert_eq!(threads_for(usize::MAX), 1);
        let threads = Threads::new(2).unwrap();
        threads.during(|| assert_eq!(threads_for(WORTH_SHARING - 1), 1));
        assert_eq!(threads.count(), 2);
        assert!(Threads::new(0).is_err() && Threads::new(Threads::MOST + 1).is_err());
    }

    #[test]
    fn every_item_is_worked_on_once_and_by_every_thread() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count).unwrap();
            let mut values = vec![0usize; 1000];
            let seen = Mutex::new(HashSet::new());
            // Nobody goes on until all have an item.
            let barrier = Barrier::new(count);
            threads.during(|| {
                let scratch = || {
                    barrier.wait();
                };
                share(
                    threads_for(usize::MAX),
                    values.chunks_mut(7).enumerate(),
                    scratch,
                    |_, (i, v)| {
                        seen.lock().unwrap().insert(thread::current().id());
                        // Steps within steps are for one thread.
                        assert_eq!(threads_for(usize::MAX), 1);
                        v.iter_mut().for_each(|v| *v += i + 1);
                    },
                )
            });
            assert!(values.iter().enumerate().all(|(i, v)| *v == i / 7 + 1));
            assert_eq!(seen.lock().unwrap().len(), count);
        }
    }

    #[test]
    fn an_error_ends_the_step_and_shows() {
        for count in [1, 3] {
            let threads = Threads::new(count).unwrap();
            let worked = Mutex::new(0);
            let outcome = threads.during(|| {
                try_share(
                    threads_for(usize::MAX),
                    0..1_000_000,
                    || (),
                    |(), i| {
                        *worked.lock().unwrap() += 1;
                        if i == 10 { Err("ten") } else { Ok(()) }
                    },
                )
            });
            assert_eq!(outcome, Err("ten"));
            assert!(*worked.lock().unwrap() < 1_000_000);
        }
    }

    #[test]
    fn a_second_run_goes_on_alone_and_a_panic_frees_the_threads() {
        let threads = Threads::new(2).unwrap();
        threads.during(|| {
            let inner = thread::scope(|s| {
                s.spawn(|| threads.during(|| threads_for(usize::MAX))).join().unwrap()
            });
            assert_eq!(inner, 1);
        });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.during(|| {
                share(2, 0..10, || (), |(), i| assert!(i < 3));
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(threads.during(|| threads_for(usize::MAX)), 2);
    }

    #[test]
    fn pieces_are_enough_for_all() {
        assert_eq!((piece(2, 197), piece(4, 197), piece(3, 2), piece(2, 0)), (50, 25, 1, 1));
    }

    /// What `step` writes on one thread and on several, each of which had a part of it.
    fn same_bits(step: impl Fn(&mut [f32]) + Sync, len: usize) {
        let mut alone = vec![f32::NAN; len];
        step(&mut alone);
        assert!(alone.iter().all(|v| v.is_finite()));
        for count in [2, 3, 7] {
            let mut shared = vec![f32::NAN; len];
            Threads::new(count).unwrap().during(|| step(&mut shared));
            assert!(shared == alone, "{count} threads");
        }
    }

    #[test]
    fn every_step_has_the_same_bits_on_several_threads() {
        let a = Attention { batch: 2, heads: 5, queries: 100, keys: 99, head_dim: 33, scale: 0.2 };
        let width = a.heads * a.head_dim;
        let (q, k) = (noise(2 * 100 * width, 1), noise(2 * 99 * width, 2));
        assert!(2 * q.len() * a.keys > WORTH_SHARING);
        same_bits(|y| attention(&a, &q, &k, &k, None, y), q.len());

        let x = noise(400 * 333, 3);
        assert!(x.len() * 16 > WORTH_SHARING);
        let norm = LayerNorm { width: 333, epsilon: 1e-5, scale: Some(&x[..333]), shift: None };
        same_bits(|y| layer_norm(&norm, &x, y), x.len());

        // 5 × 5 filters over more than one stretch of channels.
        let g = ConvGeometry {
            batch: 2,
            height: 13,
            width: 15,
            channels: 300,
            kernel: [5; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pads: [2; 4],
        };
        let (x, w) = (noise(2 * 13 * 15 * 300, 4), noise(25 * 300, 5));
        same_bits(|y| depthwise(&g, &w, None, Activation::HardSwish, &x, y), x.len());
    }

    #[test]
    fn pixels_are_quantized_to_the_same_bits_on_several_threads() {
        let g = ConvGeometry {
            batch: 2,
            height: 40,
            width: 40,
            channels: 64,
            kernel: [3; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pads: [1; 4],
        };
        let x = noise(2 * 40 * 40 * 64, 1);
        assert!(x.len() * 16 > WORTH_SHARING);
        let w = Packed::pack(Scheme::Q8, 17, g.patch_len(), &noise(17 * g.patch_len(), 2)).unwrap();
        let step = |y: &mut [f32]| {
            let conv = Convolution::new(&g, w.view(), &x);
            conv.product(&mut Patches::default(), 0, None, &[], y);
        };
        same_bits(step, g.pixels() * 17);
    }
}
