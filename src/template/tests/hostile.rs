//! Whatever a template says, rendering it ends soon and takes little.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{render, vars};
use crate::template::{Dialect, Missing, Template};

/// Each of these is refused, and fast.
#[test]
fn bounds() {
    let deep = |open: &str, close: &str, depth: usize| {
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    };
    for (text, reason) in [
        (format!("{{{{ {} }}}}", deep("(", ")", 101)), "deep"),
        (deep("{{ if 1 }}", "{{ end }}", 101), "deep"),
        (deep("{{ if 1 }}", "{{ end }}", 20_000), "deep"),
        (format!("{{{{ {} }}}}", "(".repeat(200_000)), "deep"),
        ("x".repeat(1 << 20) + "x", "longer than 1 MiB"),
        ("{{ range until 2000 }}{{ range until 2000 }}{{ end }}{{ end }}".into(), "steps"),
        ("{{ range 9223372036854775807 }}{{ end }}".into(), "steps"),
        ("{{ repeat 999999999 \"abc\" }}".into(), "16 MiB"),
        ("{{ repeat 9223372036854775807 \"abc\" }}".into(), "16 MiB"),
        ("{{ indent 99999999 \"abc\" }}".into(), "16 MiB"),
        ("{{ until 9223372036854775807 }}".into(), "steps"),
        ("{{ untilStep 0 9223372036854775807 4611686018427387904 | len }}{{ seq 1 9223372036854775807 }}".into(), "steps"),
        ("{{ $x := \"abc\" }}{{ range until 50 }}{{ $x = print $x $x }}{{ end }}".into(), "16 MiB"),
        ("{{ $x := \"abc\" }}{{ range until 50 }}{{ $x = replace \"a\" $x $x }}{{ end }}".into(), "16 MiB"),
        ("{{ $x := list 1 }}{{ range until 500 }}{{ $x = list $x }}{{ end }}".into(), "values nest"),
        ("{{ $x := list 1 }}{{ range until 60 }}{{ $x = list $x $x }}{{ end }}{{ $x }}".into(), "steps"),
        ("{{ $x := list 1 }}{{ range until 60 }}{{ $x = list $x $x }}{{ end }}{{ toJson $x }}".into(), "steps"),
        ("{{ $x := list 1 }}{{ range until 60 }}{{ $x = list $x $x }}{{ end }}{{ has 2 (list (deepEqual $x (deepCopy $x))) }}".into(), "steps"),
        ("{{ $x := list 1 }}{{ range until 60 }}{{ $x = concat $x $x }}{{ end }}".into(), "MiB"),
        ("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ $d }}".into(), "values nest"),
        ("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ toJson $d }}".into(), "values nest"),
        ("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ toYaml $d }}".into(), "nest"),
        ("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ deepCopy $d }}".into(), "values nest"),
        ("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ merge $d $d }}".into(), "values nest"),
        ("{{ $x := `{{ tpl .x . }}` }}{{ tpl $x (dict \"x\" $x) }}".into(), "nests more than"),
        ("{{ define \"a\" }}{{ include \"a\" . }}{{ end }}{{ include \"a\" . }}".into(), "nests more than"),
        ("{{ define \"a\" }}{{ if 1 }}{{ with 1 }}{{ range 1 }}{{ template \"a\" }}{{ end }}{{ end }}{{ end }}{{ end }}{{ template \"a\" }}".into(), "nests more than"),
        ("{{ $a := 1 }}".repeat(2000), "variables"),
        ("{{ regexMatch \"((a{1,99}){1,99}){1,99}\" \"a\" }}".into(), "regexp"),
        ("{{ printf \"%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d%1000000d\" 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 }}".into(), "16 MiB"),
    ] {
        let started = Instant::now();
        let shown: String = text.chars().take(100).collect();
        let message = render(&text, Missing::NoValue).expect_err(&shown);
        let message: String = message.chars().take(400).collect();
        assert!(message.contains(reason), "{shown}: {message}");
        assert!(started.elapsed() < Duration::from_secs(20), "{shown}");
    }
}

#[test]
fn long_structures_are_no_problem() {
    let chain = format!("{{{{ if .no }}}}{}{{{{ end }}}}", "{{ else if .no }}".repeat(5000));
    assert_eq!(render(&chain, Missing::NoValue).unwrap(), "");
    let cycle = "{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ len $d.d.d.d }}";
    assert_eq!(render(cycle, Missing::NoValue).unwrap(), "1");
    // A linked list of maps: nothing walks it, and dropping it takes no stack.
    let linked = "{{ $c := dict }}{{ range until 20000 }}{{ $n := dict }}{{ $_ := set $c \"n\" $n }}{{ $c = $n }}{{ end }}";
    assert_eq!(render(linked, Missing::NoValue).unwrap(), "");
}

#[test]
fn what_is_given_stays_as_it_is() {
    let vars = vars();
    let before = vars.clone();
    let text = "{{ $_ := set .map \"a\" 7 }}{{ $_ := unset . \"s\" }}{{ $_ := merge .deep .map }}{{ .map.a }}{{ .s }}";
    let template = Template::parse(text, None).unwrap();
    for _ in 0..2 {
        assert_eq!(template.render(&vars, Missing::NoValue).unwrap(), "7<no value>");
    }
    assert_eq!(vars, before);
}

/// Words that templates consist of, so that random texts get past the lexer.
const WORDS: &str = "(\\{\\{|\\}\\}|\\{\\{-|-\\}\\}| |\\||\\(|\\)|:=|=|,|if|else|end|range|with|define|template|block|break|continue|nil|true|\\$x|\\$|\\.|\\.s|\\.list|\\.map|\\.a|1|-2|1\\.5|0x1|'a'|\"a\"|\"%d %s %v\"|`b`|printf|index|slice|len|eq|lt|and|or|list|dict|set|append|until|repeat|indent|toJson|toYaml|fromYaml|tpl|include|regexFindAll|splitn|substr|trunc|semverCompare|round|seq|\n|é|/\\*|\\*/){0,40}";

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(20_260_101),
        failure_persistence: None,
        cases: 1500,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_texts_do_no_harm(text in any::<String>()) {
        for dialect in [Dialect::Go, Dialect::Tera] {
            if let Ok(template) = Template::parse(&text, Some(dialect)) {
                let _ = template.render(&vars(), Missing::NoValue);
            }
        }
    }

    #[test]
    fn arbitrary_words_do_no_harm(text in WORDS) {
        for missing in [Missing::NoValue, Missing::Error] {
            let _ = render(&text, missing);
            let _ = render(&format!("{{{{ {text} }}}}"), missing);
        }
    }

    #[test]
    fn arbitrary_formats_do_no_harm(format in "(%|[-+# 0*.]|\\[[0-9]\\]|[0-9]|[vdsqxXtTgefcUbop]){0,12}") {
        let text = format!("{{{{ printf `{format}` 1 \"a\" 2.5 nil true .map .list }}}}");
        prop_assert!(render(&text, Missing::NoValue).is_ok());
    }
}
