//! NumPy archives: arrays named as the inputs and `labels`, samples along the first axis.

use super::collect::{Collector, RawLabel};
use super::{MAX_FILE_BYTES, MAX_SAMPLES, SampleInput};
use crate::error::{Error, Result};
use crate::npy::read_npz;
use crate::shape::{Array, Data};
use std::path::Path;

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    let mut arrays = read_npz(path, MAX_FILE_BYTES)?;
    let file = collector.place(0);
    let bad = |text: String| Error::bad_input(text).at(&file);
    let Some(at) = arrays.iter().rposition(|(name, _)| name == "labels") else {
        let found: Vec<&str> = arrays.iter().map(|(name, _)| name.as_str()).take(10).collect();
        return Err(bad(format!("no array 'labels', found [{}]", found.join(", "))));
    };
    let (_, labels) = arrays.remove(at);
    // Of two arrays of one name the last counts, as in NumPy.
    let mut inputs: Vec<(String, Array)> = Vec::new();
    for (name, array) in arrays {
        if name == "labels" {
            continue;
        }
        match inputs.iter_mut().find(|(other, _)| *other == name) {
            Some((_, other)) => *other = array,
            None => inputs.push((name, array)),
        }
    }
    if inputs.is_empty() {
        return Err(bad("no array but 'labels'".into()));
    }
    let count =
        *labels.shape().first().ok_or_else(|| bad("array 'labels' is a single value".into()))?;
    if count > MAX_SAMPLES {
        return Err(bad(format!("{count} samples, at most {MAX_SAMPLES} are taken")));
    }
    for (name, array) in &inputs {
        if array.shape().first() != Some(&count) {
            return Err(bad(format!(
                "array '{name}' of shape {:?} does not hold {count} samples, as 'labels' does",
                array.shape()
            )));
        }
        if let Data::F32(values) = array.data()
            && let Some(i) = values.iter().position(|v| !v.is_finite())
        {
            let per_sample = (values.len() / count.max(1)).max(1);
            return Err(bad(format!(
                "array '{name}' holds a value that is not finite in sample {}",
                i / per_sample
            )));
        }
    }
    for i in 0..count {
        let one = |(name, array): &(String, Array)| Ok((name.clone(), sample(array, i)?));
        let arrays = inputs.iter().map(one).collect::<Result<Vec<_>>>()?;
        let label = label(&labels, i, count).map_err(|e| e.at(&file))?;
        collector.add(SampleInput::Arrays(arrays), label, None, file.clone())?;
    }
    Ok(())
}

/// Sample `i`, without the first axis.
fn sample(array: &Array, i: usize) -> Result<Array> {
    fn part<T: Clone>(values: &[T], i: usize, width: usize) -> Vec<T> {
        values.get(i * width..(i + 1) * width).map(<[T]>::to_vec).unwrap_or_default()
    }
    let shape = array.shape().get(1..).unwrap_or_default().to_vec();
    let width = shape.iter().product();
    let data = match array.data() {
        Data::F32(v) => Data::F32(part(v, i, width)),
        Data::I64(v) => Data::I64(part(v, i, width)),
        Data::I32(v) => Data::I32(part(v, i, width)),
        Data::U8(v) => Data::U8(part(v, i, width)),
        Data::Bool(v) => Data::Bool(part(v, i, width)),
    };
    Array::new(shape, data)
}

fn label(labels: &Array, i: usize, count: usize) -> Result<RawLabel> {
    let width = labels.data().len() / count;
    let number = match labels.data() {
        Data::F32(v) => {
            let values = v.get(i * width..(i + 1) * width).unwrap_or_default();
            if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                return Err(Error::bad_input(format!("label of sample {i} is {v}")));
            }
            return Ok(RawLabel::Values(values.to_vec()));
        }
        _ if width != 1 => {
            return Err(Error::unsupported(format!(
                "integer labels of shape {:?}, expected one for each of {count} samples",
                labels.shape()
            )));
        }
        Data::I64(v) => v.get(i).copied(),
        Data::I32(v) => v.get(i).map(|&v| v.into()),
        Data::U8(v) => v.get(i).map(|&v| v.into()),
        Data::Bool(v) => v.get(i).map(|&v| v.into()),
    };
    Ok(RawLabel::Scalar(number.unwrap_or_default().to_string()))
}
