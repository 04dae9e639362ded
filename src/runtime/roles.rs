//! What the inputs and outputs of a base's graphs stand for, by their names, types and shapes. The
//! names are those that optimum, PyTorch's exporters and Keras' converters write.

use crate::error::{Error, Result};
use crate::pack::{IoSpec, Role};
use crate::shape::DType;
use std::collections::HashSet;

/// Decides graph by graph; states have one numbering for all graphs of a base.
#[derive(Default)]
pub(super) struct Roles {
    /// The states' names, without what tells past from present: a state's number is its place.
    states: Vec<String>,
    /// Names that were stated and found.
    stated: HashSet<String>,
}

/// Prefixes of states among inputs, each with that of the output which it continues.
const STATES: [(&str, &str); 6] = [
    ("past_key_values.", "present."),
    ("past_key_values.", "present_key_values."),
    ("past_key_values_", "present_key_values_"),
    ("past.", "present."),
    ("past_", "present_"),
    ("cache.", "cache_out."),
];

impl Roles {
    /// Sets the roles of one graph's inputs and outputs; `stated` goes before what the names say.
    pub(super) fn decide(
        &mut self,
        inputs: &mut [IoSpec],
        outputs: &mut [IoSpec],
        stated: &[(String, Role)],
    ) {
        for at in 0..inputs.len() {
            inputs[at].role = input_role(&inputs[at], inputs);
        }
        for output in outputs.iter_mut() {
            output.role = output_role(output);
        }
        self.pair_states(inputs, outputs);
        for spec in inputs.iter_mut().chain(outputs.iter_mut()) {
            if let Some((name, role)) = stated.iter().find(|(name, _)| *name == spec.name) {
                spec.role = *role;
                self.stated.insert(name.clone());
            }
        }
    }

    /// Once all graphs are there.
    ///
    /// # Errors
    /// Usage: `stated` names what no graph has.
    pub(super) fn check(&self, stated: &[(String, Role)]) -> Result<()> {
        match stated.iter().find(|(name, _)| !self.stated.contains(name)) {
            Some((name, _)) => {
                Err(Error::usage(format!("--role: no graph has an input or output '{name}'")))
            }
            None => Ok(()),
        }
    }

    fn pair_states(&mut self, inputs: &mut [IoSpec], outputs: &mut [IoSpec]) {
        for input in inputs.iter_mut() {
            let key = STATES.iter().find_map(|(past, _)| input.name.strip_prefix(past));
            let key = match key {
                Some(key) => key.to_string(),
                None => match continued(input, outputs) {
                    Some(_) => input.name.clone(),
                    None => continue,
                },
            };
            let floats = input.dtype == DType::F32;
            if floats && matches!(input.role, Role::Other | Role::Samples) {
                input.role = Role::State(self.number(key));
            }
        }
        for input in inputs.iter().filter(|i| matches!(i.role, Role::State(_))) {
            if let Some(at) = continued(input, outputs) {
                outputs[at].role = input.role;
            }
        }
        // A first graph makes the states that a later one goes on with.
        for output in outputs.iter_mut().filter(|o| !matches!(o.role, Role::State(_))) {
            let key = STATES.iter().find_map(|(_, present)| output.name.strip_prefix(present));
            if let Some(key) = key {
                output.role = Role::State(self.number(key.to_string()));
            }
        }
    }

    fn number(&mut self, key: String) -> u32 {
        let found = self.states.iter().position(|s| *s == key);
        let at = found.unwrap_or_else(|| {
            self.states.push(key);
            self.states.len() - 1
        });
        at as u32
    }
}

/// The output that is the input's next value.
fn continued(input: &IoSpec, outputs: &[IoSpec]) -> Option<usize> {
    let name = input.name.as_str();
    let stem = name.strip_suffix('0').or(name.strip_suffix("_in")).unwrap_or(name);
    let stem = stem.strip_prefix("in_").unwrap_or(stem).trim_end_matches('_');
    let mut names: Vec<String> = STATES
        .iter()
        .filter_map(|(past, present)| Some(format!("{present}{}", name.strip_prefix(past)?)))
        .collect();
    if ["state", "h", "c", "hidden", "cell", "hx", "cx"].contains(&stem)
        || stem.ends_with("_state")
        || stem.ends_with("state")
    {
        names.extend(["N", "n", "_n", "_out", "_next", "1"].map(|end| format!("{stem}{end}")));
        names.extend(["new_", "next_", "out_"].map(|start| format!("{start}{stem}")));
    }
    outputs.iter().position(|o| {
        o.dtype == input.dtype && o.dims.len() == input.dims.len() && names.contains(&o.name)
    })
}

/// Whether `name` is `end`, or ends with it behind something that is no letter.
fn ends(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric()))
}

fn input_role(spec: &IoSpec, inputs: &[IoSpec]) -> Role {
    let name = spec.name.to_ascii_lowercase();
    // A name of TensorFlow's: `input_ids:0`.
    let name = name.strip_suffix(":0").unwrap_or(&name);
    let any = |names: &[&str]| names.iter().any(|n| ends(name, n));
    let encoded = |s: &IoSpec| ends(&s.name, "encoder_hidden_states");
    let whole = matches!(spec.dtype, DType::I64 | DType::I32);
    let float = spec.dtype == DType::F32;
    let rank = spec.dims.len();
    if any(&["encoder_attention_mask"]) && inputs.iter().any(encoded) {
        return Role::EncodedMask;
    }
    if any(&["attention_mask", "input_mask"]) || name == "mask" && rank == 2 {
        return Role::Mask;
    }
    if any(&["encoder_hidden_states", "encoder_outputs"]) && float {
        return Role::Encoded;
    }
    if whole && any(&["token_type_ids", "segment_ids", "input_type_ids"]) {
        return Role::Types;
    }
    if whole && any(&["position_ids", "positions"]) {
        return Role::Positions;
    }
    if whole && rank <= 2 && (any(&["input_ids", "token_ids", "tokens"]) || name == "ids") {
        return Role::Ids;
    }
    let pixels = any(&["pixel_values", "pixels", "image", "images"]);
    if rank == 4 && spec.dtype != DType::Bool && !whole && (pixels || inputs.len() == 1) {
        return Role::Pixels;
    }
    if float && rank == 3 && any(&["input_features", "mel", "mels", "fbank", "feats"]) {
        return Role::Mel;
    }
    let rate = |s: &IoSpec| s.dims.is_empty() && ["sr", "sample_rate"].contains(&s.name.as_str());
    let sound = any(&["input_values", "waveform", "audio", "samples", "wav"]);
    if float && (1..=3).contains(&rank) && (sound || rank <= 2 && inputs.iter().any(rate)) {
        return Role::Samples;
    }
    Role::Other
}

fn output_role(spec: &IoSpec) -> Role {
    let name = spec.name.to_ascii_lowercase();
    let name = name.strip_suffix(":0").unwrap_or(&name);
    let any = |names: &[&str]| names.iter().any(|n| ends(name, n));
    if spec.dtype != DType::F32 {
        return Role::Other;
    }
    if any(&["last_hidden_state", "token_embeddings", "encoder_hidden_states"]) {
        return Role::Features;
    }
    if any(&["pooler_output", "sentence_embedding", "image_embeds", "text_embeds"]) {
        return Role::Pooled;
    }
    if any(&["logits", "scores"]) {
        return Role::Logits;
    }
    Role::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, dims: &[&str]) -> IoSpec {
        let dims = dims.iter().map(|d| d.to_string()).collect();
        IoSpec { name: name.into(), safe_name: "x0".into(), dtype, dims, role: Role::Other }
    }

    fn decided(
        roles: &mut Roles,
        inputs: &[(&str, DType, &[&str])],
        outputs: &[(&str, &[&str])],
    ) -> (Vec<Role>, Vec<Role>) {
        let mut ins: Vec<_> = inputs.iter().map(|(n, t, d)| spec(n, *t, d)).collect();
        let mut outs: Vec<_> = outputs.iter().map(|(n, d)| spec(n, DType::F32, d)).collect();
        roles.decide(&mut ins, &mut outs, &[]);
        let role = |specs: Vec<IoSpec>| specs.iter().map(|s| s.role).collect();
        (role(ins), role(outs))
    }

    #[test]
    fn sentences_and_pictures() {
        let tokens: &[&str] = &["batch", "sequence"];
        let (ins, outs) = decided(
            &mut Roles::default(),
            &[
                ("input_ids", DType::I64, tokens),
                ("attention_mask", DType::F32, tokens),
                ("token_type_ids:0", DType::I32, tokens),
                ("position_ids", DType::I64, tokens),
                ("valid_ids", DType::I64, tokens),
            ],
            &[("last_hidden_state", &["b", "s", "384"]), ("logits", &["b", "2"])],
        );
        use Role::*;
        assert_eq!(ins, [Ids, Mask, Types, Positions, Other]);
        assert_eq!(outs, [Features, Logits]);
        let four: &[&str] = &["1", "3", "224", "224"];
        let pictures = decided(&mut Roles::default(), &[("x", DType::F32, four)], &[]);
        assert_eq!(pictures.0, [Pixels]);
        let two = [("x", DType::F32, four), ("y", DType::F32, four)];
        assert_eq!(decided(&mut Roles::default(), &two, &[]).0, [Other, Other]);
    }

    #[test]
    fn a_state_has_one_number_in_all_graphs() {
        use Role::*;
        let mut roles = Roles::default();
        let tokens: &[&str] = &["batch", "tokens"];
        let past: &[&str] = &["batch", "6", "past", "64"];
        let first = decided(
            &mut roles,
            &[
                ("input_ids", DType::I64, tokens),
                ("encoder_hidden_states", DType::F32, &["b", "f", "384"]),
            ],
            &[
                ("logits", &["b", "t", "9"]),
                ("present.0.decoder.key", past),
                ("present.0.encoder.key", past),
            ],
        );
        assert_eq!(first, (vec![Ids, Encoded], vec![Logits, State(0), State(1)]));
        let step = decided(
            &mut roles,
            &[
                ("input_ids", DType::I64, tokens),
                ("past_key_values.0.encoder.key", DType::F32, past),
                ("past_key_values.0.decoder.key", DType::F32, past),
            ],
            &[("logits", &["b", "t", "9"]), ("present.0.decoder.key", past)],
        );
        assert_eq!(step, (vec![Ids, State(1), State(0)], vec![Logits, State(0)]));
        let silero = decided(
            &mut Roles::default(),
            &[
                ("input", DType::F32, &["1", "512"]),
                ("state", DType::F32, &["2", "1", "128"]),
                ("sr", DType::I64, &[]),
            ],
            &[("output", &["1", "1"]), ("stateN", &["2", "1", "128"])],
        );
        assert_eq!(silero, (vec![Samples, State(0), Other], vec![Other, State(0)]));
    }
}
