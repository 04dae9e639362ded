//! The loop of a recurrent layer.

use super::wiring::Wiring;
use tract_core::ops::logic::Iff;
use tract_core::ops::scan::{InputMapping, OutputMapping, Scan, ScanInfo};
use tract_onnx::tract_core;
use tract_onnx::tract_hir::internal::*;

/// A loop's body as it grows, and what it is given.
pub(super) struct Body {
    model: TypedModel,
    prefix: String,
    mapping: Vec<InputMapping>,
    outer: TVec<OutletId>,
}

impl Body {
    pub(super) fn new(w: &Wiring) -> Body {
        let model = TypedModel { symbols: w.model.symbols.clone(), ..TypedModel::default() };
        let (mapping, outer) = (vec![], tvec!());
        Body { model, prefix: w.prefix.clone(), mapping, outer }
    }

    pub(super) fn wiring(&mut self) -> Wiring<'_> {
        Wiring { model: &mut self.model, prefix: format!("{}.step", self.prefix) }
    }

    pub(super) fn given(
        &mut self,
        w: &Wiring,
        name: &str,
        outer: OutletId,
        mapping: InputMapping,
    ) -> TractResult<OutletId> {
        let mut fact = w.fact(outer)?.without_value();
        if let InputMapping::Scan(info) = &mapping {
            fact.shape.set(info.axis, 1.to_dim());
        }
        self.mapping.push(mapping);
        self.outer.push(outer);
        self.model.add_source(format!("{}.given.{name}", self.prefix), fact)
    }

    pub(super) fn scanned(
        &mut self,
        w: &Wiring,
        name: &str,
        outer: OutletId,
        info: ScanInfo,
    ) -> TractResult<OutletId> {
        self.given(w, name, outer, InputMapping::Scan(info))
    }

    /// What is the same in each step: a constant of the body if it is one.
    pub(super) fn value(
        &mut self,
        w: &Wiring,
        name: &str,
        outer: OutletId,
    ) -> TractResult<OutletId> {
        match w.fact(outer)?.konst.clone() {
            Some(konst) => self.model.add_const(format!("{}.given.{name}", self.prefix), konst),
            None => self.given(w, name, outer, InputMapping::Full),
        }
    }

    /// Wires the loop: Y \[B, T, H\] and the last state of each kind \[B, 1, H\]. Steps outside `mask`
    /// keep the states and give zeros.
    pub(super) fn finish(
        mut self,
        w: &mut Wiring,
        states: [Option<(OutletId, OutletId)>; 2],
        mask: Option<OutletId>,
        info: ScanInfo,
    ) -> TractResult<TVec<OutletId>> {
        let of = |slot: usize, y: bool, state: bool| OutputMapping {
            scan: y.then_some((0, info)),
            full_dim_hint: None,
            last_value_slot: state.then_some(slot),
            state,
        };
        let (mut outlets, mut mapping) = (vec![], vec![]);
        for (at, (new, old)) in states.into_iter().flatten().enumerate() {
            let mut b = self.wiring();
            let mut kept = new;
            if let Some(mask) = mask {
                kept = b.op(&format!("kept{at}"), Iff, &[mask, new, old])?;
            }
            outlets.push(kept);
            mapping.push(of(1 + at, at == 0 && mask.is_none(), true));
            if let (Some(mask), 0) = (mask, at) {
                let zero = Tensor::zero::<f32>(&[1, 1, 1])?;
                let zero = self.model.add_const(format!("{}.given.zero", self.prefix), zero)?;
                let y = self.wiring().op("y", Iff, &[mask, new, zero])?;
                outlets.push(y);
                mapping.push(of(0, true, false));
            }
        }
        self.model.select_output_outlets(&outlets)?;
        let mut scan = Scan::new(self.model, self.mapping, mapping, 0)?;
        // What a run ends with is no start for another.
        scan.reset_every_turn = true;
        w.model.wire_node(w.prefix.clone(), scan, &self.outer)
    }
}
