//! The JSON of an answer, whose memory is taken as it grows and given back once it was sent.

use super::problem::Problem;
use crate::error::Error;
use crate::runtime::{MemoryLimit, Taken};
use axum::body::Bytes;
use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};
use std::io;

/// Bytes of an answer to begin with.
const FIRST: usize = 4 << 10;

/// `value` as JSON, of memory that `memory` has.
pub fn written(memory: &MemoryLimit, value: &impl Serialize) -> Result<Bytes, Problem> {
    // What fits into a packet is not counted: it is answered however much others have taken.
    let taken = memory.take(0)?;
    let mut answer = Answer { bytes: Vec::with_capacity(FIRST), taken, refused: None };
    match (serde_json::to_writer(&mut answer, value), answer.refused.take()) {
        (Ok(()), _) => Ok(Bytes::from_owner(answer)),
        (Err(_), Some(refused)) => Err(refused.into()),
        (Err(e), None) => Err(Problem::failed(format!("the answer can't be written: {e}"))),
    }
}

struct Answer {
    bytes: Vec<u8>,
    taken: Taken,
    refused: Option<Error>,
}

impl Answer {
    fn grow(&mut self, len: usize) -> Result<(), Error> {
        let capacity = len.max(2 * self.bytes.capacity());
        // Both are there while one is copied.
        self.taken.grow(capacity as u64)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        self.taken.shrink(capacity as u64);
        Ok(())
    }
}

impl io::Write for Answer {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let len = self.bytes.len() + part.len();
        if len > self.bytes.capacity()
            && let Err(refused) = self.grow(len)
        {
            self.refused = Some(refused);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A list whose values are made one at a time, as they are written.
pub struct Each<'a, T, F>(pub &'a [T], pub F);

impl<T, V: Serialize, F: Fn(&T) -> Result<V, Error>> Serialize for Each<'_, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            list.serialize_element(&(self.1)(item).map_err(S::Error::custom)?)?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_memory_while_it_is_there() {
        let memory = MemoryLimit::new(100_000);
        let small = written(&memory, &"yes").unwrap();
        assert_eq!((&small[..], memory.taken()), (&br#""yes""#[..], 0));
        let list = vec![1; 10_000];
        let long = written(&memory, &Each(&list, |n: &i32| Ok(n + 1))).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<i32>>(&long).unwrap(), vec![2; 10_000]);
        assert!(memory.taken() >= 20_000, "{}", memory.taken());
        let clone = long.clone();
        drop(long);
        assert!(memory.taken() > 0);
        drop(clone);
        assert_eq!(memory.taken(), 0);
        let e = written(&memory, &vec![1; 100_000]).unwrap_err();
        assert_eq!((e.status.as_u16(), memory.taken()), (413, 0));
    }
}
