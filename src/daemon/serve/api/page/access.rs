//! Who may see the page and press its buttons: a login by the token, kept in a cookie; a second token
//! in every form; the origin that the browser names.

use crate::daemon::serve::app::App;
use crate::daemon::serve::connection::Transport;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::who::Who;
use crate::daemon::tokens::random;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use std::sync::OnceLock;

/// The cookie's name.
const COOKIE: &str = "offshoot";
/// How long a login lasts, in seconds.
const LASTS: u64 = 30 * 24 * 3600;

/// In the place of a login's random number, for the socket's users.
const SOCKET: &str = "socket";

/// Who has logged in, or asks through the socket, which only who may use it reaches.
pub struct Visitor {
    /// Who it is.
    pub who: Who,
    nonce: String,
    key: [u8; 32],
}

impl Visitor {
    /// Who asks; `None`: nobody that is known.
    pub fn of(app: &App, parts: &Parts, now: u64) -> Option<Visitor> {
        if parts.extensions.get::<Transport>() != Some(&Transport::Tcp) {
            let who = parts.extensions.get::<Who>()?.clone();
            return Some(Visitor { who, nonce: SOCKET.into(), key: own_key()? });
        }
        Visitor::of_cookie(app, &parts.headers, now)
    }

    /// Who has logged in, while the token of the login is still one.
    pub fn of_cookie(app: &App, headers: &HeaderMap, now: u64) -> Option<Visitor> {
        let cookie = cookies(headers).find(|(name, _)| *name == COOKIE)?.1;
        // The name is the last, since it may hold dots; that of the token of the file is empty.
        let mut fields = cookie.splitn(4, '.');
        let (expires, nonce, mac) = (fields.next()?, fields.next()?, fields.next()?);
        let name = fields.next().unwrap_or_default();
        let (who, secret) = app.keeper.by_login(name)?;
        let key = key(&secret);
        // Hashes are compared in constant time.
        let given = blake3::Hash::from_hex(mac).ok()?;
        let valid = given == sign(&key, &login_text(expires, nonce, name))
            && expires.parse::<u64>().is_ok_and(|e| e > now);
        valid.then(|| Visitor { who, nonce: nonce.into(), key })
    }

    fn form_hash(&self) -> blake3::Hash {
        form_hash(&self.key, &self.nonce)
    }

    /// What forms carry.
    pub fn form_token(&self) -> String {
        self.form_hash().to_hex().to_string()
    }

    /// An error unless a form of this visitor's own page was sent.
    pub fn check(&self, parts: &Parts, given: &str) -> Result<(), Problem> {
        same_origin(&parts.headers)?;
        match blake3::Hash::from_hex(given) {
            Ok(given) if given == self.form_hash() => Ok(()),
            _ => Err(forbidden("the form is not of this page, or too old: load the page again")),
        }
    }
}

fn login_text(expires: &str, nonce: &str, name: &str) -> String {
    match name {
        "" => format!("login {expires} {nonce}"),
        name => format!("login {expires} {nonce} {name}"),
    }
}

/// The cookie of a new login, as a `Set-Cookie` header.
pub fn login(app: &App, who: &Who, now: u64) -> Result<String, Problem> {
    let gone = || forbidden("there is no such token any more");
    let name = who.login().ok_or_else(gone)?;
    let (_, secret) = app.keeper.by_login(name).ok_or_else(gone)?;
    let nonce = blake3::Hash::from_bytes(random()?).to_hex();
    let expires = now + LASTS;
    let mac = sign(&key(&secret), &login_text(&expires.to_string(), &nonce, name)).to_hex();
    let dot = if name.is_empty() { "" } else { "." };
    Ok(set_cookie(&format!("{expires}.{nonce}.{mac}{dot}{name}"), LASTS))
}

/// Takes the cookie away.
pub fn logout() -> String {
    set_cookie("", 0)
}

fn set_cookie(value: &str, seconds: u64) -> String {
    format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict")
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// An error where a browser says that another page sends this.
pub fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: header::HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let own = text(header::ORIGIN).is_none_or(|origin| {
        let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        of.is_some_and(|of| of.eq_ignore_ascii_case(host))
    });
    let site = headers.get("sec-fetch-site").map(|v| v.to_str().unwrap_or("?"));
    if own && matches!(site, None | Some("same-origin" | "none")) {
        return Ok(());
    }
    Err(forbidden("another page has sent this"))
}

fn forbidden(message: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", message)
}

/// Of the token: who changes it ends its logins, a restart ends none.
fn key(secret: &str) -> [u8; 32] {
    blake3::derive_key("offshoot page login v1", secret.as_bytes())
}

/// For the socket's users, who have no token: one of this process. None where the system gives no random
/// bytes.
fn own_key() -> Option<[u8; 32]> {
    static OWN: OnceLock<[u8; 32]> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Some(*own);
    }
    let made = random().inspect_err(|e| tracing::error!("the page can't be used: {e}")).ok()?;
    Some(*OWN.get_or_init(|| made))
}

/// What forms of the socket's users carry, for tests.
pub fn socket_form() -> Option<String> {
    Some(form_hash(&own_key()?, SOCKET).to_hex().to_string())
}

fn form_hash(key: &[u8; 32], nonce: &str) -> blake3::Hash {
    sign(key, &format!("form {nonce}"))
}

fn sign(key: &[u8; 32], text: &str) -> blake3::Hash {
    blake3::keyed_hash(key, text.as_bytes())
}
