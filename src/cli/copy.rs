//! `imgfs push` and `imgfs copy`

use std::sync::Arc;

use imgfs::{
    backend::images_dir::Linking,
    ops::{Images, Request, TransferOptions, TreeSpec},
    template::Template,
    transfer::Options,
};
use regex::Regex;

use super::{
    Failure, Outcome,
    args::{CopyArgs, LinkArg, NamingArgs, PushArgs},
    output::Output,
    pull::{image_list, layout, name_below, options, sync},
    request::{
        CREATE_PROJECTS, INDEX_LAYERS, LAYOUT, RECHECK, SINGLE_WRITER, SYNC, Setting, carry_out,
        check_target,
    },
    words::Verb,
};

pub(crate) fn push(args: &PushArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let images = match (args.images.as_slice(), &args.file) {
        ([], None) => Images::All,
        (named, file) => {
            let stdin_is_taken = args.registries.password_stdin;
            Images::Listed(image_list(named, file.as_deref(), stdin_is_taken)?)
        }
    };
    let place = args.tree.place()?;
    if args.name.is_some() && place.medium().is_none() {
        return Err(Failure::new("--name is for places that do not name their images in full"));
    }
    let request = Request {
        name: name_below(args.name.as_deref())?,
        pattern: pattern("--src-pattern", args.src_pattern.as_deref())?,
        dest: Some(template(&args.dest, &args.naming)?),
        options: Options { recheck: args.recheck, ..options(&args.selection)? },
        vars: args.naming.vars.load()?,
        ..Request::new(place, TreeSpec::Registry { prefix: String::new() }, images)
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
    let (from, to) = (tree("--from", &args.from)?, tree("--to", &args.to)?);
    let is_named = !args.images.is_empty() || args.file.is_some();
    let holds_one = from.medium().is_some_and(|medium| medium.holds_one_image());
    if !args.all && !is_named && !holds_one {
        return Err(Failure::new("no image is named").hint(
            "name images, or say --all for all images of a directory, of a place such as oci:DIR, or of a repository",
        ));
    }
    let images = match args.all || !is_named {
        true => Images::All,
        false => {
            let stdin_is_taken = args.registries.password_stdin;
            Images::Listed(image_list(&args.images, args.file.as_deref(), stdin_is_taken)?)
        }
    };
    if args.name.is_some() && from.medium().is_none() {
        return Err(Failure::new("--name is for places that do not name their images in full")
            .hint("in a directory of images and in a registry they have names; --dest gives them others at the target"));
    }
    let request = Request {
        name: name_below(args.name.as_deref())?,
        pattern: pattern("--pattern", args.pattern.as_deref())?,
        dest: args.dest.as_deref().map(|text| template(text, &args.naming)).transpose()?,
        options: Options { recheck: args.recheck, ..options(&args.selection)? },
        vars: args.naming.vars.load()?,
        ..Request::new(from, to, images)
    };
    check_target(
        "--to",
        &request.to,
        &[
            (args.create_projects, CREATE_PROJECTS),
            (args.recheck, RECHECK),
            (args.layout.is_some(), LAYOUT),
            (args.index_layers, INDEX_LAYERS),
            (args.sync.sync.is_some(), SYNC),
            (args.sharing.single_writer, SINGLE_WRITER),
        ],
    )?;
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
            shard: args.sharing.shard,
            single_writer: args.sharing.single_writer,
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
