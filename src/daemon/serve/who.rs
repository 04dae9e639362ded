//! Who sends a request, and what they may do.

use crate::daemon::Config;
use crate::daemon::roles::{Peer, Peers, Role};
use crate::daemon::tokens::Tokens;
use crate::error::Result;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// Who sends a request: known by a token, or by the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// What they may do.
    pub role: Role,
    by: By,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    /// The token of `serve.token_file`.
    File,
    Token(String),
    User(String),
}

impl Who {
    /// Where feedback of theirs is from. Who may only teach says nothing else: so it can be told who taught
    /// what, and the limits of a source hold.
    pub fn source(&self, said: Option<String>, default: &str) -> String {
        let own = match &self.by {
            By::Token(name) => Some(format!("token:{name}")),
            By::User(name) if self.role < Role::Administer => Some(format!("user:{name}")),
            By::User(_) | By::File => None,
        };
        match (own, said) {
            (Some(own), _) if self.role < Role::Administer => own,
            (_, Some(said)) => said,
            (own, None) => own.unwrap_or_else(|| default.into()),
        }
    }

    /// The name in a login's cookie; none: users of the socket need no login.
    pub fn login(&self) -> Option<&str> {
        match &self.by {
            By::File => Some(""),
            By::Token(name) => Some(name),
            By::User(_) => None,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            By::File => f.write_str("the token of serve.token_file"),
            By::Token(name) => write!(f, "token '{name}'"),
            By::User(name) => write!(f, "user '{name}'"),
        }
    }
}

/// What the configuration says of who may do what.
pub struct Told {
    token: Option<Arc<str>>,
    peers: Peers,
}

impl Told {
    /// # Errors
    /// A token that can't be read, a user or group that is not there.
    pub fn read(config: &Config) -> Result<Told> {
        Ok(Told { token: config.token()?.map(Arc::from), peers: config.peers.resolve()? })
    }
}

/// Who is known.
pub struct Keeper {
    told: RwLock<Arc<Told>>,
    /// The tokens with a name.
    pub tokens: Tokens,
}

impl Keeper {
    /// With the tokens of the state in `folder`.
    ///
    /// # Errors
    /// As [`Told::read`].
    pub fn new(config: &Config, folder: &Path) -> Result<Keeper> {
        let told = RwLock::new(Arc::new(Told::read(config)?));
        Ok(Keeper { told, tokens: Tokens::open(folder) })
    }

    /// Takes a changed configuration over, and what was changed in the state's folder.
    pub fn set(&self, told: Told) {
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(told);
        self.tokens.reload();
    }

    fn told(&self) -> Arc<Told> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether any token lets somebody in.
    pub fn has_tokens(&self) -> bool {
        self.told().token.is_some() || !self.tokens.list().is_empty()
    }

    /// Whose token that is. Hashes are compared in constant time, so that how much of a guess is right does
    /// not show.
    pub fn by_token(&self, given: &str) -> Option<Who> {
        let is =
            |token: &Arc<str>| blake3::hash(token.as_bytes()) == blake3::hash(given.as_bytes());
        if self.told().token.as_ref().is_some_and(is) {
            return Some(Who { role: Role::Administer, by: By::File });
        }
        let token = self.tokens.find(given)?;
        Some(Who { role: token.role, by: By::Token(token.name) })
    }

    /// Who is at the other end of the socket.
    pub fn by_peer(&self, peer: Option<Peer>) -> Who {
        let told = self.told();
        Who { role: told.peers.role(peer), by: By::User(told.peers.name(peer)) }
    }

    /// Who has the login of this name, and what its cookies are signed by. Another token, or none, ends the
    /// logins of a name.
    pub fn by_login(&self, name: &str) -> Option<(Who, String)> {
        if name.is_empty() {
            let token = self.told().token.as_ref()?.to_string();
            return Some((Who { role: Role::Administer, by: By::File }, token));
        }
        let token = self.tokens.named(name)?;
        Some((Who { role: token.role, by: By::Token(token.name) }, token.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_only_teach_says_no_other_source() {
        let who = |role, by| Who { role, by };
        let token = |role| who(role, By::Token("kitchen".into()));
        let said = || Some("camera".to_string());
        assert_eq!(token(Role::Teach).source(said(), "api"), "token:kitchen");
        assert_eq!(token(Role::Teach).source(None, "api"), "token:kitchen");
        assert_eq!(token(Role::Administer).source(said(), "api"), "camera");
        assert_eq!(token(Role::Administer).source(None, "page"), "token:kitchen");
        assert_eq!(who(Role::Administer, By::File).source(None, "page"), "page");
        let user = |role| who(role, By::User("ann".into()));
        assert_eq!(user(Role::Teach).source(said(), "api"), "user:ann");
        assert_eq!(user(Role::Administer).source(None, "api"), "api");
    }
}
