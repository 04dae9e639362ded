//! Questions read, and wrong ones named.

use super::*;

fn parse(text: &str) -> Result<Question, Problem> {
    let raw = Raw::new(Bytes::copy_from_slice(text.as_bytes()), Mime::Json, AskQuery::default());
    let row = |(id, name): (usize, &str)| Row {
        id,
        name: name.into(),
        generation: Some(1),
        instead: None,
    };
    let mut taken = crate::runtime::MemoryLimit::new(1 << 24).take(0).unwrap();
    raw.parse(|| ["a", "b"].into_iter().enumerate().map(row).collect(), &mut taken)
}

#[test]
fn questions_are_read_and_wrong_ones_named() {
    let q = parse(r#"{"text": "hi", "adapter": null, "top": 2}"#).unwrap();
    assert!(matches!(q.input, Asked::Text(_)) && q.selection == Selection::Base);
    assert_eq!((q.wanted.top, q.wanted.beam), (2, 1));
    assert_eq!(q.wording, None);
    let q =
        parse(r#"{"messages": [{"role": "user", "content": "hi"}], "tokens": 3, "stop": ["."]}"#);
    let q = q.unwrap();
    assert!(matches!(q.input, Asked::Talk(messages) if messages[0].content == "hi"));
    let wording = q.wording.unwrap();
    assert_eq!((wording.tokens, wording.stop, wording.stream), (Some(3), vec![".".into()], false));
    let many = format!(r#"{{"text": "a", "stop": [{}]}}"#, vec!["\"x\""; 17].join(","));
    assert!(parse(&many).unwrap_err().message.contains("at most 16"));
    let q = parse(r#"{"text": "hi"}"#).unwrap();
    assert_eq!(q.selection, Selection::Default);
    let q = parse(r#"{"text": "hi", "lora": [{"id": 1, "scale": 0.5}]}"#).unwrap();
    assert_eq!(q.selection, Selection::Mix(vec![("b".into(), 0.5)]));
    let q = parse(
        r#"{"inputs": {"x": {"shape": [1, 2], "dtype": "i64", "data": [9007199254740993, -1]}}}"#,
    );
    let Asked::Tensors(named) = q.unwrap().input else { panic!() };
    assert_eq!(named[0].1.as_i64().unwrap(), [9_007_199_254_740_993, -1]);
    for (text, status, part) in [
        ("", 400, "EOF"),
        ("[]", 400, "object"),
        ("{}", 400, "exactly one"),
        (r#"{"text": "a", "messages": []}"#, 400, "exactly one"),
        (r#"{"messages": []}"#, 400, "none"),
        (r#"{"messages": [{"role": "user"}]}"#, 400, "content"),
        (r#"{"text": "a", "tokens": -1}"#, 400, "-1"),
        (r#"{"text": "a", "stop": "x"}"#, 400, "sequence"),
        (r#"{"text": "a", "image": "b"}"#, 400, "exactly one"),
        (r#"{"text": 3}"#, 400, "string"),
        (r#"{"text": " "}"#, 400, "empty"),
        (r#"["hi", null]"#, 400, "object"),
        (r#"{"text": "a", "colour": 1}"#, 400, "colour"),
        (r#"{"text": "a", "adapter": "../x"}"#, 400, "adapter"),
        (r#"{"text": "a", "adapter": "x@0"}"#, 400, "generation"),
        (r#"{"text": "a", "top": -1}"#, 400, "-1"),
        (r#"{"text": "a", "top": 100000}"#, 400, "top"),
        (r#"{"text": "a", "beam": 0}"#, 400, "beam"),
        (r#"{"text": "a", "lora": [{"id": 7, "scale": 1}]}"#, 404, "7"),
        (r#"{"text": "a", "lora": [{"id": 0, "scale": 1}], "adapter": "a"}"#, 400, "both"),
        (r#"{"image": "%%"}"#, 400, "base64"),
        (r#"{"inputs": {}}"#, 400, "none"),
        (r#"{"inputs": {"x": {"shape": [3], "data": [1]}}}"#, 400, "'x'"),
        (r#"{"inputs": {"x": {"shape": [1], "data": ["a"]}}}"#, 400, "number"),
        (r#"{"inputs": {"x": {"shape": [1], "data": [1e300]}}}"#, 400, "'x'"),
        (r#"{"inputs": {"x": {"shape": [1], "dtype": "u8", "data": [256]}}}"#, 400, "u8"),
        (r#"{"inputs": {"x": {"shape": [4294967295, 4294967295, 2], "data": []}}}"#, 400, "'x'"),
    ] {
        let e = parse(text).unwrap_err();
        assert_eq!(e.status.as_u16(), status, "{text}: {e:?}");
        assert!(e.message.contains(part), "{text}: {e:?}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [deep.clone(), format!("{{\"inputs\": {{\"x\": {deep}}}}}")] {
        assert_eq!(parse(&text).unwrap_err().status.as_u16(), 400);
    }
}
