//! The Tera dialect.

use super::{Missing, Template, vars};
use crate::template::Dialect;

fn render(text: &str) -> Result<String, String> {
    let template = Template::parse(text, Some(Dialect::Tera)).map_err(|e| e.to_string())?;
    template.render(&vars(), Missing::NoValue).map_err(|e| e.to_string())
}

#[test]
fn what_it_gives() {
    for (text, expected) in [
        ("{{ s }}/{{ deep.x.y }}:{{ a }}", "text/z:1"),
        ("{% for v in list %}{{ v }}{% if not loop.last %},{% endif %}{% endfor %}", "x,y,z"),
        ("{% if a == 1 and s is containing(pat=\"ex\") %}yes{% else %}no{% endif %}", "yes"),
        ("{{ s | upper }} {{ list | join(sep=\"-\") }} {{ list[0] }}", "TEXT x-y-z x"),
        // Names are not HTML.
        ("{{ html }}", "<a href=\"x\">&'"),
        ("{{ missing or \"d\" }} {{ f }}", "d 1.5"),
        ("{% set v = a + 1 %}{{ v }}{# comment #}", "2"),
        ("{% for k, v in map %}{{ k }}{{ v }}{% endfor %}", "a1b2"),
    ] {
        assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn errors_have_places() {
    for (text, place, reason) in [
        ("{{ s }}\n{{ missing }}", "2:4", "missing"),
        ("a\n {{ deep.q }}", "2:10", "q"),
        ("{% if %}", "1:7", ""),
        ("{{ s | nofilter }}", "1:8", "nofilter"),
        ("é {{ s", "1:", ""),
        ("{% include \"x\" %}", "1:1", "x"),
    ] {
        let error = render(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(reason), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn its_bounds() {
    for text in [
        "{% for i in range(end=100000) %}{% for j in range(end=100000) %}0123456789{% endfor %}{% endfor %}",
        "{{ range(end=99999999) }}",
    ] {
        assert!(render(text).is_err(), "{text}");
    }
}
