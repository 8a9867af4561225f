//! `imgfs render`

use std::io::{self, Read, Write};

use imgfs::{
    image::Reference,
    ops::with_image,
    template::{MAX_TEMPLATE_BYTES, Missing, Template},
};

use super::{Failure, Outcome, args::RenderArgs};

pub(crate) fn run(args: &RenderArgs) -> Result<Outcome, Failure> {
    let text = if args.text == "-" { stdin()? } else { args.text.clone() };
    let dialect = args.template.map(Into::into);
    let mut vars = args.vars.load()?;
    if let Some(image) = &args.image {
        let image: Reference = image.parse().map_err(|e| Failure::new(format!("--image: {e}")))?;
        vars = with_image(&vars, &image);
    }
    let missing = if args.strict { Missing::Error } else { Missing::NoValue };
    let rendered = Template::parse(&text, dialect)
        .and_then(|template| template.render(&vars, missing))
        .map_err(|e| Failure::new(format!("template:{e}")))?;

    let mut stdout = io::stdout().lock();
    let end = if rendered.ends_with('\n') { "" } else { "\n" };
    let printed = write!(stdout, "{rendered}{end}").and_then(|()| stdout.flush());
    match printed {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("standard output: {e}")))
        }
        _ => Ok(Outcome::Done),
    }
}

fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // One more byte, so that a longer one is refused and not cut.
    let limit = MAX_TEMPLATE_BYTES as u64 + 1;
    let read = io::stdin().take(limit).read_to_string(&mut text);
    read.map_err(|e| Failure::new(format!("standard input: {e}")))?;
    Ok(text)
}
