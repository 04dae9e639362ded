//! What must not fall: single classes, and what was learned before.

use super::{Checks, GateSettings, Measured, Reference, mcnemar, percent};
use std::collections::BTreeMap;

/// How some of the held-out samples were answered by both sides.
#[derive(Clone, Copy, Default)]
struct Answered {
    count: u64,
    now: f64,
    before: f64,
    worse: u64,
    better: u64,
}

impl Answered {
    fn add(&mut self, now: f64, before: f64) {
        self.count += 1;
        self.now += now;
        self.before += before;
        self.worse += u64::from(now < before);
        self.better += u64::from(now > before);
    }

    fn shares(self) -> (f64, f64) {
        let of = |right: f64| right / self.count.max(1) as f64;
        (of(self.now), of(self.before))
    }

    /// The probability of such a fall, or a greater one, if both answered equally well.
    fn chance(self) -> f64 {
        mcnemar(self.worse, self.better)
    }

    /// Whether nothing is right any more of what mostly was: no share of chance excuses that.
    fn lost(self) -> bool {
        self.now == 0.0 && self.before > 0.0 && 2.0 * self.before >= self.count as f64
    }
}

/// No class with enough held-out samples may fall far, nor below the floor unless the reference
/// was no better there. A class has few held-out samples, and there are many classes: what may be
/// chance refuses nothing. Where nothing answered before, nothing can fall.
pub(super) fn class_floor(measured: &Measured, settings: &GateSettings, checks: &mut Checks) {
    let mut classes: BTreeMap<usize, Answered> = BTreeMap::new();
    if measured.reference != Reference::MostFrequent {
        for (label, now, before) in measured.held.iter().flat_map(|row| &row.labels) {
            classes.entry(*label).or_default().add(*now, *before);
        }
    }
    let alpha = settings.fall_alpha;
    let judged = classes.into_iter().filter(|(_, a)| a.count >= settings.class_min as u64);
    let judged = judged.map(|(class, answered)| {
        let (now, before) = answered.shares();
        let floor = settings.class_floor.min(before).max(before - settings.class_drop);
        // Shares of small counts: 1/3 - 1/3 need not be 0.
        let below = now < floor - 1e-9;
        let chance = answered.chance();
        (
            below && (chance <= alpha || answered.lost()),
            now - floor,
            now,
            floor,
            below.then_some(chance),
            class,
        )
    });
    // Those that are shown to have fallen first, then by how far.
    let worst = judged.min_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)));
    let Some((fallen, _, now, floor, chance, class)) = worst else {
        let least = settings.class_min;
        let sentence = match measured.reference {
            Reference::MostFrequent => "nothing answered before: no class can fall".into(),
            _ => format!("no class has {least} held-out samples: none is judged alone"),
        };
        checks.add("class floor", 0.0, 0.0, true, sentence);
        return;
    };
    let name = measured.labels.get(class).map_or("?", String::as_str);
    let mut sentence = format!(
        "the worst class, '{name}', is right in {}, at least {} is needed",
        percent(now),
        percent(floor)
    );
    if let Some(chance) = chance {
        let word = match (fallen, chance <= alpha) {
            (true, true) => "no chance",
            (true, false) => "nothing is left, which no chance excuses",
            _ => "it may be chance",
        };
        sentence.push_str(&format!(" ({word}: p {chance:.3}, {alpha:.3} decides)"));
    }
    checks.add("class floor", now, floor, !fallen, sentence);
}

/// What was learned before must not be lost to new lessons, nor to many wrong ones: those bring
/// hold-out samples of their own, on which they gain.
pub(super) fn older(measured: &Measured, settings: &GateSettings, checks: &mut Checks) {
    let mut answered = Answered::default();
    for row in measured.held.iter().filter(|row| row.old) {
        answered.add(row.candidate_right.unwrap_or(0.0), row.reference_right.unwrap_or(0.0));
    }
    if answered.count == 0 || measured.reference == Reference::MostFrequent {
        return;
    }
    let (now, before) = answered.shares();
    let (least, chance) = (before - settings.old_drop, answered.chance());
    let fallen = now < least - 1e-9 && chance <= settings.fall_alpha;
    let sentence = format!(
        "of {} older held-out samples {} are right against {}, {} less is allowed (p {chance:.3})",
        answered.count,
        percent(now),
        percent(before),
        percent(settings.old_drop)
    );
    checks.add("older samples", now, least, !fallen, sentence);
}
