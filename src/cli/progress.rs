//! A training run on a terminal.

use crate::train::progress::{Event, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar on stderr; nothing where that is no terminal or the output is for programs.
pub struct Bar {
    bar: ProgressBar,
    hold_out: String,
    kept: String,
}

impl Bar {
    /// A bar with `title` before it.
    pub fn new(title: &str, json: bool) -> Bar {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{prefix} {bar:24} {pos}/{len} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(title.to_string());
        Bar { bar, hold_out: String::new(), kept: String::new() }
    }
}

impl Progress for Bar {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { steps, resumed_at, .. } => {
                self.bar.set_length(*steps);
                self.bar.set_position(*resumed_at);
            }
            Event::Step { step, loss, seconds_left, .. } => {
                self.bar.set_position(*step);
                let left = Duration::from_secs_f64(seconds_left.clamp(0.0, 1e9)).as_secs();
                let left = format!("{}:{:02}", left / 60, left % 60);
                self.bar.set_message(format!(
                    "loss {loss:.3}{}{} {left} left",
                    self.hold_out, self.kept
                ));
            }
            Event::HoldOut { metric, value, .. } => {
                self.hold_out = format!(", hold-out {metric} {value:.3},");
            }
            Event::Knowledge { kept, .. } => {
                self.kept = format!(", keeps {:.0} %,", kept * 100.0);
            }
            Event::Finished { .. } => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
