//! `printf`: the document of Go's package `fmt`.

use super::check;

#[test]
fn integers() {
    check(&[
        ("{{ printf \"%d|%5d|%-5d|%05d|%+d\" 42 42 42 42 42 }}", "42|   42|42   |00042|+42"),
        ("{{ printf \"%05d|% d|% d\" -42 42 -42 }}", "-0042| 42|-42"),
        (
            "{{ printf \"%x|%X|%#x|%o|%O|%#o|%b\" 255 255 255 8 8 8 5 }}",
            "ff|FF|0xff|10|0o10|010|101",
        ),
        ("{{ printf \"%c|%q|%U|%#U\" 65 65 233 233 }}", "A|'A'|U+00E9|U+00E9 'é'"),
        ("{{ printf \"%.3d|%6.3d|%.0d\" 7 7 0 }}", "007|   007|"),
        ("{{ printf \"%08b\" 5 }}", "00000101"),
        ("{{ printf \"%x\" -255 }}", "-ff"),
        ("{{ printf \"%*d|%-*d|\" 5 42 5 42 }}", "   42|42   |"),
        ("{{ printf \"%*d|\" -5 42 }}", "42   |"),
    ]);
}

#[test]
fn floats() {
    check(&[
        (
            "{{ printf \"%f|%.2f|%8.3f|%-8.1f|\" 3.14159 3.14159 3.14159 3.14159 }}",
            "3.141590|3.14|   3.142|3.1     |",
        ),
        (
            "{{ printf \"%e|%.2e|%E\" 123456.789 123456.789 0.00012 }}",
            "1.234568e+05|1.23e+05|1.200000E-04",
        ),
        (
            "{{ printf \"%g|%g|%g|%.3g|%G\" 100000.0 1000000.0 0.00001 1234.5678 1e-10 }}",
            "100000|1e+06|1e-05|1.23e+03|1E-10",
        ),
        (
            "{{ printf \"%06.2f|%+.1f|% .1f|%+06.1f\" 3.14159 3.0 3.0 3.0 }}",
            "003.14|+3.0| 3.0|+003.0",
        ),
        ("{{ printf \"%.0f|%.0f|%.0f\" 0.5 1.5 2.5 }}", "0|2|2"),
        ("{{ printf \"%v|%v\" 1e21 1.0 }}", "1e+21|1"),
        ("{{ printf \"%#g|%#.3g|%#v\" 1.0 1.0 1.0 }}", "1.00000|1.00|1"),
        ("{{ printf \"%b\" 1.0 }}", "4503599627370496p-52"),
        ("{{ printf \"%5v|%-5v|\" 1.5 1.5 }}", "  1.5|1.5  |"),
    ]);
}

#[test]
fn strings_and_others() {
    check(&[
        (
            "{{ printf \"%s|%v|%q|%x|%X\" \"hi\" \"hi\" \"hi\" \"hi\" \"hi\" }}",
            "hi|hi|\"hi\"|6869|6869",
        ),
        (
            "{{ printf \"%10s|%-10s|%.2s|%5.1s|\" \"abc\" \"abc\" \"abc\" \"abc\" }}",
            "       abc|abc       |ab|    a|",
        ),
        ("{{ printf \"%3s|%-3s|\" \"é\" \"é\" }}", "  é|é  |"),
        ("{{ printf \"%05s\" \"ab\" }}", "000ab"),
        (r#"{{ printf "%q" "a\n\t\"\\\x00é\u200b" }}"#, r#""a\n\t\"\\\x00é\u200b""#),
        (r#"{{ printf "%+q|%#q" "é" "a\"b" }}"#, "\"\\u00e9\"|`a\"b`"),
        ("{{ printf \"% x|%#x|%# x\" \"ab\" \"ab\" \"ab\" }}", "61 62|0x6162|0x61 0x62"),
        ("{{ printf \"%t|%v|%5t|\" true false true }}", "true|false| true|"),
        ("{{ printf \"%v|%s\" .list .list }}", "[x y z]|[x y z]"),
        ("{{ printf \"%q\" .list }}", "[\"x\" \"y\" \"z\"]"),
        ("{{ printf \"%v\" .map }}", "map[a:1 b:2]"),
        ("{{ printf \"%v|%d\" nil nil }}", "<nil>|%!d(<nil>)"),
        (
            "{{ printf \"%#v\" .pod }}",
            "[]interface {}{map[string]interface {}{\"name\":\"p\", \"tags\":[]interface {}{\"1\", \"2\"}}, map[string]interface {}{\"name\":\"q\"}}",
        ),
        (
            "{{ printf \"%#v|%#v|%#v\" \"a\" 1 .nils }}",
            "\"a\"|1|[]interface {}{interface {}(nil), 1}",
        ),
        ("{{ printf \"%T|%T|%T|%T\" 1 1.5 \"a\" true }}", "int|float64|string|bool"),
        ("{{ printf \"%03d\" .nums }}", "[003 001 002]"),
    ]);
}

#[test]
fn mistakes() {
    check(&[
        ("{{ printf \"%d\" \"x\" }}", "%!d(string=x)"),
        ("{{ printf \"%s\" 5 }}", "%!s(int=5)"),
        ("{{ printf \"%z\" 5 }}", "%!z(int=5)"),
        ("{{ printf \"%t\" 1 }}", "%!t(int=1)"),
        ("{{ printf \"%d\" true }}", "%!d(bool=true)"),
        ("{{ printf \"%d\" 1.5 }}", "%!d(float64=1.5)"),
        ("{{ printf \"%s\" .nums }}", "[%!s(int=3) %!s(int=1) %!s(int=2)]"),
        ("{{ printf \"%s %s\" \"a\" }}", "a %!s(MISSING)"),
        ("{{ printf \"a\" 1 \"b\" nil }}", "a%!(EXTRA int=1, string=b, <nil>)"),
        ("{{ printf \"%s\" \"a\" 1 }}", "a%!(EXTRA int=1)"),
        ("{{ printf \"100%\" }}", "100%!(NOVERB)"),
        ("{{ printf \"100%%\" }}", "100%"),
        ("{{ printf \"%!\" 1 }}", "%!!(int=1)"),
        ("{{ printf \"%[2]d %[1]d\" 1 2 }}", "2 1"),
        ("{{ printf \"%[2]*[1]d|\" 7 4 }}", "   7|"),
        ("{{ printf \"%[3]d\" 1 }}", "%!d(BADINDEX)"),
        ("{{ printf \"%[x]d\" 1 }}", "%!d(BADINDEX)"),
        ("{{ printf \"%*d\" \"a\" 1 }}", "%!(BADWIDTH)1"),
        ("{{ printf \"%.*d\" -1 1 }}", "%!(BADPREC)1"),
        ("{{ printf \"%999999999d\" 1 }}", "%!(NOVERB)%!(EXTRA int=1)"),
    ]);
}
