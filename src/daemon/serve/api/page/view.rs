//! The page itself.

use super::acts::{forget_place, hidden};
use super::card::card;
use super::html::{Point, ago, curve, document, escaped, in_query, percent};
use super::place_of;
use crate::daemon::learn::NameStatus;
use crate::daemon::roles::Role;
use crate::daemon::serve::api::now;
use crate::daemon::serve::app::App;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::roster::Selection;
use crate::daemon::serve::who::Who;
use crate::store::{
    Filter, Form, Generation, GenerationState, Label, NameEntry, Part, Reference, SampleInfo,
};
use crate::train::Task;
use serde_json::Value;
use std::fmt::Write;

/// Answers that are shown at once.
const CARDS: usize = 24;
/// For who has a keyboard.
const KEYS: &str = "<p class=\"soft keys\">By keyboard: <kbd>j</kbd> <kbd>k</kbd> go to the next and the one \
                    before, <kbd>y</kbd> says right, <kbd>1</kbd>–<kbd>9</kbd> another label, \
                    <kbd>n</kbd> goes to the field, <kbd>s</kbd> skips.</p>";
/// Samples that are listed.
const SAMPLES: u32 = 40;
/// Generations in the curve and the table.
const GENERATIONS: usize = 24;

/// Who looks at it.
pub(super) struct Viewer {
    /// What forms carry.
    pub token: String,
    pub who: Who,
    /// The sample that they have just made.
    pub kept: Option<i64>,
}

impl Viewer {
    fn may(&self, role: Role) -> bool {
        self.who.role >= role
    }
}

/// The labels that an adapter's head and its samples know.
pub(super) fn labels(app: &App, name: &str) -> Result<Vec<String>, Problem> {
    let selection = Selection::Named(Reference::parse(name)?);
    let served = app.roster.resolve(&selection).ok();
    let head = served.as_ref().and_then(|s| s.bound.as_ref()?.head.clone());
    let mut labels: Vec<String> = head.map_or(vec![], |head| head.labels.to_vec());
    if let Ok(counts) = app.store.counts(name) {
        labels.extend(counts.classes.into_iter().filter_map(|c| c.label));
    }
    labels.sort();
    labels.dedup();
    Ok(labels)
}

/// The whole page for one adapter: the one asked for, else the default, else the first.
pub(super) fn main(app: &App, asked: Option<&str>, by: &Viewer) -> Result<String, Problem> {
    let names = app.store.names()?;
    let default = match app.roster.default_selection() {
        Selection::Named(reference) => Some(reference.name().to_string()),
        _ => None,
    };
    let find = |name: Option<&str>| name.and_then(|name| names.iter().find(|e| e.name == name));
    let entry = match asked {
        Some(asked) => Some(
            find(Some(asked))
                .ok_or_else(|| Problem::not_found(format!("there is no adapter '{asked}'")))?,
        ),
        None => find(default.as_deref()).or(names.first()),
    };
    let mut body = header(&names, entry, by);
    body.push_str("<main>");
    for problem in app.store.problems() {
        let _ = write!(body, "<p class=\"box problem\">{}</p>", escaped(&problem));
    }
    match entry {
        Some(entry) => adapter(app, entry, by, &mut body)?,
        None => body.push_str(
            "<p class=\"box\">Nothing was taught yet. Ask (<code>POST /v1/predict</code>) and correct \
             (<code>POST /v1/feedback</code>), or add an adapter: then its answers are here.</p>",
        ),
    }
    body.push_str("</main>");
    let title = entry.map_or("Offshoot".into(), |e| format!("{} · Offshoot", e.name));
    Ok(document(&title, &body))
}

fn header(names: &[NameEntry], shown: Option<&NameEntry>, by: &Viewer) -> String {
    let mut out = String::from("<header><h1>Offshoot</h1><nav aria-label=\"Adapters\">");
    for entry in names {
        let here = shown.is_some_and(|s| s.id == entry.id);
        let _ = write!(
            out,
            "<a href=\"{}\"{}>{}</a>",
            place_of(&entry.name),
            if here { " aria-current=\"page\"" } else { "" },
            escaped(&entry.name)
        );
    }
    let _ = write!(
        out,
        "</nav><form method=\"post\" action=\"/logout\"><input type=\"hidden\" name=\"form\" \
         value=\"{}\"><span class=\"soft\">{} ({})</span> <button>Log out</button></form></header>",
        by.token,
        escaped(&by.who.to_string()),
        by.who.role
    );
    out
}

fn adapter(app: &App, entry: &NameEntry, by: &Viewer, body: &mut String) -> Result<(), Problem> {
    let generations = app.store.generations(&entry.name)?;
    let learner = app.learning().map(|l| l.status()).transpose()?;
    let state = learner.as_ref().and_then(|l| l.names.iter().find(|n| n.name == entry.name));
    serving(app, entry, &generations, state, body)?;
    if by.may(Role::Teach) {
        to_check(app, entry, by, body)?;
    }
    let running = learner.as_ref().and_then(|l| l.job.as_ref()).filter(|j| j.name == entry.name);
    let progress = running.map(|job| match (job.measuring, job.steps) {
        (true, _) => "It trains now: the new generation is being measured.".to_string(),
        (false, 0) => "It trains now: samples are being read.".to_string(),
        (false, steps) => format!(
            "It trains now: step {} of {steps}{}.",
            job.step,
            job.loss.map_or(String::new(), |loss| format!(", loss {loss:.3}"))
        ),
    });
    next_training(app, entry, state, progress.as_deref(), by, body)?;
    learned(entry, &generations, by, body);
    samples(app, entry, by, body)
}

/// What answers now, and how it does.
fn serving(
    app: &App,
    entry: &NameEntry,
    generations: &[Generation],
    state: Option<&NameStatus>,
    body: &mut String,
) -> Result<(), Problem> {
    let outcomes = app.store.outcomes(&entry.name, entry.active.unwrap_or(0))?;
    let mut words = match entry.active {
        Some(active) => format!("Generation <strong>{active}</strong> answers"),
        None => {
            let why = app.store.silence(&entry.name)?.unwrap_or_default();
            format!("<strong>No generation answers</strong>: {}", escaped(&why))
        }
    };
    let found = generations.iter().find(|g| Some(g.number) == entry.active);
    if let Some(accuracy) = found.and_then(|g| measured(g, "accuracy")) {
        let _ = write!(words, ", right in {} of what it never saw", percent(accuracy));
    }
    if outcomes.total > 0 {
        let _ = write!(
            words,
            "; people judged {} of its answers, {} right",
            outcomes.total, outcomes.right
        );
    }
    words.push('.');
    if let Some(left) = state.and_then(|s| s.trial_left) {
        let _ = write!(words, " It is on trial for {} more minutes.", left.div_ceil(60));
    }
    let _ = write!(body, "<p class=\"box\">{words}</p>");
    Ok(())
}

/// What has just been kept, in words.
fn kept(app: &App, entry: &NameEntry, id: i64) -> Option<String> {
    let sample = app.store.sample(id).ok().filter(|sample| sample.info.name == entry.name)?;
    let told = match sample.label? {
        Label::Class(name) => name,
        Label::Values(values) => {
            values.iter().map(f32::to_string).collect::<Vec<String>>().join(" ")
        }
        Label::Answer(text) => Task::said(&serde_json::from_str(&text).ok()?)?,
    };
    let told = if told.is_empty() { "nothing".to_string() } else { format!("“{told}”") };
    let held = match sample.info.part {
        Part::HoldOut => "kept to test with",
        _ => "kept to learn from",
    };
    Some(format!("{told}: {held}."))
}

fn to_check(app: &App, entry: &NameEntry, by: &Viewer, body: &mut String) -> Result<(), Problem> {
    let items = app.recent.of(&entry.name);
    let labels = labels(app, &entry.name)?;
    body.push_str("<h2 id=\"check\">Answers to check</h2>");
    if let Some(kept) = by.kept.and_then(|id| kept(app, entry, id)) {
        let _ =
            write!(body, "<p class=\"kept-now\" role=\"status\">\u{2713} {}</p>", escaped(&kept));
    }
    if items.is_empty() {
        let why = match app.config().recent.text {
            true => "What is asked from now on is here, the doubtful first.",
            false => {
                "Pictures that are asked about from now on are here, the doubtful first; sentences with \
                 <code>recent.text = true</code>."
            }
        };
        let _ = write!(body, "<p class=\"soft\">None is waiting. {why}</p>");
    } else {
        let _ = write!(
            body,
            "<datalist id=\"labels\">{}</datalist><ul class=\"cards\">",
            labels.iter().map(|l| format!("<option>{}</option>", escaped(l))).collect::<String>()
        );
        for item in items.iter().take(CARDS) {
            card(item, &labels, &by.token, body);
        }
        body.push_str("</ul>");
        if items.len() > CARDS {
            let _ = write!(body, "<p class=\"soft\">{} more wait.</p>", items.len() - CARDS);
        }
        body.push_str(KEYS);
    }
    let left: Vec<String> =
        app.recent.left_out().iter().map(|(why, n)| format!("{n} {why}")).collect();
    if !left.is_empty() {
        let _ =
            write!(body, "<p class=\"soft\">Not kept since the start: {}.</p>", left.join(", "));
    }
    Ok(())
}

fn next_training(
    app: &App,
    entry: &NameEntry,
    state: Option<&NameStatus>,
    progress: Option<&str>,
    by: &Viewer,
    body: &mut String,
) -> Result<(), Problem> {
    let counts = app.store.counts(&entry.name)?;
    let _ = write!(
        body,
        "<h2>Next training</h2><div class=\"box\"><p>{} samples are new, {} are kept in all, {} of them \
         only to test with.</p>",
        counts.new, counts.kept, counts.held
    );
    if counts.quarantined > 0 {
        let _ = write!(body, "<p>{} are set aside and not learned.</p>", counts.quarantined);
    }
    if let Some(state) = state {
        body.push_str("<ul class=\"conditions\">");
        for condition in &state.conditions {
            let class = if condition.met { "" } else { " class=\"missing\"" };
            let _ = write!(body, "<li{class}>{}</li>", escaped(&condition.sentence));
        }
        body.push_str("</ul>");
    }
    match progress {
        Some(progress) => {
            let _ = write!(
                body,
                "<p role=\"status\"><strong>{progress}</strong> <a href=\"{}\">Look again</a></p></div>",
                place_of(&entry.name)
            );
        }
        None if !by.may(Role::Administer) => body.push_str("</div>"),
        None => {
            let _ = write!(
                body,
                "<form method=\"post\" action=\"/page/train\">{}<button>Train now</button></form></div>",
                hidden(&by.token, &entry.name)
            );
        }
    }
    Ok(())
}

fn measured(generation: &Generation, key: &str) -> Option<f64> {
    generation.verdict.as_ref()?[key].as_f64()
}

fn refused(generation: &Generation) -> bool {
    generation.verdict.as_ref().is_some_and(|v| v["passed"] == Value::Bool(false))
}

fn learned(entry: &NameEntry, generations: &[Generation], by: &Viewer, body: &mut String) {
    body.push_str("<h2>What it learned</h2>");
    if generations.is_empty() {
        body.push_str("<p class=\"soft\">Nothing yet.</p>");
        return;
    }
    let newest = &generations[generations.len().saturating_sub(GENERATIONS)..];
    let judged: Vec<Point> = newest
        .iter()
        .filter(|g| g.verdict.is_some())
        .map(|g| Point {
            number: g.number,
            accuracy: measured(g, "accuracy"),
            retention: measured(g, "retention"),
            active: Some(g.number) == entry.active,
            refused: refused(g),
        })
        .collect();
    body.push_str("<div class=\"box\">");
    if !judged.is_empty() {
        body.push_str(&curve(&judged));
        body.push_str(
            "<p class=\"soft\"><span class=\"key\">right: share of held-out samples that were answered \
             right</span> &nbsp; <span class=\"key kept\">kept: how far it still answers as the base does \
             on what it was not trained for</span></p>",
        );
    }
    body.push_str(
        "<div class=\"wide\"><table><thead><tr><th>Generation</th><th>When</th><th>Right</th><th>Gain</th>\
         <th>Kept</th><th>What became of it</th></tr></thead><tbody>",
    );
    for g in newest.iter().rev() {
        let share = |key| measured(g, key).map_or("–".to_string(), percent);
        let gain = match (measured(g, "accuracy"), measured(g, "reference_accuracy")) {
            (Some(own), Some(before)) => format!("{:+.0}", 100.0 * (own - before)),
            _ => "–".into(),
        };
        let _ = write!(
            body,
            "<tr><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td><td>{gain}</td><td>{}\
             </td><td>{}</td></tr>",
            g.number,
            ago(g.created, now()),
            share("accuracy"),
            share("retention"),
            folded(&became(entry, g))
        );
    }
    body.push_str("</tbody></table></div>");
    if entry.active.is_some() && by.may(Role::Administer) {
        let _ = write!(
            body,
            "<p><a class=\"button\" href=\"/page/rollback?adapter={}\">Go back a generation</a></p>",
            in_query(&entry.name)
        );
    }
    body.push_str("</div>");
}

/// A long sentence's first part, the others behind it.
fn folded(sentence: &str) -> String {
    match sentence.split_once("; ") {
        Some((first, rest)) => {
            format!("<details><summary>{}</summary>{}</details>", escaped(first), escaped(rest))
        }
        None => escaped(sentence),
    }
}

/// What became of a generation, in words.
fn became(entry: &NameEntry, g: &Generation) -> String {
    let why = g.why.as_deref().map_or(String::new(), |why| format!(": {why}"));
    if Some(g.number) == entry.active {
        return if entry.trial.is_some() { "serves, on trial".into() } else { "serves".into() };
    }
    match g.state {
        GenerationState::Candidate if refused(g) => {
            let sentence = g.verdict.as_ref().and_then(|v| v["sentence"].as_str());
            format!("refused: {}", sentence.unwrap_or("it was not proven"))
        }
        GenerationState::Candidate => format!("waits{why}"),
        GenerationState::Trial => "on trial".into(),
        GenerationState::Promoted => "served before".into(),
        GenerationState::Bad => format!("taken back{why}"),
        GenerationState::Retired => format!("deleted{why}"),
    }
}

fn samples(app: &App, entry: &NameEntry, by: &Viewer, body: &mut String) -> Result<(), Problem> {
    let counts = app.store.counts(&entry.name)?;
    body.push_str("<h2>What it was taught</h2><div class=\"box\">");
    if counts.kept + counts.quarantined == 0 {
        body.push_str("<p class=\"soft\">Nothing yet.</p></div>");
        return Ok(());
    }
    body.push_str(
        "<div class=\"wide\"><table><thead><tr><th>Label</th><th>To learn</th><th>To test</th>\
         <th></th></tr></thead><tbody>",
    );
    for class in &counts.classes {
        let forget = match class.label.as_deref().filter(|_| by.may(Role::Administer)) {
            Some(label) => format!(
                "<a href=\"{}\" aria-label=\"Forget all called {}\">Forget</a>",
                forget_place(&entry.name, "label", label),
                escaped(label)
            ),
            None => String::new(),
        };
        let label = class.label.as_deref().unwrap_or("no class: tags, numbers, texts");
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{forget}</td></tr>",
            escaped(label),
            class.train,
            class.held
        );
    }
    body.push_str("</tbody></table></div>");
    if !by.may(Role::Administer) {
        body.push_str("</div>");
        return Ok(());
    }
    let filter = Filter { name: Some(entry.name.clone()), limit: SAMPLES, ..Filter::default() };
    let list = app.store.newest_samples(&filter)?;
    body.push_str("<details><summary>The newest samples</summary><ul class=\"samples\">");
    for sample in list {
        let label = labelled(&sample);
        let _ = write!(
            body,
            "<li>{} <span class=\"soft\">{} · from {}</span> <a href=\"{}\">Forget</a></li>",
            escaped(label),
            ago(sample.time, now()),
            escaped(&sample.source),
            forget_place(&entry.name, "id", &sample.id.to_string())
        );
    }
    let _ = write!(
        body,
        "</ul></details><p><a class=\"button\" href=\"/page/forget?adapter={}\">Forget everything</a></p>\
         </div>",
        in_query(&entry.name)
    );
    Ok(())
}

/// A sample's class, or the sort of its label.
fn labelled(sample: &SampleInfo) -> &str {
    match (&sample.label, sample.form) {
        (Some(label), _) => label,
        (None, Form::Values) => "numbers",
        (None, Form::None) => "no label",
        (None, Form::Class | Form::Answer) => "an answer",
    }
}
