//! Who may see the page and press its buttons: a login by the token, kept in a cookie; a second token
//! in every form; the origin that the browser names.

use crate::daemon::serve::app::App;
use crate::daemon::serve::connection::Transport;
use crate::daemon::serve::problem::Problem;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use std::io::Read;
use std::sync::OnceLock;

/// The cookie's name.
const COOKIE: &str = "offshoot";
/// How long a login lasts, in seconds.
const LASTS: u64 = 30 * 24 * 3600;

/// Who has logged in, or asks through the socket, which only who may use it reaches.
pub struct Visitor {
    nonce: String,
}

impl Visitor {
    /// Who asks; `None`: nobody that is known.
    pub fn of(app: &App, parts: &Parts, now: u64) -> Option<Visitor> {
        if parts.extensions.get::<Transport>() != Some(&Transport::Tcp) {
            return Some(Visitor { nonce: "socket".into() });
        }
        let cookie = cookies(&parts.headers).find(|(name, _)| *name == COOKIE)?.1;
        let mut fields = cookie.splitn(3, '.');
        let (expires, nonce, mac) = (fields.next()?, fields.next()?, fields.next()?);
        let expected = sign(&key(app)?, &format!("login {expires} {nonce}"));
        // Hashes are compared in constant time.
        let given = blake3::Hash::from_hex(mac).ok()?;
        let valid = given == expected && expires.parse::<u64>().is_ok_and(|e| e > now);
        valid.then(|| Visitor { nonce: nonce.into() })
    }

    /// What forms carry.
    pub fn form_token(&self, app: &App) -> String {
        sign(&form_key(app), &format!("form {}", self.nonce)).to_hex().to_string()
    }

    /// An error unless a form of this visitor's own page was sent.
    pub fn check(&self, app: &App, parts: &Parts, given: &str) -> Result<(), Problem> {
        same_origin(&parts.headers)?;
        let expected = sign(&form_key(app), &format!("form {}", self.nonce));
        match blake3::Hash::from_hex(given) {
            Ok(given) if given == expected => Ok(()),
            _ => Err(forbidden("the form is not of this page, or too old: load the page again")),
        }
    }
}

/// The cookie of a new login, as a `Set-Cookie` header.
pub fn login(app: &App, now: u64) -> Result<String, Problem> {
    let key = key(app).ok_or_else(|| forbidden("there is no token to log in with"))?;
    let nonce = blake3::Hash::from_bytes(random()?).to_hex();
    let expires = now + LASTS;
    let mac = sign(&key, &format!("login {expires} {nonce}")).to_hex();
    Ok(set_cookie(&format!("{expires}.{nonce}.{mac}"), LASTS))
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

/// Of the token: who changes it ends all logins, a restart ends none.
fn key(app: &App) -> Option<[u8; 32]> {
    app.token().map(|token| blake3::derive_key("offshoot page login v1", token.as_bytes()))
}

/// Without a token, on the socket alone, one of this process.
fn form_key(app: &App) -> [u8; 32] {
    static OWN: OnceLock<[u8; 32]> = OnceLock::new();
    key(app).unwrap_or_else(|| *OWN.get_or_init(|| random().unwrap_or_default()))
}

fn sign(key: &[u8; 32], text: &str) -> blake3::Hash {
    blake3::keyed_hash(key, text.as_bytes())
}

fn random() -> Result<[u8; 32], Problem> {
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Problem::failed(format!("/dev/urandom: {e}")))?;
    Ok(bytes)
}
