//! Real networks give the answers that PyTorch and ONNX Runtime gave.

use crate::support::*;
use offshoot::packing::{ImportOptions, InputSpec, PackOptions};
use offshoot::{Engine, Scheme};
use std::path::{Path, PathBuf};

/// Largest size of MiniLM's q8 base, in bytes.
const MINILM_BYTES: u64 = 25_000_000;

/// Least cosines of q8 and q4: see [`Golden::close`].
const Q8: (f64, f64) = (0.999, 0.999);
/// Of the file in floats: one of its sentences is at 0.9990, by which layers have scales for 64 columns up to 0.0001 more or less.
const MINILM_Q8: (f64, f64) = (0.9988, 0.9988);
const Q4: (f64, f64) = (0.975, 0.97);
/// Of MiniLM where a tokenizer lets its 4-bit weights be made for sentences.
const MADE_Q4: (f64, f64) = (0.985, 0.985);

/// A network, the inputs fixed for it, its three references, and whether its outputs are scores of
/// classes, of which the first must stay the first.
struct Golden {
    name: &'static str,
    inputs: &'static [&'static str],
    references: [&'static str; 3],
    scores: &'static [&'static str],
}

const MINILM: Golden = Golden {
    name: "minilm-l6.onnx",
    inputs: &[],
    references: ["minilm/ref_dynamo_0", "minilm/ref_dynamo_1", "minilm/ref_dynamo_2"],
    scores: &[],
};

const EFFICIENTNET: Golden = Golden {
    name: "efficientnet-lite0.onnx",
    inputs: &[],
    references: [
        "efficientnet_lite0/ref_0",
        "efficientnet_lite0/ref_1",
        "efficientnet_lite0/ref_2",
    ],
    scores: &["logits"],
};

const RECOGNISER: Golden = Golden {
    name: "ppocr-rec.onnx",
    inputs: &["x=1x3x48x320,f32"],
    references: ["ppocr_rec/ref_rec_0", "ppocr_rec/ref_rec_1", "ppocr_rec/ref_rec_2"],
    scores: &["softmax_11.tmp_0"],
};

const CLASSIFIER: Golden = Golden {
    name: "ppocr-cls.onnx",
    inputs: &["x=1x3x48x192,f32"],
    references: ["ppocr_cls/ref_cls_0", "ppocr_cls/ref_cls_1", "ppocr_cls/ref_cls_2"],
    scores: &["save_infer_model/scale_0.tmp_1"],
};

const RESEMBLYZER: Golden = Golden {
    name: "resemblyzer.onnx",
    inputs: &[],
    references: ["resemblyzer/ref_0", "resemblyzer/ref_1", "resemblyzer/ref_2"],
    scores: &[],
};

impl Golden {
    fn packed(&self, source: &Path, scheme: Scheme) -> Engine {
        let inputs = self.inputs.iter().map(|text| InputSpec::parse(text).unwrap()).collect();
        let import = ImportOptions { inputs, ..ImportOptions::default() };
        packed(source, &PackOptions { scheme, import, ..PackOptions::default() })
    }

    fn references(&self, shared: &Path) -> Vec<PathBuf> {
        let file = |name: &&str| shared.join("reference").join(name).with_extension("npz");
        self.references.iter().map(file).collect()
    }

    /// Every value of every output within 3e-5.
    fn equals(&self) {
        let Some(shared) = shared() else { return };
        let engine = self.packed(&shared.join("models").join(self.name), Scheme::F32);
        for path in self.references(&shared) {
            for (name, found, expected) in answers(&engine, &reference(&path)) {
                let apart = max_difference(found.as_f32().unwrap(), expected.as_f32().unwrap());
                println!("{} '{name}': {apart:.1e}", path.display());
                assert!(apart <= 3e-5, "{} '{name}': {apart}", path.display());
            }
        }
    }

    /// Every output at these cosines or closer, first classes kept in every row. Embeddings and logits
    /// are held to the first row by row; sequences (B, T, F), tokens' states and a recogniser's
    /// probabilities, to the second as a whole: single steps scatter more.
    fn close(&self, shared: &Path, engine: &Engine, (rows_least, least): (f64, f64)) {
        for path in self.references(shared) {
            for (name, found, expected) in answers(engine, &reference(&path)) {
                let rows = least_cosine(&found, &expected);
                let whole = cosine(found.as_f32().unwrap(), expected.as_f32().unwrap());
                let path = path.display();
                println!("{path} '{name}': cosine {whole:.5}, least of a row {rows:.5}");
                let sequence = found.shape().len() == 3;
                let (cosine, least) = if sequence { (whole, least) } else { (rows, rows_least) };
                assert!(cosine >= least, "{path} '{name}': cosine {cosine}");
                if self.scores.contains(&name.as_str()) {
                    assert_eq!(top(&found), top(&expected), "{path} '{name}'");
                }
            }
        }
    }

    fn close_at(&self, scheme: Scheme, least: (f64, f64)) {
        let Some(shared) = shared() else { return };
        let engine = self.packed(&shared.join("models").join(self.name), scheme);
        self.close(&shared, &engine, least);
    }
}

#[test]
fn minilm_f32() {
    MINILM.equals();
}

#[test]
fn minilm_q8_is_close_and_small() {
    let Some(shared) = shared() else { return };
    let engine = MINILM.packed(&shared.join("models").join(MINILM.name), Scheme::Q8);
    MINILM.close(&shared, &engine, MINILM_Q8);
    let bytes = engine.base().file_len();
    println!("base of {bytes} bytes");
    assert!(bytes <= MINILM_BYTES, "{bytes} bytes");
}

#[test]
fn minilm_q4() {
    MINILM.close_at(Scheme::Q4, Q4);
}

#[test]
fn minilm_q4_made_for_sentences_is_closer_and_smaller() {
    let Some(shared) = shared() else { return };
    let source = shared.join("models").join(MINILM.name);
    let tokenizer = std::fs::read(shared.join("models/minilm-l6.tokenizer.json")).unwrap();
    let options = PackOptions { scheme: Scheme::Q4, ..PackOptions::default() };
    let made = packed(&source, &PackOptions { tokenizer: Some(tokenizer), ..options });
    MINILM.close(&shared, &made, MADE_Q4);
    let plain = MINILM.packed(&source, Scheme::Q4);
    let bytes = [&made, &plain].map(|engine| engine.base().file_len());
    println!("bases of {bytes:?} bytes");
    assert!(bytes[0] < bytes[1], "{bytes:?} bytes");
}

#[test]
fn efficientnet_f32() {
    EFFICIENTNET.equals();
}

#[test]
fn efficientnet_q8() {
    EFFICIENTNET.close_at(Scheme::Q8, Q8);
}

#[test]
fn efficientnet_q4() {
    EFFICIENTNET.close_at(Scheme::Q4, Q4);
}

#[test]
fn recogniser_f32() {
    RECOGNISER.equals();
}

#[test]
fn recogniser_q8() {
    RECOGNISER.close_at(Scheme::Q8, Q8);
}

#[test]
fn recogniser_q4() {
    RECOGNISER.close_at(Scheme::Q4, Q4);
}

#[test]
fn classifier_f32() {
    CLASSIFIER.equals();
}

#[test]
fn classifier_q8() {
    CLASSIFIER.close_at(Scheme::Q8, Q8);
}

#[test]
fn classifier_q4() {
    CLASSIFIER.close_at(Scheme::Q4, Q4);
}

#[test]
fn resemblyzer_f32() {
    RESEMBLYZER.equals();
}

#[test]
fn resemblyzer_q8() {
    RESEMBLYZER.close_at(Scheme::Q8, Q8);
}

#[test]
fn resemblyzer_q4() {
    RESEMBLYZER.close_at(Scheme::Q4, Q4);
}

/// The networks that ship here hold int8 weights already; packing keeps their integers.
#[test]
fn shipped_minilm() {
    let Some(shared) = shared() else { return };
    let engine = MINILM.packed(&model(MINILM.name), Scheme::Q8);
    MINILM.close(&shared, &engine, Q8);
    assert!(engine.base().file_len() <= MINILM_BYTES);
}

#[test]
fn shipped_efficientnet() {
    let Some(shared) = shared() else { return };
    let engine = EFFICIENTNET.packed(&model(EFFICIENTNET.name), Scheme::Q8);
    EFFICIENTNET.close(&shared, &engine, Q8);
}
