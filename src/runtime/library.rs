//! The matrix kernels of tract, which computes what is not quantized.

use serde::Serialize;
use std::collections::BTreeSet;
use tract_core::tract_linalg::{isa, mmm_routines};

/// tract's matrix kernels. Its build leaves some out in silence where the assembler is old.
#[derive(Clone, Debug, Serialize)]
pub struct LibraryKernels {
    /// Those for this architecture that were compiled in, sorted.
    pub compiled: Vec<String>,
    /// Those of them that this processor can run, sorted.
    pub can_run: Vec<String>,
    /// The instruction sets that tract sees, the architecture first.
    pub instruction_sets: Vec<String>,
}

/// Asks tract.
pub fn library_kernels() -> LibraryKernels {
    let native = isa::native();
    let all = mmm_routines::declared().map(|r| (r.make)()).filter(|k| k.built());
    let (mut compiled, mut can_run) = (BTreeSet::new(), BTreeSet::new());
    for kernel in all {
        if kernel.runnable_on(&native) {
            can_run.insert(kernel.name().to_string());
        }
        compiled.insert(kernel.name().to_string());
    }
    LibraryKernels {
        compiled: compiled.into_iter().collect(),
        can_run: can_run.into_iter().collect(),
        instruction_sets: native.iter().map(|i| i.name().to_string()).collect(),
    }
}
