use super::*;
use serde_json::json;

fn open(dir: &Path, max_bytes: u64) -> Recent {
    Recent::open(dir.join("recent"), RecentConfig { pictures: true, text: true, max_bytes })
}

fn offer(text: &str, probability: f64) -> Offer {
    Offer {
        time: 7,
        name: "home".into(),
        generation: Some(2),
        answer: json!({"label": "on", "top": [{"label": "on", "probability": probability}]}),
        input: Asked::Text(text.into()),
        look: None,
    }
}

/// Keeps at once, as the thread does.
fn keep(recent: &Recent, text: &str, probability: f64) {
    let shared = &recent.shared;
    if let Err(why) = shared.keep(offer(text, probability)) {
        shared.leave_out(why);
    }
}

fn texts(recent: &Recent) -> Vec<String> {
    let text = |item: Item| String::from_utf8(recent.get(item.id).unwrap().1).unwrap();
    recent.of("home").into_iter().map(text).collect()
}

#[test]
fn doubtful_answers_come_first_and_outlast_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let recent = open(dir.path(), 40);
    for (text, p) in [("ten bytes!", 0.4), ("surely ten", 0.99), ("ten again.", 0.7)] {
        keep(&recent, text, p);
    }
    assert_eq!(texts(&recent), ["ten bytes!", "ten again.", "surely ten"]);
    // The fifth is too much: of the older ones the surest goes.
    keep(&recent, "and a four", 0.9);
    keep(&recent, "the fifth.", 0.9);
    assert_eq!(texts(&recent), ["ten bytes!", "ten again.", "the fifth.", "and a four"]);
    keep(&recent, "Ten  BYTES", 0.5);
    keep(&recent, "one that is longer than a quarter of the bytes", 0.5);
    assert_eq!(recent.left_out(), [("were near duplicates", 1), ("were too large to keep", 1)]);
    assert!(recent.of("other").is_empty());

    // A start finds them, but not what was cut short or is none.
    let folder = dir.path().join("recent");
    let first = recent.of("home").first().unwrap().id;
    let cut = folder.join(format!("{first}.{ENDING}"));
    let content = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &content[..content.len() - 1]).unwrap();
    std::fs::write(folder.join("77.answer"), "no answer").unwrap();
    // There is no number after the last.
    let last = u64::MAX;
    let mut item = recent.of("home").pop().unwrap();
    item.id = last;
    let mut content = serde_json::to_vec(&item).unwrap();
    content.extend(format!("\n{}", "x".repeat(item.bytes)).bytes());
    std::fs::write(folder.join(format!("{last}.answer")), content).unwrap();
    let again = open(dir.path(), 40);
    assert!(!folder.join(format!("{last}.answer")).exists());
    assert_eq!(texts(&again), ["ten again.", "the fifth.", "and a four"]);
    assert!(!cut.exists() && !folder.join("77.answer").exists());
    let id = again.of("home").first().unwrap().id;
    again.remove(id);
    assert_eq!((texts(&again).len(), again.get(id).is_none()), (2, true));
    again.forget(Some("other"));
    assert_eq!(texts(&again).len(), 2);
    again.forget(None);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn only_what_is_wanted_is_kept_and_for_the_owner_alone() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let pictures = RecentConfig { pictures: true, text: false, max_bytes: 1 << 20 };
    let recent = Recent::open(dir.path().join("recent"), pictures);
    assert!(!recent.wants(&Asked::Text("a".into())));
    assert!(recent.wants(&Asked::File(vec![1].into())));
    assert!(!recent.wants(&Asked::Tensors(vec![])));
    assert!(!Recent::default().wants(&Asked::File(vec![1].into())));
    assert!(!dir.path().join("recent").exists());

    let recent = open(dir.path(), 1 << 20);
    recent.offer(offer("a sentence", 0.5));
    let start = std::time::Instant::now();
    while recent.of("home").is_empty() {
        assert!(start.elapsed().as_secs() < 20);
        std::thread::yield_now();
    }
    let folder = dir.path().join("recent");
    assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    let file = folder.join(format!("{}.{ENDING}", recent.of("home")[0].id));
    assert_eq!(std::fs::metadata(file).unwrap().mode() & 0o777, 0o600);
    // What the head doesn't know is what a person should look at first.
    assert_eq!(doubt(&json!({"known": false, "top": [{"probability": 0.9}]})), 1.0);
}
