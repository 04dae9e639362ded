//! NumPy archives: arrays named as the inputs and `labels`, samples along the first axis.

use super::collect::Collector;
use super::{MAX_FILE_BYTES, MAX_SAMPLES, Row, SampleInput};
use crate::error::{Error, Result};
use crate::npy::read_npz_counted;
use crate::shape::{Array, Data};
use serde_json::{Map, Value};
use std::path::Path;

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    // The samples are copied out of the file's arrays.
    let mut arrays = read_npz_counted(path, MAX_FILE_BYTES, &mut |more| collector.take(more))?;
    let bytes: usize = arrays.iter().map(|(_, a)| a.data().byte_len()).sum();
    collector.taken(bytes as u64);
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
        let mut fields = Map::new();
        let asked = collector.task().is_some();
        let label = label(&labels, i, count, asked).map_err(|e| e.at(&file))?;
        fields.insert("label".into(), label);
        collector.add(SampleInput::Arrays(arrays), Row::typed(&fields), None, file.clone())?;
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

/// The label of sample `i` as rows of text have it: a number, or a list of them.
fn label(labels: &Array, i: usize, count: usize, asked: bool) -> Result<Value> {
    let width = labels.data().len() / count;
    fn part<T: Copy>(values: &[T], i: usize, width: usize, to: impl Fn(T) -> Value) -> Vec<Value> {
        let part = values.get(i * width..(i + 1) * width).unwrap_or_default();
        part.iter().map(|v| to(*v)).collect()
    }
    let floats = matches!(labels.data(), Data::F32(_));
    let mut list = match labels.data() {
        Data::F32(v) => {
            let part = v.get(i * width..(i + 1) * width).unwrap_or_default();
            if let Some(v) = part.iter().find(|v| !v.is_finite()) {
                return Err(Error::bad_input(format!("label of sample {i} is {v}")));
            }
            part.iter().map(|v| Value::from(f64::from(*v))).collect()
        }
        Data::I64(v) => part(v, i, width, Value::from),
        Data::I32(v) => part(v, i, width, Value::from),
        Data::U8(v) => part(v, i, width, Value::from),
        Data::Bool(v) => part(v, i, width, |v| Value::from(u8::from(v))),
    };
    if !floats && width != 1 && !asked {
        return Err(Error::unsupported(format!(
            "integer labels of shape {:?} may be several labels a sample, a label a token or numbers",
            labels.shape()
        ))
        .hint("say which with --task"));
    }
    // A single number, not a list of one, unless the shape says so.
    match (labels.shape().len(), list.len()) {
        (1, 1) => Ok(list.remove(0)),
        _ => Ok(Value::Array(list)),
    }
}
