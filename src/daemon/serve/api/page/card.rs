//! An answer to check: what was asked, what was said, and the form that says what is right.

use super::acts::hidden;
use super::html::{ago, escaped, percent};
use crate::daemon::serve::api::now;
use crate::daemon::serve::recent::{Item, TALK};
use crate::train::Task;
use crate::train::tasks::ByHand;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Labels with a button or a box of their own.
const OFFERED: usize = 6;

/// The card of one answer.
pub(super) fn card(item: &Item, labels: &[String], token: &str, body: &mut String) {
    body.push_str("<li class=\"card\">");
    asked(item, body);
    said(item, body);
    let _ = write!(
        body,
        "<form method=\"post\" action=\"/page/answer\">{}<input type=\"hidden\" name=\"id\" value=\"{}\">",
        hidden(token, &item.name),
        item.id
    );
    match Task::by_hand(&item.answer) {
        Some((_, _, ByHand::Name)) => name(item, labels, body),
        Some((_, _, ByHand::Names)) => names(item, labels, body),
        Some((_, field, ByHand::Line)) => line(field, item, body),
        Some((_, field, ByHand::Text)) => text(field, item, body),
        None => body.push_str(
            "<div class=\"own\"><p class=\"soft\">What it should have said is told by <code>POST /v1/feedback</code>.</p>",
        ),
    }
    body.push_str(
        "<button class=\"quiet\" name=\"verdict\" value=\"skip\">Skip</button></div></form></li>",
    );
}

/// The picture, the sentence or the sound.
fn asked(item: &Item, body: &mut String) {
    let id = item.id;
    let _ = match item.kind.as_str() {
        "text" | TALK => {
            let text = item.text.as_deref().unwrap_or_default();
            write!(body, "<blockquote>{}</blockquote>", escaped(text))
        }
        kind if kind.starts_with("audio/") => {
            write!(body, "<audio controls preload=\"none\" src=\"/page/input/{id}\"></audio>")
        }
        _ => write!(
            body,
            "<img src=\"/page/input/{id}\" alt=\"The picture that was asked about\" loading=\"lazy\">"
        ),
    };
}

/// The answer, and how sure it is.
fn said(item: &Item, body: &mut String) {
    let told = Task::said(&item.answer);
    let answer = match told.as_deref() {
        Some("") => "nothing".into(),
        Some(told) => escaped(told),
        None => escaped(&item.answer.to_string()),
    };
    body.push_str("<div class=\"said\">");
    let _ = match (item.unknown(), &told, item.sure()) {
        (true, Some(_), _) => {
            write!(body, "<strong class=\"unknown\">unknown</strong> most like {answer}")
        }
        (true, None, _) => write!(body, "<strong class=\"unknown\">unknown</strong>"),
        (false, _, Some(sure)) => write!(
            body,
            "<strong>{answer}</strong> {0}<meter min=\"0\" max=\"1\" low=\"0.5\" high=\"0.8\" \
             optimum=\"1\" value=\"{sure:.3}\">{0}</meter>",
            percent(sure)
        ),
        (false, _, None) => write!(body, "<strong>{answer}</strong>"),
    };
    let _ = write!(
        body,
        "<div class=\"soft\">{}{}</div></div>",
        ago(item.time, now()),
        item.generation.map_or(String::new(), |g| format!(" · generation {g}"))
    );
}

/// A button for the answer, for other labels, and a field for another one.
fn name(item: &Item, labels: &[String], body: &mut String) {
    // What Enter in the field presses is the first button of a form.
    body.push_str(
        "<button class=\"enter\" name=\"verdict\" value=\"typed\" tabindex=\"-1\" \
         aria-hidden=\"true\">Save</button>",
    );
    let confirmed = item.label().filter(|_| !item.unknown());
    if let Some(label) = confirmed {
        let _ = write!(
            body,
            "<button class=\"yes\" name=\"verdict\" value=\"right\" aria-label=\"Right, {}\">\u{2713} \
             Right</button>",
            escaped(label)
        );
    }
    for label in offered(item, labels).into_iter().filter(|l| Some(*l) != confirmed) {
        let shown = escaped(label);
        let _ = write!(body, "<button name=\"other\" value=\"{shown}\">{shown}</button>");
    }
    typed("Other label", "Save", body);
}

/// A box for each label, those that were answered ticked, and a field for others.
fn names(item: &Item, labels: &[String], body: &mut String) {
    let answered = strings(&item.answer["labels"]);
    body.push_str("<div class=\"boxes\">");
    let offered = offered(item, labels);
    let offered = offered.into_iter().filter(|l| !answered.contains(l));
    for label in answered.iter().copied().chain(offered) {
        let ticked = if answered.contains(&label) { " checked" } else { "" };
        let shown = escaped(label);
        let _ = write!(
            body,
            "<label class=\"box\"><input type=\"checkbox\" name=\"tag\" value=\"{shown}\"{ticked}> \
             {shown}</label>"
        );
    }
    body.push_str("</div>");
    typed("Others, with commas", "", body);
    body.push_str(
        "<button class=\"yes\" name=\"verdict\" value=\"right\" aria-label=\"Right as ticked\">\u{2713} \
         Right</button>",
    );
}

/// The answer in a field, to be changed where it is wrong.
fn line(field: &str, item: &Item, body: &mut String) {
    let answered = match &item.answer[field] {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            values.iter().map(Value::to_string).collect::<Vec<String>>().join(" ")
        }
        _ => String::new(),
    };
    let _ = write!(
        body,
        "<div class=\"own\"><input name=\"label\" value=\"{}\" aria-label=\"What is right\" \
         autocomplete=\"off\"><button class=\"yes\" name=\"verdict\" value=\"right\">\u{2713} Right</button>",
        escaped(&answered)
    );
}

/// A text that may have several lines.
fn text(field: &str, item: &Item, body: &mut String) {
    let answered = item.answer[field].as_str().unwrap_or_default();
    // The line end behind the tag is no part of the text.
    let _ = write!(
        body,
        "<div class=\"own\"><textarea name=\"label\" rows=\"{}\" aria-label=\"What is right\" \
         autocomplete=\"off\">\n{}</textarea><button class=\"yes\" name=\"verdict\" value=\"right\">\u{2713} \
         Right</button>",
        answered.lines().count().clamp(1, 12),
        escaped(answered)
    );
}

fn typed(what: &str, save: &str, body: &mut String) {
    let _ = write!(
        body,
        "<div class=\"own\"><input name=\"label\" list=\"labels\" maxlength=\"200\" placeholder=\"{what}\" \
         aria-label=\"{what}\" autocomplete=\"off\">"
    );
    if !save.is_empty() {
        let _ = write!(body, "<button>{save}</button>");
    }
}

/// The labels that have a button: all in their order where they are few, else the likeliest first.
fn offered<'a>(item: &'a Item, labels: &'a [String]) -> Vec<&'a str> {
    let all = labels.iter().map(String::as_str);
    if labels.len() <= OFFERED + 1 {
        return all.collect();
    }
    let likeliest = item.answer["top"].as_array().into_iter().flatten();
    let likeliest = likeliest.filter_map(|one| one["label"].as_str());
    let mut seen = BTreeSet::new();
    likeliest.chain(all).filter(|label| seen.insert(*label)).take(OFFERED + 1).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(answer: Value, labels: &[&str]) -> String {
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        let item = Item::of(answer);
        let mut body = String::new();
        card(&item, &labels, "token", &mut body);
        body
    }

    #[test]
    fn each_sort_of_answer_has_the_form_that_corrects_it() {
        let class = json!({"label": "a<b", "probability": 0.75, "top": []});
        let body = shown(class, &["a<b", "c"]);
        assert!(body.contains("<strong>a&lt;b</strong> 75 %") && body.contains("value=\"right\""));
        assert_eq!(body.matches("name=\"other\"").count(), 1, "{body}");

        let unknown = json!({"label": "c", "known": false, "top": []});
        let body = shown(unknown, &["a", "c"]);
        assert!(body.contains("most like c") && !body.contains("value=\"right\""), "{body}");
        assert_eq!(body.matches("name=\"other\"").count(), 2, "{body}");

        let tags = json!({"labels": ["x"], "top": [{"label": "x", "probability": 0.9}]});
        let body = shown(tags, &["x", "y"]);
        assert!(body.contains("value=\"x\" checked>") && body.contains("value=\"y\">"), "{body}");

        let numbers = shown(json!({"values": [1.5, -2.0]}), &[]);
        assert!(numbers.contains("value=\"1.5 -2.0\"") && !numbers.contains("<meter"), "{numbers}");
        let text = shown(json!({"transcript": "say \"hi\"", "confidence": 0.5}), &[]);
        assert!(text.contains("value=\"say &quot;hi&quot;\"") && text.contains("50 %"), "{text}");

        let text = shown(json!({"completion": "a\n<b", "ended": "end"}), &[]);
        assert!(text.contains("rows=\"2\"") && text.contains(">\na\n&lt;b</textarea>"), "{text}");

        let next = shown(json!({"next": [{"token": 1}]}), &[]);
        assert!(next.contains("/v1/feedback") && !next.contains("name=\"label\""), "{next}");
    }

    #[test]
    fn of_many_labels_the_likeliest_have_buttons() {
        let many: Vec<String> = (0..30).map(|n| format!("label {n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let top = json!([{"label": "label 20", "probability": 0.5}, {"label": "label 29"}]);
        let body = shown(json!({"label": "label 20", "probability": 0.5, "top": top}), &many);
        assert_eq!(body.matches("name=\"other\"").count(), OFFERED);
        assert!(body.contains(">label 29<") && !body.contains(">label 20</button>"), "{body}");
    }
}
