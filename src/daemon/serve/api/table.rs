//! The table of all routes: method, path, what it needs, its handler. A route without a role can't be
//! written down; the OpenAPI document takes the roles from here.

use super::page::{self, acts, judge};
use super::{adapters, predict, samples, status, tokens, train};
use crate::daemon::roles::Role::{self, Administer, Answer, Teach};
use crate::daemon::serve::app::App;
use crate::daemon::serve::connection::Transport;
use crate::daemon::serve::guard::note_route;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::who::Who;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use std::sync::Arc;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the login, and what is needed to show it.
    Nothing,
    /// A role, by token or socket.
    Api(Role),
    /// A role, by login or socket.
    Page(Role),
    /// The administrator on the socket: who has a token alone makes no others.
    Socket,
}

use Need::{Api, Nothing, Page, Socket};

impl Need {
    /// The role.
    pub fn role(self) -> Option<Role> {
        match self {
            Nothing => None,
            Api(role) | Page(role) => Some(role),
            Socket => Some(Administer),
        }
    }
}

/// A route.
pub struct Route {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// With `{…}` for its parameters.
    pub path: &'static str,
    /// What it needs.
    pub need: Need,
    handler: fn(MethodFilter) -> MethodRouter<Arc<App>>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    need: Need,
    handler: fn(MethodFilter) -> MethodRouter<Arc<App>>,
) -> Route {
    Route { method, path, need, handler }
}

/// All of them.
#[rustfmt::skip]
pub static TABLE: &[Route] = &[
    route("GET", "/health", Api(Answer), |m| on(m, status::health)),
    route("GET", "/metrics", Api(Answer), |m| on(m, status::metrics)),
    route("GET", "/openapi.json", Api(Answer), |m| on(m, status::openapi)),
    route("GET", "/v1/status", Api(Answer), |m| on(m, status::status)),
    route("GET", "/v1/events", Api(Answer), |m| on(m, status::events)),
    route("POST", "/v1/predict", Api(Answer), |m| on(m, predict::predict)),
    route("POST", "/v1/feedback", Api(Teach), |m| on(m, samples::feedback)),
    route("GET", "/v1/samples", Api(Administer), |m| on(m, samples::list)),
    route("GET", "/v1/samples/{id}", Api(Administer), |m| on(m, samples::show)),
    route("POST", "/v1/samples/{id}", Api(Administer), |m| on(m, samples::set)),
    route("POST", "/v1/forget", Api(Administer), |m| on(m, samples::forget)),
    route("GET", "/v1/adapters", Api(Answer), |m| on(m, adapters::list)),
    route("GET", "/v1/adapters/{name}", Api(Answer), |m| on(m, adapters::show)),
    route("POST", "/v1/adapters/{name}", Api(Administer), |m| on(m, adapters::add)),
    route("DELETE", "/v1/adapters/{name}", Api(Administer), |m| on(m, adapters::remove)),
    route("GET", "/v1/adapters/{name}/{generation}", Api(Administer), |m| on(m, adapters::download)),
    route("DELETE", "/v1/adapters/{name}/{generation}", Api(Administer), |m| on(m, adapters::remove_one)),
    route("POST", "/v1/adapters/{name}/activate", Api(Administer), |m| on(m, adapters::activate)),
    route("POST", "/v1/adapters/{name}/rollback", Api(Administer), |m| on(m, adapters::rollback)),
    route("GET", "/v1/train", Api(Answer), |m| on(m, train::list)),
    route("POST", "/v1/train", Api(Administer), |m| on(m, train::start)),
    route("GET", "/v1/train/{job}", Api(Answer), |m| on(m, train::show)),
    route("GET", "/v1/train/{job}/events", Api(Answer), |m| on(m, train::follow)),
    route("GET", "/v1/tokens", Socket, |m| on(m, tokens::list)),
    route("POST", "/v1/tokens", Socket, |m| on(m, tokens::add)),
    route("DELETE", "/v1/tokens/{name}", Socket, |m| on(m, tokens::revoke)),
    route("GET", "/lora-adapters", Api(Answer), |m| on(m, adapters::lora_list)),
    route("POST", "/lora-adapters", Api(Administer), |m| on(m, adapters::lora_set)),
    route("GET", "/", Page(Answer), |m| on(m, page::page)),
    route("GET", "/login", Nothing, |m| on(m, page::login_form)),
    route("POST", "/login", Nothing, |m| on(m, page::login)),
    route("POST", "/logout", Nothing, |m| on(m, page::logout)),
    route("GET", "/page/style.css", Nothing, |m| on(m, page::style)),
    route("GET", "/page/keys.js", Nothing, |m| on(m, page::keys)),
    route("GET", "/page/icon.svg", Nothing, |m| on(m, page::icon)),
    route("GET", "/page/input/{id}", Page(Teach), |m| on(m, page::input)),
    route("GET", "/page/sample/{id}", Page(Administer), |m| on(m, page::sample)),
    route("POST", "/page/answer", Page(Teach), |m| on(m, judge::answer)),
    route("POST", "/page/train", Page(Administer), |m| on(m, acts::train)),
    route("GET", "/page/rollback", Page(Administer), |m| on(m, acts::ask_rollback)),
    route("POST", "/page/rollback", Page(Administer), |m| on(m, acts::rollback)),
    route("GET", "/page/forget", Page(Administer), |m| on(m, acts::ask_forget)),
    route("POST", "/page/forget", Page(Administer), |m| on(m, acts::forget)),
];

/// All routes, each behind what it needs.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in TABLE {
        let filter = match route.method {
            "POST" => MethodFilter::POST,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        let of = app.clone();
        let pass = move |request: Request, next: Next| pass(of.clone(), route, request, next);
        router = router.route(route.path, (route.handler)(filter).route_layer(from_fn(pass)));
    }
    router
        .layer(from_fn(note_route))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path has other methods: see the Allow header",
            )
        })
        .fallback(async || Problem::not_found("no such path").hint("see GET /openapi.json"))
        .with_state(app)
}

/// Lets a request through to its handler if who sends it has the role; writes down who did what.
async fn pass(app: Arc<App>, route: &'static Route, request: Request, next: Next) -> Response {
    let Some(role) = route.need.role() else { return next.run(request).await };
    let page = matches!(route.need, Page(_));
    let Some(who) = request.extensions().get::<Who>().cloned() else {
        let problem =
            || Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "nobody is known to ask");
        return if page { page::refused(None) } else { problem().into_response() };
    };
    let tcp = request.extensions().get::<Transport>() == Some(&Transport::Tcp);
    if let Err(problem) = allowed(route, role, &who, tcp) {
        return if page { page::refused(Some(problem)) } else { problem.into_response() };
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let mut response = next.run(request).await;
    let acted = role >= Teach && method != Method::GET && method != Method::HEAD;
    let status = response.status();
    let did = response.extensions_mut().remove::<Did>();
    if acted && (status.is_success() || status == StatusCode::SEE_OTHER) && did != Some(Did::Asked)
    {
        let what = match did {
            Some(Did::This(what)) => format!(": {what}"),
            _ => String::new(),
        };
        write_down(&app, role, format!("{who}: {method} {path}{what}")).await;
    }
    response
}

fn allowed(route: &Route, role: Role, who: &Who, tcp: bool) -> Result<(), Problem> {
    let forbidden = |why: String| Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why));
    let Route { method, path, .. } = route;
    if who.role < role {
        let has = who.role;
        return forbidden(format!("{method} {path} needs the role '{role}': {who} has '{has}'"));
    }
    if route.need == Socket && tcp {
        return forbidden("tokens are made and revoked on the socket alone".into());
    }
    Ok(())
}

/// Who taught is kept with each sample; who administered is an event.
async fn write_down(app: &Arc<App>, role: Role, text: String) {
    tracing::info!("{text}");
    if role < Administer || app.store.read_only() {
        return;
    }
    let written = app.blocking(move |app| Ok(app.store.event("act", None, &text, None)?)).await;
    if let Err(problem) = written {
        tracing::warn!("who did that is not kept: {}", problem.message);
    }
}

/// What a handler says of what was done, beside method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    This(String),
    /// Nothing was done.
    Asked,
}

/// Has it written down what was done.
pub fn did(mut response: Response, what: &str) -> Response {
    response.extensions_mut().insert(Did::This(what.into()));
    response
}

/// Has nothing written down: nothing was done.
pub fn only_asked(mut response: Response) -> Response {
    response.extensions_mut().insert(Did::Asked);
    response
}
