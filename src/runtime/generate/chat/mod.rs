//! A conversation as the text that a model was taught on, by the base's own chat template: Jinja as
//! transformers renders it, in a part that holds what such templates use. A library would be several times as
//! large as all of generating. What isn't known is refused by name, never left out.

mod cut;
mod parse;
mod render;
mod value;

use crate::error::{Error, Result};
use crate::runtime::Message;
use render::Rendering;
use value::Value;

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 1 << 20;

/// What a template has, and this doesn't know or take.
fn fail(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("the base's chat template: {what} isn't known here"))
}

/// The text of `messages` up to where the assistant speaks. `tokens` are names that templates know
/// special tokens by (`bos_token`), with their texts.
///
/// # Errors
/// Unsupported: what the template has and this doesn't know, by name. Bad input: the template refuses the
/// messages, in its own words.
pub(crate) fn rendered(
    template: &str,
    messages: &[Message],
    tokens: &[(String, String)],
) -> Result<String> {
    if template.len() > MAX_TEMPLATE {
        return Err(Error::bad_input(format!("a chat template of {} bytes", template.len())));
    }
    let parts = parse::parse(template)?;
    let message = |m: &Message| {
        Value::map([("role", Value::text(&m.role)), ("content", Value::text(&m.content))])
    };
    let mut names: Vec<(String, Value)> =
        tokens.iter().map(|(name, text)| (name.clone(), Value::text(text))).collect();
    let messages = messages.iter().map(message).collect::<Result<Vec<_>>>()?;
    names.push(("messages".into(), Value::list(messages)?));
    names.push(("add_generation_prompt".into(), Value::Bool(true)));
    Rendering::new(names).run(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn of(template: &str, messages: &[Message]) -> Result<String> {
        rendered(template, messages, &[("bos_token".into(), "<s>".into())])
    }

    /// SmolLM2's, and what transformers renders with it.
    #[test]
    fn chat_ml() {
        let template = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
            'system' %}{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + \
            message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if \
            add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let text = of(template, &[said("user", "Hi?")]).unwrap();
        let want = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(text, want);
    }

    /// As Llama 2's and Mistral's are written; rendered with jinja2 3.1 as transformers sets it up.
    #[test]
    fn instructions_with_a_system_message() {
        let template = "{%- if messages[0]['role'] == 'system' -%}\n  {%- set system = \
            messages[0]['content'] | trim -%}\n  {%- set rest = messages[1:] -%}\n{%- else -%}\n  {%- \
            set rest = messages -%}\n{%- endif -%}\n{{- bos_token }}\n{%- for m in rest %}\n  {%- if \
            (m.role == 'user') != (loop.index0 % 2 == 0) %}\n    {{- raise_exception('roles must \
            alternate') }}\n  {%- endif %}\n  {%- if m.role == 'user' %}\n    {%- if loop.last and \
            system is defined %}\n{{- '[INST] ' + system + '\\n\\n' + m.content.strip() + ' [/INST]' }}\n    \
            {%- else %}\n{{- '[INST] ' ~ m.content ~ ' [/INST]' }}\n    {%- endif %}\n  {%- else %}\n{{- \
            ' ' + m.content + '</s>' }}\n  {%- endif %}\n{%- endfor %}\n";
        let talk = [
            said("system", " Be kind. "),
            said("user", "a"),
            said("assistant", "b"),
            said("user", " c "),
        ];
        let text = of(template, &talk).unwrap();
        assert_eq!(text, "<s>[INST] a [/INST] b</s>[INST] Be kind.\n\nc [/INST]");
        assert_eq!(of(template, &[said("user", "x")]).unwrap(), "<s>[INST] x [/INST]");
        let e = of(template, &[said("assistant", "x")]).unwrap_err();
        assert!(e.message().contains("roles must alternate"), "{e}");
    }

    #[test]
    fn blocks_on_lines_of_their_own_leave_no_blank() {
        let template = "{% for m in messages %}\n  {% if m.content %}\n[{{ m.content | upper }}]\n  {% endif \
            %}\n{% endfor %}\nend\n";
        assert_eq!(of(template, &[said("user", "a"), said("user", "")]).unwrap(), "[A]\nend");
        assert_eq!(of("a {#- note {{ #} b", &[]).unwrap(), "a b");
        // The sign that ends a note was looked for within the one that begins it, which panicked.
        assert_eq!(of("a{#}b#}c", &[]).unwrap(), "ac");
        assert!(of("a{#}", &[]).is_err());
        assert_eq!(of("{{- 1 }} {{ 2 -}}   {{ '}}' }}", &[]).unwrap(), "1 2}}");
    }

    #[test]
    fn expressions_are_pythons() {
        for (expression, want) in [
            ("1 + 2 * 3 - 4 // 2", "5"),
            ("-7 // 2", "-4"),
            ("-7 % 3", "2"),
            ("'a' ~ 1 ~ 'b'", "a1b"),
            ("'yes' if 0 or 'x' and not none else 'no'", "yes"),
            ("('a' 'b')[::] if false else 'ab'[-1]", "b"),
            ("[1, 2, 3][1:] | length", "2"),
            ("'abc'[:2] + 'abc'[1:]", "abbc"),
            ("'b' in 'abc' and 4 not in [1, 2]", "True"),
            ("missing is not defined and missing is undefined", "True"),
            ("missing | default('d')", "d"),
            ("{'k': 5}['k'] + {'k': 5}.get('z', 1)", "6"),
            ("' a b '.strip().split(' ') | join('-')", "a-b"),
            ("'aab'.replace('a', 'c').startswith('cc')", "True"),
            ("messages[-1].role is string", "True"),
            ("range(3) | last", "2"),
            ("1 < 2 and 'a' <= 'b'", "True"),
            ("none", "None"),
        ] {
            let found = of(&format!("{{{{ {expression} }}}}"), &[said("user", "")]);
            match expression.contains("[::]") {
                true => assert!(found.is_err(), "{expression}"),
                false => assert_eq!(found.unwrap(), want, "{expression}"),
            }
        }
        let counted = "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}{% set ns.n = \
            ns.n + loop.index %}{% endfor %}{{ ns.n }}{{ loop is defined }}";
        let talk = [said("user", ""), said("assistant", ""), said("user", "")];
        assert_eq!(of(counted, &talk).unwrap(), "3False");
        // What is set within a loop is forgotten behind it.
        let scoped = "{% set a = 1 %}{% for m in messages %}{% set a = 2 %}{% endfor %}{{ a }}";
        assert_eq!(of(scoped, &talk).unwrap(), "1");
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (template, name) in [
            ("{% macro a() %}{% endmacro %}", "'macro'"),
            ("{{ messages | tojson }}", "'tojson'"),
            ("{{ strftime_now('%d') }}", "'strftime_now'"),
            ("{{ 'a'.title() }}", "'title'"),
            ("{{ 1 is divisibleby }}", "'divisibleby'"),
            ("{% for a, b in messages %}{% endfor %}", "more than one name"),
            ("{% if 1 %}", "'endif'"),
            ("{% endfor %}", "'endfor'"),
            ("{{ 'a", "'}}'"),
            ("{{ messages }}", "as text"),
            ("{{ missing.field }}", "not there"),
            ("{{ 'a' + 1 }}", "'+'"),
            ("{{ ! }}", "'!'"),
        ] {
            let e = of(template, &[]).unwrap_err();
            assert!(e.message().contains(name), "{template}: {e}");
        }
        assert!(of(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)), &[]).is_err());
        assert!(of(&"{% if 1 %}".repeat(5000), &[]).is_err());
        let long = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(of(long, &[]).is_err());
    }

    /// A template of 100 bytes made a text of 2^40, one a namespace that held itself, whose comparison never
    /// ended, one a list of a million lists in each other, which overflowed the stack when it was dropped.
    #[test]
    fn small_templates_take_no_memory_time_or_stack() {
        let in_a_loop = |begin: &str, work: &str| {
            format!(
                "{{% set ns = namespace({begin}) %}}{{% for i in range(20000) %}}{{% set ns.a = {work} %}}{{% endfor %}}"
            )
        };
        for (begin, work) in [
            ("a='ab'", "ns.a ~ ns.a"),
            ("a='ab'", "ns.a + ns.a"),
            ("a=[1]", "ns.a + ns.a"),
            ("a='ab'", "ns.a.replace('', ns.a)"),
            ("a='ab'", "[ns.a, ns.a, ns.a] | join(ns.a)"),
            ("a=[]", "[ns.a]"),
            ("a=[]", "{'k': ns.a}"),
            ("a='ab'", "ns"),
            ("a='ab'", "[ns]"),
        ] {
            let e = of(&in_a_loop(begin, work), &[]).unwrap_err();
            assert!(e.message().contains("template"), "{work}: {e}");
        }
        // A text of 8 MB, looked through in each of many steps.
        let long = "a".repeat(1 << 19);
        let look = format!(
            "{{% set a = '{long}' %}}{{% for i in range(9999) %}}{{% if a[-1] == 'b' %}}{{% endif %}}{{% endfor %}}"
        );
        assert!(of(&look, &[]).unwrap_err().message().contains("too much"));
        // Many names, all looked through for each that is not there; many characters for each of a text.
        let names: String = (0..9999).map(|n| format!("{{% set a{n} = 1 %}}")).collect();
        let look =
            format!("{names}{{% for i in range(9999) %}}{{% if b %}}{{% endif %}}{{% endfor %}}");
        assert!(of(&look, &[]).unwrap_err().message().contains("too much"));
        let strip = format!("{{{{ 'b'.strip('{}b') }}}}", "a".repeat(1 << 12));
        assert!(of(&strip, &[]).unwrap_err().message().contains("strip"));
        // Many lists that are one, each compared with itself.
        let both = "{% set ns = namespace(a=[]) %}{% for i in range(30) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a == ns.a }}";
        assert!(of(both, &[]).unwrap_err().message().contains("too much"));
        // A conversation of 4 MB is none of these.
        let talk = vec![said("user", &"word ".repeat(1000)); 800];
        let text = of(
            "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '\\n' }}{% endfor %}",
            &talk,
        );
        assert!(text.unwrap().len() > 3_900_000);
    }
}
