//! `imgfs push` and `imgfs copy`

use std::sync::Arc;

use imgfs::{
    backend::images_dir::Linking,
    ops::{Images, Request, TransferOptions, TreeSpec},
    template::Template,
};
use regex::Regex;

use super::{
    Failure, Outcome,
    args::{CopyArgs, LinkArg, NamingArgs, PushArgs},
    output::Output,
    pull::{image_list, layout, options, sync},
    request::{Setting, carry_out},
    words::Verb,
};

pub(crate) fn push(args: &PushArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let images = match args.images.as_slice() {
        [] => Images::All,
        images => Images::Listed(images.to_vec()),
    };
    let request = Request {
        pattern: pattern("--src-pattern", args.src_pattern.as_deref())?,
        dest: Some(template(&args.dest, &args.naming)?),
        options: options(&args.selection)?,
        vars: args.naming.vars.load()?,
        ..Request::new(
            TreeSpec::Directory(args.tree.images_dir.clone()),
            TreeSpec::Registry { prefix: String::new() },
            images,
        )
    };
    let setting = Setting {
        verb: Verb::Push,
        task: None,
        registries: &args.registries,
        options: TransferOptions {
            create_projects: args.create_projects,
            dry_run: args.dry_run,
            ..TransferOptions::default()
        },
        output,
    };
    Ok(carry_out(&request, &setting)?.into())
}

pub(crate) fn copy(args: &CopyArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let images = match args.all {
        true => Images::All,
        false => {
            let stdin_is_taken = args.registries.password_stdin;
            Images::Listed(image_list(&args.images, args.file.as_deref(), stdin_is_taken)?)
        }
    };
    let (from, to) = (tree("--from", &args.from)?, tree("--to", &args.to)?);
    let request = Request {
        pattern: pattern("--pattern", args.pattern.as_deref())?,
        dest: args.dest.as_deref().map(|text| template(text, &args.naming)).transpose()?,
        options: options(&args.selection)?,
        vars: args.naming.vars.load()?,
        ..Request::new(from, to, images)
    };
    if args.create_projects && matches!(request.to, TreeSpec::Directory(_)) {
        return Err(Failure::new("--create-projects is about registries, and --to is a directory"));
    }
    if args.layout.is_some() && matches!(request.to, TreeSpec::Registry { .. }) {
        return Err(Failure::new("--layout is about directories, and --to is a registry"));
    }
    if args.index_layers && matches!(request.to, TreeSpec::Registry { .. }) {
        return Err(Failure::new("--index-layers is about directories, and --to is a registry")
            .hint("`imgfs index push` attaches indexes to an image in a registry"));
    }
    if args.sync.sync.is_some() && matches!(request.to, TreeSpec::Registry { .. }) {
        return Err(Failure::new("--sync is about directories, and --to is a registry"));
    }
    let setting = Setting {
        verb: Verb::Copy,
        task: None,
        registries: &args.registries,
        options: TransferOptions {
            layout: layout(args.layout),
            linking: match args.link {
                LinkArg::Auto => Linking::Auto,
                LinkArg::Never => Linking::Never,
            },
            sync: sync(args.sync.sync),
            create_projects: args.create_projects,
            dry_run: args.dry_run,
            index_layers: args.index_layers,
        },
        output,
    };
    Ok(carry_out(&request, &setting)?.into())
}

fn tree(option: &str, text: &str) -> Result<TreeSpec, Failure> {
    text.parse().map_err(|e| Failure::new(format!("{option}: {e}")))
}

fn pattern(option: &str, text: Option<&str>) -> Result<Option<Regex>, Failure> {
    let compiled = text.map(Regex::new).transpose();
    compiled.map_err(|e| Failure::new(format!("{option} is not a regular expression: {e}")))
}

fn template(text: &str, naming: &NamingArgs) -> Result<Template, Failure> {
    let dialect = naming.template.map(Into::into);
    Template::parse(text, dialect).map_err(|e| Failure::new(format!("--dest: {e}")))
}
