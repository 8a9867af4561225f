//! HTTP clients: one for each way of talking to registries and each limit on where its connections
//! may lead, since a connection that one of them has open may be used by whoever has that client.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use reqwest::{
    Client, Url,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
    redirect,
};
use tokio::{sync::OnceCell, task};

use super::{
    address::{Resolver, Zone, Zones},
    config::{Access, RegistryConfig},
    failure::root_cause,
    tls,
};
use crate::{
    backend::{Error, Kind, Result},
    util::locked,
};

/// Idle connections that are kept to one host: as many as there are simultaneous requests for
/// names, which are the most.
const IDLE_CONNECTIONS: usize = 24;

/// Stands for a connection of its own for each request, which has not been used before and will not be again.
pub(super) const FRESH: usize = usize::MAX;

/// All clients of a process. Their number is bounded by that of the entries in the configuration.
pub(super) struct Clients {
    config: Arc<RegistryConfig>,
    zones: Arc<Zones>,
    made: Mutex<HashMap<Use, Slot>>,
}

/// What a client is for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Use {
    access: Access,
    limit: Zone,
    certificates: Certificates,
    connection: usize,
}

/// Whether a client knows the system's authorities: reading them takes longer than asking a registry
/// nearby whether a tag has changed, and over plain HTTP nobody shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Certificates {
    System,
    None,
}

/// A client, made by whoever needs it first.
type Slot = Arc<OnceCell<Client>>;

impl Clients {
    pub(super) fn new(config: Arc<RegistryConfig>) -> Self {
        Self { config, zones: Arc::default(), made: Mutex::default() }
    }

    /// What names have resolved to.
    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The client for requests to `url` with `access`, whose connections lead no further than `limit`.
    ///
    /// Over HTTP/2 a client has one connection to a host, for all that is asked of it. Those for another
    /// `connection` than 0 have one of their own, and with [`FRESH`] each request has.
    pub(super) async fn get(
        &self,
        url: &Url,
        access: &Access,
        limit: Zone,
        connection: usize,
    ) -> Result<Client> {
        let certificates = match url.scheme() == "http" && !has_proxy_for_http() {
            true => Certificates::None,
            false => Certificates::System,
        };
        let wanted = Use { access: access.clone(), limit, certificates, connection };
        let slot = locked(&self.made).entry(wanted).or_default().clone();
        let client = slot.get_or_try_init(|| async {
            let (access, config) = (access.clone(), self.config.clone());
            let resolver = Resolver::new(limit, self.zones.clone());
            let idle = if connection == FRESH { 0 } else { IDLE_CONNECTIONS };
            // It reads certificates from files.
            let made = task::spawn_blocking(move || {
                client(&access, certificates, &config, resolver, idle)
            });
            let made = made.await;
            made.unwrap_or_else(|panic| Err(wrong(panic.to_string())))
        });
        client.await.cloned()
    }
}

/// Reads all certificate files, so that a wrong one is known before anything is done.
pub(super) fn check(config: &RegistryConfig) -> Result<()> {
    let entries = (0..config.entries.len()).map(Some);
    for access in entries.chain([None]).map(|entry| config.access(entry)) {
        if access.ca_file.is_some() || access.cert_file.is_some() {
            let resolver = Resolver::new(Zone::Public, Arc::default());
            client(&access, Certificates::System, config, resolver, IDLE_CONNECTIONS)?;
        }
    }
    Ok(())
}

/// Whether requests over plain HTTP may go to a proxy, and perhaps over TLS to there.
fn has_proxy_for_http() -> bool {
    let names = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
    names.iter().any(|name| std::env::var_os(name).is_some())
}

fn wrong(reason: String) -> Error {
    Error::new("configuration", "setting up TLS", Kind::Config(reason))
}

/// Makes the client for one way of talking to registries, which keeps up to `idle` connections to a host. It
/// has no deadline but that for connecting: whoever uses it waits with [`super::stall`].
fn client(
    access: &Access,
    certificates: Certificates,
    config: &RegistryConfig,
    resolver: Resolver,
    idle: usize,
) -> Result<Client> {
    tls::choose_provider();
    let read = |path: &Path| fs::read(path).map_err(|e| wrong(format!("{}: {e}", path.display())));
    // Digests and ranges are of content that nobody has compressed on its way.
    let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    let mut builder = Client::builder()
        .default_headers(headers)
        .user_agent(concat!("imgfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(idle)
        .http2_adaptive_window(true)
        .dns_resolver(resolver)
        .tls_danger_accept_invalid_certs(access.skip_tls_verify);
    for (host, address) in &config.resolve {
        builder = builder.resolve(host, *address);
    }
    // Of `*`, which means everything, the library makes only every name.
    let everything =
        |name| std::env::var(name).is_ok_and(|list| list.split(',').any(|h| h.trim() == "*"));
    if everything("NO_PROXY") || everything("no_proxy") {
        builder = builder.no_proxy();
    }
    if certificates == Certificates::None {
        return builder.tls_certs_only([]).build().map_err(|e| wrong(root_cause(&e)));
    }
    let client_certificate = match (&access.cert_file, &access.key_file) {
        (Some(cert), Some(key)) => Some((cert, read(cert)?, read(key)?)),
        _ => None,
    };
    if let (Some(path), false) = (&access.ca_file, access.skip_tls_verify) {
        let client = client_certificate.as_ref();
        let client = client.map(|(_, cert, key)| (cert.as_slice(), key.as_slice()));
        let config = tls::config(&read(path)?, client)
            .map_err(|reason| wrong(format!("{}: {reason}", path.display())))?;
        builder = builder.tls_backend_preconfigured(config);
    } else if let Some((path, cert, key)) = client_certificate {
        let identity = reqwest::Identity::from_pem(&[&cert[..], b"\n", &key].concat())
            .map_err(|e| wrong(format!("{}: {}", path.display(), root_cause(&e))))?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|e| wrong(root_cause(&e)))
}
