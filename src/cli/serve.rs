//! `imgfs serve`

use std::sync::Arc;

use imgfs::{
    ops::{Medium, TreeSpec},
    serve::{AccessSettings, Images, Server, Settings, StartError, TlsFiles},
    util::{Budget, Metrics},
};
use tokio::signal::unix::Signal;

use super::{
    Failure, Outcome,
    args::{AnonymousArg, ClientArg, ServeArgs},
    daemon::{self, Ready},
    mount::{absolute, signals},
    output::Output,
    registries, runtime,
};

pub(crate) fn run(args: &ServeArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    if let Some(client) = args.print_config {
        output.line(client_config(client, args)?.trim_end());
        return Ok(Outcome::Done);
    }
    daemon::keep_one_heap()?;
    let settings = settings(args, output)?;
    let root = args.tree.place()?.to_string();
    let metrics = Metrics::default();
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let signals =
            signals().map_err(|e| Failure::new(format!("cannot watch for signals: {e}")))?;
        let endpoint = daemon::show_metrics(args.metrics.as_ref(), &metrics).await?;
        let has_tls = settings.tls.is_some();
        let server = Server::start(settings, &metrics).await?;
        for address in server.addresses() {
            let scheme = if has_tls { "https" } else { "http" };
            let place = match address.to_string() {
                path if path.starts_with("unix:") => path,
                address => format!("{scheme}://{address}"),
            };
            output.line(&format!("{root} is served at {place}"));
        }
        if let Some(endpoint) = &endpoint {
            output.line(&format!("metrics are at {}", endpoint.address()));
        }
        Ready::foreground().tell()?;
        server.run(stopped(signals)).await;
        drop(endpoint);
        Ok::<(), Failure>(())
    });
    // What is fetched for nobody any more does not hold up the end.
    runtime.shutdown_background();
    served.map(|()| Outcome::Done)
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Backend(error) => error.into(),
            other => Self::new(other.to_string()),
        }
    }
}

fn settings(args: &ServeArgs, output: &Arc<Output>) -> Result<Settings, Failure> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: args.client_ca.clone(),
        }),
        _ => None,
    };
    let default_registry = args.default_registry.trim();
    Ok(Settings {
        images: images(args)?,
        listen: args.listen.clone(),
        read_only: args.read_only,
        allow_delete: args.allow_delete,
        sparse: args.sparse,
        upstreams: args.upstream.clone(),
        registries: registries::config(&args.registries, &[], output)?,
        default_registry: (!default_registry.is_empty()).then(|| default_registry.to_owned()),
        local_name: args.local_name.clone(),
        tag_ttl: args.tag_ttl,
        max_stale: args.max_stale.0,
        upstream_wait: args.upstream_wait,
        offline: args.offline,
        keep: args.keep,
        cache_dir: args.cache_dir.as_deref().map(absolute).transpose()?,
        cache_bytes: args.cache_size,
        budget: Budget::of_process(args.memory),
        upload_ttl: args.upload_ttl,
        max_connections: args.max_connections as usize,
        prune_every: args.prune_every,
        tls,
        access: AccessSettings {
            htpasswd: args.htpasswd.clone(),
            rules: args.access.clone(),
            anonymous_pull: args.anonymous == AnonymousArg::Pull,
            certificates: args.client_ca.is_some(),
        },
        insecure_auth: args.insecure_auth,
        access_log: args.access_log.clone(),
    })
}

/// What is to be served.
fn images(args: &ServeArgs) -> Result<Images, Failure> {
    let place = args.tree.place()?;
    match (&place, place.medium()) {
        (TreeSpec::Medium(_), Some(Medium::ObjectStore { store, bucket, prefix })) => {
            Ok(Images::Bucket { provider: store, bucket, prefix, redirect: args.redirect })
        }
        (TreeSpec::Directory(path), _) if !args.redirect => Ok(Images::Directory(absolute(path)?)),
        (TreeSpec::Directory(_), _) => Err(Failure::new(
            "--redirect is for object stores: nobody but this server has the files of a directory",
        )),
        _ => Err(Failure::new(format!(
            "{place}: `imgfs serve` is for a directory of images, or an object store"
        ))),
    }
}

/// Is done when the process is told to end; the second time, it ends at once.
async fn stopped(signals: [Signal; 2]) {
    let [mut term, mut interrupt] = signals;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
}

/// What a client is configured with to use the server as its mirror.
fn client_config(client: ClientArg, args: &ServeArgs) -> Result<String, Failure> {
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    let url = match (&args.url, args.listen.first()) {
        (Some(url), _) => url.trim_end_matches('/').to_owned(),
        (None, Some(address)) => format!("{scheme}://{address}"),
        (None, None) => return Err(Failure::new("give --url")),
    };
    let (scheme, host) = url.split_once("://").unwrap_or((scheme, &url));
    if host.is_empty() || !matches!(scheme, "http" | "https") {
        return Err(Failure::new(format!("--url {url}: write it as in http://127.0.0.1:5000")));
    }
    let is_plain = scheme == "http";
    Ok(match client {
        ClientArg::Containerd => format!(
            "\
# /etc/containerd/certs.d/_default/hosts.toml
# containerd asks here first, and says with ns= which registry is meant. In /etc/containerd/config.toml:
#   [plugins.\"io.containerd.grpc.v1.cri\".registry]
#     config_path = \"/etc/containerd/certs.d\"
# (containerd 2: [plugins.\"io.containerd.cri.v1.images\".registry])
# By hand: ctr images pull --hosts-dir /etc/containerd/certs.d docker.io/library/nginx:1.25

[host.\"{scheme}://{host}\"]
  capabilities = [\"pull\", \"resolve\"]
"
        ),
        ClientArg::Podman => format!(
            "\
# /etc/containers/registries.conf.d/imgfs.conf
# For podman, buildah, skopeo and CRI-O. A registry that is to be mirrored needs an entry of its own.

[[registry]]
prefix = \"docker.io\"
location = \"docker.io\"

[[registry.mirror]]
location = \"{host}/docker.io\"
insecure = {is_plain}

[[registry]]
prefix = \"quay.io\"
location = \"quay.io\"

[[registry.mirror]]
location = \"{host}/quay.io\"
insecure = {is_plain}

# The registry itself, for pushes:
[[registry]]
location = \"{host}\"
insecure = {is_plain}
"
        ),
        ClientArg::Docker => {
            let insecure = match is_plain {
                true => format!(",\n  \"insecure-registries\": [\"{host}\"]"),
                false => String::new(),
            };
            // Docker mirrors Docker Hub alone, and says no `ns=`.
            format!("{{\n  \"registry-mirrors\": [\"{scheme}://{host}\"]{insecure}\n}}\n")
        }
    })
}
