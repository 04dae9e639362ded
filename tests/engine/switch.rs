//! Switching is a pointer swap: nothing else changes, and no request sees two adapters.

use crate::support::*;
use offshoot::adapters::TargetKind;
use offshoot::packing::PackOptions;
use offshoot::{Adapter, Bound, Engine, Named, Scheme, Session, View};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const THREADS: usize = 8;
const REQUESTS: usize = 200;

fn tiny(name: &str, scheme: Scheme) -> (Engine, Reference) {
    let options = PackOptions { scheme, ..PackOptions::default() };
    let engine = packed(&model(&format!("tiny/{name}.onnx")), &options);
    (engine, reference(&model(&format!("tiny/{name}.npz"))))
}

/// The bits of all outputs, so that equal means equal.
fn bits(engine: &Engine, reference: &Reference, adapter: Option<&Arc<Bound>>) -> Vec<u32> {
    let outputs = engine.run(&reference.inputs, adapter).unwrap();
    outputs.iter().flat_map(|(_, a)| a.as_f32().unwrap()).map(|v| v.to_bits()).collect()
}

fn everywhere(engine: &Engine, seed: u64) -> Adapter {
    adapter(engine, seed, |t| t.kind != TargetKind::Embedding)
}

#[test]
fn zero_lora_b_leaves_every_bit() {
    for name in ["mlp", "attention", "convnet", "conv1d", "qdq", "tied"] {
        for scheme in [Scheme::F32, Scheme::Q8, Scheme::Q4] {
            let (engine, reference) = tiny(name, scheme);
            let mut adapter = everywhere(&engine, 1);
            let full = engine.bind(&[(&adapter, 1.0)]).unwrap();
            adapter.targets.iter_mut().for_each(|t| t.tensors[1].values.fill(0.0));
            let zero = engine.bind(&[(&adapter, 1.0)]).unwrap();
            let base = bits(&engine, &reference, None);
            assert_eq!(bits(&engine, &reference, Some(&zero)), base, "{name} {}", scheme.name());
            assert_ne!(bits(&engine, &reference, Some(&full)), base, "{name} {}", scheme.name());
            // A state that ran with an adapter is used again without.
            assert_eq!(bits(&engine, &reference, None), base, "{name} {}", scheme.name());
        }
    }
}

/// Borrowed inputs give the same bits, in any order, and outputs stay in the memory of earlier ones, also
/// where those were of other networks.
#[test]
fn inputs_are_borrowed_and_outputs_reused() {
    let mut outputs = vec![];
    for name in ["attention", "mlp", "attention"] {
        let (engine, reference) = tiny(name, Scheme::Q8);
        let expected = engine.run(&reference.inputs, None).unwrap();
        let views =
            reference.inputs.iter().rev().map(|(name, array)| (name.as_str(), array.view()));
        let views: Vec<(&str, View<'_>)> = views.collect();
        engine.run_into(&views, None, &mut outputs).unwrap();
        assert_eq!(outputs, expected, "{name}");
        let place = |outputs: &Named| -> Vec<*const f32> {
            outputs.iter().map(|(_, array)| array.as_f32().unwrap().as_ptr()).collect()
        };
        let before = place(&outputs);
        engine.run_into(&views, None, &mut outputs).unwrap();
        assert_eq!(outputs, expected, "{name}");
        assert_eq!(place(&outputs), before, "{name}");
    }
    let (engine, _) = tiny("mlp", Scheme::Q8);
    let e = View::f32(&[1, 3], &[0.0; 2]).unwrap_err();
    assert!(e.message().contains("does not hold 2 values"), "{e}");
    let one = View::f32(&[1, 1], &[0.0]).unwrap();
    let e = engine.run_into(&[("nothing", one)], None, &mut outputs).unwrap_err();
    assert!(e.message().contains("no input 'nothing'"), "{e}");
}

/// On a last, linear layer the outputs' changes add up.
#[test]
fn a_weighted_sum_is_the_sum_of_the_deltas() {
    let (engine, reference) = tiny("mlp", Scheme::F32);
    let last = |seed| adapter(&engine, seed, |t| t.node == "/fc2/Gemm");
    let (first, second) = (last(1), last(2));
    let output = |adapters: &[(&Adapter, f32)]| -> Vec<f32> {
        let bound = engine.bind(adapters).unwrap();
        let outputs = engine.run(&reference.inputs, Some(&bound)).unwrap();
        outputs[0].1.as_f32().unwrap().to_vec()
    };
    let base = output(&[]);
    let one = output(&[(&first, 1.0)]);
    let two = output(&[(&second, 1.0)]);
    let both = output(&[(&first, 0.5), (&second, -1.5)]);
    let delta = |of: &[f32]| -> Vec<f32> { of.iter().zip(&base).map(|(y, b)| y - b).collect() };
    let sum: Vec<f32> =
        delta(&one).iter().zip(delta(&two)).map(|(one, two)| 0.5 * one - 1.5 * two).collect();
    assert!(max_difference(&sum, &vec![0.0; sum.len()]) > 0.1, "{sum:?}");
    assert!(max_difference(&delta(&both), &sum) <= 1e-5, "{both:?}");
}

/// Several layers carry each adapter, so a request that saw two of them in turn would give an
/// answer that is none of the known ones.
#[test]
fn requests_in_flight_keep_their_adapter() {
    let (engine, reference) = tiny("attention", Scheme::Q8);
    let adapters = [everywhere(&engine, 1), everywhere(&engine, 2)];
    let mut choices: Vec<Option<Arc<Bound>>> = vec![None];
    for adapter in &adapters {
        choices.push(Some(engine.bind(&[(adapter, 1.0)]).unwrap()));
    }
    let known: Vec<Vec<u32>> =
        choices.iter().map(|c| bits(&engine, &reference, c.as_ref())).collect();
    assert!(known[0] != known[1] && known[1] != known[2] && known[0] != known[2]);

    let session = Session::new(engine);
    let left = AtomicUsize::new(THREADS);
    let seen: Vec<AtomicBool> = known.iter().map(|_| AtomicBool::new(false)).collect();
    let mut switches = 0usize;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // Counts down on a panic too, or the switching below would never end.
                let _guard = CountDown(&left);
                // More of them where a busy machine has not shown every adapter yet.
                let all = || seen.iter().all(|s| s.load(Ordering::Relaxed));
                for request in 0..100 * REQUESTS {
                    if request >= REQUESTS && all() {
                        break;
                    }
                    let outputs = session.run(&reference.inputs).unwrap();
                    let found = outputs.iter().flat_map(|(_, a)| a.as_f32().unwrap());
                    let found: Vec<u32> = found.map(|v| v.to_bits()).collect();
                    let which = known.iter().position(|k| *k == found);
                    let which = which.expect("an answer of no single adapter");
                    seen[which].store(true, Ordering::Relaxed);
                }
            });
        }
        while left.load(Ordering::Relaxed) > 0 || switches < 5000 {
            switches += 1;
            let before = session.switch(choices[switches % 3].clone());
            let expected = &choices[(switches - 1) % 3];
            assert_eq!(before.as_ref().map(Arc::as_ptr), expected.as_ref().map(Arc::as_ptr));
            std::thread::yield_now();
        }
    });
    println!("{switches} switches under {} requests or more", THREADS * REQUESTS);
    assert!(seen.iter().all(|s| s.load(Ordering::Relaxed)), "{seen:?}");
}

struct CountDown<'a>(&'a AtomicUsize);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The one who switched may drop an adapter that a request still holds.
#[test]
fn a_switched_away_adapter_lives_as_long_as_its_requests() {
    let (engine, reference) = tiny("mlp", Scheme::F32);
    let bound = engine.bind(&[(&everywhere(&engine, 3), 1.0)]).unwrap();
    let weak = Arc::downgrade(&bound);
    let answer = bits(&engine, &reference, Some(&bound));
    let session = Session::new(engine);
    session.switch(Some(bound));
    let held = session.active().unwrap();
    drop(session.switch(None));
    assert!(session.active().is_none());
    assert_eq!(bits(session.engine(), &reference, Some(&held)), answer);
    drop(held);
    // The idle states of the plan must not keep an adapter's memory for ever.
    let base = bits(session.engine(), &reference, None);
    assert_ne!(base, answer);
    assert!(weak.upgrade().is_none(), "the adapter is still held after its last request");
}
