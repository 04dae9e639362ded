//! Recent answers, kept for people to confirm and correct: files in the state's folder within a number
//! of bytes. Doubtful ones stay longest, near duplicates and unusable pictures are left out.
//!
//! What is lost here is no sample: nothing is synced, and what can't be read is deleted.

use super::ask::Asked;
use super::look::Look;
use crate::daemon::config::RecentConfig;
use crate::train::tasks::conversation_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Answers that wait to be written; more are not kept.
const WAITING: usize = 16;
/// Most answers that are kept, whatever their bytes.
const MOST: usize = 500;
/// Bits of 64 in which the looks of near duplicates differ at most.
const NEAR: u32 = 6;
/// Characters of a sentence that are shown.
const SHOWN: usize = 500;
/// Numbers are below: an address has none above.
const MAX_ID: u64 = i64::MAX as u64;
/// The kind of answers to conversations.
pub const TALK: &str = "messages";
/// Ending of an answer's file: a line of JSON, then the input.
const ENDING: &str = "answer";

/// An answer that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// Its number; later ones have greater ones.
    pub id: u64,
    /// When it was asked, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// The adapter's name.
    pub name: String,
    /// Its generation.
    pub generation: Option<u64>,
    /// What was answered, as in `predictions`.
    pub answer: Value,
    /// How doubtful it is, 0 to 1.
    pub doubt: f32,
    /// `text`, `messages` of which the input is JSON, or the file's media type.
    pub kind: String,
    /// What a near duplicate has alike.
    pub look: u64,
    /// Bytes of the input.
    pub bytes: usize,
    /// The beginning of a sentence.
    pub text: Option<String>,
}

impl Item {
    /// The label, of an answer that is one.
    pub fn label(&self) -> Option<&str> {
        self.answer["label"].as_str()
    }

    /// Whether the input is like nothing that was learned.
    pub fn unknown(&self) -> bool {
        self.answer["known"] == Value::Bool(false)
    }

    /// How sure the answer is, 0 to 1, where it says so.
    pub fn sure(&self) -> Option<f64> {
        sure(&self.answer)
    }

    /// For tests: an answer to a sentence.
    #[cfg(test)]
    pub fn of(answer: Value) -> Item {
        Item {
            id: 1,
            time: 0,
            name: "home".into(),
            generation: Some(1),
            doubt: doubt(&answer),
            answer,
            kind: "text".into(),
            look: 0,
            bytes: 2,
            text: Some("hi".into()),
        }
    }
}

/// What is offered to be kept.
pub struct Offer {
    /// When it was asked.
    pub time: u64,
    /// The adapter's name.
    pub name: String,
    /// Its generation.
    pub generation: Option<u64>,
    /// What was answered.
    pub answer: Value,
    /// What was asked.
    pub input: Asked,
    /// How its picture looks.
    pub look: Option<Look>,
}

/// The recent answers of a daemon.
#[derive(Default)]
pub struct Recent {
    wanted: RecentConfig,
    shared: Arc<Shared>,
    sender: Option<SyncSender<Offer>>,
}

#[derive(Default)]
struct Shared {
    folder: PathBuf,
    max_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    items: Vec<Item>,
    next: u64,
    /// Counts of what was not kept, by the reason.
    left_out: BTreeMap<&'static str, u64>,
}

impl Recent {
    /// Reads what is in `folder` and keeps what is `wanted` from now on.
    pub fn open(folder: PathBuf, wanted: RecentConfig) -> Recent {
        let shared = Arc::new(Shared {
            inner: Mutex::new(read_all(&folder)),
            max_bytes: wanted.max_bytes,
            folder,
        });
        if !(wanted.pictures || wanted.text) || wanted.max_bytes == 0 {
            return Recent { wanted, shared, sender: None };
        }
        let (sender, receiver) = sync_channel(WAITING);
        let own = shared.clone();
        let writer = std::thread::Builder::new().name("recent".into());
        match writer.spawn(move || own.write_all(&receiver)) {
            Ok(_) => Recent { wanted, shared, sender: Some(sender) },
            Err(e) => {
                tracing::error!("recent answers are not kept: no thread: {e}");
                Recent { wanted, shared, sender: None }
            }
        }
    }

    /// Whether answers to `input` are kept.
    pub fn wants(&self, input: &Asked) -> bool {
        let wanted = match input {
            Asked::Text(_) | Asked::Talk(_) => self.wanted.text,
            Asked::File(_) => self.wanted.pictures,
            Asked::Tensors(_) => false,
        };
        wanted && self.sender.is_some()
    }

    /// Keeps an answer, unless something speaks against it. Waits for no disk.
    pub fn offer(&self, offer: Offer) {
        let Some(sender) = &self.sender else { return };
        if sender.try_send(offer).is_err() {
            self.shared.leave_out("came too fast");
        }
    }

    /// What is kept of `name`, the doubtful first, of equal doubt the newest.
    pub fn of(&self, name: &str) -> Vec<Item> {
        let inner = self.shared.inner();
        let mut items: Vec<Item> = inner.items.iter().filter(|i| i.name == name).cloned().collect();
        items.sort_by(|a, b| b.doubt.total_cmp(&a.doubt).then(b.id.cmp(&a.id)));
        items
    }

    /// Why answers were not kept since the start, and how many.
    pub fn left_out(&self) -> Vec<(&'static str, u64)> {
        self.shared.inner().left_out.iter().map(|(why, n)| (*why, *n)).collect()
    }

    /// An answer and its input.
    pub fn get(&self, id: u64) -> Option<(Item, Vec<u8>)> {
        let item = self.shared.inner().items.iter().find(|i| i.id == id).cloned()?;
        let (_, input) = read(&self.shared.path(id))?;
        Some((item, input))
    }

    /// Takes an answer away.
    pub fn remove(&self, id: u64) {
        self.shared.drop_where(|item| item.id == id);
    }

    /// Takes the answers of a name away, or all: what was forgotten may be among them.
    pub fn forget(&self, name: Option<&str>) {
        self.shared.drop_where(|item| name.is_none_or(|name| item.name == name));
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }

    fn leave_out(&self, why: &'static str) {
        *self.inner().left_out.entry(why).or_default() += 1;
    }

    fn drop_where(&self, gone: impl Fn(&Item) -> bool) {
        let mut inner = self.inner();
        for item in inner.items.iter().filter(|item| gone(item)) {
            let _ = std::fs::remove_file(self.path(item.id));
        }
        inner.items.retain(|item| !gone(item));
    }

    fn write_all(&self, offers: &Receiver<Offer>) {
        for offer in offers {
            if let Err(why) = self.keep(offer) {
                self.leave_out(why);
            }
        }
    }

    fn keep(&self, offer: Offer) -> Result<(), &'static str> {
        let Offer { time, name, generation, answer, input, look } = offer;
        let mut said = None;
        let (kind, bytes) = match input {
            Asked::Text(text) => ("text", text.into_bytes()),
            Asked::Talk(messages) => {
                let lines = messages.iter().map(|m| format!("{}: {}", m.role, m.content));
                said = Some(lines.collect::<Vec<String>>().join("\n"));
                (TALK, conversation_text(&messages).into_bytes())
            }
            Asked::File(bytes) => {
                let kind = crate::runtime::audio::media_type(&bytes).unwrap_or("image");
                (kind, bytes.to_vec())
            }
            Asked::Tensors(_) => return Err("are no text, picture or sound"),
        };
        if bytes.len() as u64 > self.max_bytes / 4 {
            return Err("were too large to keep");
        }
        let look = match look {
            Some(look) => look.usable()?,
            None => text_look(&bytes),
        };
        let doubt = doubt(&answer);
        let mut inner = self.inner();
        let text = is_text(kind);
        let near = inner.items.iter().any(|other| {
            let apart = (other.look ^ look).count_ones();
            let same_sort = is_text(&other.kind) == text && other.name == name;
            same_sort && apart <= if text { 0 } else { NEAR }
        });
        if near {
            return Err("were near duplicates");
        }
        let id = inner.next;
        inner.next += 1;
        let (kind, length) = (kind.to_string(), bytes.len());
        let said = said.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.then(|| said.chars().take(SHOWN).collect());
        let item =
            Item { id, time, name, generation, answer, doubt, kind, look, bytes: length, text };
        let mut content = serde_json::to_vec(&item).map_err(|_| "could not be written")?;
        content.push(b'\n');
        content.extend(bytes);
        let path = self.path(id);
        if write(&self.folder, &path, &content).is_err() {
            let _ = std::fs::remove_file(&path);
            return Err("could not be written");
        }
        inner.items.push(item);
        while let Some(at) = excess(&inner.items, self.max_bytes) {
            let gone = inner.items.remove(at);
            let _ = std::fs::remove_file(self.path(gone.id));
        }
        Ok(())
    }
}

/// Whether the input is a text.
fn is_text(kind: &str) -> bool {
    matches!(kind, "text" | TALK)
}

/// Which answer goes where there are too many: the least doubtful of the older half.
fn excess(items: &[Item], max_bytes: u64) -> Option<usize> {
    let bytes: u64 = items.iter().map(|i| i.bytes as u64).sum();
    if items.len() <= MOST && bytes <= max_bytes {
        return None;
    }
    let older = items.len().div_ceil(2);
    let least = items.iter().take(older).enumerate().min_by(|a, b| a.1.doubt.total_cmp(&b.1.doubt));
    least.map(|(at, _)| at)
}

/// 1 of what is not known, else what is missing to certainty; of an answer that does not say it half.
fn doubt(answer: &Value) -> f32 {
    if answer["known"] == Value::Bool(false) {
        return 1.0;
    }
    sure(answer).map_or(0.5, |sure| (1.0 - sure) as f32)
}

/// The probability of an answer or of its likeliest label, or the confidence in a text.
fn sure(answer: &Value) -> Option<f64> {
    let said = [&answer["probability"], &answer["confidence"], &answer["top"][0]["probability"]];
    said.into_iter().find_map(Value::as_f64).map(|sure| sure.clamp(0.0, 1.0))
}

/// Equal for sentences that differ in case, spaces and punctuation alone.
fn text_look(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let hash = blake3::hash(words.join(" ").as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// For the owner's eyes alone.
fn write(folder: &Path, path: &Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

fn read(path: &Path) -> Option<(Item, Vec<u8>)> {
    let content = crate::fs::read_limited(path, 256 << 20).ok()?;
    let end = content.iter().position(|b| *b == b'\n')?;
    let (head, input) = content.split_at(end);
    let item: Item = serde_json::from_slice(head).ok()?;
    let input = input.get(1..)?.to_vec();
    (input.len() == item.bytes).then_some((item, input))
}

/// What a start finds; a file that is none of ours or was cut short is deleted.
fn read_all(folder: &Path) -> Inner {
    let mut inner = Inner { next: 1, ..Inner::default() };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != ENDING) {
            continue;
        }
        let own = |item: &Item| item.id < MAX_ID && path.ends_with(format!("{}.{ENDING}", item.id));
        match read(&path).filter(|(item, _)| own(item)) {
            Some((item, _)) => inner.items.push(item),
            None => drop(std::fs::remove_file(&path)),
        }
    }
    inner.items.sort_by_key(|item| item.id);
    inner.next = inner.items.last().map_or(1, |item| item.id + 1);
    inner
}

#[cfg(test)]
#[path = "recent_tests.rs"]
mod tests;
