//! Everything that reads bytes from outside, one target a form: seeds of what the tree has, and what is done
//! with an input. What must hold of any bytes: no panic, no abort, no time or memory out of proportion.

use crate::place::Place;
use crate::{daemon, files, home, kept};

/// A form of bytes from outside.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Inputs of the smoke run.
    pub smoke: u64,
    /// Most bytes of memory that an input may take at once.
    pub memory: usize,
    /// Makes it ready, in a folder of its own.
    pub ready: fn(Place) -> Ready,
}

/// What an input is made of and given to.
pub struct Ready {
    /// Whole inputs.
    pub seeds: Vec<Vec<u8>>,
    /// Takes them.
    pub take: Take,
}

/// Takes any bytes.
pub type Take = Box<dyn FnMut(&[u8])>;

const MB: usize = 1 << 20;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "adapter", smoke: 6000, memory: 32 * MB, ready: files::adapter },
    Target { name: "backup", smoke: 60, memory: 64 * MB, ready: daemon::backup },
    Target { name: "base", smoke: 600, memory: 128 * MB, ready: files::base },
    Target { name: "chat", smoke: 6000, memory: 64 * MB, ready: files::chat },
    Target { name: "checkpoint", smoke: 6000, memory: 32 * MB, ready: files::checkpoint },
    Target { name: "children", smoke: 3000, memory: 32 * MB, ready: kept::children },
    Target { name: "config", smoke: 2000, memory: 32 * MB, ready: daemon::config },
    Target { name: "csv", smoke: 2000, memory: 32 * MB, ready: files::csv },
    Target { name: "export", smoke: 1000, memory: 32 * MB, ready: files::export },
    Target { name: "home", smoke: 1500, memory: 128 * MB, ready: home::home },
    Target { name: "hooks", smoke: 3000, memory: 32 * MB, ready: home::hooks },
    Target { name: "http", smoke: 2000, memory: 128 * MB, ready: daemon::http },
    Target { name: "jsonl", smoke: 2000, memory: 32 * MB, ready: files::jsonl },
    Target { name: "log", smoke: 3000, memory: 32 * MB, ready: daemon::log },
    Target { name: "npy", smoke: 10_000, memory: 32 * MB, ready: files::npy },
    Target { name: "npz", smoke: 3000, memory: 64 * MB, ready: files::npz },
    Target { name: "onnx", smoke: 1500, memory: 256 * MB, ready: files::onnx },
    Target { name: "peft", smoke: 1500, memory: 32 * MB, ready: files::peft },
    // A JPEG or PNG may decode to 192 MiB, and is copied once or twice then.
    Target { name: "picture", smoke: 1500, memory: 512 * MB, ready: files::picture },
    Target { name: "program", smoke: 3000, memory: 32 * MB, ready: files::program },
    Target { name: "recent", smoke: 2000, memory: 32 * MB, ready: kept::recent },
    Target { name: "sound", smoke: 1000, memory: 128 * MB, ready: files::sound },
    Target { name: "state", smoke: 60, memory: 64 * MB, ready: daemon::state },
    Target { name: "text", smoke: 2000, memory: 32 * MB, ready: files::text },
    Target { name: "tokenizer", smoke: 400, memory: 512 * MB, ready: files::tokenizer },
    Target { name: "tokens", smoke: 3000, memory: 32 * MB, ready: home::tokens },
    Target { name: "topic", smoke: 10_000, memory: 16 * MB, ready: daemon::topic },
    Target { name: "voice", smoke: 10_000, memory: 16 * MB, ready: daemon::voice },
];

/// A target of these seeds.
pub fn ready(seeds: Vec<Vec<u8>>, take: impl FnMut(&[u8]) + 'static) -> Ready {
    assert!(!seeds.is_empty());
    Ready { seeds, take: Box::new(take) }
}
