//! What a graph of tokens is judged by while it is packed: texts, where the base has a tokenizer, read from their
//! beginning. Tokens at random, behind a past at random, make a trained network do what it never does, and layers
//! are stored finer for nothing.

use super::made_up::{FreeSymbol, free_symbols};
use super::roles::Roles;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::import::Prepared;
use crate::pack::{IoSpec, Role};
use crate::shape::DType;
use tract_core::internal::*;

/// Longer than what a trial takes of them, of different sorts.
#[cfg(feature = "text")]
const TEXTS: [&str; 4] = [
    "The old lighthouse keeper counted the ships that passed the bay each evening. When the fog came in he rang the \
     bell, and nobody in the village slept before the last boat was home. In winter the sea froze at the pier, \
     and he walked over the ice to buy bread, tea and lamp oil from the shop on the other side.",
    "To make the soup, cut two onions and three carrots into small pieces and fry them in butter for ten minutes. Add \
     a litre of water, some salt, a bay leaf and 200 g of lentils. Let it cook slowly until the lentils are soft, \
     which takes about half an hour. What can be used instead of butter? Oil does as well.",
    "Question: Who wrote the report that the committee will discuss on Monday, and how long is it? Answer: The report \
     was written by Dr. Anna Weber of the water board. It has 48 pages, of which most people will read the first \
     two. Please send your comments by e-mail before Friday, 5 pm, so that they can be answered in time.",
    "def total(prices): return sum(price * 1.19 for price in prices if price > 0) # with tax. The function adds up all \
     prices of a list; what is free doesn't count. It's easy to test: total([1, 2]) is 3.57, isn't it? I think we \
     should name the constant, because the rate has changed three times since 2007.",
];

/// Characters of sentences that are read as one text.
#[cfg(feature = "text")]
const STRETCH: usize = 450;

/// Tokens of texts, and what inputs and outputs were said to stand for.
#[derive(Default)]
pub(super) struct Passages<'a> {
    texts: Vec<Vec<u32>>,
    /// Others, that weights are made for: by these they are not judged.
    stretches: Vec<Vec<u32>>,
    stated: &'a [(String, Role)],
}

impl<'a> Passages<'a> {
    /// In the tokens of a tokenizer, if there is one. What is wrong with it is found where it is tried.
    #[cfg(feature = "text")]
    pub(super) fn new(tokenizer: Option<&[u8]>, stated: &'a [(String, Role)]) -> Passages<'a> {
        use super::text::{TextEncoder, UNLIMITED};
        let encoder = tokenizer.and_then(|json| TextEncoder::from_bytes(json, UNLIMITED).ok());
        let ids = |texts: &[String]| -> Vec<Vec<u32>> {
            let each = encoder.iter().flat_map(|e| texts.iter().map(|text| e.ids(text, true)));
            each.flatten().filter(|ids| !ids.is_empty()).collect()
        };
        Passages { texts: ids(&TEXTS.map(String::from)), stretches: ids(&stretches()), stated }
    }

    #[cfg(not(feature = "text"))]
    pub(super) fn new(_tokenizer: Option<&[u8]>, stated: &'a [(String, Role)]) -> Passages<'a> {
        Passages { texts: vec![], stretches: vec![], stated }
    }

    /// How `graph` reads them.
    pub(super) fn for_graph<'p>(
        &'p self,
        graph: &TypedModel,
        prepared: &Prepared,
    ) -> Result<Reading<'p>> {
        let specs = |outlets: &[OutletId], infos: &[crate::import::InputInfo]| {
            let each = outlets.iter().zip(infos).map(|(outlet, info)| {
                let dtype = match graph.outlet_fact(*outlet).map_err(failed)?.datum_type {
                    t if t.is_float() => DType::F32,
                    t if t == bool::datum_type() => DType::Bool,
                    _ => DType::I64,
                };
                let (name, dims) = (info.name.clone(), info.dims.clone());
                Ok(IoSpec { name, safe_name: String::new(), dtype, dims, role: Role::Other })
            });
            each.collect::<Result<Vec<IoSpec>>>()
        };
        let mut inputs = specs(&graph.inputs, &prepared.inputs)?;
        let mut outputs = specs(&graph.outputs, &prepared.outputs)?;
        Roles::default().decide(&mut inputs, &mut outputs, self.stated);
        let roles = |specs: Vec<IoSpec>| specs.into_iter().map(|spec| spec.role).collect();
        let (texts, stretches) = (&self.texts, &self.stretches);
        Ok(Reading { texts, stretches, inputs: roles(inputs), outputs: roles(outputs) })
    }
}

/// The sentences that ship with the program, several as one text.
#[cfg(feature = "text")]
fn stretches() -> Vec<String> {
    let mut all: Vec<String> = vec![];
    for sentence in super::sentences() {
        match all.last_mut().filter(|last| last.len() + sentence.len() < STRETCH) {
            Some(last) => *last = format!("{last} {sentence}"),
            None => all.push(sentence.into()),
        }
    }
    all
}

/// A graph's inputs and outputs by what they stand for, and the texts.
pub(super) struct Reading<'p> {
    texts: &'p [Vec<u32>],
    stretches: &'p [Vec<u32>],
    inputs: Vec<Role>,
    outputs: Vec<Role>,
}

impl Reading<'_> {
    /// With the texts that weights are made for in the place of those that they are judged by.
    pub(super) fn of_stretches(&self) -> Reading<'_> {
        self.with_texts(self.stretches)
    }

    /// Without any.
    pub(super) fn of_none(&self) -> Reading<'_> {
        self.with_texts(&[])
    }

    fn with_texts<'t>(&'t self, texts: &'t [Vec<u32>]) -> Reading<'t> {
        let (inputs, outputs) = (self.inputs.clone(), self.outputs.clone());
        Reading { texts, stretches: self.stretches, inputs, outputs }
    }

    /// How many texts there are.
    pub(super) fn count(&self) -> u64 {
        self.texts.len() as u64
    }

    /// Whether the graph reads tokens and there are some.
    pub(super) fn reads(&self) -> bool {
        !self.texts.is_empty() && self.inputs.contains(&Role::Ids)
    }

    /// `dims` for the beginning of a text, before which there is no past.
    pub(super) fn without_past(
        &self,
        graph: &TypedModel,
        dims: &[(String, i64)],
    ) -> Result<Vec<(String, i64)>> {
        let free = free_symbols(graph).map_err(failed)?;
        let stands = |s: &FreeSymbol, test: fn(&Role) -> bool| {
            s.inputs.iter().filter_map(|slot| self.inputs.get(*slot)).any(test)
        };
        let size_of = |name: &str| dims.iter().find(|(n, _)| n == name).map(|(_, size)| *size);
        let tokens = free.iter().find(|s| !s.leads && stands(s, |r| *r == Role::Ids));
        let tokens = tokens.and_then(|s| size_of(&s.name));
        let of = |s: &FreeSymbol, size: i64| match tokens {
            _ if s.leads => size,
            _ if stands(s, |r| matches!(r, Role::State(_))) => 0,
            // A mask over the past and the new tokens.
            Some(tokens) if s.plain && !stands(s, |r| *r != Role::Mask) => tokens,
            _ => size,
        };
        Ok(free.iter().filter_map(|s| Some((s.name.clone(), of(s, size_of(&s.name)?)))).collect())
    }

    /// Puts the texts into made-up inputs: another for each row, and for each `seed`. A text keeps its last token,
    /// which may be one that ends it.
    pub(super) fn put(&self, inputs: &mut [TValue], seed: u64) -> Result<()> {
        for (input, role) in inputs.iter_mut().zip(&self.inputs) {
            let (shape, dtype) = (input.shape().to_vec(), input.datum_type());
            let Some(&length) = shape.last().filter(|length| **length > 0) else { continue };
            let rows = shape.iter().product::<usize>() / length;
            let row = |number: usize| -> Vec<i64> {
                let text = &self.texts[(seed as usize + number) % self.texts.len()];
                let mut ids: Vec<i64> =
                    text.iter().cycle().take(length).map(|&id| id.into()).collect();
                if let (Some(end), Some(last), true) = (ids.last_mut(), text.last(), length > 1) {
                    *end = (*last).into();
                }
                ids
            };
            let values: Vec<i64> = match role {
                Role::Ids => (0..rows).flat_map(row).collect(),
                Role::Positions => (0..rows).flat_map(|_| 0..length as i64).collect(),
                _ => continue,
            };
            let tensor = Tensor::from_shape(&shape, &values)
                .and_then(|t| t.cast_to_dt(dtype).map(|t| t.into_owned()));
            *input = tensor.map_err(failed)?.into_tvalue();
        }
        Ok(())
    }

    /// Which outputs tell what a layer harms. The states of tokens are read in the same run already.
    pub(super) fn telling(&self) -> Vec<bool> {
        let states = self.inputs.contains(&Role::Ids);
        let tells = |role: &Role| !(states && matches!(role, Role::State(_)));
        match self.outputs.iter().any(tells) {
            true => self.outputs.iter().map(tells).collect(),
            false => vec![true; self.outputs.len()],
        }
    }
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::InputInfo;

    /// A decoder with a past, as optimum names its inputs: `t` new tokens behind `p`.
    fn decoder() -> (TypedModel, Prepared) {
        let mut graph = TypedModel::default();
        let [n, p, t, all] = ["n", "p", "t", "all"].map(|name| graph.sym(name).to_dim());
        let mut source = |name: &str, dtype: DatumType, dims: &[&TDim]| {
            let shape: TVec<TDim> = dims.iter().map(|d| (*d).clone()).collect();
            graph.add_source(name, dtype.fact(shape)).unwrap()
        };
        let whole = i64::datum_type();
        source("input_ids", whole, &[&n, &t]);
        source("attention_mask", whole, &[&n, &all]);
        source("position_ids", whole, &[&n, &t]);
        let past =
            source("past_key_values.0.key", f32::datum_type(), &[&n, &2.to_dim(), &p, &4.to_dim()]);
        let hidden = source("hidden", f32::datum_type(), &[&n, &t]);
        graph.select_output_outlets(&[hidden, past]).unwrap();
        let info = |name: &str| InputInfo { name: name.into(), dims: vec!["n".into(), "t".into()] };
        let inputs =
            ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "hidden"];
        let prepared = Prepared {
            model: Default::default(),
            targets: vec![],
            matrices: vec![],
            inputs: inputs.map(info).to_vec(),
            outputs: ["logits", "present.0.key"].map(info).to_vec(),
            source_hash: String::new(),
            source_bytes: 0,
            opset: 17,
            properties: vec![],
        };
        (graph, prepared)
    }

    #[test]
    fn a_text_begins_behind_no_past_and_is_judged_by_what_is_read_of_it() {
        let (graph, prepared) = decoder();
        let passages = Passages { texts: vec![vec![5, 6, 7], vec![8, 9]], ..Passages::default() };
        let reading = passages.for_graph(&graph, &prepared).unwrap();
        assert!(reading.reads());
        assert_eq!(reading.telling(), [true, false]);
        let dims =
            [("n", 1), ("t", 4), ("all", 8), ("p", 4)].map(|(n, size)| (n.to_string(), size));
        let dims = reading.without_past(&graph, &dims).unwrap();
        let size = |name: &str| dims.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(["n", "p", "t", "all"].map(size), [1, 0, 4, 4]);

        let ids = |shape: [usize; 2]| Tensor::zero::<i64>(&shape).unwrap().into_tvalue();
        let mut inputs = [ids([2, 4]), ids([2, 4]), ids([2, 4])];
        reading.put(&mut inputs, 1).unwrap();
        let values =
            |input: &TValue| input.try_as_plain_ram().unwrap().as_slice::<i64>().unwrap().to_vec();
        assert_eq!(values(&inputs[0]), [8, 9, 8, 9, 5, 6, 7, 7]);
        assert_eq!(values(&inputs[1]), [0; 8]);
        assert_eq!(values(&inputs[2]), [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn without_a_tokenizer_nothing_is_read() {
        let (graph, prepared) = decoder();
        let reading = Passages::new(None, &[]).for_graph(&graph, &prepared).map(|r| r.reads());
        assert!(!reading.unwrap());
    }
}
