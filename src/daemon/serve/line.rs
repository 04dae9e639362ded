//! Questions that wait, and which is next: small ones before large ones, and large ones never on all workers,
//! so that who asks for little is answered whatever others ask for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A large question that has waited so long takes its turn with the small ones.
const LONG: Duration = Duration::from_secs(2);

/// One that waits.
pub(super) struct Place<T> {
    /// The question.
    pub of: T,
    /// Whether it is a large one, by what is known of it.
    pub large: bool,
    /// When it came.
    pub since: Instant,
}

impl<T> Place<T> {
    /// Of one that came now.
    pub fn new(of: T, large: bool) -> Place<T> {
        Place { of, large, since: Instant::now() }
    }
}

/// The line before some workers.
pub(super) struct Line<T> {
    waiting: VecDeque<Place<T>>,
    /// Large ones that may run at once.
    room: usize,
    /// Those that run.
    running: usize,
    /// Whether the last that was taken was large.
    turn: bool,
}

impl<T> Line<T> {
    pub fn new(workers: usize) -> Line<T> {
        let room = workers.saturating_sub(1).max(1);
        Line { waiting: VecDeque::new(), room, running: 0, turn: false }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts one at the end.
    pub fn push(&mut self, place: Place<T>) {
        self.waiting.push_back(place);
    }

    /// Puts one before all others.
    pub fn push_first(&mut self, place: Place<T>) {
        self.waiting.push_front(place);
    }

    /// Keeps those that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.waiting.retain(|place| keep(&place.of));
    }

    /// Takes the first so many, to look at them.
    pub fn look(&mut self, count: usize) -> Vec<Place<T>> {
        self.waiting.drain(..count.min(self.waiting.len())).collect()
    }

    /// Puts those back that were looked at.
    pub fn back(&mut self, places: impl DoubleEndedIterator<Item = Place<T>>) {
        places.rev().for_each(|place| self.waiting.push_front(place));
    }

    /// The next, which runs from now on; [`Line::ended`] once it doesn't. `None`: none may run.
    pub fn next(&mut self) -> Option<Place<T>> {
        let first = |large: bool| self.waiting.iter().position(|p| p.large == large);
        let large = if self.running < self.room { first(true) } else { None };
        let at = match (first(false), large) {
            (Some(small), Some(large)) => {
                let long = self.waiting.get(large).is_some_and(|p| p.since.elapsed() >= LONG);
                if large < small && long && !self.turn { large } else { small }
            }
            (small, large) => small.or(large)?,
        };
        let place = self.waiting.remove(at)?;
        self.turn = place.large;
        self.running += usize::from(place.large);
        Some(place)
    }

    /// One that was taken runs no more.
    pub fn ended(&mut self, large: bool) {
        self.running -= usize::from(large);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(workers: usize, of: &[(char, bool)]) -> Line<char> {
        let mut line = Line::new(workers);
        of.iter().for_each(|&(of, large)| line.push(Place::new(of, large)));
        line
    }

    fn next(line: &mut Line<char>) -> Option<char> {
        line.next().map(|place| place.of)
    }

    fn aged(mut line: Line<char>) -> Line<char> {
        line.waiting.iter_mut().for_each(|p| p.since -= LONG);
        line
    }

    #[test]
    fn small_ones_go_first_and_large_ones_leave_a_worker() {
        let mut of = line(3, &[('A', true), ('B', true), ('C', true), ('d', false), ('e', false)]);
        let taken: Vec<_> = (0..5).map(|_| next(&mut of)).collect();
        assert_eq!(taken, [Some('d'), Some('e'), Some('A'), Some('B'), None]);
        of.push(Place::new('f', false));
        assert_eq!((next(&mut of), next(&mut of)), (Some('f'), None));
        of.ended(false);
        assert_eq!(next(&mut of), None);
        of.ended(true);
        assert_eq!((next(&mut of), of.len()), (Some('C'), 0));
    }

    #[test]
    fn large_ones_that_waited_long_take_turns_with_small_ones() {
        let mut of = aged(line(9, &[('A', true), ('B', true), ('c', false), ('d', false)]));
        let taken: Vec<_> = (0..4).map(|_| next(&mut of).unwrap()).collect();
        assert_eq!(taken, ['A', 'c', 'B', 'd']);
        // A lone worker too: the small one waits for one of them.
        let mut of = aged(line(1, &[('A', true), ('B', true), ('c', false)]));
        assert_eq!(next(&mut of), Some('A'));
        of.ended(true);
        assert_eq!(next(&mut of), Some('c'));
        assert_eq!(next(&mut of), Some('B'));
    }

    #[test]
    fn what_was_looked_at_keeps_its_place() {
        let mut of = line(2, &[('a', false), ('b', false), ('c', false)]);
        let looked = of.look(2);
        of.back(looked.into_iter());
        of.push_first(Place::new('x', false));
        let taken: String = std::iter::from_fn(|| next(&mut of)).collect();
        assert_eq!(taken, "xabc");
    }
}
