//! The mount table.

use super::Root;
use std::path::{Path, PathBuf};

/// Layers of devices and overlays that are looked through.
pub(super) const MAX_LAYERS: usize = 4;

/// One line of mountinfo.
#[derive(Default)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) device: String,
    pub(super) kind: String,
    pub(super) source: String,
    pub(super) options: Vec<String>,
}

/// The mounts that this process sees, in the order of the table.
pub(super) fn mounts(root: &Root) -> Vec<Mount> {
    let table = root.text("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(parse).collect()
}

/// The mount that `folder` is on: the deepest one, the last where several are stacked.
pub(super) fn mount_of<'a>(mounts: &'a [Mount], folder: &Path) -> Option<&'a Mount> {
    let on = mounts.iter().filter(|m| folder.starts_with(&m.point));
    on.max_by_key(|m| m.point.components().count())
}

/// The mount that keeps what is written in `mount`: of an overlay, the one that its upper layer is on.
/// `None` where that can't be seen.
pub(super) fn keeper<'a>(root: &Root, mounts: &'a [Mount], mount: &'a Mount) -> Option<&'a Mount> {
    let mut at = mount;
    for _ in 0..MAX_LAYERS {
        if at.kind != "overlay" {
            return Some(at);
        }
        let upper = at.options.iter().find_map(|o| o.strip_prefix("upperdir="))?;
        let upper = PathBuf::from(unescape(upper));
        // It is a path of where the overlay was mounted, in an initramfs or outside a container. One
        // that only root may look into is there all the same.
        if !upper.is_absolute() || matches!(root.path(&upper).try_exists(), Ok(false)) {
            return None;
        }
        at = mount_of(mounts, &upper)?;
    }
    None
}

/// proc(5): ID, parent, major:minor, root, mount point, options, optional fields, `-`, type, source,
/// options of the file system.
fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let mut after = after.split(' ');
    let kind = after.next()?.to_string();
    let source = unescape(after.next()?);
    let all = before.get(5)?.split(',').chain(after.next().unwrap_or("").split(','));
    Some(Mount {
        point: PathBuf::from(unescape(before.get(4)?)),
        device: before.get(2)?.to_string(),
        kind,
        source,
        options: all.filter(|o| !o.is_empty()).map(String::from).collect(),
    })
}

/// mountinfo writes blanks, commas and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = vec![];
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_are_characters() {
        assert_eq!([unescape("a\\040b\\"), unescape("\\9")], ["a b\\", "\\9"]);
    }
}
