use super::*;
use crate::error::ErrorKind;

fn config(rest: &str) -> Config {
    parse(rest).unwrap()
}

fn parse(rest: &str) -> Result<Config> {
    Config::parse(&format!(r#"{{"peft_type": "LORA", {rest}}}"#))
}

#[test]
fn the_least_file_has_pefts_defaults() {
    let c = Config::parse(r#"{"peft_type":"LORA","target_modules":["q"]}"#).unwrap();
    assert_eq!(c.rank_alpha("x.q"), (8, 8.0));
    assert!(!c.rslora && c.warnings.is_empty());
}

#[test]
fn modules_are_selected_as_peft_does() {
    let c = config(r#""target_modules": ["query", "a.b"], "exclude_modules": ["0.query"]"#);
    let paths = ["l.1.query", "query", "x.a.b", "l.0.query", "l.1.xquery", "query.x"];
    let selected: Vec<bool> = paths.iter().map(|p| c.selects(p).unwrap()).collect();
    assert_eq!(selected, [true, true, true, false, false, false]);

    let c = config(r#""target_modules": ".*\\.\\d+\\.(q|k)""#);
    assert_eq!(c.selects("m.3.q"), Some(true));
    assert_eq!(c.selects("m.3.q.x"), Some(false));
    assert_eq!(config(r#""target_modules": "all-linear""#).selects("x"), Some(true));

    let c = config(r#""target_modules": "(?!x).*""#);
    assert_eq!(c.selects("y"), None);
    assert_eq!(c.warnings.len(), 1);
}

#[test]
fn layers_filter_by_the_first_number() {
    let c = config(r#""target_modules": ["q", "m.layers.3.q"], "layers_to_transform": [1, 2]"#);
    assert_eq!(c.selects("m.layers.1.q"), Some(true));
    assert_eq!(c.selects("m.layers.0.experts.1.q"), Some(false));
    assert_eq!(c.selects("m.layers.3.q"), Some(true));
    assert_eq!(c.selects("m.q"), Some(false));
    let c =
        config(r#""target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": "experts""#);
    assert_eq!(c.selects("m.layers.0.experts.1.q"), Some(true));
    assert_eq!(c.selects("m.layers.1.q"), Some(false));
}

#[test]
fn the_first_pattern_of_the_file_gives_rank_and_alpha() {
    let c = config(
        r#""r": 4, "lora_alpha": 6.5, "rank_pattern": {"z.q": 2, "q": 3},
           "alpha_pattern": {"layers\\.\\d+\\.q": 1}"#,
    );
    assert_eq!(c.rank_alpha("m.z.q"), (2, 6.5));
    assert_eq!(c.rank_alpha("layers.0.q"), (3, 1.0));
    assert_eq!(c.rank_alpha("layers.0.xq"), (4, 6.5));
}

#[test]
fn unknown_keys_warn() {
    assert!(config(r#""brand_new": 3"#).warnings[0].contains("brand_new"));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_key() {
    for (key, value) in [
        ("lora_bias", "true"),
        ("use_qalora", "true"),
        ("use_bdlora", "true"),
        ("trainable_token_indices", "[1]"),
        ("target_parameters", r#"["w"]"#),
        ("layer_replication", "[[0, 2]]"),
        ("alora_invocation_tokens", "[]"),
        ("megatron_config", r#"{"a": 1}"#),
        ("velora_config", r#"{"a": 1}"#),
        ("monteclora_config", r#"{"a": 1}"#),
        ("arrow_config", r#"{"a": 1}"#),
        ("kasa_config", r#"{"a": 1}"#),
        ("ensure_weight_tying", "true"),
        ("bias", r#""all""#),
        ("bias", r#""lora_only""#),
        ("init_lora_weights", r#""pissa_niter_4""#),
        ("init_lora_weights", r#""olora""#),
        ("init_lora_weights", r#""loftq""#),
        ("init_lora_weights", r#""new_one""#),
        ("rank_pattern", r#"{"(?=x)": 2}"#),
    ] {
        let error = parse(&format!(r#""{key}": {value}"#)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains(&format!("'{key}'")), "{error}");
    }
    let error = Config::parse(r#"{"peft_type": "VERA"}"#).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn values_of_the_wrong_type_are_bad_input() {
    for rest in [
        r#""r": 0"#,
        r#""r": 2.5"#,
        r#""r": "8""#,
        r#""lora_alpha": 1e300"#,
        r#""use_rslora": 1"#,
        r#""target_modules": [1]"#,
        r#""rank_pattern": []"#,
        r#""layers_to_transform": [-1]"#,
        r#""r": 8, "r": 8"#,
    ] {
        assert_eq!(parse(rest).unwrap_err().kind(), ErrorKind::BadInput, "{rest}");
    }
    assert_eq!(Config::parse("{}").unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(Config::parse("[]").unwrap_err().kind(), ErrorKind::BadInput);
}
