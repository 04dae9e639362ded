//! What the page's forms do, and what they ask before.

use super::html::{document, escaped, in_query};
use super::{Shown, fields, guarded, place_of, see, visitor};
use crate::daemon::Serving;
use crate::daemon::serve::api::Call;
use crate::daemon::serve::api::samples;
use crate::daemon::serve::api::table::did;
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask;
use crate::daemon::serve::problem::Problem;
use crate::store::{ForgetReport, Reason, Selector};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

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
    let sent: NameForm = fields(&call)?;
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
    let sent: NameForm = fields(&call)?;
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
    let sent: ForgetQuery = fields(&call)?;
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
