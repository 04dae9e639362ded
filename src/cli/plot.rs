//! What a training run looks like: `train --plot`.

use super::progress::Bar;
use crate::error::Result;
use crate::fs::{Access, write_atomic_bytes};
use crate::plot::{Chart, Grid, Panel, Point, Series, svg};
use crate::train::progress::{Event, Progress};
use crate::train::{Evaluation, TrainReport};
use std::path::Path;

/// Most classes whose confusion is drawn.
const MOST_CLASSES: usize = 100;

/// Keeps what a run tells, and passes it on to a bar.
pub struct Course {
    bar: Bar,
    losses: Vec<Point>,
    held_losses: Vec<Point>,
    /// Steps and what the hold-out showed.
    gains: Vec<(u64, f64)>,
    /// Steps and what was kept.
    kept: Vec<(u64, f64)>,
}

impl Course {
    pub fn new(bar: Bar) -> Course {
        Course { bar, losses: vec![], held_losses: vec![], gains: vec![], kept: vec![] }
    }

    /// Writes the plots of the run that gave `report`.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write(&self, report: &TrainReport, path: &Path) -> Result<()> {
        let panels: Vec<Panel> = [
            self.loss(report).map(Panel::Chart),
            self.gain(report).map(Panel::Chart),
            report.evaluation.as_ref().and_then(confusion).map(Panel::Grid),
        ]
        .into_iter()
        .flatten()
        .collect();
        write_atomic_bytes(path, Access::Shared, svg(&panels).as_bytes())
    }

    fn loss(&self, report: &TrainReport) -> Option<Chart> {
        let mut held = self.held_losses.clone();
        let of = |metrics: &[(String, f32)]| {
            metrics.iter().find(|(name, _)| name == "loss").map(|(_, v)| f64::from(*v))
        };
        if let Some(y) = of(&report.before) {
            held.insert(0, Point { y, ..Point::default() });
        }
        // What the steps came to, also where it was given up.
        let last = report.given_up.as_ref().unwrap_or(&report.after);
        if let Some(y) = of(last) {
            held.push(Point { x: report.steps as f64, y, spread: 0.0 });
        }
        let series = [("each step's batch", self.losses.clone()), ("hold-out", held)];
        (!self.losses.is_empty()).then(|| Chart {
            title: "Loss".into(),
            axes: ["step".into(), "loss".into()],
            series: series
                .into_iter()
                .filter(|(_, points)| !points.is_empty())
                .map(|(name, points)| Series { name: name.into(), points, line: true })
                .collect(),
        })
    }

    fn gain(&self, report: &TrainReport) -> Option<Chart> {
        let (metric, before) = report.before.get(1).or(report.before.first())?;
        let last = report.given_up.as_ref().unwrap_or(&report.after);
        let after = last.iter().find(|(name, _)| name == metric)?.1;
        let kept = report.knowledge.as_ref()?.kept;
        let point = |x: f64, y: f64| Point { x, y, spread: 0.0 };
        let at = |step: u64| self.gains.iter().rev().find(|(s, _)| *s == step).map(|(_, v)| *v);
        let on_the_way =
            self.kept.iter().filter_map(|(step, kept)| Some((*step, *kept, at(*step)?)));
        let mut all = vec![(0, 1.0, f64::from(*before))];
        all.extend(on_the_way);
        // A head alone that was kept instead has left the base as it is.
        if report.given_up.is_none() {
            all.push((report.steps, f64::from(kept), f64::from(after)));
        }
        let line = Series {
            name: String::new(),
            points: all.iter().map(|(_, x, y)| point(*x, *y)).collect(),
            line: true,
        };
        let marks = all.iter().map(|(step, x, y)| Series {
            name: format!("step {step}"),
            points: vec![point(*x, *y)],
            line: false,
        });
        Some(Chart {
            title: "Gain against what is kept, over the steps".into(),
            axes: [
                "share of the base's knowledge that is kept".into(),
                format!("hold-out {metric}"),
            ],
            series: std::iter::once(line).chain(marks).collect(),
        })
    }
}

/// Which classes are taken for which; none where a sample has more than one, or for very many.
fn confusion(evaluation: &Evaluation) -> Option<Grid> {
    let counts = evaluation.confusion.as_ref()?;
    let classes = counts.classes();
    (classes <= MOST_CLASSES).then(|| Grid {
        title: "Hold-out: true class (row), answered class (column)".into(),
        labels: evaluation.labels.clone(),
        counts: (0..classes).map(|t| (0..classes).map(|p| counts.count(t, p)).collect()).collect(),
    })
}

impl Progress for Course {
    fn event(&mut self, event: &Event) {
        self.bar.event(event);
        match *event {
            Event::Step { step, loss, .. } => {
                self.losses.push(Point { x: step as f64, y: loss, spread: 0.0 });
            }
            Event::HoldOut { step, value, loss, .. } => {
                self.held_losses.push(Point { x: step as f64, y: loss, spread: 0.0 });
                self.gains.push((step, value));
            }
            Event::Knowledge { step, kept, .. } => self.kept.push((step, kept)),
            _ => {}
        }
    }
}
