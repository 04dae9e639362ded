//! Layer 4: running a base (engine, plans, sessions), packing one, and turning sentences and
//! pictures into its inputs. Knows nothing about training and the store.

#[cfg(feature = "import")]
mod alphabet;
pub mod audio;
#[cfg(feature = "import")]
mod calibrate;
#[cfg(feature = "import")]
mod compensation;
mod convert;
pub mod ctc;
mod engine;
#[cfg(feature = "import")]
mod export;
#[cfg(feature = "import")]
mod fitting;
#[cfg(feature = "text")]
mod free;
#[cfg(feature = "text")]
mod generate;
mod graphs;
mod head;
mod inputs;
mod joined;
mod library;
#[cfg(feature = "import")]
mod made_up;
mod memory;
mod message;
mod not_finite;
#[cfg(feature = "import")]
mod packing;
#[cfg(feature = "import")]
mod passages;
pub mod picture;
mod plans;
#[cfg(feature = "import")]
mod pool;
mod reading;
#[cfg(feature = "import")]
mod roles;
mod rows;
#[cfg(feature = "import")]
mod sandbox;
mod scores;
mod sentences;
mod session;
#[cfg(feature = "import")]
mod sound;
#[cfg(feature = "import")]
mod summary;
#[cfg(all(test, feature = "import"))]
pub mod testing;
pub mod text;
#[cfg(feature = "text")]
mod tokenizer_limits;
#[cfg(feature = "import")]
mod trial;
#[cfg(feature = "import")]
mod walk;
#[cfg(feature = "text")]
mod wordpiece;
mod words;

pub use crate::graph::Stop;
#[cfg(feature = "import")]
pub use alphabet::Alphabet;
pub(crate) use convert::to_tensor;
pub use engine::{Engine, Named};
#[cfg(feature = "import")]
pub use export::ExportFolder;
#[cfg(feature = "text")]
pub(crate) use generate::chat_text;
#[cfg(feature = "text")]
pub use generate::{Ended, GenerateOptions, Generated, Generator, Listener, Sampling};
pub(crate) use head::{LEAST_COUNT, MASKED, as_tokens, counted, feature_axis, read};
pub use head::{Prediction, apply_head, base_predictions, pool};
pub use inputs::Preprocessor;
pub(crate) use inputs::concat_axis;
#[cfg(feature = "text")]
pub(crate) use inputs::of_type;
pub use library::{LibraryKernels, library_kernels};
pub use memory::{MemoryLimit, Taken};
pub use message::Message;
#[cfg(feature = "import")]
pub use packing::{GraphSource, PackOptions, pack, pack_graphs};
pub(crate) use plans::Binding;
pub(crate) use reading::Reading;
#[cfg(feature = "import")]
pub use sandbox::{Files, PackedBase, Request, Sandbox, sandbox_main};
pub use scores::{argmax, sigmoid, softmax, top_k};
pub(crate) use sentences::sentences;
pub use session::Session;
#[cfg(feature = "import")]
pub use summary::{Io, OnnxSummary, TargetLine};
pub use text::Tokens;
pub use words::{WordAt, Words};
