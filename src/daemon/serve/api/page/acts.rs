//! What the page's forms do, and what they ask before.

use super::html::{document, escaped, in_query};
use super::{Shown, form, guarded, place_of, see, visitor};
use crate::daemon::Serving;
use crate::daemon::serve::api::Call;
use crate::daemon::serve::api::samples::{self, Said};
use crate::daemon::serve::api::table::did;
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{self, Asked};
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::who::Who;
use crate::store::{ForgetReport, Reason, Selector};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

/// Longest label that is typed, in bytes.
const MAX_LABEL: usize = 200;

#[derive(Clone, Deserialize)]
pub(super) struct AnswerForm {
    form: String,
    id: u64,
    adapter: String,
    /// `right` or `skip`.
    verdict: Option<String>,
    /// A label that is there already.
    other: Option<String>,
    /// A label that was typed.
    label: Option<String>,
    /// Whether a new label that is like an old one is meant.
    sure: Option<String>,
}

/// `POST /page/answer`: an answer is confirmed, corrected or put away.
pub async fn answer(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let sent: AnswerForm = form(&call)?;
    visitor.check(&call.parts, &sent.form)?;
    let back = place_of(&sent.adapter);
    let token = visitor.form_token();
    let question = app.blocking(move |app| judge(app, &sent, &token, &visitor.who)).await?;
    Ok(match question {
        Some(page) => (guarded(), page).into_response(),
        None => see(&back),
    })
}

/// Gives the question to ask back, if there is one.
fn judge(app: &App, sent: &AnswerForm, token: &str, by: &Who) -> Result<Option<String>, Problem> {
    // Another device was quicker.
    let Some((item, bytes)) = app.recent.get(sent.id) else { return Ok(None) };
    let typed = sent.label.as_deref().map(str::trim).filter(|l| !l.is_empty());
    if sent.verdict.as_deref() == Some("skip") {
        app.recent.remove(sent.id);
        return Ok(None);
    }
    let label = match (&sent.other, typed, sent.verdict.as_deref()) {
        (Some(other), ..) => other.as_str(),
        // Enter in the field presses the first button: what was typed is meant.
        (None, Some(typed), _) => typed,
        (None, None, Some("right")) => match item.label() {
            Some(label) => label,
            None => return Err(Problem::invalid("there is no label to confirm")),
        },
        _ => return Err(Problem::invalid("say which label is right")),
    };
    if label.len() > MAX_LABEL {
        return Err(Problem::invalid(format!("a label has {MAX_LABEL} bytes at most")));
    }
    let known = super::view::labels(app, &item.name)?;
    let like = known.iter().find(|k| k.as_str() != label && similar(k, label));
    if let (Some(like), false, None) = (like, known.iter().any(|k| k == label), &sent.sure) {
        return Ok(Some(ask_label(sent, label, like, token)));
    }
    let label = label.to_string();
    let input = match item.kind.as_str() {
        "text" => Asked::Text(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Asked::File(bytes.into()),
    };
    let predicted = item.label().map(String::from);
    samples::judged(
        app,
        Said {
            name: item.name,
            input,
            label,
            predicted,
            generation: item.generation,
            time: item.time,
            source: by.source(None, "page"),
        },
    )?;
    app.recent.remove(sent.id);
    Ok(None)
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

fn ask_label(sent: &AnswerForm, label: &str, like: &str, token: &str) -> String {
    let button = |label: &str, class: &str, words: &str| {
        format!(
            "<form method=\"post\" action=\"/page/answer\">{}<input type=\"hidden\" name=\"sure\" \
             value=\"1\"><input type=\"hidden\" name=\"id\" value=\"{}\"><button name=\"other\" \
             value=\"{}\" class=\"{class}\">{words}</button></form>",
            hidden(token, &sent.adapter),
            sent.id,
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

/// The fields that every form has.
pub(super) fn hidden(token: &str, adapter: &str) -> String {
    format!(
        "<input type=\"hidden\" name=\"form\" value=\"{token}\"><input type=\"hidden\" name=\"adapter\" \
         value=\"{}\">",
        escaped(adapter)
    )
}

#[derive(Deserialize)]
pub(super) struct NameForm {
    form: String,
    adapter: String,
    generation: Option<u64>,
}

/// `POST /page/train`: trains now.
pub async fn train(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let sent: NameForm = form(&call)?;
    visitor.check(&call.parts, &sent.form)?;
    let name = ask::name(&sent.adapter)?.to_string();
    let back = place_of(&name);
    app.blocking(move |app| {
        match app.learning() {
            Some(learning) => learning.train_now(&name)?,
            None => app.store.queue_job(&name, Reason::Asked)?,
        };
        Ok(())
    })
    .await?;
    Ok(did(see(&back), &format!("training of '{}'", sent.adapter)))
}

#[derive(Deserialize)]
pub(super) struct NameQuery {
    adapter: String,
}

/// A question with its buttons.
fn question(
    title: &str,
    body: &str,
    action: &str,
    fields: &str,
    yes: &str,
    name: &str,
) -> Response {
    let body = format!(
        "<main class=\"login box\"><h1>{}</h1>{body}<form class=\"row\" method=\"post\" \
         action=\"{action}\">{fields}<button class=\"danger\">{}</button><a class=\"button\" \
         href=\"{}\">Leave it as it is</a></form></main>",
        escaped(title),
        escaped(yes),
        escaped(&place_of(name))
    );
    (guarded(), document(&format!("Offshoot: {title}"), &body)).into_response()
}

/// `GET /page/rollback`: says what going back does.
pub async fn ask_rollback(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let NameQuery { adapter } = call.query()?;
    let name = ask::name(&adapter)?.to_string();
    let of = name.clone();
    let (active, to) = app
        .blocking(move |app| Ok((app.store.name(&of)?.active, app.store.fallbacks(&of)?)))
        .await?;
    let Some(active) = active else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "no generation serves: there is nothing to go back from",
        )
        .into());
    };
    let then = match to.first() {
        Some(to) => format!("generation {to} answers again, from the next question on"),
        None => {
            "no generation is left to answer: there is no answer until something new was learned"
                .into()
        }
    };
    let body = format!(
        "<p>Generation {active} of <strong>{}</strong> is marked as bad and never comes back by itself; \
         {then}. Samples stay, and the next training learns from all of them.</p>",
        escaped(&name)
    );
    let fields = format!(
        "{}<input type=\"hidden\" name=\"generation\" value=\"{active}\">",
        hidden(&visitor.form_token(), &name)
    );
    Ok(question("Go back?", &body, "/page/rollback", &fields, "Go back", &name))
}

/// `POST /page/rollback`: goes back, if the generation of the question still serves.
pub async fn rollback(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let sent: NameForm = form(&call)?;
    visitor.check(&call.parts, &sent.form)?;
    let name = ask::name(&sent.adapter)?.to_string();
    let back = place_of(&name);
    app.blocking(move |app| {
        let expected = sent.generation.map(Some);
        app.store.rollback(&name, expected, "by hand, on the page")?;
        app.refresh(&name)?;
        if let Some(learning) = app.learning() {
            learning.wake();
        }
        Ok(())
    })
    .await?;
    Ok(did(see(&back), &format!("adapter '{}'", sent.adapter)))
}

/// What is to be forgotten: one sample, all of a label, or all of the adapter.
#[derive(Clone, Deserialize)]
pub(super) struct ForgetQuery {
    #[serde(default)]
    form: String,
    adapter: String,
    id: Option<i64>,
    label: Option<String>,
}

impl ForgetQuery {
    fn selector(&self) -> Result<Selector, Problem> {
        Ok(Selector {
            ids: self.id.into_iter().collect(),
            label: self.label.clone(),
            name: Some(ask::name(&self.adapter)?.to_string()),
            ..Selector::default()
        })
    }
}

/// `GET /page/forget`: says what would go.
pub async fn ask_forget(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let asked: ForgetQuery = call.query()?;
    let selector = asked.selector()?;
    let report = app.blocking(move |app| Ok(app.store.would_forget(&selector)?)).await?;
    let what = match (&asked.id, &asked.label) {
        (Some(id), _) => format!("sample {id}"),
        (None, Some(label)) => format!("all samples called “{label}”"),
        (None, None) => format!("all samples of “{}”", asked.adapter),
    };
    let mut fields = hidden(&visitor.form_token(), &asked.adapter);
    let field = |key: &str, value: &str| {
        format!("<input type=\"hidden\" name=\"{key}\" value=\"{}\">", escaped(value))
    };
    fields.extend(asked.id.map(|id| field("id", &id.to_string())));
    fields.extend(asked.label.as_deref().map(|label| field("label", label)));
    let body = format!("<p>Forget {}?</p>{}", escaped(&what), takes_away(&report));
    Ok(question("Forget?", &body, "/page/forget", &fields, "Forget", &asked.adapter))
}

/// What forgetting takes away.
fn takes_away(report: &ForgetReport) -> String {
    let mut lines = vec![match report.samples {
        1 => "1 sample is deleted.".to_string(),
        n => format!("{n} samples are deleted."),
    }];
    let generations: Vec<String> =
        report.generations.iter().map(|g| g.generation.to_string()).collect();
    lines.push(match generations.as_slice() {
        [] => "No generation had learned from them.".into(),
        [one] => format!("Generation {one} had learned from them: it is deleted too."),
        some => {
            format!("Generations {} had learned from them: they are deleted too.", some.join(", "))
        }
    });
    for fallback in &report.fallbacks {
        lines.push(match fallback.to {
            Some(to) => format!("Generation {to} answers in the place of the one that serves now."),
            None => "No generation is left to answer until the next training.".into(),
        });
    }
    if !report.jobs_queued.is_empty() {
        lines.push("What is left is trained anew.".into());
    }
    lines
        .push("The recent answers on the page are deleted. None of this can be taken back.".into());
    let items: Vec<String> = lines.iter().map(|l| format!("<li>{}</li>", escaped(l))).collect();
    format!("<ul>{}</ul>", items.concat())
}

/// `POST /page/forget`.
pub async fn forget(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let sent: ForgetQuery = form(&call)?;
    visitor.check(&call.parts, &sent.form)?;
    let selector = sent.selector()?;
    let report = app.blocking(move |app| samples::forget_now(app, &selector)).await?;
    let text = format!("{} samples of '{}'", report.samples, sent.adapter);
    Ok(did(see(&place_of(&sent.adapter)), &text))
}

/// The address of a question about forgetting.
pub(super) fn forget_place(name: &str, what: &str, value: &str) -> String {
    format!("/page/forget?adapter={}&{what}={}", in_query(name), in_query(value))
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
