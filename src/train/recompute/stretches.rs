//! Where the forward part is cut into stretches, of which only what crosses their ends is kept.

use super::copies::{Forward, is_given, repeats};
use crate::graph::memory::bytes;
use tract_core::internal::*;

/// Places that are tried as ends of stretches, at most: the narrowest.
const MAX_PLACES: usize = 256;

/// Nodes to forget of each stretch but the last, whose values are wanted at once.
pub fn stretches(model: &TypedModel, forward: &Forward) -> Vec<Vec<usize>> {
    let order: Vec<usize> =
        forward.order.iter().copied().filter(|&id| !is_given(model.node(id))).collect();
    let last = last_readers(model, forward, &order);
    let sizes: Vec<u64> = order.iter().map(|&id| bytes(model.node(id))).collect();
    let read = forward.read_backward(model);
    let places = places(&sizes, &last);
    let ends = cut(&order, &sizes, &last, &read, &places);
    let mut from = 0;
    let mut found = vec![];
    for end in ends {
        let inside = (from..end).filter(|&at| last[at] < end && repeats(model.node(order[at])));
        found.push(inside.map(|at| order[at]).collect());
        from = end;
    }
    found
}

/// Of each place in `order` that of the last node that reads it on the way to the loss.
fn last_readers(model: &TypedModel, forward: &Forward, order: &[usize]) -> Vec<usize> {
    let mut at = vec![usize::MAX; model.nodes().len()];
    order.iter().enumerate().for_each(|(place, &id)| at[id] = place);
    let mut last: Vec<usize> = (0..order.len()).collect();
    for (place, &id) in order.iter().enumerate() {
        for input in &model.node(id).inputs {
            if let Some(last) = last.get_mut(at[input.node]) {
                *last = place;
            }
        }
    }
    if let Some(loss) = model.outputs.first().filter(|o| forward.is[o.node])
        && let Some(last) = last.get_mut(at[loss.node])
    {
        *last = order.len();
    }
    last
}

/// Places between nodes at which fewer bytes cross than beside them.
fn places(sizes: &[u64], last: &[usize]) -> Vec<usize> {
    let mut ends = vec![0u64; sizes.len() + 1];
    let mut crossing = vec![0u64; sizes.len() + 1];
    let mut alive = 0u64;
    for at in 0..sizes.len() {
        if last[at] > at {
            alive += sizes[at];
            ends[last[at].min(sizes.len())] += sizes[at];
        }
        // What the node here has read last does not cross behind it.
        alive -= ends[at];
        crossing[at + 1] = alive;
    }
    let mut found: Vec<usize> = (1..sizes.len())
        .filter(|&p| crossing[p] < crossing[p - 1] && crossing[p] <= crossing[p + 1])
        .collect();
    if found.len() > MAX_PLACES {
        found.sort_by_key(|&p| crossing[p]);
        found.truncate(MAX_PLACES);
        found.sort_unstable();
    }
    found
}

/// The ends of stretches, among `places`, for which what is kept at the ends and what the largest stretch
/// brings back are fewest bytes together.
fn cut(
    order: &[usize],
    sizes: &[u64],
    last: &[usize],
    read: &[bool],
    places: &[usize],
) -> Vec<usize> {
    let ends: Vec<usize> =
        [0].into_iter().chain(places.iter().copied()).chain([order.len()]).collect();
    // Of the stretch from one end to another: what is kept of it, and what it brings back.
    let mut kept = vec![vec![0u64; ends.len()]; ends.len()];
    let mut inner = kept.clone();
    for to in 1..ends.len() {
        let (mut crosses, mut inside) = (0u64, 0u64);
        for from in (0..to).rev() {
            for at in ends[from]..ends[from + 1] {
                if last[at] >= ends[to] {
                    crosses += sizes[at];
                } else if read[order[at]] {
                    inside += sizes[at];
                }
            }
            (kept[from][to], inner[from][to]) = (crosses, inside);
        }
    }
    let count = ends.len() - 1;
    let mut bounds: Vec<u64> = vec![inner[0][count]];
    while let Some(&least) = bounds.last().filter(|b| **b > 1 << 10) {
        bounds.push(least / 5 * 4);
    }
    let mut best: (u64, Vec<usize>) = (u64::MAX, vec![]);
    for bound in bounds {
        // Least bytes kept up to each end, and where its stretch begins.
        let mut least: Vec<Option<(u64, usize)>> = vec![None; count + 1];
        least[0] = Some((0, 0));
        for to in 1..=count {
            let reach = (0..to).filter(|&from| inner[from][to] <= bound);
            let sums = reach.filter_map(|from| Some((least[from]?.0 + kept[from][to], from)));
            least[to] = sums.min();
        }
        let Some((sum, _)) = least[count] else { break };
        if sum + bound < best.0 {
            let mut chosen = vec![];
            let mut at = least[count].map_or(0, |(_, from)| from);
            while at > 0 {
                chosen.push(ends[at]);
                at = least[at].map_or(0, |(_, from)| from);
            }
            chosen.reverse();
            best = (sum + bound, chosen);
        }
    }
    best.1
}
