//! Offshoot grows small LoRA adapters out of a frozen ONNX model, on the device that uses them.
//!
//! ```text
//! model.onnx ──pack──► model.base        frozen, quantized, mapped read-only, shared by processes
//!                         │
//!    your samples ──train──► my.adapter   lora_a, lora_b and a head; names its base
//!                         │       │
//!          request ──run──┴───────┘──► answer
//! ```
//!
//! - [`Engine`]: a mapped base and its plans; cheap to clone, runs on many threads.
//! - [`Generator`]: a base that is a language model, alone or behind an encoder, and the text it gives.
//! - [`Session`]: an engine and the adapter that it serves now; a switch is a pointer swap.
//! - [`Adapter`]: an adapter's tensors and where they attach; read, written, imported ([`adapters`]).
//! - [`train`]: from labelled samples ([`data`]) to an adapter, through the weights that serve.
//! - [`store::Store`]: named adapters in immutable generations, and the samples they learn from.
//!
//! ```
//! use offshoot::adapters::{TargetAdapter, TargetKind};
//! use offshoot::packing::PackOptions;
//! use offshoot::{Adapter, Array, Engine, Session, pack};
//!
//! # fn main() -> offshoot::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model.base");
//! // Once, anywhere: afterwards the device needs only the base.
//! pack("models/tiny/attention.onnx".as_ref(), &path, &PackOptions::default())?;
//!
//! let session = Session::new(Engine::open(&path)?);
//! let sentence = vec![
//!     ("input_ids".to_string(), Array::i64([1, 4], vec![3, 14, 15, 9])?),
//!     ("attention_mask".to_string(), Array::i64([1, 4], vec![1; 4])?),
//! ];
//! let plain = session.run(&sentence)?;
//!
//! // An adapter of rank 1 on one layer; usually one that was trained, from Adapter::read.
//! let base = session.engine().base();
//! let layer = base.targets().iter().find(|t| t.kind == TargetKind::Linear).unwrap();
//! let a = (0..layer.in_features).map(|i| 0.01 * i as f32).collect();
//! let b = vec![0.3; layer.out_features as usize];
//! let adapter = Adapter {
//!     name: "kitchen".into(),
//!     base: Some(base.fingerprint()),
//!     targets: vec![TargetAdapter::lora(&layer.module_path, 1, 1.0, a, b)],
//!     ..Adapter::default()
//! };
//!
//! // Binding checks all of it; a switch is a pointer swap, requests in flight keep theirs.
//! session.switch(Some(session.engine().bind(&[(&adapter, 1.0)])?));
//! assert_ne!(session.run(&sentence)?, plain);
//! session.switch(None);
//! assert_eq!(session.run(&sentence)?, plain);
//! # Ok(())
//! # }
//! ```
//!
//! A loop that runs often borrows its inputs and reuses its outputs:
//!
//! ```
//! # use offshoot::{Engine, Session, View, pack};
//! # fn main() -> offshoot::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model.base");
//! # pack("models/tiny/attention.onnx".as_ref(), &path, &Default::default())?;
//! # let session = Session::new(Engine::open(&path)?);
//! let (ids, mask) = ([3, 14, 15, 9], [1; 4]);
//! let mut outputs = vec![];
//! for _ in 0..3 {
//!     let inputs = [
//!         ("input_ids", View::i64(&[1, 4], &ids)?),
//!         ("attention_mask", View::i64(&[1, 4], &mask)?),
//!     ];
//!     session.run_into(&inputs, &mut outputs)?;
//! }
//! # assert!(!outputs.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! Features, all on by default: `import` (reading ONNX files), `text` (tokenizers), `store` (named
//! adapters and samples), `cli` (the program), `daemon` (the daemon and the verbs that talk to it).
//! Errors are [`Error`]; its kind fixes the program's exit code.
//!
//! What this page names is the public face, and what version numbers speak of; the rest is private.

#![deny(unnameable_types)]
// What nobody calls is looked for with all features: parts of the crate share their helpers.
#![cfg_attr(
    not(all(feature = "daemon", feature = "import", feature = "text")),
    allow(dead_code, unused_imports)
)]

#[cfg(test)]
extern crate self as offshoot;

/// Compiles the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// And that of the page on sequences.
#[cfg(doctest)]
#[doc = include_str!("../docs/SEQUENCES.md")]
struct Sequences;

mod adapter;
mod bench;
mod caught;
#[cfg(feature = "cli")]
mod cli;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(feature = "cli")]
mod compare;
#[cfg(feature = "daemon")]
mod daemon;
mod error;
mod fingerprint;
mod fs;
mod graph;
mod host;
#[cfg(feature = "import")]
mod import;
mod limits;
mod npy;
mod pack;
#[cfg(feature = "cli")]
mod plot;
mod quant;
mod runtime;
mod shape;
#[cfg(feature = "store")]
pub mod store;
#[doc(hidden)]
pub mod testing;
mod train;

pub use adapter::{Adapter, Bound};
/// The program, for its `main`.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::main as program;
pub use error::{Cause, Error, ErrorKind, Result};
pub use fingerprint::BaseFingerprint;
pub use pack::{Base, IoSpec, Role, prepare_heap};
pub use quant::Scheme;
#[cfg(feature = "import")]
pub use runtime::pack;
#[cfg(feature = "text")]
pub use runtime::{Ended, GenerateOptions, Generated, Generator, Listener, Message, Sampling};
pub use runtime::{
    Engine, MemoryLimit, Named, Prediction, Preprocessor, Session, Stop, Taken, Tokens, WordAt,
    Words, apply_head, base_predictions,
};
pub use shape::{Array, DType, Data, Input, Values, View};
pub use train::tasks::{Answer, Task, Wanted};
pub use train::{evaluate, train};

/// What an [`Adapter`] is made of, and how those of other programs become one.
///
/// ```
/// use offshoot::adapters::{TargetAdapter, TensorType, merge};
/// use offshoot::{Adapter, BaseFingerprint};
///
/// # fn main() -> offshoot::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let lora = |b: f32| Adapter {
///     // Usually Base::fingerprint of an open base.
///     base: Some(BaseFingerprint([7; 32])),
///     // Rank 1, alpha 1, lora_a of 1 × 2, lora_b of 3 × 1.
///     targets: vec![TargetAdapter::lora("encoder.dense", 1, 1.0, vec![1.0, -1.0], vec![b; 3])],
///     ..Adapter::default()
/// };
/// let both = merge("both", &[(&lora(0.5), 0.5), (&lora(0.25), 0.5)])?;
/// let file = folder.path().join("both.adapter");
/// both.write(&file, TensorType::F16)?;
/// assert_eq!(Adapter::read(&file)?.parameters(), 10);
/// # Ok(())
/// # }
/// ```
pub mod adapters {
    pub use crate::adapter::{
        ActivationRange, Extra, Head, Kind, Known, NamedTensor, Pool, ProbeEffect, Target,
        TargetAdapter, TargetKind, TensorType, TrainingRecord, merge,
    };

    /// Directories as PEFT writes them.
    pub mod peft {
        pub use crate::adapter::peft::{
            HeadSpec, ImportOptions, Imported, MatchRow, export, import,
        };
    }
}

/// Samples with labels, to learn from: `.jsonl`, `.csv`, `.npz`, folders of class folders.
///
/// ```
/// use offshoot::data::{Label, LoadOptions, Split, load};
///
/// # fn main() -> offshoot::Result<()> {
/// let options = LoadOptions { split: Split::Train, ..LoadOptions::default() };
/// let commands = load("models/commands.jsonl".as_ref(), &options)?;
/// let Label::Class(class) = commands.samples[0].label else { unreachable!() };
/// assert_eq!(commands.labels[class], "lights_on");
/// # Ok(())
/// # }
/// ```
pub mod data {
    pub use crate::train::data::{
        Dataset, Follows, Label, LoadOptions, Mark, Place, Sample, SampleInput, Spelled, Split,
        StoredPicture, load,
    };
}

/// How ONNX files become bases, and what a base says of its inputs.
///
/// Strangers' files belong into a child process with limits. It is this very program, so its `main`
/// begins with [`sandbox_main`](packing::sandbox_main):
///
/// ```no_run
/// use offshoot::Scheme;
/// use offshoot::packing::{Files, ImportOptions, Request, Sandbox, sandbox_main};
///
/// fn main() -> offshoot::Result<()> {
///     if let Some(code) = sandbox_main() {
///         std::process::exit(code.into());
///     }
///     let request = Request::of(Scheme::Q8, &ImportOptions::default());
///     let (source, out) = ("model.onnx".as_ref(), "model.base".as_ref());
///     let packed = Sandbox::this_program()?.pack(&request, Files::of(source), out, &mut |_| {})?;
///     println!("{} targets", packed.base.targets().len());
///     Ok(())
/// }
/// ```
///
/// Files that are trusted need none of it: [`pack`](crate::pack()).
pub mod packing {
    #[cfg(feature = "import")]
    pub use crate::import::{ImportOptions, InputSpec, Stage};
    pub use crate::pack::{
        Activation, AudioSpec, Bound, Edges, Filter, Fit, Front, GraphRecord, ImageSpec,
        ImportRecord, Log, MelSpec, Pitch, Preprocess, Problem, Subspace, TargetError, Window,
    };
    #[cfg(feature = "import")]
    pub use crate::runtime::{
        Alphabet, ExportFolder, Files, GraphSource, Io, OnnxSummary, PackOptions, PackedBase,
        Request, Sandbox, TargetLine, pack_graphs, sandbox_main,
    };
}

/// How adapters are trained: [`train`](crate::train()) does it all, a [`Trainer`](training::Trainer)
/// step by step.
///
/// ```
/// use offshoot::adapters::TensorType;
/// use offshoot::data::{Dataset, Label, Place, Sample, SampleInput};
/// use offshoot::training::{Silent, TrainOptions};
/// use offshoot::{Array, Engine, Task, evaluate, train};
///
/// # fn main() -> offshoot::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.base");
/// # offshoot::pack("models/tiny/attention.onnx".as_ref(), &path, &Default::default())?;
/// let engine = Engine::open(&path)?;
/// let sample = |ids: [i64; 4], class: usize| -> offshoot::Result<Sample> {
///     let inputs = vec![
///         ("input_ids".to_string(), Array::i64([4], ids.to_vec())?),
///         ("attention_mask".to_string(), Array::i64([4], vec![1; 4])?),
///     ];
///     let input = SampleInput::Arrays(inputs);
///     Ok(Sample { input, label: Label::Class(class), place: Place::named("made up") })
/// };
/// let data = Dataset {
///     samples: vec![sample([3, 14, 15, 9], 0)?, sample([2, 6, 5, 3], 1)?],
///     labels: vec!["on".into(), "off".into()],
///     splits: Default::default(),
///     task: Task::default(),
///     why: None,
/// };
/// let options = TrainOptions { steps: Some(100), learning_rate: 0.01, ..TrainOptions::default() };
/// let trained = train(&engine, &data, Some(&data), &options, &mut Silent)?;
/// trained.adapter.write(folder.path().join("lamps.adapter"), TensorType::F16)?;
///
/// let bound = engine.bind(&[(&trained.adapter, 1.0)])?;
/// let found = evaluate(&engine, Some(&bound), &data, 2)?;
/// assert_eq!(found.metric("accuracy"), Some(1.0));
/// # Ok(())
/// # }
/// ```
pub mod training {
    pub use crate::train::metrics::Confusion;
    pub use crate::train::progress::{Event, Progress, Silent};
    pub use crate::train::schedule::Schedule;
    pub use crate::train::tasks::{Metric, Metrics};
    pub use crate::train::{
        Answers, Evaluation, Gradients, InstantHead, KnowledgeKept, Lesson, MicroBatch,
        OptimizerKind, PrefixReport, Repeated, Retention, TargetChoice, TrainOptions, TrainReport,
        Trained, Trainer, learn, retention,
    };

    /// Heads in closed form.
    pub mod instant {
        pub use crate::train::instant::{
            Fitted, Form, InstantReport, LeaveOneOut, Live, Rule, fit,
        };
    }
}
