//! Debian's `docker-registry` in a child process, on a free port of 127.0.0.1, with its data in a temporary
//! directory.
//!
//! A registry that wants TLS, a password or a token has a side door: a second, plain process over the same
//! storage, started when something is first pushed. Images get in through it, so the tests need no TLS client
//! of their own and the access log holds what the program under test did and nothing else.

use super::hostile::{PASSWORD, USER};
use super::http::{After, Connection, Request, Server};
use super::image::{Blob, Receiver};
use super::skopeo::Place;
use super::tls::{Authority, Certificate};
use super::{process, wait_for};
use base64::Engine as _;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// `bed:secret`, bcrypt with the smallest cost.
const HTPASSWD: &str = "bed:$2y$04$49wUENgWaswYRcO5mpHY/OdwuY/kjGsEGnSpM.ZmZY18nq40cz4Ku\n";

/// How a registry with TLS is set up.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) certificate: Certificate,
    /// Ask for user `bed` with password `secret`.
    pub(crate) basic: bool,
    /// Ask for a client certificate of the registry's own authority.
    pub(crate) client_certificate: bool,
}

/// How a token server behaves.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) lifetime: Duration,
    /// Whether those without credentials may pull; otherwise they are refused.
    pub(crate) anonymous_pull: bool,
    /// Nobody gets a token that is good for more than pulling.
    pub(crate) pull_only: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { lifetime: Duration::from_mins(5), anonymous_pull: false, pull_only: false }
    }
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
}

impl Logged {
    pub(crate) fn is_blob_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    /// PUT that ends the upload of this blob.
    pub(crate) fn is_put_of(&self, digest: &str) -> bool {
        let encoded = digest.replace(':', "%3A");
        let path = &self.path;
        self.method == "PUT"
            && path.contains("/blobs/uploads/")
            && (path.contains(digest) || path.contains(&encoded))
    }

    pub(crate) fn is_mount(&self) -> bool {
        self.method == "POST" && self.path.contains("mount=")
    }

    pub(crate) fn is_manifest_put(&self) -> bool {
        self.method == "PUT" && self.path.contains("/manifests/")
    }
}

pub(crate) struct Registry {
    // Dropped in this order: the processes end before their directory goes.
    child: Running,
    side_door: OnceLock<Running>,
    token_server: Option<TokenServer>,
    authority: Option<Authority>,
    directory: tempfile::TempDir,
    log_start: AtomicUsize,
    marks: AtomicU64,
}

/// A started process and where it listens.
struct Running {
    child: Mutex<Child>,
    port: u16,
    access_log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Registry {
    /// Plain HTTP, open to all.
    pub(crate) fn plain() -> Self {
        Self::start(|_| String::new(), None, None)
    }

    /// A private authority, user `bed`, password `secret`.
    pub(crate) fn tls_basic() -> Self {
        Self::tls(&Tls { certificate: Certificate::Good, basic: true, client_certificate: false })
    }

    pub(crate) fn tls(options: &Tls) -> Self {
        let authority = Authority::new("a test's authority");
        let pair = authority.server(options.certificate);
        let authority_pem = authority.pem().to_owned();
        let settings = move |directory: &Path| {
            let (certificate, key) = pair.write(directory, "server");
            let (certificate, key) = (certificate.display(), key.display());
            let mut tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
            if options.client_certificate {
                let path = directory.join("clients.pem");
                std::fs::write(&path, &authority_pem).expect("writing a certificate");
                let _ = writeln!(tls, "    clientcas: [{}]", path.display());
            }
            if options.basic {
                let path = directory.join("htpasswd");
                std::fs::write(&path, HTPASSWD).expect("writing a password file");
                tls += "auth:\n  htpasswd:\n    realm: bed\n";
                let _ = writeln!(tls, "    path: {}", path.display());
            }
            tls
        };
        Self::start(settings, Some(authority), None)
    }

    /// The certificate that it shows.
    pub(crate) fn server_certificate(&self) -> PathBuf {
        self.directory.path().join("server.pem")
    }

    /// Plain HTTP and bearer tokens.
    pub(crate) fn token(tokens: Tokens) -> Self {
        let server = TokenServer::start(tokens);
        let (realm, certificate) = (server.realm(), server.certificate.clone());
        let settings = move |directory: &Path| {
            let path = directory.join("token.pem");
            std::fs::write(&path, &certificate).expect("writing a certificate");
            format!(
                "auth:\n  token:\n    realm: {realm}\n    service: bed\n    issuer: bed-issuer\n    \
                 rootcertbundle: {}\n",
                path.display()
            )
        };
        Self::start(settings, None, Some(server))
    }

    fn start(
        settings: impl FnOnce(&Path) -> String,
        authority: Option<Authority>,
        token_server: Option<TokenServer>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("making a temporary directory");
        let settings = settings(directory.path());
        let child = launch(directory.path(), "main", &settings);
        Self {
            child,
            side_door: OnceLock::new(),
            token_server,
            authority,
            directory,
            log_start: AtomicUsize::new(0),
            marks: AtomicU64::new(0),
        }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.child.port)
    }

    pub(crate) fn localhost(&self) -> String {
        format!("localhost:{}", self.child.port)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.authority.is_some()
    }

    /// Where the authority's certificate lies.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.authority().write(self.directory.path(), "ca")
    }

    pub(crate) fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("a registry with TLS")
    }

    pub(crate) fn token_requests(&self) -> usize {
        let server = self.token_server.as_ref().expect("a registry with tokens");
        server.requests.load(Ordering::SeqCst)
    }

    /// The scopes for which tokens were asked, in the order of the requests.
    pub(crate) fn scopes_asked(&self) -> Vec<String> {
        let server = self.token_server.as_ref().expect("a registry with tokens");
        server.scopes.lock().expect("never poisoned").clone()
    }

    /// Where skopeo finds `repository:tag`, through the front door with all that this registry asks for (but
    /// for client certificates).
    pub(crate) fn place(&self, image: &str) -> Place {
        let image = format!("{}/{image}", self.host());
        if self.authority.is_some() {
            let certificates = self.directory.path().join("certificates");
            std::fs::create_dir_all(&certificates).expect("making a directory");
            std::fs::copy(self.ca_file(), certificates.join("ca.crt")).expect("copying a file");
            return Place::tls(&image, &certificates).login();
        }
        match self.token_server {
            Some(_) => Place::plain(&image).login(),
            None => Place::plain(&image),
        }
    }

    /// Where a client without TLS and credentials gets in.
    pub(crate) fn open_host(&self) -> String {
        if self.authority.is_none() && self.token_server.is_none() {
            return self.host();
        }
        let door = self.side_door.get_or_init(|| launch(self.directory.path(), "side", ""));
        format!("127.0.0.1:{}", door.port)
    }

    /// What was asked since the start or the last `forget_requests`.
    ///
    /// A line is written after the response, so a client may have ended before the line is there. Hence: ask
    /// for something with a name of its own, and go on until nothing else comes between two such questions.
    pub(crate) fn requests(&self) -> Vec<Logged> {
        let mut before = usize::MAX;
        for _ in 0..100 {
            let entries = self.entries_after_mark();
            if entries.len() == before {
                let start = self.log_start.load(Ordering::SeqCst);
                return entries.into_iter().skip(start).collect();
            }
            before = entries.len();
            std::thread::sleep(Duration::from_millis(15));
        }
        panic!("the registry's access log does not come to rest");
    }

    pub(crate) fn forget_requests(&self) {
        let seen = self.requests().len();
        self.log_start.fetch_add(seen, Ordering::SeqCst);
    }

    fn entries_after_mark(&self) -> Vec<Logged> {
        let number = self.marks.fetch_add(1, Ordering::SeqCst);
        let mark = format!("/v2/?mark={number}.");
        if self.authority.is_none() {
            let url = format!("http://{}{mark}", self.host());
            let _ = agent().get(url).call();
            let log = &self.child.access_log;
            wait_for("the access log", Duration::from_secs(5), || {
                std::fs::read_to_string(log).is_ok_and(|text| text.contains(&mark))
            });
        } else {
            // No TLS client here: time must do.
            std::thread::sleep(Duration::from_millis(50));
        }
        let text = std::fs::read_to_string(&self.child.access_log).expect("reading the access log");
        text.lines()
            .filter_map(parse_line)
            .filter(|entry| !entry.path.contains("/v2/?mark="))
            .collect()
    }

    /// The raw manifest, straight from the registry.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Option<Vec<u8>> {
        use super::image::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.open_host());
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let mut response = agent().get(url).header("Accept", accept).call().expect("asking");
        if response.status().as_u16() != 200 {
            return None;
        }
        let mut bytes = Vec::new();
        let mut reader = response.body_mut().as_reader();
        reader.read_to_end(&mut bytes).expect("reading a manifest");
        Some(bytes)
    }

    /// Whether a blob is in this repository.
    pub(crate) fn has_blob(&self, repository: &str, digest: &str) -> bool {
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.open_host());
        agent().head(url).call().expect("asking for a blob").status() == 200
    }

    /// The tags of a repository; none where it does not exist.
    pub(crate) fn tags(&self, repository: &str) -> Vec<String> {
        let url = format!("http://{}/v2/{repository}/tags/list", self.open_host());
        let mut response = agent().get(url).call().expect("asking for tags");
        let text = response.body_mut().read_to_string().expect("reading tags");
        let list: serde_json::Value = serde_json::from_str(&text).expect("tags are JSON");
        let tags = list["tags"].as_array().into_iter().flatten();
        tags.map(|tag| tag.as_str().expect("a tag is text").to_owned()).collect()
    }

    /// Overwrites the stored bytes of a blob behind the registry's back.
    pub(crate) fn damage_blob(&self, digest: &str, bytes: &[u8]) {
        let hex = digest.trim_start_matches("sha256:");
        let root = "data/docker/registry/v2/blobs/sha256";
        let path = self.directory.path().join(format!("{root}/{}/{hex}/data", &hex[..2]));
        assert!(path.is_file(), "the registry has no blob {digest}");
        std::fs::write(path, bytes).expect("damaging a blob");
    }
}

impl Receiver for Registry {
    fn put_blob(&self, repository: &str, blob: &Blob) {
        let host = self.open_host();
        let agent = agent();
        let url = format!("http://{host}/v2/{repository}/blobs/{}", blob.digest);
        if agent.head(url).call().expect("asking for a blob").status() == 200 {
            return;
        }
        let url = format!("http://{host}/v2/{repository}/blobs/uploads/");
        let response = agent.post(url).send_empty().expect("starting an upload");
        assert_eq!(response.status(), 202, "starting an upload");
        let location = response.headers()["location"].to_str().expect("a location");
        let location = match location.strip_prefix('/') {
            Some(path) => format!("http://{host}/{path}"),
            None => location.to_owned(),
        };
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", blob.digest);
        let response = agent
            .put(url)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", blob.size().to_string())
            .send(ureq::SendBody::from_owned_reader(blob.content.reader()))
            .expect("uploading a blob");
        assert_eq!(response.status(), 201, "uploading {}", blob.digest);
    }

    fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.open_host());
        let mut response = agent()
            .put(url)
            .header("Content-Type", media_type)
            .send(bytes)
            .expect("uploading a manifest");
        let status = response.status();
        let text = response.body_mut().read_to_string().unwrap_or_default();
        assert_eq!(status, 201, "manifest {repository} {reference}: {text}");
    }
}

fn agent() -> &'static ureq::Agent {
    static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
    AGENT.get_or_init(|| {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_mins(2)))
            .build()
            .into()
    })
}

fn launch(directory: &Path, name: &str, settings: &str) -> Running {
    let program = process::require_program("docker-registry", "docker-registry");
    let program = program.to_str().expect("a path of plain characters");
    let config = directory.join(format!("{name}.yml"));
    let data = directory.join("data");
    // Port 0: the kernel picks a free one, and the log names it. `settings` starts inside `http:`.
    let text = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n    maxthreads: 100\n  delete:\n    enabled: true\n  maintenance:\n    \
         uploadpurging:\n      enabled: false\nhttp:\n  addr: 127.0.0.1:0\n{settings}",
        data.display()
    );
    std::fs::write(&config, text).expect("writing the registry's configuration");
    let (out, err) =
        (directory.join(format!("{name}.access")), directory.join(format!("{name}.log")));
    let create = |path: &Path| Stdio::from(std::fs::File::create(path).expect("creating a log"));
    let mut child = process::spawn_tied(program, |command| {
        command.arg("serve").arg(&config);
        command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
        // The registry reads REGISTRY_* as settings of its own.
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("REGISTRY_") || name.starts_with("OTEL_") {
                command.env_remove(&key);
            }
        }
    })
    .unwrap_or_else(|error| panic!("starting docker-registry: {error}"));
    let mut port = None;
    wait_for("docker-registry to listen", Duration::from_secs(20), || {
        let log = std::fs::read_to_string(&err).unwrap_or_default();
        port = listening_port(&log);
        if port.is_none()
            && let Ok(Some(status)) = child.try_wait()
        {
            panic!("docker-registry ended ({status}):\n{log}");
        }
        port.is_some()
    });
    Running { child: Mutex::new(child), port: port.expect("just seen"), access_log: out }
}

/// From `... msg="listening on 127.0.0.1:41234" ...` (with `, tls` behind it where there is TLS).
fn listening_port(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once("listening on 127.0.0.1:")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

/// Apache's combined format: `host - - [time] "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
fn parse_line(line: &str) -> Option<Logged> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut request = request.split(' ');
    let mut numbers = rest.split(' ');
    Some(Logged {
        method: request.next()?.to_owned(),
        path: request.next()?.to_owned(),
        status: numbers.next()?.parse().ok()?,
        bytes: numbers.next()?.parse().unwrap_or(0),
    })
}

/// Gives `bed:secret` tokens for whatever it asks for, signed with ES256.
struct TokenServer {
    server: Server,
    requests: Arc<AtomicUsize>,
    scopes: Arc<Mutex<Vec<String>>>,
    certificate: String,
}

struct Signer {
    key: ring::signature::EcdsaKeyPair,
    random: ring::rand::SystemRandom,
    /// Base64 of the certificate in DER, as `x5c` wants it.
    chain: String,
}

impl TokenServer {
    fn start(tokens: Tokens) -> Self {
        let key = rcgen::KeyPair::generate().expect("making a key");
        let certificate = rcgen::CertificateParams::new(["token.test".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("signing a certificate");
        let random = ring::rand::SystemRandom::new();
        let signing = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let signer = Signer {
            key: ring::signature::EcdsaKeyPair::from_pkcs8(signing, &key.serialize_der(), &random)
                .expect("the key is one"),
            random,
            chain: base64::engine::general_purpose::STANDARD.encode(certificate.der()),
        };
        let requests = Arc::new(AtomicUsize::new(0));
        let scopes = Arc::new(Mutex::default());
        let server = Server::start({
            let (requests, scopes) = (requests.clone(), scopes.clone());
            move |request: &Request, connection: &mut Connection<'_>| -> std::io::Result<After> {
                requests.fetch_add(1, Ordering::SeqCst);
                let (status, body) = answer(request, &tokens, &signer, &scopes);
                let headers = [("Content-Type", "application/json")];
                connection.respond(status, &headers, body.as_bytes())
            }
        });
        Self { server, requests, scopes, certificate: certificate.pem() }
    }

    fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }
}

fn answer(
    request: &Request,
    tokens: &Tokens,
    signer: &Signer,
    asked: &Mutex<Vec<String>>,
) -> (u16, String) {
    let refusal = || (401, json!({"errors": [{"code": "UNAUTHORIZED"}]}).to_string());
    let form = request.form();
    let mut scopes: Vec<&str> = request.queries("scope");
    let known = if request.method == "POST" {
        scopes.extend(form.get("scope").map(String::as_str));
        let field = |name: &str| form.get(name).map(String::as_str);
        if field("username") != Some(USER) || field("password") != Some(PASSWORD) {
            return refusal();
        }
        true
    } else {
        match request.header("authorization") {
            Some(given) if given == super::hostile::basic(USER, PASSWORD) => true,
            None if tokens.anonymous_pull => false,
            _ => return refusal(),
        }
    };
    let scopes: Vec<&str> = scopes.iter().flat_map(|scope| scope.split(' ')).collect();
    asked.lock().expect("never poisoned").extend(scopes.iter().map(|scope| (*scope).to_owned()));
    let may_push = known && !tokens.pull_only;
    let access: Vec<_> = scopes
        .iter()
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let allowed: Vec<&str> =
                actions.split(',').filter(|action| may_push || *action == "pull").collect();
            Some(json!({"type": kind, "name": name, "actions": allowed}))
        })
        .collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let lifetime = tokens.lifetime.as_secs();
    let claims = json!({
        "iss": "bed-issuer", "sub": if known { USER } else { "" }, "aud": "bed",
        "exp": now + lifetime, "nbf": now - 5, "iat": now, "jti": format!("{now}"), "access": access,
    });
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [signer.chain]});
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let text = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature =
        signer.key.sign(&signer.random, text.as_bytes()).expect("signing with a good key");
    let token = format!("{text}.{}", encode(signature.as_ref()));
    let body = json!({"token": token, "access_token": token, "expires_in": lifetime});
    (200, body.to_string())
}
