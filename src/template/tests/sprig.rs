//! sprig's functions, by the sections of its document.

use super::check;

#[test]
fn strings() {
    check(&[
        (
            "{{ trim \"  a b\\n\" }}|{{ trimAll \"$\" \"$5.00$\" }}|{{ trimPrefix \"-\" \"--a\" }}|{{ trimSuffix \"-\" \"a--\" }}",
            "a b|5.00|-a|a-",
        ),
        (
            "{{ upper \"aé\" }} {{ lower \"AÉ\" }} {{ title \"hello wide-world\" }} {{ untitle \"Hello World\" }}",
            "AÉ aé Hello Wide-World hello world",
        ),
        ("{{ repeat 3 \"ab\" }}|{{ repeat 0 \"ab\" }}", "ababab|"),
        ("{{ repeat -1 \"ab\" }}", "ERROR negative Repeat count"),
        (
            "{{ substr 0 5 \"hello world\" }}|{{ substr 6 -1 \"hello world\" }}|{{ substr -1 4 \"hello\" }}|{{ substr 1 99 \"abc\" }}",
            "hello|world|hell|bc",
        ),
        ("{{ substr 3 1 \"hello\" }}", "ERROR out of range"),
        ("{{ nospace \"h e\\tl l o\" }}", "hello"),
        (
            "{{ trunc 5 \"hello world\" }}|{{ trunc -5 \"hello world\" }}|{{ trunc 50 \"a\" }}|{{ trunc -50 \"a\" }}",
            "hello|world|a|a",
        ),
        (
            "{{ abbrev 5 \"hello world\" }}|{{ abbrev 3 \"hello\" }}|{{ abbrev 9 \"hello\" }}",
            "he...|hello|hello",
        ),
        (
            "{{ contains \"cat\" \"catch\" }} {{ \"a/b\" | contains \"/\" }} {{ \"ab\" | contains \"/\" | not }}",
            "true true true",
        ),
        ("{{ hasPrefix \"cat\" \"catch\" }} {{ hasSuffix \"cat\" \"catch\" }}", "true false"),
        (
            "{{ quote \"a\" 1 nil \"b\\\"\" }}|{{ squote \"a\" 1 nil }}",
            "\"a\" \"1\" \"b\\\"\"|'a' '1'",
        ),
        ("{{ cat \"hello\" 1 nil \"world\" }}", "hello 1 world"),
        ("{{ indent 2 \"a\\nb\" }}|{{ nindent 2 \"a\\nb\" }}", "  a\n  b|\n  a\n  b"),
        ("{{ \"I Am Henry VIII\" | replace \" \" \"-\" }}", "I-Am-Henry-VIII"),
        ("{{ toString 1.0 }} {{ toString .list }} {{ toString nil }}", "1 [x y z] <nil>"),
        ("{{ toStrings (list 1 nil \"a\") }}", "[1 a]"),
        (
            "{{ splitList \"$\" \"foo$bar$baz\" }} {{ splitList \"\" \"ab\" }} {{ splitList \"/\" \"\" | len }}",
            "[foo bar baz] [a b] 1",
        ),
        ("{{ splitList \"/\" \"a/b\" | first }}", "a"),
        ("{{ (split \"$\" \"foo$bar\")._1 }} {{ split \"/\" \"a/b\" }}", "bar map[_0:a _1:b]"),
        ("{{ splitn \"/\" 2 \"a/b/c\" }}", "map[_0:a _1:b/c]"),
        (
            "{{ join \"-\" .list }} {{ join \"-\" (list 1 nil 2.5 true) }} {{ join \"-\" \"a\" }} {{ join \"-\" nil }}",
            "x-y-z 1-2.5-true a ",
        ),
        ("{{ sortAlpha (list \"c\" \"a\" \"b\") }} {{ sortAlpha \"x\" }}", "[a b c] [x]"),
        (
            "{{ base \"a/b.c\" }} {{ dir \"a/b.c\" }} {{ ext \"a/b.c\" }} {{ clean \"a/../b//c/.\" }} {{ isAbs \"/a\" }}",
            "b.c a .c b/c true",
        ),
        ("{{ contains \"a\" 5 }}", "ERROR expected string; found 5"),
        ("{{ contains \"a\" .a }}", "ERROR wrong type for value; expected string; got int"),
        ("{{ upper .missing }}", "ERROR invalid value; expected string"),
    ]);
}

#[test]
fn defaults() {
    check(&[
        (
            "{{ default \"d\" .missing }} {{ .empty | default \"d\" }} {{ .zero | default 5 }} {{ default \"d\" false }}",
            "d d 5 d",
        ),
        (
            "{{ default \"d\" .s }} {{ default \"d\" .nil }} {{ default \"d\" .none }} {{ default \"d\" .list }}",
            "text d d [x y z]",
        ),
        ("{{ default \"d\" }}", "d"),
        (
            "{{ empty .none }} {{ empty .s }} {{ empty nil }} {{ empty 0.0 }}",
            "true false true true",
        ),
        ("{{ coalesce 0 \"\" nil \"x\" \"y\" }} {{ coalesce 0 \"\" }}", "x <no value>"),
        ("{{ all 1 \"\" }} {{ all }} {{ any 0 1 }} {{ any }}", "false true true false"),
        ("{{ ternary \"y\" \"n\" true }} {{ .no | ternary \"y\" \"n\" }}", "y n"),
        ("{{ ternary \"y\" \"n\" 1 }}", "ERROR expected bool; found 1"),
        ("{{ ternary \"y\" \"n\" .missing }}", "ERROR invalid value; expected bool"),
        ("{{ fail \"so it is\" }}", "ERROR error calling fail: so it is"),
        (
            "{{ kindOf 1 }} {{ kindOf \"a\" }} {{ kindOf .list }} {{ kindOf .map }} {{ kindOf 1.5 }} {{ kindOf true }} {{ kindOf nil }}",
            "int string slice map float64 bool invalid",
        ),
        (
            "{{ kindIs \"map\" .map }} {{ typeOf .list }} {{ typeOf .map }} {{ typeIs \"int\" 1 }}",
            "true []interface {} map[string]interface {} true",
        ),
        ("{{ deepEqual .list (list \"x\" \"y\" \"z\") }} {{ deepEqual 1 1.0 }}", "true false"),
    ]);
}

#[test]
fn lists() {
    check(&[
        (
            "{{ first .list }} {{ last .list }} {{ rest .list }} {{ initial .list }}",
            "x z [y z] [x y]",
        ),
        ("{{ first .none }} {{ last .none }} {{ rest .none }}", "<no value> <no value> []"),
        (
            "{{ append .list \"w\" }} {{ prepend .list \"w\" }} {{ .list }}",
            "[x y z w] [w x y z] [x y z]",
        ),
        ("{{ concat .list .nums (list 9) }}", "[x y z 3 1 2 9]"),
        (
            "{{ reverse .nums }} {{ uniq (list 1 2 1 \"1\" 2) }} {{ without .nums 1 2 }}",
            "[2 1 3] [1 2 1] [3]",
        ),
        (
            "{{ has \"x\" .list }} {{ has \"q\" .list }} {{ has 1 (list \"1\") }} {{ has 1 nil }}",
            "true false false false",
        ),
        ("{{ compact (list 1 0 \"\" \"a\" nil false) }}", "[1 a]"),
        ("{{ chunk 2 .list }}", "[[x y] [z]]"),
        (
            "{{ until 4 }} {{ until -2 }} {{ untilStep 3 9 2 }} {{ untilStep 9 3 2 }} {{ untilStep 3 0 -1 }}",
            "[0 1 2 3] [0 -1] [3 5 7] [] [3 2 1]",
        ),
        (
            "{{ seq 5 }}|{{ seq -3 }}|{{ seq 0 2 }}|{{ seq 2 -2 }}|{{ seq 0 2 10 }}|{{ seq 0 -2 -5 }}|{{ seq }}",
            "1 2 3 4 5|1 0 -1 -2 -3|0 1 2|2 1 0 -1 -2|0 2 4 6 8 10|0 -2 -4|",
        ),
        ("{{ subtractList (list 1 2 3) (list 2) }}", "[1 3]"),
        ("{{ append \"a\" 1 }}", "ERROR Cannot push on type string"),
        ("{{ first \"a\" }}", "ERROR Cannot find first on type string"),
        ("{{ concat 1 }}", "ERROR Cannot concat type int as list"),
        ("{{ until 9999999 }}", "ERROR more than 1000000 steps"),
    ]);
}

#[test]
fn dicts() {
    check(&[
        (
            "{{ $d := dict \"a\" 1 \"b\" 2 }}{{ get $d \"a\" }}{{ get $d \"z\" }}|{{ hasKey $d \"b\" }}",
            "1|true",
        ),
        ("{{ dict \"a\" }} {{ dict 1 2 }}", "map[a:] map[1:2]"),
        ("{{ $d := dict }}{{ $_ := set $d \"k\" \"v\" }}{{ $d.k }}{{ $d }}", "vmap[k:v]"),
        ("{{ $d := dict }}{{ $e := $d }}{{ $_ := set $e \"k\" 1 }}{{ $d.k }}", "1"),
        ("{{ $d := dict \"in\" (dict) }}{{ $_ := set $d.in \"k\" 1 }}{{ $d }}", "map[in:map[k:1]]"),
        (
            "{{ $_ := set .map \"c\" 3 }}{{ .map }}{{ range $k, $v := .map }}{{ $k }}{{ end }}",
            "map[a:1 b:2 c:3]abc",
        ),
        (
            "{{ $d := dict \"a\" 1 }}{{ $_ := unset $d \"a\" }}{{ $d }}{{ len $d }}{{ if $d }}y{{ end }}",
            "map[]0",
        ),
        ("{{ keys .map | sortAlpha }} {{ values .map }}", "[a b] [1 2]"),
        ("{{ pick .map \"a\" \"z\" }} {{ omit .map \"a\" }}", "map[a:1] map[b:2]"),
        ("{{ pluck \"a\" .map .nomap (dict \"a\" 5) }}", "[1 5]"),
        (
            "{{ merge (dict \"a\" 1 \"n\" (dict \"x\" 1)) (dict \"a\" 2 \"b\" 3 \"n\" (dict \"x\" 5 \"y\" 2)) }}",
            "map[a:1 b:3 n:map[x:1 y:2]]",
        ),
        ("{{ merge (dict \"a\" \"\") (dict \"a\" 2) }}", "map[a:2]"),
        (
            "{{ mergeOverwrite (dict \"a\" 1 \"n\" (dict \"x\" 1 \"z\" 9)) (dict \"a\" 2 \"n\" (dict \"x\" 5)) }}",
            "map[a:2 n:map[x:5 z:9]]",
        ),
        ("{{ $d := dict \"a\" 1 }}{{ $_ := merge $d (dict \"b\" 2) }}{{ $d }}", "map[a:1 b:2]"),
        ("{{ mergeOverwrite (dict \"a\" 1 \"b\" 2) (dict \"a\" 0 \"b\" nil) }}", "map[a:0 b:2]"),
        (
            "{{ $d := dict \"a\" (dict \"b\" 1) }}{{ $e := deepCopy $d }}{{ $_ := set $d.a \"b\" 2 }}{{ $e }}",
            "map[a:map[b:1]]",
        ),
        ("{{ dig \"x\" \"y\" \"d\" .deep }} {{ dig \"x\" \"q\" \"d\" .deep }}", "z d"),
        ("{{ get \"a\" \"b\" }}", "ERROR expected map[string]interface {}; found \"a\""),
        (
            "{{ get .s \"b\" }}",
            "ERROR wrong type for value; expected map[string]interface {}; got string",
        ),
    ]);
}

#[test]
fn math() {
    check(&[
        (
            "{{ add 1 2 3 }} {{ add }} {{ sub 5 2 }} {{ mul 2 3 4 }} {{ div 7 2 }} {{ div -7 2 }} {{ mod 7 3 }} {{ mod -7 3 }} {{ add1 1 }}",
            "6 0 3 24 3 -3 1 -1 2",
        ),
        ("{{ add \"2\" 1.9 true nil \"x\" }}", "4"),
        ("{{ max 1 5 3 }} {{ min 4 2 3 }} {{ biggest 1 2 }}", "5 2 2"),
        (
            "{{ floor 1.9 }} {{ ceil 1.1 }} {{ round 123.5555 3 }} {{ round 1.5 0 }} {{ floor \"2.5\" }}",
            "1 2 123.556 2 2",
        ),
        (
            "{{ int \"42\" }} {{ int 3.9 }} {{ int \"abc\" }} {{ int \"0x10\" }} {{ int \"1.0\" }} {{ int64 true }} {{ float64 \"1.5\" }} {{ atoi \"7\" }} {{ atoi \"x\" }}",
            "42 3 0 16 1 1 1.5 7 0",
        ),
        ("{{ pow 2 10 }}", "1024"),
        ("{{ div 1 0 }}", "ERROR error calling div"),
        ("{{ mod 1 0 }}", "ERROR integer divide by zero"),
        ("{{ mul 9223372036854775807 2 }}", "-2"),
    ]);
}

#[test]
fn json_and_yaml() {
    check(&[
        (
            "{{ toJson .map }} {{ toJson .list }} {{ toJson .nil }} {{ toJson .f }} {{ toJson \"a\\\"b\\n\" }}",
            "{\"a\":1,\"b\":2} [\"x\",\"y\",\"z\"] null 1.5 \"a\\\"b\\n\"",
        ),
        ("{{ toJson .html }}", r#""\u003ca href=\"x\"\u003e\u0026'""#),
        ("{{ toRawJson .html }}", r#""<a href=\"x\">&'""#),
        (
            "{{ toPrettyJson .pod }}",
            "[\n  {\n    \"name\": \"p\",\n    \"tags\": [\n      \"1\",\n      \"2\"\n    ]\n  },\n  {\n    \"name\": \"q\"\n  }\n]",
        ),
        ("{{ toPrettyJson .nomap }}{{ toJson list }}", "{}[]"),
        (
            "{{ toJson 1e21 }} {{ toJson 1e-7 }} {{ toJson 1e6 }} {{ toJson 100.0 }}",
            "1e+21 1e-7 1000000 100",
        ),
        ("{{ (fromJson \"{\\\"a\\\": [1, 2.5]}\").a }}", "[1 2.5]"),
        ("{{ fromJson \"1000000\" }} {{ fromJson \"{\" }}", "1e+06 <no value>"),
        ("{{ mustFromJson \"{\" }}", "ERROR error calling mustFromJson"),
        ("{{ index (fromJson \"[\\\"linux/amd64\\\"]\") 0 }}", "linux/amd64"),
        ("{{ toYaml .map }}", "a: 1\nb: 2"),
        ("{{ toYaml .pod }}", "- name: p\n  tags:\n    - \"1\"\n    - \"2\"\n- name: q"),
        ("{{ toYaml .deep }}", "x:\n    \"y\": z"),
        (
            "{{ dict \"a\" \"true\" \"b\" \"x: y\" \"c\" nil \"d\" list \"e\" \"\" | toYaml }}",
            "a: \"true\"\nb: 'x: y'\nc: null\nd: []\ne: \"\"",
        ),
        (
            "{{ list (list 1 2) (dict \"a\" (list 1)) \"l\\nm\" | toYaml }}",
            "- - 1\n  - 2\n- a:\n    - 1\n- |-\n  l\n  m",
        ),
        ("{{ (fromYaml \"a: [1, x]\\nb: true\").a }} {{ (fromYaml \"b: true\").b }}", "[1 x] true"),
        ("{{ fromYaml \"a: [\" }}", "ERROR error calling fromYaml"),
        ("{{ b64enc \"hello\" }} {{ b64dec \"aGVsbG8=\" }}", "aGVsbG8= hello"),
        ("{{ b64dec \"?\" }}", "ERROR illegal base64 data"),
        (
            "{{ sha256sum \"hello\" }}",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ),
    ]);
}

#[test]
fn regular_expressions() {
    check(&[
        ("{{ regexMatch \"^[a-z]+$\" \"abc\" }} {{ regexMatch `^\\d+$` \"12a\" }}", "true false"),
        ("{{ regexFind \"[a-zA-Z][1-9]\" \"abcd1234\" }}|{{ regexFind \"x\" \"a\" }}", "d1|"),
        (
            "{{ regexFindAll \"[2,4,6,8]\" \"123456789\" -1 }} {{ regexFindAll \"a\" \"aaa\" 2 }}",
            "[2 4 6 8] [a a]",
        ),
        ("{{ regexReplaceAll \"a(x*)b\" \"-ab-axxb-\" \"${1}W\" }}", "-W-xxW-"),
        ("{{ regexReplaceAll \"a(x*)b\" \"-ab-axxb-\" \"$1W\" }}", "---"),
        ("{{ regexReplaceAllLiteral \"a(x*)b\" \"-ab-axxb-\" \"${1}\" }}", "-${1}-${1}-"),
        (
            "{{ regexSplit \"z+\" \"pizza\" -1 }} {{ regexSplit \",\" \"a,b,c\" 2 }}",
            "[pi a] [a b,c]",
        ),
        ("{{ regexQuoteMeta \"1.2.3\" }}", r"1\.2\.3"),
        ("{{ regexMatch `^\\d$` \"٣\" }} {{ regexMatch `\\w` \"é\" }}", "false false"),
        ("{{ regexReplaceAll `\\W` \"aé!b\" \"_\" }}", "a__b"),
        (
            "{{ regexMatch `^[[:alpha:]]+$` \"ab\" }} {{ regexMatch `[[]` \"[\" }} {{ regexMatch `^[]a]+$` \"]a\" }}",
            "true true true",
        ),
        (
            "{{ regexMatch `^\\Qa.b\\E$` \"a.b\" }} {{ regexMatch `\\bb\\b` \"a b\" }} {{ regexMatch `(?i)ABC` \"abc\" }}",
            "true true true",
        ),
        ("{{ regexReplaceAll \"\" \"ab\" \"-\" }}", "-a-b-"),
        (
            "{{ regexMatch `^a{,2}$` \"a{,2}\" }} {{ regexMatch `^a{2}$` \"aa\" }} {{ regexMatch `^\\p{L}+$` \"é\" }}",
            "true true true",
        ),
        ("{{ regexMatch \"(\" \"a\" }}", "ERROR error parsing regexp"),
        ("{{ regexMatch \"(?=a)\" \"a\" }}", "ERROR error parsing regexp"),
        ("{{ regexMatch \"(a{1000}){1000}\" \"a\" }}", "ERROR error parsing regexp"),
    ]);
}

#[test]
fn semantic_versions() {
    let table = [
        ("1.2.3", "v1.2.3", true),
        ("=1.2.3", "1.2.4", false),
        ("1.2", "1.2.9", true),
        ("1.2.x", "1.3.0", false),
        ("*", "0.1.0", true),
        ("!=1.2", "1.2.3", false),
        ("!=1.2.3", "1.2.4", true),
        (">=1.2.0", "v1.23.5", true),
        (">= 1.2", "1.1.9", false),
        (">11", "11.1.0", false),
        (">11", "12.0.0", true),
        (">11.1", "11.1.1", false),
        (">1.2.3", "1.2.4", true),
        ("<2", "1.9.9", true),
        ("<=2", "2.9.9", true),
        ("<=2.1", "2.2.0", false),
        ("=>1.0", "1.0.0", true),
        ("~1.2.3", "1.2.9", true),
        ("~1.2.3", "1.3.0", false),
        ("~1", "1.9.0", true),
        ("~> 2.1", "2.1.5", true),
        ("^1.2.3", "1.9.0", true),
        ("^1.2.3", "2.0.0", false),
        ("^0.2.3", "0.2.9", true),
        ("^0.2.3", "0.3.0", false),
        ("^0.0.3", "0.0.4", false),
        ("^0", "0.9.0", true),
        (">=1.2, <2", "1.5.0", true),
        (">=1.2 <2", "2.0.0", false),
        ("1.2 - 1.4.5", "1.4.5", true),
        ("1.2 - 1.4.5", "1.4.6", false),
        ("<1 || >=2", "2.1.0", true),
        ("<1 || >=2", "1.5.0", false),
        (">=1.0.0", "1.2.3-rc.1", false),
        (">=1.0.0-0", "1.2.3-rc.1", true),
        (">=1.2.3-rc.2", "1.2.3-rc.10", true),
        ("^1.2.3-beta.2", "1.2.3-beta.1", false),
        ("1.2.3", "1.2.3+build", true),
        (">=v1.20.0", "v1.30", true),
    ];
    for (constraint, version, expected) in table {
        let text = format!("{{{{ semverCompare {constraint:?} {version:?} }}}}");
        check(&[(&text, if expected { "true" } else { "false" })]);
    }
    check(&[
        ("{{ semverCompare \"\" \"1.0\" }}", "ERROR improper constraint"),
        ("{{ semverCompare \">=x.y\" \"1.0.0\" }}", "ERROR improper constraint"),
        ("{{ semverCompare \"1.0\" \"latest\" }}", "ERROR Invalid Semantic Version"),
        (
            "{{ (semver \"v1.2.3-rc.1+b\").Minor }} {{ (semver \"1.2.3-rc.1\").Prerelease }}",
            "2 rc.1",
        ),
    ]);
}

#[test]
fn kubekeys_own() {
    check(&[
        (
            "{{ ipFamily \"10.0.0.1\" }} {{ ipFamily \"fd00::/64\" }} {{ isIP \"10.0.0.1\" }} {{ isIP \"a\" }}",
            "IPv4 IPv6 true false",
        ),
        ("{{ ipFamily \"a\" }}", "ERROR a is not ip or cidr"),
        ("{{ unquote \"\\\"a b\\\"\" }} {{ toBool \"True\" }}", "a b true"),
        ("{{ toBool \"yes\" }}", "ERROR \"yes\" is neither true nor false"),
        ("{{ toBool nil }}", "ERROR a <nil> is neither true nor false"),
    ]);
}
