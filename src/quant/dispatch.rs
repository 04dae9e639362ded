//! Chooses the kernels once, at run time.

use super::kernels::Kernels;
use crate::error::{Error, Result};
use std::sync::OnceLock;

/// Names the kernels to use instead of the fastest: `portable`, `avx2`, `avx512`,
/// `avx512vnni`, `neon`, `neon-dotprod`.
const VARIABLE: &str = "OFFSHOOT_KERNELS";

/// The kernels in use: those that `OFFSHOOT_KERNELS` names if this processor can run them, else the
/// fastest that it can (see [`check_kernels`]).
pub(crate) fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| wanted().and_then(|w| named(&w)).unwrap_or_else(Kernels::fastest))
}

/// What the environment asks for; a name that is not UTF-8 is one that can't be had.
fn wanted() -> Option<String> {
    let name = std::env::var_os(VARIABLE)?.to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

/// # Errors
/// `OFFSHOOT_KERNELS` asks for kernels that can't be had on this processor
/// ([`ErrorKind::Usage`](crate::error::ErrorKind::Usage)): whoever asks wants to know.
pub fn check_kernels() -> Result<()> {
    wanted().map_or(Ok(()), |name| check(&name))
}

fn check(name: &str) -> Result<()> {
    if named(name).is_some() {
        return Ok(());
    }
    let message = format!("{VARIABLE} asks for '{name}', which is not to be had on this processor");
    let hint = format!("unset it, or take one of {}", available_kernels().join(", "));
    Err(Error::usage(message).hint(hint))
}

/// The kernels of this name, if this processor can run them.
fn named(name: &str) -> Option<&'static Kernels> {
    Kernels::available().find(|k| k.name == name)
}

/// The name of the kernels in use.
pub fn kernel_name() -> &'static str {
    kernels().name
}

/// The names of the kernels that this processor can run, fastest first.
pub fn available_kernels() -> Vec<&'static str> {
    Kernels::available().map(|k| k.name).collect()
}

/// The names of the kernels that were compiled in, fastest first.
pub fn compiled_kernels() -> Vec<&'static str> {
    Kernels::compiled().map(|k| k.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_had_is_an_error() {
        let names = available_kernels();
        assert_eq!(names.last(), Some(&"portable"));
        for name in &names {
            assert_eq!(named(name).unwrap().name, *name);
            check(name).unwrap();
        }
        for wanted in ["avx1024", "AVX2", " "] {
            let error = check(wanted).unwrap_err();
            assert!(error.to_string().contains(&format!("asks for '{wanted}'")), "{error}");
        }
        #[cfg(target_arch = "aarch64")]
        assert!(names[0].starts_with("neon"), "{names:?}");
    }
}
