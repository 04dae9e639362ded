//! What the axes of a value stand for, followed through moves and reshapes.

use tract_core::internal::*;

/// What one axis stands for: named parts with their sizes, outermost first. A part of size 1 says
/// nothing and is dropped.
pub type Axis = Vec<(char, TDim)>;

/// The axes of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels(pub Vec<Axis>);

/// A single part, or none where its size is 1.
pub fn part(name: char, size: impl ToDim) -> Axis {
    let size = size.to_dim();
    if size.is_one() { vec![] } else { vec![(name, size)] }
}

impl Labels {
    /// The labels after `op`. Where a part `x` is cut in two it becomes `h` and `d`, `r` becomes `g` and `t`.
    pub fn after(&self, op: &AxisOp) -> Option<Labels> {
        let mut axes = self.0.clone();
        match op {
            AxisOp::Add(at) => axes.insert((*at <= axes.len()).then_some(*at)?, vec![]),
            AxisOp::Rm(at) => {
                let gone = (*at < axes.len()).then(|| axes.remove(*at))?;
                if !gone.is_empty() {
                    return None;
                }
            }
            AxisOp::Move(from, to) => {
                let axis = (*from < axes.len()).then(|| axes.remove(*from))?;
                axes.insert((*to <= axes.len()).then_some(*to)?, axis);
            }
            AxisOp::Reshape(at, from, to) => {
                let end = at + from.len();
                let parts: Axis = axes.get(*at..end)?.concat();
                axes.splice(*at..end, regroup(parts, to)?);
            }
        }
        Some(Labels(axes))
    }
}

/// What a part is cut into, where it may be.
const CUTS: [(char, char, char); 2] = [('x', 'h', 'd'), ('r', 'g', 't')];

/// Cuts a row of parts into axes of these sizes; of the parts only those of [`CUTS`] may be cut themselves, once.
fn regroup(parts: Axis, sizes: &[TDim]) -> Option<Vec<Axis>> {
    let mut parts = parts.into_iter().peekable();
    let mut axes = vec![];
    let mut cut = None;
    for size in sizes {
        let mut axis: Axis = vec![];
        let mut so_far = 1.to_dim();
        while so_far != *size {
            let (name, part) = match cut.take() {
                Some(rest) => rest,
                None => parts.next()?,
            };
            let wanted = quotient(size, &so_far)?;
            let rest = quotient(&part, &wanted).filter(|rest| !rest.is_one());
            match (CUTS.iter().find(|cut| cut.0 == name), rest) {
                (Some((_, outer, inner)), Some(rest)) => {
                    cut = Some((*inner, rest));
                    so_far *= &wanted;
                    axis.push((*outer, wanted));
                }
                _ => {
                    so_far *= &part;
                    axis.push((name, part));
                }
            }
        }
        axes.push(axis);
    }
    (parts.peek().is_none() && cut.is_none()).then_some(axes)
}

/// a / b, where it is whole.
fn quotient(a: &TDim, b: &TDim) -> Option<TDim> {
    let (found, rest) = a.maybe_div(b).ok()?;
    (rest == 1).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(sizes: &[usize]) -> TVec<TDim> {
        sizes.iter().map(|s| s.to_dim()).collect()
    }

    #[test]
    fn heads_are_split_moved_and_merged() {
        let start = Labels(vec![part('b', 2), part('t', 5), part('x', 12)]);
        let split = start.after(&AxisOp::Reshape(2, dims(&[12]), dims(&[3, 4]))).unwrap();
        let moved = split.after(&AxisOp::Move(1, 2)).unwrap();
        let want = [part('b', 2), part('h', 3), part('t', 5), part('d', 4)];
        assert_eq!(moved.0, want);
        let merged = moved.after(&AxisOp::Reshape(0, dims(&[2, 3]), dims(&[6]))).unwrap();
        assert_eq!(merged.0[0], [part('b', 2), part('h', 3)].concat());
        assert_eq!(merged.after(&AxisOp::Reshape(0, dims(&[6]), dims(&[2, 3]))).unwrap(), moved);
        // Not the same cut: two of six are no parts of b = 2, h = 3.
        assert!(merged.after(&AxisOp::Reshape(0, dims(&[6]), dims(&[3, 2]))).is_none());
    }

    #[test]
    fn free_sizes_are_followed_too() {
        let scope = SymbolScope::default();
        let t = scope.sym("t").to_dim();
        let rows = t.clone() * 3;
        let start = Labels(vec![part('h', 3), part('r', rows.clone()), part('s', t.clone() + 7)]);
        let split = AxisOp::Reshape(1, tvec![rows.clone()], tvec![3.to_dim(), t.clone()]);
        let split = start.after(&split).unwrap();
        assert_eq!(split.0[1..3], [part('g', 3), part('t', t.clone())]);
        let merged = split.after(&AxisOp::Reshape(0, dims(&[3, 3]), dims(&[9]))).unwrap();
        assert_eq!(merged.0[0], [part('h', 3), part('g', 3)].concat());
        // Other rows than there are.
        assert!(start.after(&AxisOp::Reshape(1, tvec![rows], tvec![2.to_dim(), t])).is_none());
    }

    #[test]
    fn axes_of_one_say_nothing() {
        let start = Labels(vec![part('b', 1), part('t', 1), part('x', 12)]);
        let split = start.after(&AxisOp::Reshape(2, dims(&[12]), dims(&[1, 12]))).unwrap();
        assert_eq!(split.0, [vec![], vec![], vec![], part('x', 12)]);
        let merged = split.after(&AxisOp::Reshape(0, dims(&[1, 1]), dims(&[1]))).unwrap();
        assert_eq!(merged.after(&AxisOp::Rm(0)).unwrap().0.len(), 2);
        assert!(merged.after(&AxisOp::Rm(2)).is_none());
    }
}
