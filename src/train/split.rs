//! Hold-outs.

use crate::error::{Error, Result};
use crate::train::random::{shuffle, stream};
use std::collections::BTreeMap;

/// Which samples train and which are held out; both in ascending order, together all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldOut {
    /// Places of the samples to train on.
    pub train: Vec<usize>,
    /// Places of the samples held out.
    pub held_out: Vec<usize>,
}

/// Holds out `fraction` (0 to below 1) of the samples, chosen by `seed`.
///
/// With `classes` (one per sample) each class gives its share, rounded, but a class of two or more
/// gives at least one and keeps at least one, and a class of one is trained on. Without, samples
/// are taken as one class. With `same` (of each sample the first one of the same input) a sample that comes
/// several times counts once, and is on one side: what was learned by heart would be taken for known. Only a
/// class of copies of so few that its share is less than one gives some of these. Samples not enough to hold out even one are an error,
/// unless the fraction is 0.
pub fn hold_out(
    count: usize,
    classes: Option<&[usize]>,
    same: Option<&[usize]>,
    fraction: f64,
    seed: u64,
) -> Result<HoldOut> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(Error::usage(format!("hold-out share {fraction} is not within 0 to 1")));
    }
    for (given, what) in [(classes, "classes"), (same, "places")] {
        if let Some(given) = given.filter(|given| given.len() != count) {
            return Err(Error::usage(format!("{count} samples have {} {what}", given.len())));
        }
    }
    if fraction == 0.0 {
        return Ok(HoldOut { train: (0..count).collect(), held_out: Vec::new() });
    }
    // Of each sample the one on whose side it is.
    let mut side: Vec<usize> = same.map_or_else(|| (0..count).collect(), <[usize]>::to_vec);
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in 0..count {
        groups.entry(classes.map_or(0, |c| c[i])).or_default().push(i);
    }
    let mut held = vec![false; count];
    for (class, members) in &groups {
        let different = members.iter().filter(|&&i| side[i] == i).count();
        let few = (different as f64) * fraction < 1.0;
        if few && (1..members.len()).contains(&different) {
            members.iter().for_each(|&i| side[i] = i);
        }
        let mut members: Vec<usize> = members.iter().copied().filter(|&i| side[i] == i).collect();
        if members.len() < 2 {
            continue;
        }
        let share = (members.len() as f64 * fraction).round() as usize;
        shuffle(&mut members, &mut stream(seed, "hold-out", *class as u64));
        for &i in members.iter().take(share.clamp(1, members.len() - 1)) {
            held[i] = true;
        }
    }
    for members in groups.values() {
        // Their inputs have other labels too, by which they were held out.
        if members.iter().all(|&i| held[side[i]]) {
            held[side[members[0]]] = false;
        }
    }
    let (held_out, train): (Vec<usize>, Vec<usize>) = (0..count).partition(|&i| held[side[i]]);
    if held_out.is_empty() {
        return Err(Error::bad_input(format!("{count} samples are too few to hold any out"))
            .hint("two samples of a class at least"));
    }
    Ok(HoldOut { train, held_out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_gives_its_share() {
        let classes: Vec<usize> = (0..130).map(|i| if i < 100 { 0 } else { 1 + i % 3 }).collect();
        let split = hold_out(130, Some(&classes), None, 0.2, 5).unwrap();
        let held = |class| split.held_out.iter().filter(|&&i| classes[i] == class).count();
        assert_eq!([0, 1, 2, 3].map(held), [20, 2, 2, 2]);
        let mut all = [split.train.clone(), split.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..130).collect::<Vec<_>>());
        assert!(split.train.is_sorted() && split.held_out.is_sorted());
        assert_eq!(split, hold_out(130, Some(&classes), None, 0.2, 5).unwrap());
        assert_ne!(split, hold_out(130, Some(&classes), None, 0.2, 6).unwrap());
    }

    #[test]
    fn small_classes_keep_a_sample_to_train_on() {
        let split = hold_out(5, Some(&[0, 0, 1, 2, 2]), None, 0.9, 0).unwrap();
        assert_eq!(split.held_out.len(), 2);
        assert!(split.train.contains(&2));
        let tiny = hold_out(5, Some(&[0, 0, 1, 2, 2]), None, 0.01, 0).unwrap();
        assert_eq!(tiny.held_out.len(), 2);
        assert!(hold_out(2, Some(&[0, 1]), None, 0.5, 0).is_err());
        assert!(hold_out(2, Some(&[0]), None, 0.5, 0).is_err());
        assert!(hold_out(2, None, None, 1.0, 0).is_err());
        assert!(hold_out(2, None, None, f64::NAN, 0).is_err());
        assert_eq!(hold_out(3, None, None, 0.0, 0).unwrap().train, [0, 1, 2]);
        assert_eq!(hold_out(10, None, None, 0.25, 0).unwrap().held_out.len(), 3);
    }

    /// A row that stood in a table four times was trained on and held out: what had learned it by heart
    /// looked good.
    #[test]
    fn samples_of_the_same_input_are_on_one_side() {
        // 40 inputs, the first ten of them four times each.
        let same: Vec<usize> = (0..70).map(|i| if i < 40 { i } else { (i - 40) % 10 }).collect();
        let classes: Vec<usize> = same.iter().map(|first| first % 2).collect();
        for seed in 0..20 {
            let split = hold_out(70, Some(&classes), Some(&same), 0.2, seed).unwrap();
            let held = |i: &usize| split.held_out.contains(i);
            assert!((0..70).all(|i| held(&i) == held(&same[i])));
            assert_eq!(split.held_out.iter().filter(|&&i| i < 40).count(), 8);
        }
        assert!(hold_out(3, None, Some(&[0]), 0.5, 0).is_err());
    }

    #[test]
    fn a_class_of_few_and_their_copies_gives_some_and_a_label_beside_another_keeps_one() {
        let split = hold_out(6, Some(&[0, 0, 0, 1, 1, 1]), Some(&[0, 0, 0, 3, 3, 3]), 0.2, 0);
        let split = split.unwrap();
        let held = |class| split.held_out.iter().filter(|&&i| i / 3 == class).count();
        assert_eq!([held(0), held(1)], [1, 1]);
        // Three sentences eight times each: all of them are learned.
        let same: Vec<usize> = (0..24).map(|i| i % 3).collect();
        let split = hold_out(24, None, Some(&same), 0.2, 1).unwrap();
        assert_eq!(split.held_out.len(), 5);
        assert!((0..3).all(|first| split.train.iter().any(|i| i % 3 == first)));
        // The one sample of class 1 has the input of one of class 0.
        for seed in 0..20 {
            let split = hold_out(5, Some(&[0, 0, 0, 0, 1]), Some(&[0, 1, 2, 3, 2]), 0.5, seed);
            let split = split.unwrap();
            assert!(split.train.contains(&4) && split.train.contains(&2), "{split:?}");
            assert!(!split.held_out.is_empty());
        }
    }
}
