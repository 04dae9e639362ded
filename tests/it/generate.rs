//! `offshoot generate`: what it prints, and what it refuses.

use crate::support::{Place, repo};

fn packed() -> Place {
    let place = Place::new();
    place.ok(&format!("pack {} -o lm.base --weights f32", repo("models/tiny-lm").display()));
    place
}

#[test]
fn text_is_printed_as_it_comes_and_the_document_says_why_it_ended() {
    let place = packed();
    let found = place.json("generate lm.base --prompt Hi --tokens 9");
    let text = found["text"].as_str().unwrap();
    assert_eq!(found["ended"], "tokens");
    assert_eq!((&found["prompt_tokens"], found["ids"].as_array().unwrap().len()), (&2.into(), 9));
    assert_eq!(place.ok("generate lm.base --prompt Hi --tokens 9"), format!("{text}\n"));
    let drawn = "generate lm.base --prompt Hi --tokens 9 --temperature 1.5 --seed 3";
    assert_eq!(place.json(drawn)["ids"], place.json(drawn)["ids"]);
    // The same tokens by their numbers: H is 35, i is 10.
    assert_eq!(place.json("generate lm.base --ids 35,10 --tokens 9")["ids"], found["ids"]);
}

#[test]
fn a_base_without_a_tokenizer_takes_and_gives_token_numbers() {
    let place = Place::new();
    let model = repo("models/tiny-lm/model_with_past.onnx");
    place.ok(&format!("pack {} -o bare.base --weights f32", model.display()));
    assert_eq!(place.ok("generate bare.base --ids 3,14,15,92 --tokens 4"), "85,148,187,187\n");
    let e = place.fails("generate bare.base --prompt Hi", 3);
    assert!(e.contains("has no tokenizer"), "{e}");
}

#[test]
fn what_cannot_be_generated_is_refused_in_one_line() {
    let place = packed();
    assert!(place.fails("generate lm.base", 2).contains("the prompt is missing"));
    place.fails("generate lm.base --prompt a --ids 1", 2);
    place.fails("generate lm.base --ids 1 --top-p 0", 2);
    place.fails("generate lm.base --ids 1 --temperature -1", 2);
    place.fails("generate lm.base --ids 1,x", 2);
    let e = place.fails("generate lm.base --ids 1 --input x.npz", 2);
    assert!(e.contains("no encoder"), "{e}");
    // A token that the vocabulary doesn't have.
    place.fails("generate lm.base --ids 100000", 3);
    place.ok("pack {models}/mlp.onnx -o mlp.base");
    let e = place.fails("generate mlp.base --ids 1", 3);
    assert!(e.contains("no language model"), "{e}");
}

#[test]
fn a_conversation_is_answered_by_the_bases_template() {
    let place = Place::new();
    let tiny = repo("models/tiny-lm").display().to_string();
    place.ok(&format!("pack {tiny}/model.onnx -o lm.base --tokenizer {tiny}/tokenizer.json"));
    place.write("talk.json", r#"[{"role": "user", "content": "Hi"}]"#);
    let e = place.fails("generate lm.base --chat talk.json", 2);
    assert!(e.contains("no chat template"), "{e}");
    let folder = place.path("chat");
    std::fs::create_dir(&folder).unwrap();
    for file in ["model.onnx", "tokenizer.json"] {
        std::fs::copy(repo("models/tiny-lm").join(file), folder.join(file)).unwrap();
    }
    let template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}:\
        {% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    place.ok("pack chat -o chat.base --weights f32");
    let answer = |line: &str| place.json(line)["ids"].clone();
    let asked = answer("generate chat.base --chat talk.json --tokens 6");
    assert_eq!(asked, answer("generate chat.base --prompt <Hi>: --tokens 6"));
    place.write("object.json", r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
    assert_eq!(asked, answer("generate chat.base --chat object.json --tokens 6"));
    for wrong in ["[]", "{}", "[1]", "no", r#"[{"role": "user"}]"#] {
        place.write("wrong.json", wrong);
        place.fails("generate chat.base --chat wrong.json", 3);
    }
    place.fails("generate chat.base --chat talk.json --prompt a", 2);
}

#[test]
fn a_language_model_keeps_what_it_is_asked_to_and_says_so() {
    let place = packed();
    let data = repo("models/tiny-lm/household.jsonl").display().to_string();
    let line = format!(
        "train lm.base --data {data} --out a.adapter --steps 10 --batch 4 --lr 0.01 --holdout 0"
    );
    assert!(place.json(&line)["report"]["knowledge"].is_null());
    let kept = place.json(&format!("{line} --keep-knowledge"))["report"]["knowledge"].clone();
    let wanted = kept["wanted"].as_f64().unwrap();
    assert!((wanted - 0.85).abs() < 1e-6, "{kept}");
    let on = kept["measured_on"].as_str().unwrap();
    assert!(on.ends_with("stretches of 218 sentences that ship with the program"), "{on}");
    let mine: String = (0..40).map(|n| format!("The lamp in room {n} is green.\n")).collect();
    place.write("mine.txt", &mine);
    let said = place.ok(&format!("{line} --keep-knowledge 0.5 --probes mine.txt"));
    assert!(said.contains("of the likeliest next tokens stay the base's"), "{said}");
    assert!(said.contains("stretches of inputs of 'mine.txt'"), "{said}");
}
