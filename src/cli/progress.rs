//! A training run or a packing on a terminal.

use crate::import::Stage;
use crate::train::progress::{Event, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::time::Duration;

/// A bar on stderr; nothing where that is no terminal or the output is for programs.
pub struct Bar {
    bar: ProgressBar,
    hold_out: String,
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
        Bar { bar, hold_out: String::new() }
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
                self.bar.set_message(format!("loss {loss:.3}{} {left} left", self.hold_out));
            }
            Event::HoldOut { metric, value, .. } => {
                self.hold_out = format!(", hold-out {metric} {value:.3},");
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

/// What packing does at the moment, on stderr; nothing where that is no terminal.
pub struct Stages(ProgressBar);

impl Stages {
    /// A line that begins with the file's name.
    pub fn new(source: &Path, quiet: bool) -> Stages {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg} {elapsed}") {
            bar.set_style(style);
        }
        let name = source.file_name().unwrap_or(source.as_os_str()).to_string_lossy();
        let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        bar.set_prefix(name);
        bar.set_message("reading");
        bar.enable_steady_tick(Duration::from_millis(200));
        Stages(bar)
    }

    /// Shows a stage.
    pub fn show(&self, stage: &Stage) {
        self.0.set_message(match stage.of {
            0 => stage.stage.clone(),
            of => format!("{} {}/{of}", stage.stage, stage.done),
        });
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
