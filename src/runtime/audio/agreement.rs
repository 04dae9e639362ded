//! Windows over a stream to what is heard in it.

use crate::runtime::top_k;
use std::collections::VecDeque;

/// Makes events of windows: a label is heard where the mean of the last windows says so often enough in
/// a row, once until something else is.
pub struct Agreement {
    smooth: usize,
    agree: usize,
    threshold: f32,
    recent: VecDeque<Vec<f32>>,
    /// What the last windows said, and how many of them.
    said: Option<usize>,
    times: usize,
    /// What is going on.
    on: Option<usize>,
}

impl Agreement {
    /// Of the mean of `smooth` windows, `agree` times in a row at least `threshold`.
    pub fn new(smooth: usize, agree: usize, threshold: f32) -> Agreement {
        let recent = VecDeque::new();
        Agreement { smooth, agree, threshold, recent, said: None, times: 0, on: None }
    }

    /// Takes the probabilities of one window; gives the label that begins with it, and its mean. Labels keep
    /// their places; new ones may follow.
    pub fn hear(&mut self, shares: &[f32]) -> Option<(usize, f32)> {
        if self.recent.len() == self.smooth {
            self.recent.pop_front();
        }
        self.recent.push_back(shares.to_vec());
        let sum = |at: usize| self.recent.iter().filter_map(|s: &Vec<f32>| s.get(at)).sum::<f32>();
        let means: Vec<f32> =
            (0..shares.len()).map(|at| sum(at) / self.recent.len() as f32).collect();
        let best = top_k(&means, 1).first().copied();
        let best = best.filter(|(_, p)| *p > 0.0 && *p >= self.threshold);
        let now = best.map(|(at, _)| at);
        self.times = if now == self.said { self.times + 1 } else { 1 };
        self.said = now;
        if self.times < self.agree || self.on == now {
            return None;
        }
        self.on = now;
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(agreement: &mut Agreement, windows: &[f32]) -> Vec<usize> {
        let heard = windows.iter().enumerate().filter_map(|(i, p)| {
            agreement.hear(&[*p, 0.9 - p]).filter(|(at, _)| *at == 0).map(|_| i)
        });
        heard.collect()
    }

    #[test]
    fn an_event_is_told_once() {
        let mut plain = Agreement::new(1, 1, 0.5);
        assert_eq!(events(&mut plain, &[0.1, 0.6, 0.8, 0.2, 0.7, 0.7]), [1, 4]);
        let mut twice = Agreement::new(1, 2, 0.5);
        assert_eq!(events(&mut twice, &[0.6, 0.1, 0.6, 0.6, 0.6, 0.1, 0.6, 0.6]), [3]);
        let mut smooth = Agreement::new(3, 1, 0.5);
        assert_eq!(events(&mut smooth, &[0.0, 0.9, 0.9, 0.9]), [2]);
        // What is not known is no label, whatever the threshold: the event ends.
        let mut any = Agreement::new(1, 1, 0.0);
        assert!(any.hear(&[0.0, 0.0]).is_none());
        assert!(any.hear(&[0.1, 0.0]).is_some());
        let mut unknown = Agreement::new(1, 1, 0.5);
        assert!(unknown.hear(&[0.9, 0.1]).is_some());
        assert!(unknown.hear(&[0.0, 0.0]).is_none());
        assert!(unknown.hear(&[0.9, 0.1]).is_some());
    }
}
