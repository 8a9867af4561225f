//! Tables: what stands in a file, and what it means or what is wrong with it.

mod documents;
mod forms;
mod mistakes;
mod project;
mod running;

use std::fmt::{Display, Write};

use crate::ops::{Images, Request, bare_name, with_image};

use super::{error::Findings, prepare::Prepared, *};
use crate::{
    backend::registry::{Credentials, Entry},
    template::Missing,
    transfer::Policy,
};

fn texts(all: &[impl Display]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn settings(vars: serde_json::Value) -> Settings {
    Settings {
        images_dir: TreeSpec::Directory("default-dir".into()),
        base: "/etc/tasks".into(),
        vars: vars.into(),
        ..Settings::default()
    }
}

/// The requests of all tasks, or everything that is wrong.
fn requests(text: &str, vars: serde_json::Value) -> Result<Vec<Request>, Vec<String>> {
    let shown = |errors: Vec<TaskError>| texts(&errors);
    let playbook = Playbook::parse(text, None).map_err(shown)?;
    let settings = settings(vars);
    playbook.check(&settings, &Selection::default()).map_err(shown)?;
    let mut requests = Vec::new();
    for task in &playbook.tasks {
        let mut findings = Findings::default();
        match task.prepare(&settings, &Value::map(), &Default::default(), &mut findings) {
            Some(Prepared::Ready(iterations)) => {
                requests
                    .extend(iterations.into_iter().flat_map(|i| i.requests.unwrap_or_default()));
            }
            Some(Prepared::Skip(_)) => {}
            other => panic!("{other:?} {findings:?}"),
        }
    }
    Ok(requests)
}

/// One line for a request. Names are shown for `docker.io/library/nginx:1.25`.
fn show(request: &Request) -> String {
    let mut line = format!("{} -> {}", request.from, request.to);
    match &request.images {
        Images::Listed(images) => write!(line, " [{}]", images.join(" ")).unwrap(),
        Images::All => line += " all",
    }
    if let Some(pattern) = &request.pattern {
        write!(line, " ~{pattern}").unwrap();
    }
    for (what, template) in [("source", &request.source), ("dest", &request.dest)] {
        if let Some(template) = template {
            let image = "docker.io/library/nginx:1.25".parse().unwrap();
            let vars = with_image(&request.vars, &image);
            let name = template.render(&vars, Missing::Error).unwrap();
            write!(line, " {what}={}", bare_name(&name)).unwrap();
        }
    }
    if request.options.platforms != crate::image::PlatformFilter::All {
        write!(line, " {}", request.options.platforms).unwrap();
    }
    if request.options.policy == Policy::Strict {
        line += " strict";
    }
    for Entry { prefix, credentials, .. } in &request.auths {
        write!(line, " {prefix}").unwrap();
        if let Some(Credentials::Basic { username, password }) = credentials {
            write!(line, "={username}/{password}").unwrap();
        }
    }
    if let Some(skip) = request.skip_tls_verify {
        write!(line, " skip_tls_verify={skip}").unwrap();
    }
    line
}

#[track_caller]
fn means(text: &str, vars: serde_json::Value, expected: &[&str]) {
    match requests(text, vars) {
        Ok(requests) => {
            assert_eq!(requests.iter().map(show).collect::<Vec<_>>(), expected, "{text}");
        }
        Err(errors) => panic!("{text}\n{errors:#?}"),
    }
}
