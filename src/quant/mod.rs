//! Layer 1: quantization schemes, packed matrices, and the products over them.
//!
//! # The packed layout (part of the file format)
//!
//! A matrix of (rows, cols), rows being out_features and cols in_features, is stored as
//! `ceil(rows / 16)` panels of [`PANEL`] = 16 rows, one after the other, little-endian. Every panel
//! starts and ends on a multiple of 64 bytes from the start of the matrix, so with a 64-byte aligned
//! matrix every 64-byte group below is one aligned load. Rows past `rows` are zero.
//!
//! `q8` and `q4` pad the columns with zeros to blocks of [`BLOCK`] = 32, `q8-64` to blocks of [`WIDE`] = 64;
//! `blocks` is how many. A block is 8 or 16 groups of [`GROUP`] = 4 columns. Column `c` of a block is byte
//! `c % 4` of group `c / 4`.
//!
//! | scheme | a panel | bytes of a panel |
//! |---|---|---|
//! | `q8` | `blocks` × 512 bytes of quants, then the scales | `512·blocks + pad64(32·blocks)` |
//! | `q8-64` | `blocks` × 1024 bytes of quants, then the scales | `1024·blocks + pad64(32·blocks)` |
//! | `q4` | `blocks` × 256 bytes of quants, then the scales | `256·blocks + pad64(32·blocks)` |
//! | `f16` | for each column 16 × f16 (columns not padded) | `pad64(32·cols)` |
//! | `f32` | for each column 16 × f32 (columns not padded) | `64·cols` |
//!
//! - **scales**: for each block 16 × f16, one a row; after the last block zeros up to a multiple of
//!   64. A scale is finite; it may be negative.
//! - **q8 and q8-64 quants** of a block: 8 or 16 groups × 64 bytes. Byte `4·row + k` of group `g` is the `i8` of
//!   column `4·g + k`; the weight is `scale · q`.
//! - **q4 quants** of a block: 4 vectors × 64 bytes. The low nibble of byte `4·row + k` of vector `v`
//!   belongs to column `4·v + k`, the high nibble to column `4·(v + 4) + k`. A nibble is `q + 8` with
//!   `q` in -8..=7; the weight is `scale · q`. Padding is `q = 0`, the byte 0x88.

mod activation;
mod attention;
mod change;
#[cfg(feature = "import")]
mod compensate;
mod conv;
mod convolution;
mod dense;
mod depthwise;
mod dispatch;
mod encode;
mod inputs;
mod kept;
mod kernels;
mod layout;
mod low_rank;
mod normalize;
mod packed;
mod picture;
mod product;
mod row_norms;
mod scheme;
mod source;
#[cfg(test)]
mod testing;
mod threads;

pub use activation::{Activation, finish};
pub use attention::{Attention, Mask, attention};
pub use change::{Bottleneck, Change, Rows, Update};
#[cfg(feature = "import")]
pub(crate) use compensate::InputMoments;
pub use conv::{ConvGeometry, col2im_add, im2col};
pub use convolution::{Convolution, Patches};
pub use dense::{ContractedAxis, contract};
pub use depthwise::{depthwise, depthwise_input_gradient};
pub use dispatch::{available_kernels, check_kernels, compiled_kernels, kernel_name};
pub use inputs::{Inputs, bounded_shift, takes_bounded};
pub use kept::{Kept, attention_to_kept};
pub use layout::{PANEL, packed_len};
pub use low_rank::LowRank;
pub use normalize::{LayerNorm, layer_norm};
pub use packed::{Packed, PackedRef};
pub use picture::{channels_last, max_pool};
pub use product::{product, product_transposed};
pub use row_norms::{row_norms, row_squares};
pub use scheme::Scheme;
pub use source::WeightSource;
pub use threads::Threads;
pub(crate) use threads::{WORTH_SHARING, threads_for, try_share};

#[cfg(target_endian = "big")]
compile_error!("the packed layout is read in place and is little-endian");
