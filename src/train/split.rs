//! Hold-outs.

use crate::error::{Error, Result};
use crate::train::random::{shuffle, stream};

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
/// are taken as one class. Samples not enough to hold out even one are an error, unless the
/// fraction is 0.
pub fn hold_out(
    count: usize,
    classes: Option<&[usize]>,
    fraction: f64,
    seed: u64,
) -> Result<HoldOut> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(Error::usage(format!("hold-out share {fraction} is not within 0 to 1")));
    }
    if let Some(classes) = classes
        && classes.len() != count
    {
        return Err(Error::usage(format!("{count} samples have {} classes", classes.len())));
    }
    if fraction == 0.0 {
        return Ok(HoldOut { train: (0..count).collect(), held_out: Vec::new() });
    }
    let mut groups: std::collections::BTreeMap<usize, Vec<usize>> = Default::default();
    for i in 0..count {
        groups.entry(classes.map_or(0, |c| c[i])).or_default().push(i);
    }
    let mut held = vec![false; count];
    for (class, mut members) in groups {
        if members.len() < 2 {
            continue;
        }
        let share = (members.len() as f64 * fraction).round() as usize;
        shuffle(&mut members, &mut stream(seed, "hold-out", class as u64));
        for &i in members.iter().take(share.clamp(1, members.len() - 1)) {
            held[i] = true;
        }
    }
    let (held_out, train): (Vec<usize>, Vec<usize>) = (0..count).partition(|&i| held[i]);
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
        let split = hold_out(130, Some(&classes), 0.2, 5).unwrap();
        let held = |class| split.held_out.iter().filter(|&&i| classes[i] == class).count();
        assert_eq!([0, 1, 2, 3].map(held), [20, 2, 2, 2]);
        let mut all = [split.train.clone(), split.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..130).collect::<Vec<_>>());
        assert!(split.train.is_sorted() && split.held_out.is_sorted());
        assert_eq!(split, hold_out(130, Some(&classes), 0.2, 5).unwrap());
        assert_ne!(split, hold_out(130, Some(&classes), 0.2, 6).unwrap());
    }

    #[test]
    fn small_classes_keep_a_sample_to_train_on() {
        let split = hold_out(5, Some(&[0, 0, 1, 2, 2]), 0.9, 0).unwrap();
        assert_eq!(split.held_out.len(), 2);
        assert!(split.train.contains(&2));
        let tiny = hold_out(5, Some(&[0, 0, 1, 2, 2]), 0.01, 0).unwrap();
        assert_eq!(tiny.held_out.len(), 2);
        assert!(hold_out(2, Some(&[0, 1]), 0.5, 0).is_err());
        assert!(hold_out(2, Some(&[0]), 0.5, 0).is_err());
        assert!(hold_out(2, None, 1.0, 0).is_err());
        assert!(hold_out(2, None, f64::NAN, 0).is_err());
        assert_eq!(hold_out(3, None, 0.0, 0).unwrap().train, [0, 1, 2]);
        assert_eq!(hold_out(10, None, 0.25, 0).unwrap().held_out.len(), 3);
    }
}
