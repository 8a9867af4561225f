//! Where and what errors say, and what is missing.

use super::{check, render, vars};
use crate::template::{Cause, Dialect, Missing, Template, TemplateError};

fn error(text: &str, missing: Missing) -> TemplateError {
    let rendered = Template::parse(text, None).and_then(|t| t.render(&vars(), missing));
    rendered.unwrap_err()
}

#[test]
fn places() {
    for (text, line, column) in [
        ("{{ $x }}", 1, 4),
        ("a\nbé {{ nope }}", 2, 7),
        ("a\n\n  {{ if .a }}x", 3, 15),
        ("{{ .s }}\n{{ .nil.x }}", 2, 4),
        ("{{ range .list }}\n {{ upper 1 }}{{ end }}", 2, 11),
        ("{{ \"x\" | eq 1 }}", 1, 10),
        ("x {{ 'ab' }}", 1, 6),
        ("x {{ \"ab }}", 1, 6),
        ("{{ template \"q\" }}", 1, 4),
        ("{{ define \"d\" }}\n{{ fail \"no\" }}{{ end }}\n{{ template \"d\" }}", 2, 4),
        ("{{ print (div 1 0) }}", 1, 11),
    ] {
        let error = error(text, Missing::NoValue);
        assert_eq!((error.line(), error.column()), (line, column), "{text}: {error}");
    }
}

#[test]
fn the_action_is_shown() {
    let error = error("a\n{{ .s }} {{ upper\n 5 }} b", Missing::NoValue);
    assert_eq!(error.action(), "{{ upper  5 }}");
    assert_eq!(error.to_string(), "3:2: expected string; found 5 in {{ upper  5 }}");
}

#[test]
fn functions_that_are_not_there() {
    check(&[
        (
            "{{ splitlist \"/\" .s }}",
            "ERROR function \"splitlist\" not defined; did you mean \"splitList\"?",
        ),
        ("{{ defualt 1 }}", "ERROR did you mean \"default\"?"),
        ("{{ contain \"a\" }}", "ERROR did you mean \"contains\"?"),
        ("{{ completelyOther }}", "ERROR function \"completelyOther\" not defined in"),
        (
            "{{ env \"HOME\" }}",
            "ERROR function \"env\" is not offered by imgfs: templates do not see the environment",
        ),
        ("{{ now }}", "ERROR always give the same text"),
        ("{{ randAlphaNum 5 }}", "ERROR is not offered"),
        ("{{ fileExists \"/etc\" }}", "ERROR do not see files"),
        ("{{ call .a }}", "ERROR is not offered"),
        ("{{ genCA \"a\" 1 }}", "ERROR is not offered"),
    ]);
}

#[test]
fn numbers_of_arguments() {
    check(&[
        ("{{ upper }}", "ERROR wrong number of args for upper: want 1 got 0"),
        ("{{ upper \"a\" \"b\" }}", "ERROR wrong number of args for upper: want 1 got 2"),
        ("{{ \"a\" | upper \"b\" }}", "ERROR wrong number of args for upper: want 1 got 2"),
        ("{{ printf }}", "ERROR wrong number of args for printf: want at least 1 got 0"),
    ]);
}

#[test]
fn missing_is_an_error_where_it_must_be() {
    for (text, expected) in [
        ("{{ .missing }}", Err("map has no entry for key \"missing\"")),
        ("{{ .missing.x }}", Err("map has no entry for key \"missing\"")),
        ("{{ .deep.q.r }}", Err("map has no entry for key \"q\"")),
        ("{{ $.missing }}", Err("map has no entry")),
        ("{{ (dict).x }}", Err("map has no entry")),
        ("{{ if .missing }}{{ end }}", Err("map has no entry")),
        ("{{ printf \"%v\" .missing }}", Err("map has no entry")),
        ("{{ .nil }}", Err("there is no value to print")),
        ("{{ index .map \"q\" }}", Err("there is no value to print")),
        ("{{ first .none }}", Err("there is no value to print")),
        ("{{ (.nil).x }}", Err("nil data; no entry for key \"x\"")),
        ("{{ tpl \"{{ .missing }}\" . }}", Err("map has no entry")),
        ("{{ upper (.missing | default \"d\") }}", Ok("D")),
        ("{{ default \"d\" .missing.x }}", Ok("d")),
        ("{{ (.missing.x) | default \"d\" }}", Ok("d")),
        ("{{ coalesce .missing .s }}{{ empty .missing }}", Ok("texttrue")),
        ("{{ default \"d\" (upper .missing) }}", Err("map has no entry")),
        ("{{ hasKey . \"missing\" }}", Ok("false")),
        ("{{ .deep.x.y }}", Ok("z")),
        ("{{ range .none }}{{ end }}{{ with .nil }}{{ end }}", Ok("")),
    ] {
        match (render(text, Missing::Error), expected) {
            (Err(message), Err(part)) => assert!(message.contains(part), "{text}: {message}"),
            (Ok(rendered), Ok(expected)) => assert_eq!(rendered, expected, "{text}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
    assert!(matches!(error("{{ .missing }}", Missing::Error).cause(), Cause::Missing(_)));
}

#[test]
fn what_is_a_template() {
    for (text, is) in [
        ("{{ .a }}", true),
        ("}} {{", true),
        ("{% if a %}", true),
        ("{{ .a", false),
        ("a }}", false),
        ("docker.io/library/nginx:1", false),
    ] {
        assert_eq!(Template::is_template(text), is, "{text}");
    }
    let dialect = |text, chosen| Template::parse(text, chosen).unwrap().dialect();
    assert_eq!(dialect("{{ .a }}", None), Dialect::Go);
    assert_eq!(dialect("{% if true %}{% endif %}", None), Dialect::Tera);
    assert_eq!(dialect("{{ a }}", Some(Dialect::Tera)), Dialect::Tera);
    assert_eq!(dialect("{% }", Some(Dialect::Go)), Dialect::Go);
}
