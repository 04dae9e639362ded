//! `--adapter NAME|FILE[:WEIGHT]`: adapters from files and from the store.

use crate::adapter::{Adapter, Bound};
use crate::error::{Error, Result};
use crate::runtime::Engine;
use crate::store::{Options, Reference, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An adapter and its weight, as given.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// A file, or a name in the store.
    pub source: String,
    /// What its change is multiplied with.
    pub weight: f32,
}

impl Choice {
    /// Reads `SOURCE` or `SOURCE:WEIGHT`. A file whose own name ends like that wins.
    pub fn parse(text: &str) -> Result<Choice> {
        let whole = |weight| Choice { source: text.into(), weight };
        if text.is_empty() {
            return Err(Error::usage(
                "expected NAME, NAME@GENERATION or FILE, and perhaps :WEIGHT",
            ));
        }
        if Path::new(text).exists() {
            return Ok(whole(1.0));
        }
        match text.rsplit_once(':') {
            Some((source, weight)) if !source.is_empty() => match weight.parse::<f32>() {
                Ok(weight) if weight.is_finite() => Ok(Choice { source: source.into(), weight }),
                _ => Err(Error::usage(format!("weight '{weight}' is not a finite number"))),
            },
            _ => Ok(whole(1.0)),
        }
    }

    /// Reads the adapter: a file if there is one or the text looks like one, else from the user's store.
    pub fn load(&self) -> Result<Adapter> {
        self.load_from(None)
    }

    /// As [`Choice::load`], from the store in `state`.
    pub fn load_from(&self, state: Option<&Path>) -> Result<Adapter> {
        let path = Path::new(&self.source);
        if path.exists() || self.source.contains('/') || self.source.ends_with(".adapter") {
            return Adapter::read(path);
        }
        let reference = Reference::parse(&self.source)?;
        Ok(store_with(state, &reference)?.load(&reference)?.adapter)
    }
}

/// The folder of the store: `state`, else the user's.
pub fn folder(state: Option<&Path>) -> Result<PathBuf> {
    state.map_or_else(Store::folder_of_user, |state| Ok(state.into()))
}

/// The store in `state`, else the user's, which must be there for `reference` to name something in it.
pub fn store_with(state: Option<&Path>, reference: &Reference) -> Result<Store> {
    let root = folder(state)?;
    Store::open_existing(&root, Options::default())?.ok_or_else(|| {
        Error::usage(format!("no adapter '{}' in '{}'", reference.name(), root.display()))
            .hint("the store is empty; 'adapter add FILE' fills it")
    })
}

/// Loads and binds all of them; `None` for none.
pub fn bind(engine: &Engine, choices: &[Choice]) -> Result<Option<Arc<Bound>>> {
    if choices.is_empty() {
        return Ok(None);
    }
    let adapters = choices.iter().map(Choice::load).collect::<Result<Vec<Adapter>>>()?;
    let weighted: Vec<(&Adapter, f32)> =
        adapters.iter().zip(choices).map(|(a, c)| (a, c.weight)).collect();
    engine.bind(&weighted).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_last_colon() {
        let c = |t: &str| Choice::parse(t).map(|c| (c.source, c.weight));
        assert_eq!(c("home").unwrap(), ("home".into(), 1.0));
        assert_eq!(c("home@2:0.5").unwrap(), ("home@2".into(), 0.5));
        assert_eq!(c("a:b/x.adapter:-1").unwrap(), ("a:b/x.adapter".into(), -1.0));
        assert!(c("home:much").is_err() && c("home:NaN").is_err() && c("").is_err());
    }
}
