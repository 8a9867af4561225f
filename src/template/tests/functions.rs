//! Every function of sprig 3.3 and of KubeKey: what it gives, or why it is refused. What it gives is
//! from their documents and tests.

use std::collections::BTreeSet;

use super::{check, render};
use crate::template::Missing;

/// Functions of sprig 3.3.0, all of them, each with a template that uses it.
const SPRIG: &[(&str, &str, &str)] = &[
    ("hello", "{{ hello }}", "Hello!"),
    // Dates
    ("ago", "{{ ago 0 }}", "ERROR depends on the present time"),
    ("date", "{{ date \"2006-01-02 15:04\" 1560458379 }}", "2019-06-13 20:39"),
    (
        "date_in_zone",
        "{{ date_in_zone \"02 Jan 06 15:04 -0700\" 1560458379 \"UTC\" }}",
        "13 Jun 19 20:39 +0000",
    ),
    ("dateInZone", "{{ dateInZone \"2006-01-02\" 0 \"UTC\" }}", "1970-01-01"),
    (
        "date_modify",
        "{{ toDate \"2006-01-02\" \"2020-01-01\" | date_modify \"-1.5h\" | date \"02.01. 15:04\" }}",
        "31.12. 22:30",
    ),
    (
        "dateModify",
        "{{ toDate \"2006-01-02\" \"2020-01-01\" | dateModify \"what\" | htmlDate }}",
        "2020-01-01",
    ),
    ("duration", "{{ duration \"95\" }} {{ duration 3600 }} {{ duration nil }}", "1m35s 1h0m0s 0s"),
    (
        "durationRound",
        "{{ durationRound \"2h10m5s\" }} {{ durationRound \"2400h10m5s\" }} {{ durationRound \"x\" }}",
        "2h 3mo 0s",
    ),
    ("htmlDate", "{{ htmlDate 0 }}", "1970-01-01"),
    ("htmlDateInZone", "{{ htmlDateInZone 1560458379 \"UTC\" }}", "2019-06-13"),
    (
        "must_date_modify",
        "{{ toDate \"2006\" \"2020\" | must_date_modify \"24h\" | unixEpoch }}",
        "1577923200",
    ),
    (
        "mustDateModify",
        "{{ toDate \"2006\" \"2020\" | mustDateModify \"what\" }}",
        "ERROR invalid duration \"what\"",
    ),
    ("mustToDate", "{{ mustToDate \"2006-01-02\" \"x\" }}", "ERROR cannot parse \"x\" as \"2006\""),
    ("now", "{{ now | date \"2006\" }}", "ERROR depends on the present time"),
    ("toDate", "{{ toDate \"2006-01-02\" \"2017-12-31\" | date \"02/01/2006\" }}", "31/12/2017"),
    (
        "unixEpoch",
        "{{ toDate \"02 Jan 06 15:04:05 MST\" \"13 Jun 19 20:39:39 GMT\" | unixEpoch }}",
        "1560458379",
    ),
    // Strings
    ("abbrev", "{{ abbrev 5 \"hello world\" }}", "he..."),
    (
        "abbrevboth",
        "{{ abbrevboth 5 10 \"1234 5678 9123\" }} {{ abbrevboth 5 20 \"short\" }} {{ abbrevboth 12 10 \"1234 5678 9123\" }}",
        "...5678... short ...78 9123",
    ),
    ("trunc", "{{ trunc 5 \"hello world\" }} {{ trunc -5 \"hello world\" }}", "hello world"),
    ("trim", "{{ trim \"   hello    \" }}", "hello"),
    ("upper", "{{ upper \"hello\" }}", "HELLO"),
    ("lower", "{{ lower \"HELLO\" }}", "hello"),
    ("title", "{{ title \"hello world\" }}", "Hello World"),
    ("untitle", "{{ untitle \"First Try\" }}", "first try"),
    ("substr", "{{ substr 0 5 \"hello world\" }}", "hello"),
    ("repeat", "{{ repeat 3 \"hello\" }}", "hellohellohello"),
    ("trimall", "{{ \"$foo$\" | trimall \"$\" }}", "foo"),
    ("trimAll", "{{ trimAll \"$\" \"$5.00\" }}", "5.00"),
    ("trimSuffix", "{{ trimSuffix \"-\" \"hello-\" }}", "hello"),
    ("trimPrefix", "{{ trimPrefix \"-\" \"-hello\" }}", "hello"),
    ("nospace", "{{ nospace \"hello w o r l d\" }}", "helloworld"),
    ("initials", "{{ initials \"First Try\" }}|{{ initials \"\" }}", "FT|"),
    ("randAlphaNum", "{{ randAlphaNum 3 }}", "ERROR it is random"),
    ("randAlpha", "{{ randAlpha 3 }}", "ERROR it is random"),
    ("randAscii", "{{ randAscii 3 }}", "ERROR it is random"),
    ("randNumeric", "{{ randNumeric 3 }}", "ERROR it is random"),
    (
        "swapcase",
        "{{ swapcase \"This Is A.Test\" }} {{ swapcase \"Θλ 1a\" }}",
        "tHIS iS a.tEST θΛ 1A",
    ),
    ("shuffle", "{{ shuffle \"hello\" }}", "ERROR it is random"),
    ("snakecase", "{{ snakecase \"FirstName\" }}", "first_name"),
    ("camelcase", "{{ camelcase \"http_server\" }}", "HttpServer"),
    ("kebabcase", "{{ kebabcase \"FirstName\" }}", "first-name"),
    (
        "wrap",
        "{{ wrap 5 \"Hello World\" }}|{{ wrap 5 \"abcdefgh ij\" }}|{{ wrap 0 \"a b\" }}|{{ wrap 9 \"\" }}",
        "Hello\nWorld|abcdefgh\nij|a\nb|",
    ),
    (
        "wrapWith",
        "{{ wrapWith 5 \"\\t\" \"Hello World\" }}|{{ wrapWith 5 \"-\" \"  abcdefgh ij\" }}",
        "Hello\tWorld|abcde-fgh-ij",
    ),
    ("contains", "{{ contains \"cat\" \"catch\" }}", "true"),
    ("hasPrefix", "{{ hasPrefix \"cat\" \"catch\" }}", "true"),
    ("hasSuffix", "{{ hasSuffix \"cat\" \"ducat\" }}", "true"),
    ("quote", "{{ quote \"a\" 1 }}", "\"a\" \"1\""),
    ("squote", "{{ squote \"a\" 1 }}", "'a' '1'"),
    ("cat", "{{ cat \"hello\" \"beautiful\" \"world\" }}", "hello beautiful world"),
    ("indent", "{{ indent 4 \"a\\nb\" }}", "    a\n    b"),
    ("nindent", "{{ nindent 4 \"a\" }}", "\n    a"),
    ("replace", "{{ \"I Am Henry VIII\" | replace \" \" \"-\" }}", "I-Am-Henry-VIII"),
    (
        "plural",
        "{{ len \"two\" | plural \"1 char\" \"chars\" }} {{ plural \"one\" \"many\" 1 }} {{ plural \"one\" \"many\" 0 }}",
        "chars one many",
    ),
    ("sha1sum", "{{ sha1sum \"Hello world!\" }}", "d3486ae9136e7856bc42212385ea797094475802"),
    (
        "sha256sum",
        "{{ sha256sum \"Hello world!\" }}",
        "c0535e4be2b79ffd93291305436bf889314e4a3faec05ecffcbb7df31ad9e51a",
    ),
    (
        "sha512sum",
        "{{ sha512sum \"Hello world!\" }}",
        "f6cde2a0f819314cdde55fc227d8d7dae3d28cc556222a0a8ad66d91ccad4aad6094f517a2182360c9aacf6a3dc323162cb6fd8cdffedb0fe038f55e85ffb5b6",
    ),
    ("adler32sum", "{{ adler32sum \"Hello world!\" }} {{ adler32sum \"\" }}", "487130206 1"),
    ("toString", "{{ toString 1 | kindOf }}", "string"),
    // Numbers
    ("atoi", "{{ atoi \"42\" }} {{ atoi \"x\" }}", "42 0"),
    ("int64", "{{ int64 \"12\" }}", "12"),
    ("int", "{{ int 1.9 }}", "1"),
    ("float64", "{{ float64 \"1.5\" }}", "1.5"),
    ("seq", "{{ seq 5 }} {{ seq 0 2 10 }} {{ seq 3 -3 2 }}", "1 2 3 4 5 0 2 4 6 8 10 3"),
    (
        "toDecimal",
        "{{ toDecimal 777 }} {{ toDecimal \"0755\" }} {{ toDecimal \"9\" }} {{ toDecimal nil }}",
        "511 493 0 0",
    ),
    ("split", "{{ (split \"$\" \"foo$bar$baz\")._0 }}", "foo"),
    ("splitList", "{{ splitList \"$\" \"foo$bar$baz\" }}", "[foo bar baz]"),
    ("splitn", "{{ (splitn \"$\" 2 \"foo$bar$baz\")._1 }}", "bar$baz"),
    ("toStrings", "{{ list 1 2 3 | toStrings }}", "[1 2 3]"),
    ("until", "{{ until 5 }}", "[0 1 2 3 4]"),
    ("untilStep", "{{ untilStep 3 6 2 }} {{ untilStep 3 99 0 }}", "[3 5] []"),
    ("add1", "{{ add1 3 }}", "4"),
    ("add", "{{ 3 | add 1 2 }}", "6"),
    ("sub", "{{ 3 | sub 14 }}", "11"),
    ("div", "{{ 4 | div 5 }}", "1"),
    ("mod", "{{ mod 5 3 }}", "2"),
    ("mul", "{{ 1 | mul \"2\" 3 \"4\" }}", "24"),
    ("randInt", "{{ randInt 1 2 }}", "ERROR it is random"),
    ("add1f", "{{ 3.4 | add1f }}", "4.4"),
    ("addf", "{{ 3 | addf 1.5 2.2 }} {{ addf 0.1 0.2 }} {{ addf }}", "6.7 0.3 0"),
    ("subf", "{{ 3 | subf 4.5 1 }} {{ subf 7.5 2 3 }}", "0.5 2.5"),
    (
        "divf",
        "{{ 2 | divf 5 4 }} {{ divf 10 2 4 }} {{ divf 2 3 }}",
        "0.625 1.25 0.6666666666666667",
    ),
    ("mulf", "{{ 1.2 | mulf \"2.4\" 10 \"4\" }} {{ mulf 1.5 2 2 }}", "115.2 6"),
    ("biggest", "{{ biggest 1 2 3 345 5 6 7 }}", "345"),
    ("max", "{{ max 1 2 3 }}", "3"),
    ("min", "{{ min 1 2 3 }}", "1"),
    ("maxf", "{{ maxf 1 2 3 345.7 5 6 7 }} {{ maxf 1 2.5 \"x\" }}", "345.7 2.5"),
    ("minf", "{{ minf 1.4 2 3 345.6 5 6 7 }} {{ minf 1.5 -2 3 }}", "1.4 -2"),
    ("ceil", "{{ ceil 123.001 }}", "124"),
    ("floor", "{{ floor 123.9999 }}", "123"),
    ("round", "{{ round 123.555555 3 }} {{ round 123.2329999 2 .3 }}", "123.556 123.23"),
    // Lists of strings, and defaults
    ("join", "{{ list \"hello\" \"world\" | join \"_\" }}", "hello_world"),
    ("sortAlpha", "{{ list \"c\" \"a\" \"b\" | sortAlpha }}", "[a b c]"),
    ("default", "{{ default \"foo\" \"\" }}", "foo"),
    ("empty", "{{ empty \"\" }}", "true"),
    ("coalesce", "{{ coalesce 0 1 2 }}", "1"),
    ("all", "{{ all 0 1 2 }}", "false"),
    ("any", "{{ any 0 1 2 }}", "true"),
    ("compact", "{{ list 1 \"a\" \"foo\" \"\" | compact }}", "[1 a foo]"),
    ("mustCompact", "{{ list 1 \"\" | mustCompact }}", "[1]"),
    ("fromJson", "{{ (fromJson \"{\\\"foo\\\": 55}\").foo }}", "55"),
    ("toJson", "{{ list 1 \"<\" | toJson }}", "[1,\"\\u003c\"]"),
    ("toPrettyJson", "{{ list 1 | toPrettyJson }}", "[\n  1\n]"),
    ("toRawJson", "{{ list 1 \"<\" | toRawJson }}", "[1,\"<\"]"),
    ("mustFromJson", "{{ mustFromJson \"{\" }}", "ERROR error calling mustFromJson"),
    ("mustToJson", "{{ list 1 | mustToJson }}", "[1]"),
    ("mustToPrettyJson", "{{ list 1 | mustToPrettyJson }}", "[\n  1\n]"),
    ("mustToRawJson", "{{ list 1 | mustToRawJson }}", "[1]"),
    (
        "ternary",
        "{{ ternary \"foo\" \"bar\" true }}{{ false | ternary \"foo\" \"bar\" }}",
        "foobar",
    ),
    ("deepCopy", "{{ dict \"a\" 1 | deepCopy }}", "map[a:1]"),
    ("mustDeepCopy", "{{ dict \"a\" 1 | mustDeepCopy }}", "map[a:1]"),
    // Reflection
    ("typeOf", "{{ typeOf \"a\" }} {{ toDate \"2006\" \"2020\" | typeOf }}", "string time.Time"),
    ("typeIs", "{{ typeIs \"string\" \"a\" }}", "true"),
    ("typeIsLike", "{{ typeIsLike \"string\" \"a\" }}", "true"),
    ("kindOf", "{{ kindOf \"hello\" }} {{ toDate \"2006\" \"2020\" | kindOf }}", "string struct"),
    ("kindIs", "{{ kindIs \"int\" 123 }}", "true"),
    ("deepEqual", "{{ deepEqual (list 1 2 3) (list 1 2 3) }}", "true"),
    // What is outside
    ("env", "{{ env \"HOME\" }}", "ERROR templates do not see the environment"),
    ("expandenv", "{{ expandenv \"$HOME\" }}", "ERROR templates do not see the environment"),
    ("getHostByName", "{{ getHostByName \"a\" }}", "ERROR templates do not see the network"),
    // Paths
    ("base", "{{ base \"foo/bar/baz\" }}", "baz"),
    ("dir", "{{ dir \"foo/bar/baz\" }}", "foo/bar"),
    ("clean", "{{ clean \"foo/bar/../baz\" }}", "foo/baz"),
    ("ext", "{{ ext \"foo.bar\" }}", ".bar"),
    ("isAbs", "{{ isAbs \"/foo\" }}", "true"),
    ("osBase", "{{ osBase \"/foo/bar/baz\" }}", "baz"),
    ("osClean", "{{ osClean \"/foo/bar/../baz\" }}", "/foo/baz"),
    ("osDir", "{{ osDir \"/foo/bar/baz\" }}", "/foo/bar"),
    ("osExt", "{{ osExt \"/foo/bar/baz.txt\" }}", ".txt"),
    ("osIsAbs", "{{ osIsAbs \"foo\" }}", "false"),
    // Encoding
    ("b64enc", "{{ b64enc \"coffee\" }}", "Y29mZmVl"),
    ("b64dec", "{{ b64dec \"Y29mZmVl\" }}", "coffee"),
    ("b32enc", "{{ b32enc \"coffee\" }} {{ b32enc \"\" }}", "MNXWMZTFMU====== "),
    (
        "b32dec",
        "{{ b32dec \"MNXWMZTFMU======\" }} {{ b32dec \"MNXW\\nMZTFMU======\" }}",
        "coffee coffee",
    ),
    // Data structures
    ("tuple", "{{ tuple 1 \"a\" }}", "[1 a]"),
    ("list", "{{ list 1 2 3 }}", "[1 2 3]"),
    ("dict", "{{ dict \"a\" 1 \"b\" }}", "map[a:1 b:]"),
    ("get", "{{ get (dict \"a\" 1) \"a\" }}", "1"),
    ("set", "{{ set (dict) \"a\" 1 }}", "map[a:1]"),
    ("unset", "{{ unset (dict \"a\" 1) \"a\" }}", "map[]"),
    ("hasKey", "{{ hasKey (dict \"a\" 1) \"a\" }}", "true"),
    ("pluck", "{{ pluck \"a\" (dict \"a\" 1) (dict \"a\" 2) }}", "[1 2]"),
    ("keys", "{{ keys (dict \"a\" 1) }}", "[a]"),
    ("pick", "{{ pick (dict \"a\" 1 \"b\" 2) \"a\" }}", "map[a:1]"),
    ("omit", "{{ omit (dict \"a\" 1 \"b\" 2) \"a\" }}", "map[b:2]"),
    ("merge", "{{ merge (dict \"a\" 1) (dict \"a\" 2 \"b\" 3) }}", "map[a:1 b:3]"),
    ("mergeOverwrite", "{{ mergeOverwrite (dict \"a\" 1) (dict \"a\" 2) }}", "map[a:2]"),
    ("mustMerge", "{{ mustMerge (dict \"a\" 1) (dict \"b\" 3) }}", "map[a:1 b:3]"),
    ("mustMergeOverwrite", "{{ mustMergeOverwrite (dict \"a\" 1) (dict \"a\" 2) }}", "map[a:2]"),
    ("values", "{{ values (dict \"a\" 1) }}", "[1]"),
    ("append", "{{ append (list 1) 2 }}", "[1 2]"),
    ("push", "{{ push (list 1) 2 }}", "[1 2]"),
    ("mustAppend", "{{ mustAppend (list 1) 2 }}", "[1 2]"),
    ("mustPush", "{{ mustPush (list 1) 2 }}", "[1 2]"),
    ("prepend", "{{ prepend (list 1) 2 }}", "[2 1]"),
    ("mustPrepend", "{{ mustPrepend (list 1) 2 }}", "[2 1]"),
    ("first", "{{ first (list 1 2) }}", "1"),
    ("mustFirst", "{{ mustFirst (list 1 2) }}", "1"),
    ("rest", "{{ rest (list 1 2 3) }}", "[2 3]"),
    ("mustRest", "{{ mustRest (list 1 2 3) }}", "[2 3]"),
    ("last", "{{ last (list 1 2) }}", "2"),
    ("mustLast", "{{ mustLast (list 1 2) }}", "2"),
    ("initial", "{{ initial (list 1 2 3) }}", "[1 2]"),
    ("mustInitial", "{{ mustInitial (list 1 2 3) }}", "[1 2]"),
    ("reverse", "{{ reverse (list 1 2 3) }}", "[3 2 1]"),
    ("mustReverse", "{{ mustReverse (list 1 2 3) }}", "[3 2 1]"),
    ("uniq", "{{ uniq (list 1 1 1 2) }}", "[1 2]"),
    ("mustUniq", "{{ mustUniq (list 1 1 1 2) }}", "[1 2]"),
    ("without", "{{ without (list 1 2 3) 3 }}", "[1 2]"),
    ("mustWithout", "{{ mustWithout (list 1 2 3) 3 }}", "[1 2]"),
    ("has", "{{ has 4 (list 1 4) }}", "true"),
    ("mustHas", "{{ mustHas 4 (list 1 2) }}", "false"),
    ("slice", "{{ slice (list 1 2 3 4 5) 1 3 }}", "[2 3]"),
    ("mustSlice", "{{ mustSlice (list 1 2 3 4 5) 3 }}", "[4 5]"),
    ("concat", "{{ concat (list 1 2) (list 3) }}", "[1 2 3]"),
    ("dig", "{{ dig \"a\" \"b\" \"none\" (dict \"a\" (dict \"b\" 1)) }}", "1"),
    ("chunk", "{{ chunk 3 (list 1 2 3 4 5) }}", "[[1 2 3] [4 5]]"),
    ("mustChunk", "{{ mustChunk 3 (list 1 2 3 4) }}", "[[1 2 3] [4]]"),
    // Secrets
    ("bcrypt", "{{ bcrypt \"a\" }}", "ERROR no passwords, keys or certificates"),
    ("htpasswd", "{{ htpasswd \"a\" \"b\" }}", "ERROR no passwords, keys or certificates"),
    ("genPrivateKey", "{{ genPrivateKey \"ecdsa\" }}", "ERROR no passwords, keys or certificates"),
    (
        "derivePassword",
        "{{ derivePassword 1 \"long\" \"password\" \"user\" \"example.com\" }}",
        "ERROR no passwords, keys or certificates",
    ),
    ("buildCustomCert", "{{ buildCustomCert \"a\" \"b\" }}", "ERROR no passwords, keys"),
    ("genCA", "{{ genCA \"a\" 1 }}", "ERROR no passwords, keys or certificates"),
    ("genCAWithKey", "{{ genCAWithKey \"a\" 1 \"\" }}", "ERROR no passwords, keys"),
    ("genSelfSignedCert", "{{ genSelfSignedCert \"a\" nil nil 1 }}", "ERROR no passwords, keys"),
    (
        "genSelfSignedCertWithKey",
        "{{ genSelfSignedCertWithKey \"a\" }}",
        "ERROR no passwords, keys",
    ),
    ("genSignedCert", "{{ genSignedCert \"a\" nil nil 1 nil }}", "ERROR no passwords, keys"),
    ("genSignedCertWithKey", "{{ genSignedCertWithKey \"a\" }}", "ERROR no passwords, keys"),
    ("encryptAES", "{{ encryptAES \"a\" \"b\" }}", "ERROR no passwords, keys or certificates"),
    ("decryptAES", "{{ decryptAES \"a\" \"b\" }}", "ERROR no passwords, keys or certificates"),
    ("randBytes", "{{ randBytes 3 }}", "ERROR it is random"),
    ("uuidv4", "{{ uuidv4 }}", "ERROR it is random"),
    // Versions
    ("semver", "{{ (semver \"1.2.3-alpha.1+123\").Major }}", "1"),
    ("semverCompare", "{{ semverCompare \"^1.2.0\" \"1.2.3\" }}", "true"),
    ("fail", "{{ fail \"Please accept the end user license agreement\" }}", "ERROR accept the end"),
    // Regular expressions
    ("regexMatch", "{{ regexMatch \"^[a-z]+$\" \"abc\" }}", "true"),
    ("mustRegexMatch", "{{ mustRegexMatch \"^[a-z]+$\" \"abc\" }}", "true"),
    ("regexFindAll", "{{ regexFindAll \"[2,4,6,8]\" \"123456789\" -1 }}", "[2 4 6 8]"),
    ("mustRegexFindAll", "{{ mustRegexFindAll \"[24]\" \"1234\" 1 }}", "[2]"),
    ("regexFind", "{{ regexFind \"[a-zA-Z][1-9]\" \"abcd1234\" }}", "d1"),
    ("mustRegexFind", "{{ mustRegexFind \"[a-zA-Z][1-9]\" \"abcd1234\" }}", "d1"),
    ("regexReplaceAll", "{{ regexReplaceAll \"a(x*)b\" \"-ab-axxb-\" \"${1}W\" }}", "-W-xxW-"),
    ("mustRegexReplaceAll", "{{ mustRegexReplaceAll \"a(x*)b\" \"-ab-\" \"${1}W\" }}", "-W-"),
    (
        "regexReplaceAllLiteral",
        "{{ regexReplaceAllLiteral \"a(x*)b\" \"-ab-axxb-\" \"${1}\" }}",
        "-${1}-${1}-",
    ),
    (
        "mustRegexReplaceAllLiteral",
        "{{ mustRegexReplaceAllLiteral \"a(x*)b\" \"-ab-\" \"${1}\" }}",
        "-${1}-",
    ),
    ("regexSplit", "{{ regexSplit \"z+\" \"pizza\" -1 }}", "[pi a]"),
    ("mustRegexSplit", "{{ mustRegexSplit \"z+\" \"pizza\" -1 }}", "[pi a]"),
    ("regexQuoteMeta", "{{ regexQuoteMeta \"1.2.3\" }}", "1\\.2\\.3"),
    // URLs
    ("urlParse", "{{ (urlParse \"proto://auth@host:80/path?query#fragment\").host }}", "host:80"),
    (
        "urlJoin",
        "{{ urlJoin (dict \"fragment\" \"fragment\" \"host\" \"host:80\" \"path\" \"/path\" \"query\" \"query\" \"scheme\" \"proto\") }}",
        "proto://host:80/path?query#fragment",
    ),
];

/// What KubeKey adds or replaces.
const KUBEKEY: &[(&str, &str, &str)] = &[
    ("toYaml", "{{ dict \"a1\" \"b1\" \"a2\" \"b2\" | toYaml }}", "a1: b1\na2: b2"),
    ("fromYaml", "{{ fromYaml \"a2:\\n  b2: 1\" | toJson }}", "{\"a2\":{\"b2\":1}}"),
    (
        "toToml",
        "{{ dict \"a\" (dict \"b\" (list 1.0 2) \"c.d\" \"e\\\"\") \"x\" true | toToml }}",
        "x = true\n\n[a]\n  b = [1.0, 2]\n  \"c.d\" = \"e\\\"\"\n",
    ),
    ("fromTOML", "{{ (fromTOML \"[a]\\nb = [1, 2.5]\").a.b }}", "[1 2.5]"),
    (
        "toBool",
        "{{ toBool true }} {{ toBool \"false\" }} {{ toBool \"1\" }} {{ toBool \"0\" }} {{ toBool 42 }} {{ toBool 0 }}",
        "true false true false true false",
    ),
    ("ipFamily", "{{ ipFamily \"10.233.64.0/18\" }} {{ ipFamily \"fd00::1\" }}", "IPv4 IPv6"),
    ("isIP", "{{ isIP \"10.0.0.1\" }} {{ isIP \"10.0.0.0/8\" }}", "true false"),
    (
        "ipInCIDR",
        "{{ ipInCIDR \"10.233.0.0/18\" | first }} {{ ipInCIDR \"10.233.0.0/18\" | last }}",
        "10.233.0.1 10.233.63.254",
    ),
    ("pow", "{{ pow 2 3 }}", "8"),
    ("subtractList", "{{ subtractList (list 1 2 3) (list 2) }}", "[1 3]"),
    ("fileExists", "{{ fileExists \"/etc\" }}", "ERROR templates do not see files"),
    ("fileExist", "{{ fileExist \"/etc\" }}", "ERROR templates do not see files"),
    ("unquote", "{{ unquote \"\\\"a\\\"\" }}|{{ unquote \"a\" }}|{{ unquote nil }}", "a|a|"),
    (
        "getStringSlice",
        "{{ getStringSlice (dict \"k\" (list \"a\" \"b\")) \"k\" }} {{ getStringSlice (dict) \"k\" | len }}",
        "ERROR len of nil pointer",
    ),
    ("toLowerByteUnit", "{{ \"5Mi\" | toLowerByteUnit }} {{ toLowerByteUnit \"10m\" }}", "5m 10m"),
    (
        "mapToNamedStringArgs",
        "{{ dict \"v\" 2 \"a\" \"b\" | mapToNamedStringArgs | toJson }}",
        "[{\"name\":\"a\",\"value\":\"b\"},{\"name\":\"v\",\"value\":\"2\"}]",
    ),
    ("include", "{{ define \"d\" }}{{ . }}!{{ end }}{{ include \"d\" 1 }}", "1!"),
    ("tpl", "{{ tpl \"{{ . }}!\" 1 }}", "1!"),
];

#[test]
fn every_function_is_there_or_refused() {
    for table in [SPRIG, KUBEKEY] {
        let lines: Vec<_> = table.iter().map(|(_, text, expected)| (*text, *expected)).collect();
        check(&lines);
    }
    let names: BTreeSet<_> = SPRIG.iter().map(|(name, ..)| *name).collect();
    assert_eq!((names.len(), SPRIG.len()), (SPRIG_COUNT, SPRIG_COUNT));
    for (name, text, _) in SPRIG.iter().chain(KUBEKEY) {
        assert!(text.contains(name), "{name} is not in its own example");
    }
}

/// How many names are in the map of functions of sprig 3.3.0.
const SPRIG_COUNT: usize = 211;

#[test]
fn a_refusal_names_the_function() {
    let error = render("{{ env \"HOME\" }}", Missing::NoValue).unwrap_err();
    assert_eq!(
        error,
        "1:4: function \"env\" is not offered by imgfs: templates do not see the environment; use \
         --set or --vars in {{ env \"HOME\" }}"
    );
}

/// The examples of `huandu/xstrings`.
#[test]
fn cases() {
    for (text, snake) in [
        ("HTTPServer", "http_server"),
        ("_camelCase", "_camel_case"),
        ("NoHTTPS", "no_https"),
        ("Wi_thF", "wi_th_f"),
        ("_AnotherTES_TCaseP", "_another_tes_t_case_p"),
        ("ALL", "all"),
        ("_HELLO_WORLD_", "_hello_world_"),
        ("HELLO____WORLD", "hello____world"),
        ("TW", "tw"),
        ("_C", "_c"),
        ("http2xx", "http_2xx"),
        ("HTTP2XX", "http2_xx"),
        ("HTTP20xOK", "http_20x_ok"),
        ("HTTP20XStatus", "http20_x_status"),
        ("HTTP-20xStatus", "http_20x_status"),
        ("Duration2m3s", "duration_2m3s"),
        ("Bld4Floor3rd", "bld4_floor_3rd"),
        ("a", "a"),
        ("Version2", "version2"),
        ("  sentence case  ", "__sentence_case__"),
        (
            " Mixed-hyphen case _and SENTENCE_case and UPPER-case",
            "_mixed_hyphen_case__and_sentence_case_and_upper_case",
        ),
        ("FROM CamelCase to snake/kebab-case", "from_camel_case_to_snake/kebab_case"),
        ("", ""),
    ] {
        let kebab = snake.replace('_', "-");
        check(&[
            (&format!("{{{{ snakecase {text:?} }}}}"), snake),
            (&format!("{{{{ kebabcase {text:?} }}}}"), &kebab),
        ]);
    }
    for (text, camel) in [
        ("http_server", "HttpServer"),
        ("_camel_case", "_CamelCase"),
        ("no_https", "NoHttps"),
        ("_complex__case_", "_Complex_Case_"),
        (" complex -case ", " Complex Case "),
        ("all", "All"),
        ("GOLANG_IS_GREAT", "GolangIsGreat"),
        ("GOLANG", "Golang"),
        ("a", "A"),
        ("好", "好"),
        ("some words", "SomeWords"),
        ("", ""),
    ] {
        check(&[(&format!("{{{{ camelcase {text:?} }}}}"), camel)]);
    }
}

/// The examples of sprig's tests, and what comes apart comes together again.
#[test]
fn urls() {
    for url in [
        "proto://auth@host:80/path?query#fragment",
        "proto://host:80/path",
        "something",
        "proto://user:passwor%20d@host:80/path",
        "proto://host:80/pa%20th?key=val%20ue",
        "mailto:joe@example.com",
        "http://[fe80::1]:8080/",
        "//host/path",
        "/a:b/c",
    ] {
        check(&[(&format!("{{{{ urlJoin (urlParse {url:?}) }}}}"), url)]);
    }
    check(&[
        (
            "{{ urlParse \"Proto://auth@host:80/pa%20th?query#fragment\" | toJson }}",
            "{\"fragment\":\"fragment\",\"host\":\"host:80\",\"hostname\":\"host\",\"opaque\":\"\",\"path\":\"/pa th\",\"query\":\"query\",\"scheme\":\"proto\",\"userinfo\":\"auth\"}",
        ),
        ("{{ (urlParse \"http://[fe80::1]:8080/\").hostname }}", "fe80::1"),
        ("{{ (urlParse \"mailto:a@b.c\").opaque }}", "a@b.c"),
        (
            "{{ urlJoin (dict \"host\" \"host:80\" \"path\" \"path\" \"scheme\" \"proto\" \"userinfo\" \"ASDJKJSD\" \"fragment\" \"fragment\") }}",
            "proto://ASDJKJSD@host:80/path#fragment",
        ),
        ("{{ urlParse \"http://host:x/\" }}", "ERROR invalid port \":x\" after host"),
        ("{{ urlParse \":\" }}", "ERROR missing protocol scheme"),
        ("{{ urlParse \"a%zz\" }}", "ERROR invalid URL escape \"%zz\""),
        ("{{ urlParse \"a:b:c\" }}{{ urlParse \"1:b\" }}", "ERROR cannot contain colon"),
        ("{{ urlParse \"http://a b/\" }}", "ERROR invalid character ' ' in host name"),
        ("{{ urlJoin (dict \"host\" 1) }}", "ERROR must be of type string, but int found"),
    ]);
}

#[test]
fn decimals() {
    check(&[
        (
            "{{ addf 1e300 1e-300 }} {{ mulf 1e200 1e-200 }} {{ mulf 1e100 1e100 }}",
            "1e+300 1 1e+200",
        ),
        ("{{ subf 1.1 1 }} {{ subf 0.3 0.1 }} {{ addf nil \"x\" true }}", "0.1 0.2 1"),
        (
            "{{ divf 1 3 }} {{ divf -1 3 }} {{ divf 1e-20 1 }}",
            "0.3333333333333333 -0.3333333333333333 0",
        ),
        ("{{ divf 1 0 }}", "ERROR decimal division by 0"),
        ("{{ addf \"inf\" 1 }}", "ERROR Cannot create a Decimal from inf"),
        ("{{ mulf 1.000000000000001 1.000000000000001 1.000000000000001 }}", "1.000000000000003"),
    ]);
}

#[test]
fn dates() {
    check(&[
        ("{{ toDate \"2006-01-02\" \"x\" }}", "0001-01-01 00:00:00 +0000 UTC"),
        (
            "{{ toDate \"2006-01-02 -0700\" \"2020-02-29 +0800\" | toJson }}",
            "\"2020-02-29T00:00:00+08:00\"",
        ),
        ("{{ toDate \"2006-01-02\" \"2020-02-29\" | toYaml }}", "2020-02-29T00:00:00Z"),
        (
            "{{ printf \"%s %q\" (toDate \"2006\" \"2020\") 1 }}",
            "2020-01-01 00:00:00 +0000 UTC '\\x01'",
        ),
        ("{{ eq (toDate \"2006\" \"2020\") (mustToDate \"06\" \"20\") }}", "true"),
        ("{{ if toDate \"2006\" \"x\" }}there{{ end }}", "there"),
        ("{{ date \"2006\" \"2020-01-01\" }}", "ERROR a string is no date"),
        ("{{ date \"2006\" nil }}", "ERROR a <nil> is no date"),
        ("{{ dateInZone \"2006\" 0 \"Mars/Olympus\" }}", "ERROR there is only \"UTC\""),
        ("{{ unixEpoch 0 }}", "ERROR expected time.Time; found 0"),
        ("{{ unixEpoch .s }}", "ERROR expected time.Time; got string"),
        ("{{ durationRound (toDate \"2006\" \"2020\") }}", "ERROR until now"),
        ("{{ date \"2006\" 9223372036854775807 }}", "ERROR out of range"),
    ]);
}

#[test]
fn addresses() {
    check(&[
        (
            "{{ ipInCIDR \"10.0.0.0/30,10.1.0.9,1.1.1.1/32\" }}",
            "[10.0.0.1 10.0.0.2 10.1.0.9 1.1.1.1]",
        ),
        ("{{ ipInCIDR \"10.0.0.0/255.255.255.252\" }}", "[10.0.0.1 10.0.0.2]"),
        ("{{ ipInCIDR \"10.0.0.254-10.0.1.1\" }}", "[10.0.0.254 10.0.0.255 10.0.1.0 10.0.1.1]"),
        ("{{ ipInCIDR \"fd00::/127\" }} {{ ipInCIDR \"10.0.0.0/31\" }}", "[fd00:: fd00::1] []"),
        ("{{ ipInCIDR \"x/24\" }}", "[]"),
        ("{{ ipInCIDR \"0.0.0.0/0\" }}", "ERROR more than 1000000 steps"),
        ("{{ ipInCIDR \"::/0\" }}", "ERROR more than 1000000 steps"),
    ]);
}
