//! Layer 5: training. The gradient graph is itself a tract model; data, optimizers, schedules,
//! metrics and checkpoints are plain Rust around it.

pub mod checkpoint;
#[cfg(feature = "daemon")]
#[cfg_attr(not(feature = "text"), path = "no_completing.rs")]
mod completing;
#[cfg(all(test, feature = "import"))]
mod ctc_tests;
pub mod data;
mod evaluate;
mod features;
#[cfg(feature = "cli")]
mod few;
pub mod forward;
pub mod gradient;
pub mod head;
pub mod init;
pub mod instant;
mod kind;
mod knowledge;
#[cfg(all(test, feature = "import"))]
mod knowledge_tests;
#[cfg(all(test, feature = "import", feature = "text"))]
mod language_tests;
mod lesson;
#[cfg(test)]
mod lesson_tests;
pub mod loss;
pub mod metrics;
mod mixer;
mod next_tokens;
pub mod optimizer;
mod options;
mod parameter;
mod plan;
mod prefix;
pub mod progress;
pub mod random;
mod recompute;
#[cfg(test)]
mod recurrent_tests;
#[cfg(test)]
mod reference_tests;
mod retention;
mod run;
#[cfg(test)]
mod run_tests;
mod runnable;
pub mod sampler;
mod samples;
pub mod schedule;
pub mod split;
mod start;
pub mod stopping;
#[cfg(all(test, feature = "import"))]
mod task_tests;
pub mod tasks;
#[cfg(test)]
mod testing;
mod trainer;
#[cfg(all(test, feature = "import", feature = "text"))]
mod translate_tests;
pub mod vjp;
pub mod wires;
mod work;
#[cfg_attr(not(feature = "text"), path = "no_writing.rs")]
mod writing;

#[cfg(feature = "daemon")]
pub(crate) use completing::Completing;
#[cfg(feature = "daemon")]
pub(crate) use evaluate::{Answered, always, answers};
pub use evaluate::{Evaluation, evaluate, evaluate_with};
#[cfg(feature = "daemon")]
pub(crate) use features::{Features, choose_features};
#[cfg(feature = "cli")]
pub(crate) use few::{is_cheap, train_cheaply};
#[cfg(feature = "cli")]
pub(crate) use kind::suited_rate;
pub use knowledge::KnowledgeKept;
#[cfg(feature = "cli")]
pub(crate) use knowledge::usual_share;
pub use lesson::Lesson;
pub use options::{InstantHead, OptimizerKind, TargetChoice, TrainOptions};
pub use prefix::PrefixReport;
pub use recompute::Repeated;
pub use retention::{Retention, retention};
#[cfg(feature = "daemon")]
pub(crate) use run::too_large;
pub use run::{TrainReport, Trained, learn, misfit, train};
pub use samples::try_sample;
#[cfg(feature = "daemon")]
pub(crate) use samples::{answering_bytes, longest_sentence};
pub use tasks::Task;
pub use trainer::{Answers, Gradients, MicroBatch, Trainer};
#[cfg(feature = "daemon")]
pub(crate) use writing::Writing;
