//! `imgfs pull`

use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use imgfs::{
    backend::{
        NameBelow,
        images_dir::{Layout, SyncMode},
    },
    image::{PlatformFilter, Reference},
    ops::{Images, Request, TransferOptions, TreeSpec},
    transfer::{IndexMode, Options, Policy},
};

use super::{
    Failure, Outcome,
    args::{ExtentArgs, IndexArg, LayoutArg, PolicyArg, PullArgs, SelectionArgs, SyncArg},
    output::Output,
    request::{INDEX_LAYERS, LAYOUT, SINGLE_WRITER, SYNC, Setting, carry_out, check_target},
    words::Verb,
};

pub(crate) fn run(args: &PullArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let stdin_is_taken = args.registries.password_stdin;
    let images = image_list(&args.images, args.file.as_deref(), stdin_is_taken)?;
    let request = Request {
        options: options(&args.selection)?,
        ..Request::new(
            TreeSpec::Registry { prefix: String::new() },
            args.tree.place()?,
            Images::Listed(images),
        )
    };
    check_target(
        "--images-dir",
        &request.to,
        &[
            (args.layout.is_some(), LAYOUT),
            (args.index_layers, INDEX_LAYERS),
            (args.sync.sync.is_some(), SYNC),
            (args.sharing.single_writer, SINGLE_WRITER),
        ],
    )?;
    let setting = Setting {
        verb: Verb::Pull,
        task: None,
        registries: &args.registries,
        options: TransferOptions {
            layout: layout(args.layout),
            sync: sync(args.sync.sync),
            shard: args.sharing.shard,
            single_writer: args.sharing.single_writer,
            dry_run: args.dry_run,
            index_layers: args.index_layers,
            ..TransferOptions::default()
        },
        output,
    };
    Ok(carry_out(&request, &setting)?.into())
}

/// The images on the command line and in `--file`. Each has been found to be a reference.
pub(crate) fn image_list(
    named: &[String],
    file: Option<&Path>,
    stdin_is_taken: bool,
) -> Result<Vec<String>, Failure> {
    let mut images = named.to_vec();
    if let Some(text) = named.iter().find(|text| matches!(text.as_str(), "true" | "false")) {
        let message = format!("`{text}` is hardly an image; write --referrers={text}");
        return Err(Failure::new(message));
    }
    let Some(path) = file else { return Ok(images) };
    let failed = |e: io::Error| Failure::new(format!("--file {}: {e}", path.display()));
    let text = if path == Path::new("-") {
        if stdin_is_taken {
            return Err(Failure::new("--file - and --password-stdin both want standard input"));
        }
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        fs::read_to_string(path).map_err(failed)?
    };
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            if let Err(e) = line.parse::<Reference>() {
                let place = format!("--file {}, line {}", path.display(), number + 1);
                return Err(Failure::new(format!("{place}: {e}")));
            }
            images.push(line.to_owned());
        }
    }
    Ok(images)
}

/// What `--name` says.
pub(crate) fn name_below(text: Option<&str>) -> Result<Option<NameBelow>, Failure> {
    text.map(|text| text.parse().map_err(|e| Failure::new(format!("--name: {e}")))).transpose()
}

pub(crate) fn options(args: &SelectionArgs) -> Result<Options, Failure> {
    let platforms = PlatformFilter::parse(&args.platform)
        .map_err(|e| Failure::new(format!("--platform: {e}")))?;
    Ok(Options {
        platforms,
        policy: match args.policy {
            PolicyArg::Strict => Policy::Strict,
            PolicyArg::Warn => Policy::Warn,
        },
        ..extent(&args.extent)
    })
}

/// Options in which everything else is as by default.
pub(crate) fn extent(args: &ExtentArgs) -> Options {
    Options {
        index: match args.index {
            IndexArg::Rewrite => IndexMode::Rewrite,
            IndexArg::Keep => IndexMode::Keep,
        },
        attachments: args.referrers,
        ..Options::default()
    }
}

pub(crate) fn sync(arg: Option<SyncArg>) -> SyncMode {
    match arg {
        None | Some(SyncArg::None) => SyncMode::None,
        Some(SyncArg::End) => SyncMode::End,
        Some(SyncArg::Each) => SyncMode::Each,
    }
}

pub(crate) fn layout(arg: Option<LayoutArg>) -> Option<Layout> {
    arg.map(|layout| match layout {
        LayoutArg::Documented => Layout::Documented,
        LayoutArg::Kubekey => Layout::Kubekey,
        LayoutArg::Kubekey403 => Layout::Kubekey403,
        LayoutArg::Portable => Layout::Portable,
    })
}
