//! Where packed matrices come from.

use super::{Packed, PackedRef};
use crate::error::{Error, Result};
use std::fmt;

/// Something that holds the weight table of a base: its mapping, or matrices in memory.
pub trait WeightSource: Send + Sync + fmt::Debug {
    /// The packed matrix at `index` of the weight table; an error where there is none.
    fn weight(&self, index: usize) -> Result<PackedRef<'_>>;
}

impl WeightSource for Vec<Packed> {
    fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        self.get(index).map(Packed::view).ok_or_else(|| {
            Error::bad_input(format!(
                "weight {index} is outside the weight table of {} entries",
                self.len()
            ))
        })
    }
}
