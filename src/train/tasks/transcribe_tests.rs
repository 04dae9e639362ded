use super::*;
use crate::train::loss::testing::{differences, near, value};
use crate::train::vjp::check::random;
use tract_core::internal::*;

fn fields(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

fn names(symbols: &[&str]) -> Vec<String> {
    symbols.iter().map(|s| s.to_string()).collect()
}

fn of(row: &str) -> Result<Label> {
    let fields = fields(row);
    let rough = Transcribe.label(&Row::typed(&fields))?;
    Transcribe.settle(Rough { text: rough.text, ..Rough::default() })
}

/// A label as it is spelled with `symbols`.
fn spelled_with(row: &str, symbols: &[&str]) -> Result<Spelled> {
    let names = names(symbols);
    let label = Transcribe.speller(&names)?(&of(row)?)?;
    spelled(&label).cloned()
}

#[test]
fn a_row_has_a_text_or_where_it_is_asked_for_a_label() {
    let row = fields(r#"{"image": "a.png", "transcript": "12"}"#);
    assert!(Transcribe.reads(&Row::typed(&row)));
    assert_eq!(Transcribe.stored(&Row::typed(&row))["transcript"], "12");
    assert_eq!(Transcribe.right(&Row::typed(&row), &json!("12 ")), Some(true));
    assert_eq!(Transcribe.right(&Row::typed(&row), &json!("2")), Some(false));
    let row = fields(r#"{"label": 42}"#);
    let row = Row::typed(&row);
    assert!(!Transcribe.reads(&row) && Transcribe.reads_asked(&row));
    assert_eq!(Transcribe.label(&row).unwrap().text.unwrap().text, "42");
    for broken in [r#"{"transcript": 3}"#, r#"{"label": [0.5]}"#, r#"{"label": {}}"#, "{}"] {
        assert!(of(broken).is_err(), "{broken}");
    }
}

#[test]
fn texts_are_spelled_with_the_models_symbols() {
    let found = spelled_with(r#"{"transcript": "ab a"}"#, &["a", "b", "", " "]).unwrap();
    assert_eq!(found.symbols, [0, 1, 3, 0]);
    // The longest symbol first, words with their space.
    let found = spelled_with(r#"{"transcript": "the hat"}"#, &["", " the", " h", "at", "a", "t"]);
    assert_eq!(found.unwrap().symbols, [1, 2, 3]);
    let found = spelled_with(r#"{"label": [2, 0, -1]}"#, &["b", "", "a"]).unwrap();
    assert_eq!((found.text.as_str(), found.symbols.as_slice()), ("ab", &[2, 0][..]));
    for (row, says) in [
        (r#"{"transcript": "aé"}"#, "'é', which is none of the model's 2 symbols"),
        (r#"{"label": [1]}"#, "symbol 1 is none of 3, of which 1 is the blank"),
        (r#"{"label": [3]}"#, "symbol 3 is none of 3"),
    ] {
        let e = spelled_with(row, &["b", "", "a"]).unwrap_err();
        assert!(e.message().contains(says), "{e}");
    }
    let e = spelled_with(r#"{"transcript": "a"}"#, &["a", "b"]).unwrap_err();
    assert!(e.message().contains("doesn't say which symbols"), "{e}");
}

fn label(text: &str, symbols: &[i64]) -> Label {
    Label::Text(Spelled { text: text.into(), symbols: symbols.to_vec() })
}

#[test]
fn a_text_that_takes_more_steps_than_there_are_is_refused() {
    let long = label("aab", &[0, 0, 1]);
    assert!(Transcribe.fits(&long, 4).is_ok());
    let e = Transcribe.fits(&long, 3).unwrap_err();
    assert!(e.message().contains("a text of 3 symbols takes 4 steps"), "{e}");
    let row = Transcribe.target(&long, 0, None).unwrap();
    assert_eq!(row, [1.0, 1.0, 2.0]);
    let tensors =
        |steps: usize| Transcribe.tensors(&[Some(row.clone()), None], &[2, steps, 3], None);
    assert!(tensors(3).is_err());
    let found = tensors(5).unwrap();
    let values = |t: &Tensor| crate::train::vjp::check::slice(t).to_vec();
    assert_eq!(values(&found[0]), [1., 1., 2., 0., 0., 0., 0., 0., 0., 0.]);
    assert_eq!(values(&found[1]), [1.0 / 3.0, 0.0]);
    let kept =
        |counts: [bool; 5]| Transcribe.tensors(&[Some(row.clone())], &[1, 5, 3], Some(&counts));
    let found = kept([true, true, true, true, false]).unwrap();
    assert_eq!(values(&found[0]), [1., 1., 2., 0., -1.]);
    for (counts, says) in [
        ([true, true, true, false, false], "takes 4 steps"),
        ([true, false, true, true, true], "leaves out steps"),
    ] {
        let e = kept(counts).unwrap_err();
        assert!(e.message().contains(says), "{e}");
    }
}

/// Over two steps of two symbols and a blank in the middle, "b" is b-, -b and bb.
#[test]
fn the_loss_is_read_before_a_softmax_and_after_moves_of_axes() {
    let symbols = names(&["a", "", "b"]);
    let logits = tensor3(&[[[0.5f32, 0.1, -0.2], [0.3, 0.7, 1.1]]]);
    let rows: Vec<Vec<f32>> =
        crate::train::vjp::check::slice(&logits).chunks(3).map(crate::runtime::softmax).collect();
    let p = rows[0][2] * rows[1][1] + rows[0][1] * rows[1][2] + rows[0][2] * rows[1][2];
    let others = [tensor3(&[[[3f32], [0.]]]), tensor1(&[1f32]), tensor0(1f32)];
    let plain =
        |model: &mut TypedModel, output| Transcribe.loss(model, output, &names(&["a", "", "b"]));
    near(value(plain, logits.clone(), &others), -p.ln());
    let softmax = || tract_core::ops::nn::Softmax { axes: tvec![2], ..Default::default() };
    for steps_first in [false, true] {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, 2, 3])).unwrap();
        let mut y = x;
        if steps_first {
            y = model.wire_node("turned", AxisOp::Move(1, 0), &[y]).unwrap()[0];
        }
        y = model.wire_node("softmax", softmax(), &[y]).unwrap()[0];
        if steps_first {
            y = model.wire_node("back", AxisOp::Move(0, 1), &[y]).unwrap()[0];
        }
        let loss = Transcribe.loss(&mut model, y, &symbols).unwrap();
        model.select_output_outlets(&[loss.value]).unwrap();
        let inputs: Vec<Tensor> = [&[logits.clone()][..], &others].concat();
        let found = crate::train::vjp::check::run(&model, &inputs);
        near(crate::train::vjp::check::slice(&found[0])[0], -p.ln());
        assert!(loss.targets.len() == 2 && model.output_outlets().unwrap() == [loss.value]);
    }
    let targets = Tensor::from_shape(&[2, 4, 1], &[3f32, 3., 1., 0., 0., 0., 0., 0.]).unwrap();
    let others = [targets, tensor1(&[0.5f32, 1.0]), tensor0(2.5f32)];
    differences(plain, random(&[2, 4, 3], 1), &others);
}

fn given<'a>(output: &'a [f32], names: &'a [String]) -> Given<'a> {
    Given::plain(output, names)
}

/// Steps whose likeliest symbols are these.
fn says(symbols: &[usize], count: usize) -> Vec<f32> {
    symbols
        .iter()
        .flat_map(|s| (0..count).map(move |at| if at == *s { 9.0 } else { 0.0 }))
        .collect()
}

/// "one two" heard as "one to": one of seven characters, one of two words. "ab" heard as nothing.
#[test]
fn error_rates_are_edits_over_the_length_of_all_texts() {
    let names = names(&["", "o", "n", "e", " ", "t", "w", "a", "b"]);
    let mut meter = Transcribe.meter(0);
    let heard = says(&[1, 2, 3, 4, 5, 1, 0], 9);
    let long = label("one two", &[1, 2, 3, 4, 5, 6, 1]);
    meter.add(&long, &given(&heard, &names)).unwrap();
    let found = meter.finish().metrics;
    assert!((found.get("cer").unwrap() - 1.0 / 7.0).abs() < 1e-6);
    assert_eq!((found.get("wer"), found.get("exact")), (Some(0.5), Some(0.0)));
    let mut meter = Transcribe.meter(0);
    meter.add(&long, &given(&heard, &names)).unwrap();
    meter.add(&label("ab", &[7, 8]), &given(&says(&[0], 9), &names)).unwrap();
    let found = meter.finish().metrics;
    assert!((found.get("cer").unwrap() - 3.0 / 9.0).abs() < 1e-6);
    assert!((found.get("wer").unwrap() - 2.0 / 3.0).abs() < 1e-6);
    // What one step can't say counts with a bounded loss.
    assert!(found.get("loss").unwrap().is_finite());
    let score = Transcribe.score(&long, &given(&heard, &names));
    assert!((score.right.unwrap() - 6.0 / 7.0).abs() < 1e-9 && score.loss < 9.3);
    assert_eq!(Transcribe.score(&label("", &[]), &given(&says(&[0], 9), &names)).right, Some(1.0));
    assert_eq!(Transcribe.score(&label("", &[]), &given(&says(&[1], 9), &names)).right, Some(0.0));
    assert_eq!(Transcribe.score(&long, &Given::plain(&[], &[])).right, Some(0.0));
}

/// As scripts/error_rates.py has them of jiwer 4.0.
#[test]
fn error_rates_are_jiwers() {
    let pairs = [
        ("one two three", "one to three", 0.076923, 0.333333),
        ("0042.7", "8042", 0.500000, 1.000000),
        ("the door is open", "door is open now", 0.500000, 0.500000),
        ("größer als", "grosser als", 0.300000, 0.500000),
        ("kitten", "sitting", 0.500000, 1.000000),
        ("a b c d", "abcd", 0.428571, 1.000000),
        ("lights on", "lights on", 0.000000, 0.000000),
        ("nothing was said", "", 1.000000, 1.000000),
    ];
    let mut all = Rates::default();
    let near = |rates: [f64; 2], want: [f64; 2]| {
        assert!(rates.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{rates:?} {want:?}");
    };
    for (text, heard, cer, wer) in pairs {
        let mut one = Rates::default();
        one.count(text, heard);
        near(one.rates(), [cer, wer]);
        all.count(text, heard);
    }
    near(all.rates(), [0.445783, 0.65]);
}

#[test]
fn a_search_answers_with_the_next_texts_too() {
    let names = names(&["", "a", "b"]);
    let output = [0.6, 0.4, 0.0, 0.6, 0.4, 0.0];
    let plain = Transcribe.answer(&given(&output, &names), 5);
    assert_eq!(plain.json["transcript"], "");
    let found = Transcribe.answer(&Given { beam: 8, ..given(&output, &names) }, 2);
    assert_eq!(found.json["transcript"], "a");
    assert_eq!(found.json["top"].as_array().unwrap().len(), 2);
    assert_eq!(found.lines, [" 64.0 %  a", " 36.0 %  "]);
}
