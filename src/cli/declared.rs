//! The images of `--manifests`: each an image, a file with one on each line, or a file of tasks.

use std::{fs::File, path::Path, time::Duration};

use imgfs::{
    image::Reference,
    ops::{Images, Request, TreeSpec},
    task::{Playbook, RunEvent, Runner, Selection, Settings, Task, TaskError, TaskOutcome},
};

use super::{Failure, args::MountArgs, output::Output, pull::image_list, run::read_tasks};

pub(super) fn images(args: &MountArgs, output: &Output) -> Result<Vec<Reference>, Failure> {
    let mut images = Vec::new();
    for text in &args.manifests {
        let path = Path::new(text);
        if !path.is_file() {
            if text.starts_with(['/', '.']) {
                return Err(Failure::new(format!("--manifests: there is no file {text}")));
            }
            images.push(text.parse().map_err(|e| Failure::new(format!("--manifests: {e}")))?);
            continue;
        }
        let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let listed = match is_yaml {
            true => of_tasks(path, args, output)?,
            false => image_list(&[], Some(path), true)?,
        };
        for image in listed {
            images.push(image.parse()?);
        }
    }
    Ok(images)
}

/// What the tasks of a file pull. Nothing is carried out.
fn of_tasks(path: &Path, args: &MountArgs, output: &Output) -> Result<Vec<String>, Failure> {
    let shown = path.display();
    let refuse = |errors: Vec<TaskError>| {
        let errors: Vec<String> = errors.iter().map(|e| format!("{shown}: {e}")).collect();
        Failure::new(errors.join("\n"))
    };
    let text = File::open(path).and_then(read_tasks);
    let text = text.map_err(|e| Failure::new(format!("{shown}: {e}")))?;
    let playbook = Playbook::parse(&text, None).map_err(refuse)?;
    let settings = Settings {
        images_dir: args.tree.place()?,
        base: path.parent().unwrap_or(Path::new("")).to_owned(),
        vars: args.vars.load()?,
        ..Settings::default()
    };
    let selection = Selection::default();
    let warnings = playbook.check(&settings, &selection).map_err(refuse)?;
    for warning in playbook.warnings.iter().chain(&warnings) {
        output.warning(&format!("{shown}: {warning}"));
    }
    let mut pulls = Pulls::default();
    playbook.run(&settings, &selection, &mut pulls);
    if pulls.images.is_empty() {
        return Err(Failure::new(format!("{shown}: no task pulls images")));
    }
    Ok(pulls.images)
}

/// Collects what would be pulled, as if all had been well.
#[derive(Default)]
struct Pulls {
    images: Vec<String>,
}

impl Runner for Pulls {
    fn carry_out(&mut self, _: &Task, request: &Request) -> TaskOutcome {
        let is_pull = matches!(&request.from, TreeSpec::Registry { prefix } if prefix.is_empty())
            && matches!(request.to, TreeSpec::Directory(_))
            && request.source.is_none();
        if let (true, Images::Listed(images)) = (is_pull, &request.images) {
            self.images.extend(images.iter().cloned());
        }
        TaskOutcome::Success
    }

    fn tell(&mut self, _: &Task, _: RunEvent<'_>) {}

    fn wait(&mut self, _: Duration) {}
}
