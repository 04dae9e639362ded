//! The largest of what several parts of the program read, or one writes and another reads, stated once. A
//! limit of one reader alone stands with it.

/// Header of a base.
pub const HEADER: usize = 1 << 20;
/// A section of a base that is decoded into structs at open (target table, preprocessing, import
/// record): bounds what opening a hostile file can allocate.
pub const TABLE: u64 = 8 << 20;
/// Text of one graph, and of all graphs of one base.
pub const GRAPH_TEXT: u64 = 64 << 20;
/// tokenizer.json.
pub const TOKENIZER: u64 = 32 << 20;
/// Graphs of one base.
pub const GRAPHS: usize = 16;
/// Sections of one base.
pub const SECTIONS: usize = 64;
/// An ONNX file; protobuf itself stops there.
pub const ONNX: u64 = 1 << 31;
/// A file of labels, one a line.
pub const LABELS: u64 = 4 << 20;
/// config.json and its like in an export folder.
pub const CONFIG: u64 = 4 << 20;
/// Arrays of a command: a `.npy` or `.npz` file.
#[cfg(feature = "cli")]
pub const ARRAYS: u64 = 4 << 30;
