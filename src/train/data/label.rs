//! What should come out for a sample, whatever the task.

/// What should come out.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// A place in [`Dataset::labels`](super::Dataset::labels).
    Class(usize),
    /// Any number of places, ascending.
    Names(Vec<usize>),
    /// Labels of parts of the input.
    Marks(Vec<Mark>),
    /// Finite numbers, as many for every sample.
    Values(Vec<f32>),
    /// A text.
    Text(Spelled),
    /// What a language model should write.
    Follows(Follows),
}

/// What should follow on the input of a language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Nothing: the input itself is learned.
    Nothing,
    /// This text; the input is a prompt.
    Completion(String),
    /// This answer; the input is a conversation, messages as JSON.
    Reply(String),
}

/// A text and the symbols that spell it: a row gives one of them, the base's symbols the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spelled {
    /// The text.
    pub text: String,
    /// Places among the base's symbols; where a row gives them, -1 is none.
    pub symbols: Vec<i64>,
}

/// The label of a part of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its first character or place.
    pub start: u32,
    /// The one behind its last. Where it is `start`, the label is that of all that no other covers.
    pub end: u32,
    /// A place in [`Dataset::labels`](super::Dataset::labels).
    pub label: usize,
}

impl Label {
    /// With every place `p` replaced by `to(p)`. Errors: a place that `to` has nothing for.
    pub(crate) fn moved(&self, to: &dyn Fn(usize) -> Option<usize>) -> Result<Label, usize> {
        Ok(match self {
            Label::Class(class) => Label::Class(to(*class).ok_or(*class)?),
            Label::Names(places) => {
                let moved = places.iter().map(|place| to(*place).ok_or(*place));
                Label::Names(moved.collect::<Result<_, _>>()?)
            }
            Label::Marks(marks) => {
                let moved =
                    |mark: &Mark| Ok(Mark { label: to(mark.label).ok_or(mark.label)?, ..*mark });
                Label::Marks(marks.iter().map(moved).collect::<Result<_, usize>>()?)
            }
            Label::Values(_) | Label::Text(_) | Label::Follows(_) => self.clone(),
        })
    }

    /// How many numbers it has; 0 where it has none but names.
    pub fn width(&self) -> usize {
        match self {
            Label::Values(values) => values.len(),
            _ => 0,
        }
    }

    /// What tells it from others, for hashes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Label::Class(class) => (*class as u64).to_le_bytes().to_vec(),
            Label::Names(places) => {
                places.iter().flat_map(|place| (*place as u64).to_le_bytes()).collect()
            }
            Label::Marks(marks) => {
                let words = |m: &Mark| [u64::from(m.start), u64::from(m.end), m.label as u64];
                marks.iter().flat_map(words).flat_map(u64::to_le_bytes).collect()
            }
            Label::Values(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Label::Text(Spelled { text, symbols }) => {
                let symbols = symbols.iter().flat_map(|symbol| symbol.to_le_bytes());
                text.bytes().chain([0]).chain(symbols).collect()
            }
            Label::Follows(follows) => match follows {
                Follows::Nothing => vec![0],
                Follows::Completion(text) => [1].into_iter().chain(text.bytes()).collect(),
                Follows::Reply(text) => [2].into_iter().chain(text.bytes()).collect(),
            },
        }
    }
}
