//! Templates of both dialects: reading and rendering never panics, and a rendering gives the same
//! text again.
#![no_main]

use std::sync::LazyLock;

use imgfs::template::{Dialect, Missing, Template, Value};

static VARS: LazyLock<Value> = LazyLock::new(imgfs::template::fuzzing::vars);

libfuzzer_sys::fuzz_target!(|text: &str| {
    for dialect in [Dialect::Go, Dialect::Tera] {
        let Ok(template) = Template::parse(text, Some(dialect)) else { continue };
        let rendered = template.render(&VARS, Missing::NoValue);
        if dialect == Dialect::Go {
            assert_eq!(rendered, template.render(&VARS, Missing::NoValue));
            if let Ok(strict) = template.render(&VARS, Missing::Error) {
                assert_eq!(rendered.as_ref(), Ok(&strict));
            }
        }
    }
});
