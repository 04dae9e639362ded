//! The page: what was answered, to confirm and correct; what was learned; going back and forgetting.
//!
//! Plain HTML and forms, all of it in the program: it reads and works without scripts, and nothing of
//! it is asked of another host. Everything it changes goes through the same functions as the API.

mod access;
pub(super) mod acts;
mod card;
mod html;
pub(super) mod judge;
mod view;

use super::Call;
use crate::daemon::serve::app::App;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::who::Who;
use access::Visitor;
pub use access::socket_form;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use html::{document, escaped, in_query};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Longest form in bytes.
const MAX_FORM: usize = 16 << 10;
/// The page and its parts, nothing else, and in nobody's frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; media-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Whether a path asks for a login of its own in the place of the token's header.
pub fn has_login(path: &str) -> bool {
    matches!(path, "/" | "/login" | "/logout") || path.starts_with("/page/")
}

/// Who has logged in, by the cookie.
pub fn logged_in(app: &App, headers: &HeaderMap) -> Option<Who> {
    Visitor::of_cookie(app, headers, super::now()).map(|visitor| visitor.who)
}

/// What is shown to who may not see a page; `None`: nobody has logged in.
pub(super) fn refused(problem: Option<Problem>) -> Response {
    problem.map_or(Stop::Login, Stop::Problem).into_response()
}

/// What a handler of the page gives: problems are shown as pages.
pub(super) type Shown = Result<Response, Stop>;

/// Why there is no page.
pub(super) enum Stop {
    /// Nobody has logged in.
    Login,
    Problem(Problem),
}

impl<E: Into<Problem>> From<E> for Stop {
    fn from(e: E) -> Stop {
        Stop::Problem(e.into())
    }
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        let Stop::Problem(problem) = self else { return see("/login") };
        let hint = problem.hint.map_or(String::new(), |h| format!("<p>{}</p>", escaped(&h)));
        let body = format!(
            "<main class=\"login\"><div class=\"box problem\"><p><strong>{}</strong></p>{hint}\
             <p><a href=\"/\">Back</a></p></div></main>",
            escaped(&problem.message)
        );
        (problem.status, guarded(), document("Offshoot", &body)).into_response()
    }
}

/// The headers of everything here.
fn guarded() -> HeaderMap {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
}

fn of_type(kind: &str, body: Vec<u8>) -> Response {
    let mut headers = guarded();
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    (headers, body).into_response()
}

pub(super) async fn style() -> Response {
    of_type("text/css", include_str!("style.css").into())
}

pub(super) async fn keys() -> Response {
    of_type("text/javascript", include_str!("keys.js").into())
}

pub(super) async fn icon() -> Response {
    of_type("image/svg+xml", include_str!("icon.svg").into())
}

/// "See there": what a form is answered with.
fn see(place: &str) -> Response {
    let mut headers = guarded();
    if let Ok(place) = HeaderValue::from_str(place) {
        headers.insert(header::LOCATION, place);
    }
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// The page of an adapter.
fn place_of(name: &str) -> String {
    format!("/?adapter={}", in_query(name))
}

fn visitor(app: &App, call: &Call) -> Result<Visitor, Stop> {
    Visitor::of(app, &call.parts, super::now()).ok_or(Stop::Login)
}

/// A form's fields.
fn fields<T: DeserializeOwned>(call: &Call) -> Result<T, Problem> {
    let kind = call.parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let is_form = kind.is_some_and(|k| k.starts_with("application/x-www-form-urlencoded"));
    let text = std::str::from_utf8(&call.body).ok().filter(|t| t.len() <= MAX_FORM && is_form);
    let uri = text.and_then(|text| format!("/?{text}").parse::<Uri>().ok());
    let uri = uri.ok_or_else(|| Problem::invalid("expected a form"))?;
    let fields = axum::extract::Query::<T>::try_from_uri(&uri);
    Ok(fields.map_err(|e| Problem::invalid(format!("the form: {}", e.body_text())))?.0)
}

#[derive(Deserialize)]
struct PageQuery {
    adapter: Option<String>,
    /// The sample that a form before this has made.
    kept: Option<i64>,
}

pub(super) async fn page(State(app): State<Arc<App>>, call: Call) -> Shown {
    let visitor = visitor(&app, &call)?;
    let PageQuery { adapter, kept } = call.query()?;
    let by = view::Viewer { token: visitor.form_token(), who: visitor.who, kept };
    let body = app.blocking(move |app| view::main(app, adapter.as_deref(), &by)).await?;
    Ok((guarded(), body).into_response())
}

pub(super) async fn login_form(State(app): State<Arc<App>>, call: Call) -> Shown {
    if visitor(&app, &call).is_ok() {
        return Ok(see("/"));
    }
    Ok((guarded(), login_page(None)).into_response())
}

fn login_page(wrong: Option<&str>) -> String {
    let wrong = wrong.map_or(String::new(), |w| format!("<p class=\"bad\" role=\"alert\">{w}</p>"));
    let body = format!(
        "<main class=\"login box\"><h1>Offshoot</h1>{wrong}<form method=\"post\" action=\"/login\">\
         <label for=\"token\">Token, as <code>offshoot token add</code> showed it</label>\
         <input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" \
         required autofocus><button class=\"yes\">Log in</button></form></main>"
    );
    document("Offshoot: log in", &body)
}

#[derive(Deserialize)]
struct LoginForm {
    token: String,
}

pub(super) async fn login(State(app): State<Arc<App>>, call: Call) -> Shown {
    access::same_origin(&call.parts.headers)?;
    let LoginForm { token } = fields(&call)?;
    let Some(who) = app.keeper.by_token(token.trim()) else {
        app.guesses.wrong().await;
        let page = login_page(Some("That is not the token."));
        return Ok((StatusCode::UNAUTHORIZED, guarded(), page).into_response());
    };
    let mut response = see("/");
    let cookie = HeaderValue::from_str(&access::login(&app, &who, super::now())?);
    if let Ok(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

pub(super) async fn logout(call: Call) -> Shown {
    access::same_origin(&call.parts.headers)?;
    let mut response = see("/login");
    if let Ok(cookie) = HeaderValue::from_str(&access::logout()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Whether a browser shows or plays it.
fn is_media(kind: &str) -> bool {
    kind.starts_with("image/") || kind.starts_with("audio/")
}

/// A recent answer's picture or sound.
pub(super) async fn input(State(app): State<Arc<App>>, call: Call) -> Shown {
    visitor(&app, &call)?;
    let id = call.number("id")?;
    let found = app.blocking(move |app| Ok(app.recent.get(id))).await?;
    let found = found.filter(|(item, _)| is_media(&item.kind));
    let (item, bytes) =
        found.ok_or_else(|| Problem::not_found("there is no such picture or sound"))?;
    Ok(of_type(&item.kind, bytes))
}

/// A sample's picture.
pub(super) async fn sample(State(app): State<Arc<App>>, call: Call) -> Shown {
    visitor(&app, &call)?;
    let id = call.number("id")? as i64;
    match app.blocking(move |app| Ok(app.store.sample_input(id)?)).await? {
        crate::store::Input::File { bytes, mime } if is_media(&mime) => Ok(of_type(&mime, bytes)),
        _ => Err(Problem::not_found("there is no such picture").into()),
    }
}
