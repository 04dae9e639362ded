//! An encoder and the decoder behind it as one graph: what a text is taught through.

use super::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{join, tract_error};
use crate::pack::{GraphRecord, IoSpec, Role};

impl Engine {
    /// The same base with its encoder and its decoder (that for the first tokens) as one graph: the encoder's inputs
    /// and the decoder's tokens go in, the decoder's logits come out.
    ///
    /// # Errors
    /// Mismatch: the base has no such graphs. Unsupported: a decoder that takes something else too, or that doesn't
    /// fit the encoder.
    pub(crate) fn joined(&self) -> Result<Engine> {
        let (encoder, decoder) = (self.graph_named("encoder")?, self.graph_named("decoder")?);
        self.join(&encoder, &decoder).map_err(|e| e.at("graph 'decoder'"))
    }

    fn join(&self, encoder: &Engine, decoder: &Engine) -> Result<Engine> {
        let known = [Role::Ids, Role::Encoded];
        if let Some(spec) = decoder.inputs().iter().find(|spec| !known.contains(&spec.role)) {
            let name = &spec.name;
            let error = format!("nothing is known to train with for the input '{name}'");
            return Err(Error::unsupported(error));
        }
        let output = place(encoder.outputs(), Role::Features)?;
        let input = place(decoder.inputs(), Role::Encoded)?;
        let logits = place(decoder.outputs(), Role::Logits)?;
        let mut writes = decoder.graph().clone();
        let kept = [writes.outputs[logits]];
        writes.select_output_outlets(&kept).map_err(|e| tract_error(ErrorKind::Failed, &e))?;
        let model = join(encoder.graph(), output, &writes, input, "decoder")?;

        // Of the dimensions that both have the encoder's names.
        let (gives, takes) = (&encoder.outputs()[output].dims, &decoder.inputs()[input].dims);
        let renamed = |spec: &IoSpec| {
            let name = |dim: &String| {
                let at = takes.iter().position(|other| other == dim && dim.parse::<u64>().is_err());
                at.and_then(|at| gives.get(at)).unwrap_or(dim).clone()
            };
            IoSpec { dims: spec.dims.iter().map(name).collect(), ..spec.clone() }
        };
        let mut record = encoder.record().cloned().unwrap_or_default();
        let others = decoder.inputs().iter().enumerate().filter(|(at, _)| *at != input);
        record.inputs.extend(others.map(|(_, spec)| renamed(spec)));
        record.outputs = vec![renamed(&decoder.outputs()[logits])];
        let GraphRecord { node_names, symbols, .. } = decoder.record().cloned().unwrap_or_default();
        record.node_names.extend(node_names);
        record.symbols.extend(symbols);
        Ok(self.with_graph(model, record))
    }
}

fn place(specs: &[IoSpec], role: Role) -> Result<usize> {
    let found = specs.iter().position(|spec| spec.role == role);
    found.ok_or_else(|| Error::unsupported(format!("nothing of it is {}", role.name())))
}
