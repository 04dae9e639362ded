//! A packing on a terminal.

use crate::caught::caught;
use crate::error::Error;
use crate::import::Stage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::time::Duration;

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
        // It panics where there is no thread to be had: then it turns with the stages alone.
        let none = |text: &str| Error::failed(text);
        let _ = caught(none, || bar.enable_steady_tick(Duration::from_millis(200)));
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
