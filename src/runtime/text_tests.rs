//! Tests of `text`.

use super::*;

#[test]
fn buckets_grow_by_halves_up_to_the_limit() {
    let at = |n| bucket(n, 512);
    assert_eq!(
        [0, 1, 8, 9, 17, 33, 49, 65, 97, 129].map(at),
        [8, 8, 8, 16, 32, 48, 64, 96, 128, 192]
    );
    assert_eq!(bucket(100, 100), 100);
    assert_eq!(bucket(4, 5), 5);
    assert_eq!(bucket(65, 80), 80);
    assert_eq!(bucket(usize::MAX, usize::MAX), usize::MAX);
    let narrow = |n| narrow_bucket(n, 512);
    assert_eq!([0, 8, 9, 17, 33, 64, 65, 113].map(narrow), [8, 8, 16, 24, 40, 64, 80, 128]);
    assert_eq!([129, 511].map(narrow), [192, 512]);
    assert_eq!((narrow_bucket(60, 61), narrow_bucket(usize::MAX, 80)), (61, 80));
}

#[test]
fn padding_goes_to_the_stated_side() {
    let a = Tokens { ids: vec![5, 6], types: vec![0, 1] };
    let b = Tokens { ids: vec![7], types: vec![0] };
    let right = pad(&[&a, &b], 3, Padding { id: 9, type_id: 2, left: false }).unwrap();
    assert_eq!(right.ids.as_i64().unwrap(), [5, 6, 9, 7, 9, 9]);
    assert_eq!(right.mask.as_i64().unwrap(), [1, 1, 0, 1, 0, 0]);
    assert_eq!(right.types.as_i64().unwrap(), [0, 1, 2, 0, 2, 2]);
    let left = pad(&[&a, &b], 3, Padding { id: 9, type_id: 2, left: true }).unwrap();
    assert_eq!(left.ids.as_i64().unwrap(), [9, 5, 6, 9, 9, 7]);
    assert_eq!(left.ids.shape(), [2, 3]);
    assert!(pad(&[&a], 1, Padding { id: 0, type_id: 0, left: false }).is_err());
}

#[cfg(not(feature = "text"))]
#[test]
fn a_build_without_tokenizers_says_so() {
    let e = TextEncoder::from_bytes(b"{}", 8).unwrap_err();
    assert_eq!(e.kind(), crate::error::ErrorKind::Unsupported);
}

#[cfg(feature = "text")]
mod encoder {
    use super::*;
    use crate::error::ErrorKind;

    /// A WordPiece tokenizer of the shape that BERT models ship, fixed padding included.
    fn tiny() -> String {
        let words =
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "turn", "the", "light", "on", "##s", "off"];
        let vocab: Vec<String> =
            words.iter().enumerate().map(|(i, w)| format!("\"{w}\":{i}")).collect();
        format!(
            r#"{{"version":"1.0","truncation":{{"max_length":4,"strategy":"LongestFirst","stride":0}},
            "padding":{{"strategy":{{"Fixed":128}},"direction":"Right","pad_to_multiple_of":null,
            "pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"}},"added_tokens":[
            {{"id":0,"special":true,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}],
            "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}},
            "pre_tokenizer":{{"type":"BertPreTokenizer"}},
            "post_processor":{{"type":"TemplateProcessing",
            "single":[{{"SpecialToken":{{"id":"[CLS]","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}},{{"SpecialToken":{{"id":"[SEP]","type_id":0}}}}],
            "pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],
            "special_tokens":{{"[CLS]":{{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]}},"[SEP]":{{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}}}}},
            "decoder":null,
            "model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"\u0023\u0023","max_input_chars_per_word":100,"vocab":{{{}}}}}}}"#,
            vocab.join(",")
        )
    }

    fn encode<S: AsRef<str>>(encoder: &TextEncoder, sentences: &[S]) -> Result<EncodedText> {
        let rows: Result<Vec<_>> = sentences.iter().map(|s| encoder.tokens(s.as_ref())).collect();
        let rows = rows?;
        let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let rows: Vec<&Tokens> = rows.iter().collect();
        encoder.batch_of_length(&rows, bucket(longest, encoder.max_tokens))
    }

    #[test]
    fn the_files_own_lengths_are_overridden() {
        let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 10).unwrap();
        let out = encode(&encoder, &["Turn the lights ON", "off"]).unwrap();
        assert_eq!(out.ids.shape(), [2, 8]);
        assert_eq!(out.ids.as_i64().unwrap(), [2, 4, 5, 6, 8, 7, 3, 0, 2, 9, 3, 0, 0, 0, 0, 0]);
        assert_eq!(out.mask.as_i64().unwrap()[..8], [1, 1, 1, 1, 1, 1, 1, 0]);
        assert!(out.types.as_i64().unwrap().iter().all(|&t| t == 0));
    }

    #[test]
    fn long_sentences_are_cut_and_keep_their_last_special_token() {
        let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 10).unwrap();
        let out = encode(&encoder, &["turn ".repeat(40)]).unwrap();
        assert_eq!(out.ids.shape(), [1, 10]);
        assert_eq!(out.ids.as_i64().unwrap()[9], 3);
    }

    #[test]
    fn an_empty_sentence_is_its_special_tokens() {
        let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 16).unwrap();
        assert_eq!(encoder.tokens("").unwrap().ids, [2, 3]);
        assert_eq!(encode::<&str>(&encoder, &[]).unwrap().ids.shape(), [0, 8]);
    }

    #[test]
    fn damaged_files_are_errors() {
        let good = tiny();
        for cut in [0, 1, 20, good.len() / 2, good.len() - 1] {
            let e = TextEncoder::from_bytes(&good.as_bytes()[..cut], 16).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "cut at {cut}");
        }
        let without_unknown = good.replace("\"unk_token\":\"[UNK]\"", "\"unk_token\":\"none\"");
        for bad in [
            "[]",
            "\u{0}",
            &without_unknown,
            &good.replace("WordPiece", "Nothing"),
            &good.replace("\"[UNK]\":1", "\"[UNK]\":-1"),
            &"[".repeat(100_000),
        ] {
            let e = TextEncoder::from_bytes(bad.as_bytes(), 16).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "{e}");
            assert!(!e.message().contains('\n'));
        }
        let large = vec![b' '; crate::limits::TOKENIZER as usize + 1];
        assert!(TextEncoder::from_bytes(&large, 16).unwrap_err().message().contains("larger"));
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let good = tiny();
        for i in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[i] ^= 0x11;
            if let Ok(encoder) = TextEncoder::from_bytes(&bytes, 12) {
                let out = encode(&encoder, &["turn on the light"]);
                assert!(out.is_err() || out.unwrap().ids.shape()[1] <= 12);
            }
        }
    }

    #[test]
    fn other_models_than_wordpiece_are_read_too() {
        let json = tiny()
            .replace("WordPiece\",\"unk_token\":\"[UNK]\"", "WordLevel\",\"unk_token\":\"[UNK]\"")
            .replace("\"type\":\"WordPiece\"", "\"type\":\"WordLevel\"");
        let encoder = TextEncoder::from_bytes(json.as_bytes(), 16).unwrap();
        assert_eq!(encoder.tokens("turn lights on").unwrap().ids, [2, 4, 1, 7, 3]);
    }

    #[test]
    fn no_room_beside_the_special_tokens_is_refused() {
        let e = TextEncoder::from_bytes(tiny().as_bytes(), 0).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Usage);
        let e = TextEncoder::from_bytes(tiny().as_bytes(), 1).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Usage);
    }
}
