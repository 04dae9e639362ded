use super::choose::choose;
use super::matrix::Symmetric;
use super::rule::Sums;
use super::*;
use crate::train::random::{stream, unit};

/// `count` rows of `width` values about the centres of `classes`, and their one-hot targets.
fn classes(
    count: usize,
    width: usize,
    classes: usize,
    seed: u64,
) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut rng = stream(seed, "instant", 0);
    let rows = (0..count).map(|i| {
        let value = |k: usize| {
            let centre = if k % classes == i % classes { 0.8 } else { 0.0 };
            (centre + 3.0 * (unit(&mut rng) - 0.5)) * (1.0 + k as f32 / 4.0) + 2.0
        };
        (0..width).map(value).collect()
    });
    let rows = rows.collect();
    let hot = |i: usize| (0..classes).map(|k| f32::from(u8::from(k == i % classes))).collect();
    (rows, (0..count).map(hot).collect())
}

fn doubles(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

/// Gauss and Jordan's elimination: the slow way.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let best = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap();
        a.swap(i, best);
        b.swap(i, best);
        for row in (0..n).filter(|&row| row != i) {
            let factor = a[row][i] / a[i][i];
            let pivot = a[i].clone();
            a[row].iter_mut().zip(&pivot).for_each(|(v, p)| *v -= factor * p);
            b[row] -= factor * b[i];
        }
    }
    (0..n).map(|i| b[i] / a[i][i]).collect()
}

/// What a rule says of `x` by its definition: means, scatters and normal equations written out.
fn slow(rule: Rule, z: &[Vec<f64>], y: &[Vec<f64>], lambda: f64, x: &[f64]) -> Vec<f64> {
    let (n, width, outputs) = (z.len() as f64, x.len(), y[0].len());
    let mean_of = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let total: f64 = (0..z.len()).map(weight).sum();
        let sum = |k: usize| (0..z.len()).map(|i| weight(i) * z[i][k]).sum::<f64>();
        (0..width).map(|k| sum(k) / total).collect()
    };
    let scatter = |centre: &dyn Fn(usize) -> Vec<f64>| {
        let mut s = vec![vec![0.0; width]; width];
        for (i, row) in z.iter().enumerate() {
            let c = centre(i);
            for a in 0..width {
                for b in 0..width {
                    s[a][b] += (row[a] - c[a]) * (row[b] - c[b]);
                }
            }
        }
        (0..width).for_each(|a| s[a][a] += lambda);
        s
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    match rule {
        Rule::Ridge => {
            let mean = mean_of(&|_| 1.0);
            let s = scatter(&|_| mean.clone());
            let of = |k: usize| {
                let middle = y.iter().map(|row| row[k]).sum::<f64>() / n;
                let b = (0..width)
                    .map(|a| (0..z.len()).map(|i| (z[i][a] - mean[a]) * (y[i][k] - middle)).sum())
                    .collect();
                let w = solve(s.clone(), b);
                middle + w.iter().enumerate().map(|(a, w)| w * (x[a] - mean[a])).sum::<f64>()
            };
            (0..outputs).map(of).collect()
        }
        Rule::Means => {
            let means: Vec<Vec<f64>> = (0..outputs).map(|k| mean_of(&|i| y[i][k])).collect();
            let own = |i: usize| y[i].iter().position(|v| *v > 0.5).unwrap();
            let s = scatter(&|i| means[own(i)].clone());
            let of = |k: usize| {
                let w = solve(s.clone(), means[k].clone());
                let share = y.iter().map(|row| row[k]).sum::<f64>() / n;
                n * (dot(&w, x) - 0.5 * dot(&w, &means[k])) + share.ln()
            };
            (0..outputs).map(of).collect()
        }
    }
}

fn near(a: &[f64], b: &[f64], bound: f64) {
    let scale = 1.0 + b.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < bound * scale), "{a:?}\n{b:?}");
}

/// Both rules from the shared sums, against their definitions, with more features than samples and
/// with fewer.
#[test]
fn heads_are_those_of_the_formulas() {
    for (count, width) in [(14, 5), (9, 20)] {
        let (rows, y) = classes(count, width, 3, 1);
        let (z, y) = (doubles(&rows), doubles(&y));
        let lambda = 2.5;
        let mut sums = Sums::empty(width, 3);
        let mut scatter = Symmetric::zeros(width);
        for (z, y) in z.iter().zip(&y) {
            sums.add(1.0, z, y);
            scatter.add_outer(1.0, z);
        }
        scatter.add_diagonal(lambda);
        let factor = scatter.factor().unwrap();
        let solved = |x: &Vec<f64>| {
            let mut x = x.clone();
            factor.solve(&mut x);
            x
        };
        sums.solved = sums.moments.iter().map(solved).collect();
        sums.solved_sum = solved(&sums.sum);
        for rule in [Rule::Ridge, Rule::Means] {
            let (weight, bias) = sums.head(rule).unwrap();
            let x: Vec<f64> = (0..width).map(|k| 0.3 * k as f64 - 1.0).collect();
            let said: Vec<f64> = weight
                .iter()
                .zip(&bias)
                .map(|(w, b)| b + w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>())
                .collect();
            let slow = slow(rule, &z, &y, lambda, &x);
            // Of the means a term of x alone is the same for all classes and left out.
            let shift = if rule == Rule::Means { slow[0] - said[0] } else { 0.0 };
            let said: Vec<f64> = said.iter().map(|v| v + shift).collect();
            near(&said, &slow, 1e-9);
            assert!(rule == Rule::Ridge || shift.abs() < 1e-6);
        }
    }
}

/// The closed form of leaving one out is the refit without it.
#[test]
fn left_out_is_what_a_fit_without_the_sample_says() {
    for (count, width, seed) in [(16, 6, 2), (11, 24, 3), (23, 7, 4)] {
        let (rows, y) = classes(count, width, 3, seed);
        let (z, y) = (doubles(&rows), doubles(&y));
        let choice = choose(&z, &y, Form::OneOf).unwrap();
        for i in 0..count {
            let (mut z, mut y) = (z.clone(), y.clone());
            let (x, _) = (z.remove(i), y.remove(i));
            let want = slow(choice.rule, &z, &y, choice.lambda, &x);
            let got: Vec<f64> =
                choice.outputs[i].iter().map(|v| f64::from(*v) * choice.temperature).collect();
            near(&got, &want, 1e-5);
        }
    }
}

/// The same for numbers, whose rule is always ridge.
#[test]
fn numbers_left_out_are_those_of_a_fit_without_the_sample() {
    let (rows, _) = classes(18, 5, 3, 5);
    let z = doubles(&rows);
    let y: Vec<Vec<f64>> = z.iter().map(|z| vec![3.0 * z[0] - z[1] + 7.0, z[2]]).collect();
    let choice = choose(&z, &y, Form::Values).unwrap();
    assert!(choice.rule == Rule::Ridge && choice.loss.unwrap() < 0.05, "{choice:?}");
    for i in 0..z.len() {
        let (mut z, mut y) = (z.clone(), y.clone());
        let (x, _) = (z.remove(i), y.remove(i));
        let want = slow(Rule::Ridge, &z, &y, choice.lambda, &x);
        near(&choice.outputs[i].iter().copied().map(f64::from).collect::<Vec<_>>(), &want, 1e-5);
    }
}

fn answer((weight, bias): &(Vec<f32>, Vec<f32>), x: &[f32]) -> Vec<f64> {
    let rows = weight.chunks(x.len()).zip(bias);
    let of = |(w, b): (&[f32], &f32)| {
        f64::from(*b) + w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
    };
    rows.map(of).collect()
}

/// The smaller of the two systems is solved; which, must not show.
#[test]
fn more_samples_than_features_or_fewer_make_one_head() {
    let (rows, y) = classes(30, 12, 3, 6);
    let fitted = fit(&rows, &y, Form::OneOf).unwrap();
    // Thirty samples: by the features. A live head always goes by them too, one of few by samples.
    let live = Live::new(fitted.clone(), &rows, &y).unwrap();
    near(
        &answer(&live.head().unwrap(), &rows[3]),
        &answer(&(fitted.weight.clone(), fitted.bias.clone()), &rows[3]),
        1e-6,
    );
    let few = fit(&rows[..9], &y[..9], Form::OneOf).unwrap();
    let live = Live::new(few.clone(), &rows[..9], &y[..9]).unwrap();
    near(
        &answer(&live.head().unwrap(), &rows[20]),
        &answer(&(few.weight, few.bias), &rows[20]),
        1e-6,
    );
}

/// A sample in and out again leaves the head as it was, and samples one by one make the head of all.
#[test]
fn samples_go_in_and_out() {
    for form in [Form::OneOf, Form::Each] {
        let (rows, y) = classes(60, 10, 4, 7);
        let made = fit(&rows[..40], &y[..40], form).unwrap();
        let mut live = Live::new(made.clone(), &rows[..40], &y[..40]).unwrap();
        for i in 40..60 {
            live.add(&rows[i], &y[i]).unwrap();
        }
        let all = Live::new(made.clone(), &rows, &y).unwrap();
        assert_eq!((live.len(), live.totals()), (60, all.totals()));
        near(
            &answer(&live.head().unwrap(), &rows[0]),
            &answer(&all.head().unwrap(), &rows[0]),
            1e-6,
        );
        for i in (0..20).rev() {
            live.remove(&rows[i], &y[i]).unwrap();
        }
        let rest = Live::new(made.clone(), &rows[20..], &y[20..]).unwrap();
        near(
            &answer(&live.head().unwrap(), &rows[0]),
            &answer(&rest.head().unwrap(), &rows[0]),
            1e-6,
        );
        assert!(live.add(&rows[0], &y[0][..2]).is_err() && live.add(&rows[0][1..], &y[0]).is_err());
        assert!(live.add(&[f32::NAN; 10], &y[0]).is_err());
    }
}

/// A class that comes later is one like others; one whose last sample is taken out answers never.
#[test]
fn classes_come_and_go() {
    let (rows, y) = classes(40, 10, 4, 8);
    let three: Vec<usize> = (0..40).filter(|i| i % 4 != 3).collect();
    let few: Vec<Vec<f32>> = three.iter().map(|&i| rows[i].clone()).collect();
    let hot: Vec<Vec<f32>> = three.iter().map(|&i| y[i][..3].to_vec()).collect();
    let made = fit(&few, &hot, Form::OneOf).unwrap();
    let mut live = Live::new(made.clone(), &few, &hot).unwrap();
    live.add_output();
    let best = |live: &Live, x: &[f32]| {
        let said = answer(&live.head().unwrap(), x);
        (0..said.len()).max_by(|&a, &b| said[a].total_cmp(&said[b])).unwrap()
    };
    assert!((0..40).all(|i| best(&live, &rows[i]) != 3));
    (3..40).step_by(4).for_each(|i| live.add(&rows[i], &y[i]).unwrap());
    let all = Live::new(made, &rows, &y).unwrap();
    near(&answer(&live.head().unwrap(), &rows[3]), &answer(&all.head().unwrap(), &rows[3]), 1e-6);
    assert!((3..40).step_by(4).filter(|&i| best(&live, &rows[i]) == 3).count() >= 5);
    (3..40).step_by(4).for_each(|i| live.remove(&rows[i], &y[i]).unwrap());
    assert!((0..40).all(|i| best(&live, &rows[i]) != 3));
}

/// What is learned of little: one sample, one class, equal samples, a class of one.
#[test]
fn little_is_enough() {
    let (rows, y) = classes(6, 8, 3, 9);
    for count in [1, 2, 3, 4] {
        let fitted = fit(&rows[..count], &y[..count], Form::OneOf).unwrap();
        assert!(fitted.weight.iter().chain(&fitted.bias).all(|v| v.is_finite()));
        let said = answer(&(fitted.weight, fitted.bias), &rows[0]);
        assert!(said.iter().all(|v| v <= &said[0]), "{said:?}");
    }
    let same = fit(&vec![vec![1.0; 8]; 5], &vec![vec![1.0, 0.0]; 5], Form::OneOf).unwrap();
    assert!(same.weight.iter().chain(&same.bias).all(|v| v.is_finite()));
    assert!(fit(&[], &[], Form::OneOf).is_err());
    let broken = vec![vec![f32::NAN; 8], vec![0.0; 8]];
    assert!(fit(&broken, &y[..2], Form::OneOf).is_err());
}
