//! Chooses the kernels once, at run time.

use super::kernels::Kernels;
use std::sync::OnceLock;

/// Names the kernels to use instead of the fastest: `portable`, `avx2`, `avx512`,
/// `avx512vnni`, `neon`, `neon-dotprod`, `neon-i8mm`.
const VARIABLE: &str = "OFFSHOOT_KERNELS";

/// The kernels in use: those that `OFFSHOOT_KERNELS` names if this processor can run them, else the
/// fastest that it can.
pub(crate) fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| choose(std::env::var(VARIABLE).ok().as_deref()))
}

/// The kernels of this name, if this processor can run them.
fn named(name: &str) -> Option<&'static Kernels> {
    Kernels::available().find(|k| k.name == name)
}

fn choose(wanted: Option<&str>) -> &'static Kernels {
    wanted.and_then(named).unwrap_or_else(Kernels::fastest)
}

/// The name of the kernels in use, whatever was asked for.
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
    fn a_name_that_cannot_be_had_gives_the_fastest() {
        let names = available_kernels();
        assert_eq!(names.last(), Some(&"portable"));
        for name in &names {
            assert_eq!(choose(Some(name)).name, *name);
        }
        for wanted in [None, Some(""), Some("avx1024"), Some("AVX2")] {
            assert_eq!(choose(wanted).name, names[0]);
        }
        #[cfg(target_arch = "aarch64")]
        assert!(names[0].starts_with("neon"), "{names:?}");
    }
}
