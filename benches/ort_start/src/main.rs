//! ONNX Runtime's own start, without Python, as a program sees it that links the C library.
//!
//!     ort_start LIBONNXRUNTIME MODEL TOKENS
//!
//! Prints as one JSON line the milliseconds that loading the library took, those from there to the
//! first answer, and the process's peak memory in bytes. One thread; inputs of ones.

use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, ValueType};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, library, model, tokens] = arguments.as_slice() else {
        return Err("ort_start LIBONNXRUNTIME MODEL TOKENS".into());
    };
    let tokens: usize = tokens.parse()?;
    let begun = Instant::now();
    let environment = ort::init_from(library)?.build()?;
    let library_ms = begun.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let mut builder =
        Session::builder(&environment)?.with_intra_threads(1)?.with_inter_threads(1)?;
    let mut session = builder.commit_from_file(model)?;
    let mut inputs: Vec<(String, SessionInputValue)> = vec![];
    for input in session.inputs() {
        let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
            return Err("an input is no tensor".into());
        };
        let free = |at: usize| if at == 0 { 1 } else { tokens };
        let dims: Vec<usize> = shape
            .iter()
            .enumerate()
            .map(|(at, &d)| usize::try_from(d).unwrap_or(free(at)))
            .collect();
        let count = dims.iter().product();
        let value = match ty {
            ort::value::TensorElementType::Float32 => {
                Tensor::from_array((dims, vec![1f32; count]))?.into_dyn()
            }
            _ => Tensor::from_array((dims, vec![1i64; count]))?.into_dyn(),
        };
        inputs.push((input.name().to_string(), value.into()));
    }
    drop(session.run(inputs)?);
    let start_ms = begun.elapsed().as_secs_f64() * 1e3;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: u64 = peak.and_then(|p| p.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    println!(
        "{{\"start_ms\": {start_ms}, \"library_ms\": {library_ms}, \"peak\": {}}}",
        kib * 1024
    );
    Ok(())
}
