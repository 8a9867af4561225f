//! The language: `text/template`'s document, section by section.

use super::check;

#[test]
fn text_and_trimming() {
    check(&[
        ("", ""),
        ("plain }} text", "plain }} text"),
        ("{{23 -}} < {{- 45}}", "23<45"),
        ("a {{- /* a comment */ -}} b", "ab"),
        ("a {{/* a comment */}} b", "a  b"),
        ("{{- /* multi\nline */ -}}\n\n x", "x"),
        ("a\n\t{{- 1 }}", "a1"),
        ("{{ 1 -}}\n\n\tb", "1b"),
        ("{{-3}}", "-3"),
        ("{{- 3 -}} ", "3"),
        ("{{ -3 }}", "-3"),
        ("{{\"}}\"}}", "}}"),
        ("{{`a\n{{b}}`}}", "a\n{{b}}"),
        ("{{ 1 }}{{ 2 }}", "12"),
        ("é{{ \"ü\" }}ß", "éüß"),
    ]);
}

#[test]
fn literals() {
    check(&[
        ("{{ 1_000 }}", "1000"),
        ("{{ 0x1F }} {{ 0X_1f }} {{ 0b101 }} {{ 0o17 }} {{ 017 }}", "31 31 5 15 15"),
        ("{{ +5 }}", "5"),
        (
            "{{ 1.5 }} {{ .5 }} {{ 1. }} {{ 1e3 }} {{ 1e6 }} {{ 1e-7 }}",
            "1.5 0.5 1 1000 1e+06 1e-07",
        ),
        (
            "{{ 100000.0 }} {{ 1234567.0 }} {{ 0.0001 }} {{ 0.00001 }}",
            "100000 1.234567e+06 0.0001 1e-05",
        ),
        ("{{ 0x1p4 }} {{ 0x1.8p1 }}", "16 3"),
        ("{{ 'a' }} {{ '\\n' }} {{ '\\x41' }} {{ '\\'' }} {{ 'é' }}", "97 10 65 39 233"),
        (r#"{{ "a\tb\x41\101\u00e9\U0001F600\"" }}"#, "a\tbAAé😀\""),
        ("{{ `raw\\n\"` }}", "raw\\n\""),
        ("{{ true }} {{ false }}", "true false"),
        ("{{ 9223372036854775807 }}", "9223372036854775807"),
        ("{{ 9223372036854775808 }}", "ERROR integer overflow"),
        ("{{ 089 }}", "ERROR integer overflow"),
        ("{{ 1__0 }}", "ERROR 1:4: illegal number syntax"),
        ("{{ 1x }}", "ERROR bad number syntax: \"1x\""),
        ("{{ 'ab' }}", "ERROR malformed character constant"),
        (r#"{{ "\q" }}"#, "ERROR invalid syntax"),
        ("{{ nil }}", "ERROR nil is not a command"),
    ]);
}

#[test]
fn fields_and_chains() {
    check(&[
        ("{{ .s }}", "text"),
        ("{{ .deep.x.y }}", "z"),
        ("{{ $.deep.x.y }}", "z"),
        ("{{ (.deep).x.y }}", "z"),
        ("{{ (dict \"a\" 1).a }}", "1"),
        ("{{ (dict \"a\" (dict \"b\" 2)).a.b }}", "2"),
        ("{{ (index .pod 0).name }}", "p"),
        ("{{ $x := .deep }}{{ $x.x.y }}", "z"),
        ("{{ . | len | lt 5 }}", "true"),
        ("{{ .missing }}", "<no value>"),
        ("{{ .missing.a.b }}", "<no value>"),
        ("{{ .deep.q.r }}", "<no value>"),
        ("{{ .nil }}", "<no value>"),
        ("{{ .nil.x }}", "ERROR nil pointer evaluating interface {}.x"),
        ("{{ .nilmap.k.x }}", "ERROR nil pointer evaluating interface {}.x"),
        // A pipeline makes nothing of nil, and nothing has nothing in it.
        ("{{ (.nil).x }}", "<no value>"),
        ("{{ $n := .nil }}{{ $n.x }}", "<no value>"),
        ("{{ range .nils }}{{ .x }}{{ end }}", "ERROR nil pointer evaluating interface {}.x"),
        ("{{ .s.x }}", "ERROR can't evaluate field x in type"),
        ("{{ .list.x }}", "ERROR can't evaluate field x in type"),
        ("{{ .s 1 }}", "ERROR s is not a method but has arguments"),
        ("{{ 1 | .s }}", "ERROR s is not a method but has arguments"),
        ("{{ 3 4 }}", "ERROR can't give argument to non-function"),
        ("{{ nil.x }}", "ERROR unexpected . after"),
        ("{{ \"a\".x }}", "ERROR unexpected . after"),
    ]);
}

#[test]
fn printing_values() {
    check(&[
        ("{{ .map }}", "map[a:1 b:2]"),
        ("{{ .list }}", "[x y z]"),
        ("{{ .nils }}", "[<nil> 1]"),
        ("{{ .nilmap }}", "map[k:<nil>]"),
        ("{{ .none }}{{ .nomap }}", "[]map[]"),
        ("{{ .pod }}", "[map[name:p tags:[1 2]] map[name:q]]"),
        ("{{ .f }} {{ .t }} {{ .a }}", "1.5 true 1"),
        ("{{ list 1 2.0 \"a\" nil true }}", "[1 2 a <nil> true]"),
        ("{{ list }}", "[]"),
        ("{{ print 1 2 \"a\" \"b\" 3 4 }}", "1 2ab3 4"),
        ("{{ print \"a\" 1 2 \"b\" }}", "a1 2b"),
        ("{{ print nil nil }}", "<nil> <nil>"),
        ("{{ print }}", ""),
        ("{{ println 1 \"a\" \"b\" 2 }}", "1 a b 2\n"),
        ("{{ println }}", "\n"),
    ]);
}

#[test]
fn truth() {
    check(&[
        ("{{ if .zero }}y{{ else }}n{{ end }}", "n"),
        ("{{ if 0.0 }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .empty }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .none }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .nomap }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .nil }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .missing }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .missing.x }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .no }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .list }}y{{ else }}n{{ end }}", "y"),
        ("{{ if .nils }}y{{ end }}", "y"),
        ("{{ if \"false\" }}y{{ end }}", "y"),
        ("{{ if -1 }}y{{ end }}", "y"),
        ("{{ not .zero }} {{ not .s }}", "true false"),
    ]);
}

#[test]
fn and_or_give_operands_and_stop_early() {
    check(&[
        ("{{ and 1 2 }}", "2"),
        ("{{ and 0 2 }}", "0"),
        ("{{ or 0 2 }}", "2"),
        ("{{ or .empty \"x\" }}", "x"),
        ("{{ or 0 \"\" .none }}", "[]"),
        ("{{ and 1 \"\" 3 }}", ""),
        ("{{ and .s (index .list 0) \"end\" }}", "end"),
        ("{{ or 1 (fail \"never\") }}", "1"),
        ("{{ and 0 (fail \"never\") }}", "0"),
        ("{{ 5 | and 1 }} {{ 5 | and 0 }} {{ 5 | or 0 }}", "5 0 5"),
        ("{{ and .missing 1 }}", "<no value>"),
        ("{{ or .missing \"d\" }}", "d"),
        ("{{ and 1 }}", "1"),
        ("{{ and }}", "ERROR wrong number of args for and: want at least 1 got 0"),
    ]);
}

#[test]
fn comparison() {
    check(&[
        ("{{ eq 1 1 }} {{ eq 1 2 }} {{ eq 1 2 3 1 }}", "true false true"),
        ("{{ eq \"a\" \"a\" }} {{ eq true true }} {{ eq 1.5 1.5 }}", "true true true"),
        ("{{ eq .s \"x\" \"text\" }}", "true"),
        ("{{ ne 1 2 }} {{ ne .s \"text\" }}", "true false"),
        ("{{ lt 1 2 }} {{ le 2 2 }} {{ gt 1 2 }} {{ ge 2 2 }}", "true true false true"),
        ("{{ lt \"a\" \"b\" }} {{ lt \"B\" \"a\" }} {{ gt 1.5 1.0 }}", "true true true"),
        ("{{ eq 1 1.0 }}", "ERROR incompatible types for comparison"),
        ("{{ eq 1 \"1\" }}", "ERROR incompatible types for comparison"),
        ("{{ eq true 1 }}", "ERROR incompatible types for comparison"),
        ("{{ lt 1 1.5 }}", "ERROR incompatible types for comparison"),
        ("{{ lt \"1\" 2 }}", "ERROR incompatible types for comparison"),
        ("{{ lt true false }}", "ERROR invalid type for comparison"),
        ("{{ lt .list .list }}", "ERROR invalid type for comparison"),
        ("{{ lt .nil 1 }}", "ERROR invalid type for comparison"),
        ("{{ eq .list .list }}", "ERROR non-comparable type"),
        ("{{ eq .map .map }}", "ERROR non-comparable type"),
        ("{{ eq .nil nil }} {{ eq .missing nil }}", "true true"),
        ("{{ eq .nil 1 }} {{ eq 1 nil }} {{ ne .missing \"\" }}", "false false true"),
        ("{{ eq .list nil }}", "false"),
        ("{{ eq 1 }}", "ERROR missing argument for comparison"),
        ("{{ ne 1 }}", "ERROR wrong number of args for ne: want 2 got 1"),
        // The right operand before the error is looked at first.
        ("{{ eq 1 1 \"x\" }}", "true"),
        ("{{ eq 1 \"x\" 1 }}", "ERROR incompatible types"),
    ]);
}

#[test]
fn conditions() {
    check(&[
        ("{{ if eq .a 1 }}one{{ else if eq .a 2 }}two{{ else }}many{{ end }}", "one"),
        ("{{ if eq .b 1 }}one{{ else if eq .b 2 }}two{{ else }}many{{ end }}", "two"),
        ("{{ if .no }}1{{ else if .no }}2{{ else if .no }}3{{ else }}4{{ end }}", "4"),
        ("{{ if .no }}1{{ end }}", ""),
        ("{{ if $x := .a }}{{ $x }}{{ end }}", "1"),
        ("{{ if $x := .zero }}{{ else }}{{ $x }}{{ end }}", "0"),
        ("{{ with .deep.x }}{{ .y }}{{ end }}", "z"),
        ("{{ with .none }}{{ . }}{{ else }}{{ .s }}{{ end }}", "text"),
        ("{{ with .none }}a{{ else with .deep }}{{ .x.y }}{{ else }}c{{ end }}", "z"),
        ("{{ with $v := .deep.x }}{{ $v.y }}{{ $.s }}{{ end }}", "ztext"),
        ("{{ if }}x{{ end }}", "ERROR missing value for if"),
        ("{{ if 1 }}x", "ERROR unexpected EOF"),
        ("{{ end }}", "ERROR unexpected {{end}}"),
        ("{{ else }}", "ERROR unexpected {{else}}"),
        ("{{ if 1 }}{{ else }}{{ else }}{{ end }}", "ERROR expected end"),
    ]);
}

#[test]
fn variables_and_their_scope() {
    check(&[
        ("{{ $x := 1 }}{{ $x }}{{ $x = 2 }}{{ $x }}", "12"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ $x := 0 }}{{ range .nums }}{{ $x = add $x . }}{{ end }}{{ $x }}", "6"),
        ("{{ range .nums }}{{ $y := . }}{{ end }}{{ $y }}", "ERROR undefined variable \"$y\""),
        ("{{ if true }}{{ $y := 1 }}{{ end }}{{ $y }}", "ERROR undefined variable \"$y\""),
        ("{{ $y }}", "ERROR undefined variable \"$y\""),
        ("{{ $y = 1 }}", "ERROR undefined variable: $y"),
        ("{{ $x := 1 | add 2 }}{{ $x }}", "3"),
        ("{{ ($x := 5) }}{{ $x }}", "55"),
        ("{{ $x, $y := 1 }}", "ERROR too many declarations in command"),
        ("{{ $x+2 }}", "ERROR bad character"),
        ("{{ $ | len | lt 3 }}", "true"),
    ]);
}

#[test]
fn range() {
    check(&[
        ("{{ range .list }}{{ . }},{{ end }}", "x,y,z,"),
        ("{{ range $v := .list }}{{ $v }}{{ . }}{{ end }}", "xxyyzz"),
        ("{{ range $i, $v := .list }}{{ $i }}{{ $v }}{{ end }}", "0x1y2z"),
        ("{{ range $k, $v := .map }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
        ("{{ range .map }}{{ . }}{{ end }}", "12"),
        ("{{ range .none }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range .missing }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range .nomap }}x{{ else }}{{ .s }}{{ end }}", "text"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ range $i := 3 }}{{ $i }}{{ end }}", "012"),
        (
            "{{ range $i, $v := 3 }}{{ end }}",
            "ERROR can't use 3 to iterate over more than one variable",
        ),
        ("{{ range 0 }}x{{ else }}n{{ end }}{{ range -1 }}x{{ else }}n{{ end }}", "nn"),
        ("{{ range .s }}x{{ end }}", "ERROR range can't iterate over text"),
        ("{{ range true }}x{{ end }}", "ERROR range can't iterate over true"),
        ("{{ range .list }}{{ if eq . \"y\" }}{{ break }}{{ end }}{{ . }}{{ end }}", "x"),
        ("{{ range .list }}{{ if eq . \"y\" }}{{ continue }}{{ end }}{{ . }}{{ end }}", "xz"),
        ("{{ range .list }}{{ range $.nums }}{{ break }}{{ end }}{{ . }}{{ end }}", "xyz"),
        ("{{ break }}", "ERROR {{break}} outside {{range}}"),
        ("{{ range .list }}{{ define \"a\" }}{{ end }}{{ end }}", "ERROR unexpected <define> in"),
        ("{{ $v := 9 }}{{ range $v = .nums }}{{ end }}{{ $v }}", "2"),
        ("{{ range $i, $v := .nums }}{{ $v = 7 }}{{ $v }}{{ end }}", "777"),
        ("{{ range $i, 3 := .nums }}{{ end }}", "ERROR range can only initialize variables"),
        ("{{ range .nils }}[{{ . }}]{{ end }}", "[<no value>][1]"),
        ("{{ range .pod }}{{ .name }}{{ range .tags }}{{ . }}{{ end }}{{ end }}", "p12q"),
    ]);
}

#[test]
fn pipelines() {
    check(&[
        ("{{ \"a\" | printf \"%s-%s\" \"b\" }}", "b-a"),
        ("{{ .list | join \",\" | upper }}", "X,Y,Z"),
        ("{{ (.list | first) | printf \"%s%s\" (.nums | last | toString) }}", "2x"),
        ("{{ 1 | 2 }}", "ERROR non executable command in pipeline stage 2"),
        ("{{ 1 | }}", "1"),
        ("{{ | len }}", "ERROR unexpected"),
        ("{{ (1 }}", "ERROR unclosed left paren"),
        ("{{ 1) }}", "ERROR unexpected right paren"),
        ("{{ () }}", "ERROR missing value for parenthesized pipeline"),
        ("{{ }}", "ERROR missing value for command"),
        ("{{ 1", "ERROR unclosed action"),
        ("{{ \"a }}", "ERROR unterminated quoted string"),
        ("{{ `a }}", "ERROR unterminated raw quoted string"),
        ("{{/* a }}", "ERROR unclosed comment"),
        ("{{/* a */ b}}", "ERROR comment ends before closing delimiter"),
        ("{{ \u{7} }}", "ERROR unrecognized character in action"),
        ("{{ 1 ! 2 }}", "ERROR unexpected \"!\" in operand"),
    ]);
}

#[test]
fn templates() {
    check(&[
        ("{{ define \"a\" }}[{{ . }}]{{ end }}{{ template \"a\" .s }}", "[text]"),
        ("{{ template \"a\" }}{{ define \"a\" }}x{{ . }}{{ end }}", "x<no value>"),
        ("{{ block \"b\" .s }}({{ . }}){{ end }}", "(text)"),
        ("{{ define \"a\" }}{{ $.x.y }}{{ end }}{{ template \"a\" .deep }}", "z"),
        ("{{ $v := 1 }}{{ define \"a\" }}{{ $v }}{{ end }}", "ERROR undefined variable"),
        ("{{ template \"nope\" }}", "ERROR template \"nope\" not defined"),
        ("{{ define \"a\" }}1{{ end }}{{ define \"a\" }}2{{ end }}", "ERROR multiple definition"),
        ("{{ define \"a\" }} {{ end }}{{ define \"a\" }}2{{ end }}{{ template \"a\" }}", "2"),
        (
            "{{ define \"down\" }}{{ . }}{{ if gt . 0 }}{{ template \"down\" (sub . 1 | int) }}{{ end }}{{ end }}{{ template \"down\" 3 }}",
            "3210",
        ),
        (
            "{{ define \"l\" }}{{ template \"l\" }}{{ end }}{{ template \"l\" }}",
            "ERROR nests more than",
        ),
        ("{{ define \"a\" }}<{{ . }}>{{ end }}{{ include \"a\" .s | upper }}", "<TEXT>"),
        ("{{ tpl \"{{ .s }}{{ .missing }}\" . }}", "text"),
        ("{{ tpl \"{{ .s \" . }}", "ERROR in the text given to tpl, 1:1: unclosed action"),
    ]);
}

#[test]
fn builtin_functions() {
    check(&[
        ("{{ len .list }} {{ len .map }} {{ len \"é\" }} {{ len .none }}", "3 2 2 0"),
        ("{{ len .nil }}", "ERROR error calling len: len of nil pointer"),
        ("{{ len 3 }}", "ERROR error calling len: len of type int"),
        ("{{ index .list 1 }} {{ index .map \"a\" }} {{ index .pod 0 \"tags\" 1 }}", "y 1 2"),
        ("{{ index .list }}", "[x y z]"),
        ("{{ index \"abc\" 1 }}", "98"),
        ("{{ index .map \"nope\" }}", "<no value>"),
        ("{{ index .list 3 }}", "ERROR error calling index: index out of range: 3"),
        ("{{ index .list -1 }}", "ERROR index out of range: -1"),
        ("{{ index .list \"a\" }}", "ERROR cannot index slice/array with type string"),
        ("{{ index .map 1 }}", "ERROR value has type int; should be string"),
        ("{{ index .nil 1 }}", "ERROR index of untyped nil"),
        ("{{ index 1 1 }}", "ERROR can't index item of type int"),
        ("{{ slice .list 1 }} {{ slice .list 1 2 }} {{ slice .list }}", "[y z] [y] [x y z]"),
        ("{{ slice \"abcd\" 1 3 }}", "bc"),
        ("{{ slice .list 2 1 }}", "ERROR invalid slice index: 2 > 1"),
        ("{{ slice .list 0 9 }}", "ERROR out of range"),
        ("{{ html .html }}", "&lt;a href=&#34;x&#34;&gt;&amp;&#39;"),
        ("{{ js .html }}", r#"\u003Ca href\u003D\"x\"\u003E\u0026\'"#),
        ("{{ urlquery \"a b/c?é\" }}", "a+b%2Fc%3F%C3%A9"),
        ("{{ printf \"%s\" }}", "%!s(MISSING)"),
        ("{{ printf 1 }}", "ERROR expected string; found 1"),
        ("{{ printf .a }}", "ERROR wrong type for value; expected string; got int"),
        ("{{ printf .missing }}", "ERROR invalid value; expected string"),
        ("{{ upper nil }}", "ERROR cannot assign nil to string"),
    ]);
}
