//! The store against a model in memory: random operations, the same answers.

use super::cut_tests::Dice;
use super::sample_tests::sample;
use super::tests::{adapter, store};
use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// A generation as the model sees it.
#[derive(Clone, Debug)]
struct Grown {
    state: GenerationState,
    learned: Vec<i64>,
}

/// What a name should be, by the plainest code.
#[derive(Default)]
struct Model {
    samples: BTreeMap<i64, (SampleHash, String)>,
    generations: BTreeMap<u64, Grown>,
    active: Option<u64>,
    on_trial: bool,
    /// What served, oldest first, and whether the base was chosen by hand.
    served: Vec<(Option<u64>, bool)>,
    /// Whose trial ended in a crash.
    crashed: Vec<u64>,
    next: u64,
}

impl Model {
    fn point(&mut self, to: Option<u64>, by_hand: bool) {
        if self.active != to {
            self.served.push((to, by_hand));
        }
        (self.active, self.on_trial) = (to, false);
    }

    fn back(&self) -> Option<u64> {
        let mut unproven = vec![];
        for &(served, by_hand) in self.served.iter().rev().skip(1) {
            match served {
                None if by_hand => break,
                Some(n) if Some(n) != self.active => match self.generations.get(&n) {
                    Some(g) if g.state == GenerationState::Promoted => return Some(n),
                    Some(g) if g.state == GenerationState::Candidate => unproven.push(n),
                    _ => {}
                },
                _ => {}
            }
        }
        unproven.into_iter().filter(|n| !self.crashed.contains(n)).max()
    }

    fn live(&self) -> Vec<u64> {
        let live = self.generations.iter().filter(|(_, g)| g.state != GenerationState::Retired);
        live.map(|(n, _)| *n).collect()
    }

    fn set(&mut self, number: u64, state: GenerationState) {
        if let Some(g) = self.generations.get_mut(&number) {
            g.state = state;
        }
    }

    fn end_trial(&mut self, unless: Option<u64>) {
        if let Some(active) = self.active.filter(|a| self.on_trial && Some(*a) != unless) {
            self.set(active, GenerationState::Candidate);
        }
    }
}

fn compare(model: &Model, store: &Store, seed: u64, turn: usize) {
    let place = format!("seed {seed}, turn {turn}");
    let entry = store.name("home").unwrap();
    assert_eq!(entry.active, model.active, "{place}");
    assert_eq!(entry.trial.is_some(), model.on_trial, "{place}");
    assert_eq!(entry.generations, model.live(), "{place}");
    for g in store.generations("home").unwrap() {
        let own = &model.generations[&g.number];
        assert_eq!(g.state, own.state, "{place}: {}", g.number);
        let learned = store.manifest("home", g.number).unwrap();
        let gone = g.state == GenerationState::Retired;
        assert_eq!(learned.len(), if gone { 0 } else { own.learned.len() }, "{place}");
    }
    let found: Vec<i64> = store.samples(&Filter::default()).unwrap().iter().map(|s| s.id).collect();
    assert_eq!(found, model.samples.keys().copied().collect::<Vec<_>>(), "{place}");
}

#[test]
fn random_operations_do_what_the_model_does() {
    for seed in 0..6 {
        let (_dir, mut store) = store();
        let rules = Rules {
            quota: Quota { max_generations: 1000, ..Quota::default() },
            ..Rules::default()
        };
        store.set_rules(rules.clone()).unwrap();
        store.create_name("home").unwrap();
        let mut model = Model { next: 1, ..Model::default() };
        let mut dice = Dice(seed);
        for turn in 0..150 {
            let live = model.live();
            let any = live.get(dice.below(live.len())).copied();
            match dice.below(12) {
                0..=2 => {
                    let source = format!("source{}", dice.below(8));
                    let new = sample(&format!("{seed} {turn}"), "x", &source);
                    let recorded = store.add_sample(&new).unwrap();
                    model.samples.insert(recorded.id, (recorded.hash, source));
                }
                3 | 4 => {
                    let chosen: Vec<i64> =
                        model.samples.keys().copied().filter(|_| dice.below(6) == 0).collect();
                    let parent = any.filter(|_| dice.below(3) == 0);
                    let manifest = chosen.iter().map(|id| model.samples[id].0).collect();
                    let origin = Origin { parent, manifest, ..Origin::default() };
                    let added = store.add("home", &adapter(turn as f32), &origin).unwrap();
                    assert_eq!(added.generation, model.next);
                    let mut learned = chosen;
                    if let Some(parent) = parent {
                        learned.extend(&model.generations[&parent].learned);
                    }
                    learned.sort_unstable();
                    learned.dedup();
                    let grown = Grown { state: GenerationState::Candidate, learned };
                    model.generations.insert(model.next, grown);
                    model.next += 1;
                }
                5 | 6 => {
                    let Some(any) = any else { continue };
                    let trial = (dice.below(3) == 0).then_some(Duration::from_secs(5));
                    let expected = (dice.below(4) == 0).then_some(Some(dice.below(5) as u64));
                    let switched = store.activate("home", any, expected, trial);
                    if expected.is_some_and(|e| e != model.active) {
                        assert!(switched.is_err());
                        continue;
                    }
                    switched.unwrap();
                    model.end_trial(Some(any));
                    model.set(
                        any,
                        match trial {
                            Some(_) => GenerationState::Trial,
                            None => GenerationState::Promoted,
                        },
                    );
                    model.point(Some(any), false);
                    model.on_trial = trial.is_some();
                }
                7 => {
                    let rolled = store.rollback("home", None, "worse");
                    let Some(active) = model.active else {
                        assert!(rolled.is_err());
                        continue;
                    };
                    let to = model.back();
                    model.set(active, GenerationState::Bad);
                    model.point(to, false);
                    assert_eq!(rolled.unwrap().active, to, "seed {seed}, turn {turn}");
                }
                8 => match (dice.below(3), model.active) {
                    (0, Some(active)) if model.on_trial => {
                        store.confirm_trial("home", active).unwrap();
                        model.set(active, GenerationState::Promoted);
                        model.on_trial = false;
                    }
                    (1, _) => {
                        store.deactivate("home", None).unwrap();
                        model.end_trial(None);
                        model.point(None, true);
                    }
                    _ => {
                        store.end_interrupted_trials(false).unwrap();
                        if model.on_trial {
                            let to = model.back();
                            model.crashed.extend(model.active);
                            model.end_trial(None);
                            model.point(to, false);
                        }
                    }
                },
                9 => {
                    let source = format!("source{}", dice.below(8));
                    let selector = Selector { source: Some(source.clone()), ..Selector::default() };
                    let report = store.forget(&selector).unwrap();
                    let gone: Vec<i64> = model
                        .samples
                        .iter()
                        .filter(|(_, (_, s))| *s == source)
                        .map(|(id, _)| *id)
                        .collect();
                    assert_eq!(report.samples, gone.len() as u64);
                    model.samples.retain(|_, (_, s)| *s != source);
                    for grown in model.generations.values_mut() {
                        if grown.learned.iter().any(|id| gone.contains(id)) {
                            grown.state = GenerationState::Retired;
                        }
                    }
                    let lost = model.active.filter(|a| !model.live().contains(a));
                    if lost.is_some() {
                        let to = model.back();
                        model.point(to, false);
                    }
                }
                10 => {
                    let Some(any) = any else { continue };
                    let reference = Reference::parse(&format!("home@{any}")).unwrap();
                    let removed = store.remove(&reference, false);
                    if model.active == Some(any) {
                        assert!(removed.is_err());
                    } else {
                        removed.unwrap();
                        model.generations.remove(&any);
                    }
                }
                _ => {
                    store = Store::open(store.root()).unwrap();
                    store.set_rules(rules.clone()).unwrap();
                }
            }
            compare(&model, &store, seed, turn);
        }
        store.verify().unwrap();
    }
}
