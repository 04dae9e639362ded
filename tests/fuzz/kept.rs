//! Answers that a daemon keeps, and what child processes say.

use crate::mend::{joined, parts};
use crate::place::Place;
use crate::targets::{Ready, ready};
use offshoot::testing::parsers;

fn png(side: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, 90]));
    let mut bytes = std::io::Cursor::new(vec![]);
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Files of answers, as a start finds them in a state.
pub fn recent(place: Place) -> Ready {
    let item = |id: u64, input: &[u8], more: &str| {
        let head = format!(
            "{{\"id\":{id},\"time\":7,\"name\":\"home\",\"generation\":2,\"doubt\":0.5,\"look\":9,\"bytes\":{}{more}}}\n",
            input.len()
        );
        [head.as_bytes(), input].concat()
    };
    let answer = ",\"answer\":{\"label\":\"on\",\"top\":[{\"label\":\"on\",\"probability\":0.5}]}";
    let text = format!("{answer},\"kind\":\"text\",\"text\":\"a lamp\"");
    let picture = format!("{answer},\"kind\":\"image/png\",\"text\":null");
    let seeds =
        vec![item(1, b"a lamp", &text), item(2, &png(4), &picture), item(u64::MAX, b"", &text)];
    assert_eq!(parsers::recent_answers(&place.path("none")), 0);
    ready(seeds, move |bytes| {
        let folder = place.fresh("recent");
        for name in ["1", "2", "18446744073709551615"] {
            std::fs::write(folder.join(format!("{name}.answer")), bytes).unwrap();
        }
        assert!(parsers::recent_answers(&folder) < 2);
    })
}

/// What child processes say that read files from strangers or train: the import's errors and stages, its
/// answer, the lines of a training, what it measured.
pub fn children(_: Place) -> Ready {
    let errors = "{\"stage\":\"judging\",\"done\":3,\"of\":9}\nthread 'main' panicked at src/a.rs:1:2:\nwords\n\
                  {\"kind\":\"bad_input\",\"message\":\"node 'a' is wrong\",\"hint\":null}\n";
    let answer = r#"{"bytes":12,"hash":"00","opset":17,"inputs":[{"name":"x","dims":["n","3"]}],"outputs":[],"free_dims":["n"],"targets":[{"module_path":"a.b","kind":"linear","in_features":3,"out_features":4}],"target_count":1,"operations":{"Add":2}}"#;
    let lines = "{\"line\":\"progress\",\"step\":1,\"steps\":9,\"loss\":0.5}\n{\"line\":\"checkpoint\",\"step\":1}\n\
                 {\"line\":\"measuring\"}\n{\"line\":\"note\",\"text\":\"a\"}\n\
                 {\"line\":\"unusable\",\"sample\":7,\"why\":\"b\"}\n{\"line\":\"peak\",\"bytes\":900}\n";
    let row = |group: usize, right: f64| {
        format!(
            r#"{{"group":{group},"candidate_right":{right},"candidate_loss":0.5,"reference_right":0.0,"reference_loss":1.5,"labels":[[{group},{right},0.0]],"old":true}}"#
        )
    };
    let measured = |reference: &str| {
        format!(
            r#"{{"reference":{reference},"labels":["on","off"],"metric":"accuracy","held":[{},{},{}],"lessons":{{"samples":4,"candidate":3.0,"reference":2.0}},"kept":{{"samples":8,"output":"features","cosine_mean":0.9,"cosine_min":0.8,"agreement":1.0,"sentence":""}},"labelled":{{"samples":3,"candidate":0.5,"reference":0.5}},"effect":0.01,"finite":true,"candidate_ms":1.0,"reference_ms":1.0,"latency_ratio":1.0}}"#,
            row(0, 1.0),
            row(1, 0.5),
            row(1, 1.0)
        )
    };
    let found = format!(
        r#"{{"trained":{},"instant":{}}}"#,
        measured(r#"{"generation":3}"#),
        measured(r#""most_frequent""#)
    );
    assert!(parsers::import_child(errors.as_bytes(), answer.as_bytes()));
    assert!(parsers::heard_and_judged(lines.as_bytes(), found.as_bytes()));
    let seeds = vec![joined(&[errors, answer, lines, &found].map(str::as_bytes))];
    ready(seeds, |bytes| {
        let parts = parts(bytes);
        let part = |at: usize| parts.get(at).copied().unwrap_or_default();
        parsers::import_child(part(0), part(1));
        parsers::heard_and_judged(part(2), part(3));
    })
}
