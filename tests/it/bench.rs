//! `offshoot bench`: what it tells, and what it does with bases that it can't measure in part.

use crate::support::{Place, learnable};

const KEYS: [&str; 8] = [
    "adapter_cost",
    "latency_ms",
    "peak_rss_bytes",
    "start_ms",
    "switch_ns",
    "train_peak_bytes",
    "train_step_ms",
    "unshared_bytes",
];

#[test]
fn the_figures_are_those_that_other_programs_rely_on() {
    let place = Place::new();
    learnable(&place);
    let found = place.json("bench mlp.base --seconds 0 --steps 1 --rank 2");
    let keys: Vec<&String> = found.as_object().unwrap().keys().collect();
    assert_eq!(keys, KEYS);
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{found}"));
    let latency = &found["latency_ms"];
    assert_eq!(latency.as_object().unwrap().len(), 2);
    assert!(0.0 < number(&latency["median"]));
    assert!(number(&latency["median"]) <= number(&latency["p95"]));
    assert!(number(&found["start_ms"]) > number(&latency["median"]));
    assert!(number(&found["unshared_bytes"]) < number(&found["peak_rss_bytes"]));
    assert!(number(&found["train_peak_bytes"]) > 1e6);
    for key in ["adapter_cost", "switch_ns", "train_step_ms"] {
        assert!(number(&found[key]).is_finite());
    }
    let told = place.ok("bench mlp.base --seconds 0 --steps 1 --tokens 3 --rows 2");
    assert!(told.contains("x [2, 12]") && told.contains("training step"), "{told}");
    let told = place.ok("bench mlp.base --seconds 0 --steps 0");
    assert!(!told.contains("training"), "{told}");
}

#[test]
fn a_trained_adapter_and_ones_own_inputs_are_measured() {
    let place = Place::new();
    learnable(&place);
    place.ok("train mlp.base --data two.npz --out two.adapter --steps 1 --holdout 0");
    let x = offshoot::Array::f32([5, 12], vec![0.5; 60]).unwrap();
    offshoot::testing::npy::write(place.path("x.npy"), &x).unwrap();
    let line = "bench mlp.base --seconds 0 --steps 0 --adapter two.adapter --input x=x.npy";
    assert!(place.ok(line).contains("x [5, 12]"));
    place.fails("bench mlp.base --seconds 0 --input y=x.npy", 3);
    place.fails("bench mlp.base --seconds 0 --adapter missing.adapter", 3);
    place.fails("bench mlp.base --seconds -1", 2);
    place.fails("bench mlp.base --text hello", 3);
    place.fails("bench missing.base", 3);
}

#[test]
fn a_base_is_locked_or_the_limit_is_named() {
    let place = Place::new();
    learnable(&place);
    let done = place.run("bench mlp.base --seconds 0 --steps 0 --lock");
    match done.code {
        0 => {}
        _ => {
            done.failed(5, "bench --lock");
            assert!(done.stderr.contains("locked memory"), "{done:?}");
        }
    }
}
