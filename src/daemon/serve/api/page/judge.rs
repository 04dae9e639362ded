//! What people say of an answer on the page: right, another, or a question back.

use super::acts::hidden;
use super::html::{document, escaped};
use super::{Shown, fields, guarded, place_of, see, visitor};
use crate::daemon::serve::api::Call;
use crate::daemon::serve::api::samples::{self, Said};
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::Asked;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::recent::{Item, TALK};
use crate::daemon::serve::who::Who;
use crate::train::Task;
use crate::train::tasks::ByHand;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::Value;
use std::sync::Arc;

/// Longest label that is typed, in bytes.
const MAX_LABEL: usize = 200;

#[derive(Default)]
struct Sent {
    form: String,
    id: u64,
    adapter: String,
    /// `right`, `typed` or `skip`.
    verdict: Option<String>,
    /// A label that is there already.
    other: Option<String>,
    /// What was typed.
    label: Option<String>,
    /// Boxes that are ticked.
    tags: Vec<String>,
    /// Whether a new label that is like an old one is meant.
    sure: bool,
}

impl Sent {
    fn read(call: &Call) -> Result<Sent, Problem> {
        let mut sent = Sent::default();
        let mut seen = std::collections::HashSet::new();
        for (key, value) in fields::<Vec<(String, String)>>(call)? {
            if key != "tag" && !seen.insert(key.clone()) {
                return Err(Problem::invalid(format!("the form: '{key}' twice")));
            }
            match key.as_str() {
                "form" => sent.form = value,
                "id" => {
                    let id = value.parse();
                    sent.id = id.map_err(|_| Problem::invalid("the form: id is no number"))?;
                }
                "adapter" => sent.adapter = value,
                "verdict" => sent.verdict = Some(value),
                "other" => sent.other = Some(value),
                "label" => sent.label = Some(value),
                "tag" => sent.tags.push(value),
                "sure" => sent.sure = true,
                other => return Err(Problem::invalid(format!("the form: unknown '{other}'"))),
            }
        }
        match ["form", "id", "adapter"].iter().find(|key| !seen.contains(**key)) {
            Some(missing) => Err(Problem::invalid(format!("the form: '{missing}' is missing"))),
            None => Ok(sent),
        }
    }

    fn typed(&self) -> Option<&str> {
        self.label.as_deref().map(str::trim).filter(|typed| !typed.is_empty())
    }
}

/// What became of what was sent.
enum Outcome {
    /// A question back.
    Ask(String),
    /// A sample was kept.
    Kept(Option<i64>),
    /// Nothing was.
    Away,
}

/// `POST /page/answer`: an answer is confirmed, corrected or put away.
pub async fn answer(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let sent = Sent::read(&call)?;
    visitor.check(&call.parts, &sent.form)?;
    let back = place_of(&sent.adapter);
    let token = visitor.form_token();
    let outcome = app.blocking(move |app| judge(app, &sent, &token, &visitor.who)).await?;
    // The cards come into sight: the next one is the first.
    Ok(match outcome {
        Outcome::Ask(page) => (guarded(), page).into_response(),
        Outcome::Kept(Some(id)) => see(&format!("{back}&kept={id}#check")),
        Outcome::Kept(None) | Outcome::Away => see(&format!("{back}#check")),
    })
}

fn judge(app: &App, sent: &Sent, token: &str, by: &Who) -> Result<Outcome, Problem> {
    // Another device was quicker.
    let Some((item, bytes)) = app.recent.get(sent.id) else { return Ok(Outcome::Away) };
    if sent.verdict.as_deref() == Some("skip") {
        app.recent.remove(sent.id);
        return Ok(Outcome::Away);
    }
    let Some((task, field, how)) = Task::by_hand(&item.answer) else {
        return Err(Problem::invalid("this sort of answer is corrected by POST /v1/feedback"));
    };
    let named = |e: crate::error::Error| Problem::invalid(e.message());
    let label = match how {
        ByHand::Name => Value::from(one_name(sent, &item)?),
        ByHand::Names => Value::from(names(sent)),
        ByHand::Line | ByHand::Text => {
            let line = sent.label.as_deref();
            let line = line.ok_or_else(|| Problem::invalid("say what is right"))?;
            task.typed(line, &item.answer).map_err(named)?
        }
    };
    if matches!(how, ByHand::Name | ByHand::Names) {
        let known = super::view::labels(app, &item.name)?;
        if let Some(question) = doubtful(sent, &label, &known, token)? {
            return Ok(Outcome::Ask(question));
        }
    }
    let input = match item.kind.as_str() {
        "text" => Asked::Text(String::from_utf8_lossy(&bytes).into_owned()),
        TALK => {
            let messages = serde_json::from_slice(&bytes);
            Asked::Talk(messages.map_err(|e| Problem::failed(format!("what was kept: {e}")))?)
        }
        _ => Asked::File(bytes.into()),
    };
    // Of numbers nobody says how near is right.
    let answered = item.answer[field].clone();
    let comparable = how == ByHand::Names || answered.is_string();
    let kept = samples::judged(
        app,
        Said {
            name: item.name,
            input,
            label: (field, label),
            predicted: comparable.then_some(answered),
            generation: item.generation,
            time: item.time,
            source: by.source(None, "page"),
        },
    )?;
    app.recent.remove(sent.id);
    Ok(Outcome::Kept(kept))
}

fn one_name(sent: &Sent, item: &Item) -> Result<String, Problem> {
    match (&sent.other, sent.verdict.as_deref()) {
        (Some(other), _) => Ok(other.clone()),
        (None, Some("right")) => item
            .label()
            .map(String::from)
            .ok_or_else(|| Problem::invalid("there is no label to confirm")),
        (None, _) => sent
            .typed()
            .map(String::from)
            .ok_or_else(|| Problem::invalid("say which label is right")),
    }
}

/// What is ticked and what was typed, each once.
fn names(sent: &Sent) -> Vec<String> {
    let typed = sent.typed().into_iter().flat_map(|typed| typed.split(','));
    let typed = typed.map(str::trim).filter(|name| !name.is_empty());
    let all = sent.tags.iter().map(String::as_str).chain(typed);
    let names: std::collections::BTreeSet<&str> = all.collect();
    names.into_iter().map(String::from).collect()
}

/// The question to ask back where a new label is like an old one.
fn doubtful(
    sent: &Sent,
    label: &Value,
    known: &[String],
    token: &str,
) -> Result<Option<String>, Problem> {
    let given: Vec<&str> = match label {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    if given.iter().any(|name| name.len() > MAX_LABEL) {
        return Err(Problem::invalid(format!("a label has {MAX_LABEL} bytes at most")));
    }
    if sent.sure {
        return Ok(None);
    }
    let like = |new: &str| known.iter().find(|k| similar(k, new));
    let mut new = given.iter().filter(|name| known.iter().all(|k| k != *name));
    let Some((new, like)) = new.find_map(|name| Some((*name, like(name)?))) else {
        return Ok(None);
    };
    let others: Vec<&str> = given.iter().copied().filter(|name| *name != new).collect();
    let field = if label.is_array() { "tag" } else { "other" };
    Ok(Some(ask_label(sent, (field, new, like), &others, token)))
}

/// Equal but for the case, or one letter apart (another, one more, two swapped).
fn similar(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let start = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    let swapped = a.len() == 2 && b.len() == 2 && a[0] == b[1] && a[1] == b[0];
    swapped || (a.len() <= 1 && b.len() <= 1 && start + end >= 2) || (a.is_empty() && b.is_empty())
}

fn ask_label(
    sent: &Sent,
    (field, label, like): (&str, &str, &str),
    others: &[&str],
    token: &str,
) -> String {
    let others: Vec<String> = others
        .iter()
        .map(|name| format!("<input type=\"hidden\" name=\"tag\" value=\"{}\">", escaped(name)))
        .collect();
    let button = |label: &str, class: &str, words: &str| {
        format!(
            "<form method=\"post\" action=\"/page/answer\">{}<input type=\"hidden\" name=\"sure\" \
             value=\"1\"><input type=\"hidden\" name=\"id\" value=\"{}\">{}<button name=\"{field}\" \
             value=\"{}\" class=\"{class}\">{words}</button></form>",
            hidden(token, &sent.adapter),
            sent.id,
            others.concat(),
            escaped(label)
        )
    };
    let (label_text, like_text) = (escaped(label), escaped(like));
    let body = format!(
        "<main class=\"login box\"><h1>A new label?</h1><p>Nothing is called <strong>{label_text}\
         </strong> yet, but there is <strong>{like_text}</strong>.</p><div class=\"row\">{}{}</div></main>",
        button(like, "yes", &format!("I mean {like_text}")),
        button(label, "", &format!("{label_text} is a new label"))
    );
    document("Offshoot: a new label?", &body)
}

#[cfg(test)]
mod tests {
    use super::similar;

    #[test]
    fn slips_of_the_finger_are_similar_and_other_words_are_not() {
        for (a, b) in [
            ("open", "opne"),
            ("open", "Open"),
            ("open", "opem"),
            ("open", "opens"),
            ("a b", "A B"),
        ] {
            assert!(similar(a, b) && similar(b, a), "{a} {b}");
        }
        for (a, b) in [("open", "close"), ("on", "off"), ("cat", "dog"), ("a", "b"), ("on", "up")] {
            assert!(!similar(a, b), "{a} {b}");
        }
    }
}
