//! What the axes of a value stand for, followed through moves and reshapes.

use tract_core::internal::*;

/// What one axis stands for: named parts with their sizes, outermost first. A part of size 1 says
/// nothing and is dropped.
pub type Axis = Vec<(char, usize)>;

/// The axes of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels(pub Vec<Axis>);

/// A single part, or none where its size is 1.
pub fn part(name: char, size: usize) -> Axis {
    if size == 1 { vec![] } else { vec![(name, size)] }
}

impl Labels {
    /// The labels after `op`. `split` says what the part `x` becomes when it is cut in two: `h` of a
    /// size yet unknown, and `d`.
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
                let sizes: Option<Vec<usize>> = to.iter().map(|d| d.to_usize().ok()).collect();
                axes.splice(*at..end, regroup(parts, &sizes?)?);
            }
        }
        Some(Labels(axes))
    }
}

/// Cuts a row of parts into axes of these sizes; only `x`, heads and their features together, may be
/// cut itself, once.
fn regroup(parts: Axis, sizes: &[usize]) -> Option<Vec<Axis>> {
    let mut parts = parts.into_iter().peekable();
    let mut axes = vec![];
    let mut cut = None;
    for &size in sizes {
        let mut axis: Axis = vec![];
        let mut so_far = 1;
        while so_far < size {
            let (name, part) = match cut.take() {
                Some(rest) => rest,
                None => parts.next()?,
            };
            let wanted = size / so_far;
            if name == 'x' && part != wanted && part % wanted == 0 {
                axis.push(('h', wanted));
                cut = Some(('d', part / wanted));
                so_far *= wanted;
            } else {
                axis.push((name, part));
                so_far *= part;
            }
        }
        if so_far != size {
            return None;
        }
        axes.push(axis);
    }
    (parts.peek().is_none() && cut.is_none()).then_some(axes)
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
        assert_eq!(merged.0[0], [('b', 2), ('h', 3)]);
        assert_eq!(merged.after(&AxisOp::Reshape(0, dims(&[6]), dims(&[2, 3]))).unwrap(), moved);
        // Not the same cut: two of six are no parts of b = 2, h = 3.
        assert!(merged.after(&AxisOp::Reshape(0, dims(&[6]), dims(&[3, 2]))).is_none());
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
