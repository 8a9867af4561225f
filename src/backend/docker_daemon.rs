//! A Docker daemon, through its socket: images come out as `docker save` writes them, and go in as `docker load`
//! reads them (Docker Engine API, "Export several images" and "Import images").
//!
//! The daemon gives images by name or ID and takes archives; it knows no manifests and no blobs. So what is read is
//! saved into a file without a name first, and is then an archive like any other ([`super::archive`]). Digests are
//! those of the archive: the daemon keeps no compressed layers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Body, Client, Response};
use serde::Deserialize;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Collection, Content, Error, Kind, NameBelow, PackedImage, Packer, Received, Result,
    archive::{self, ArchivePacker, Output, PackFormat},
    registry::{root_cause, tls, within},
};
use crate::{
    image::{Descriptor, Manifest},
    util::disturbs,
};

/// Where the daemon listens if nothing else is said.
const SOCKET: &str = "/var/run/docker.sock";

const SIDE: &str = "docker daemon";

/// The longest answer that is read as text, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Images that are saved at once if none is named.
const MAX_IMAGES: usize = 1000;

/// Pieces of an archive that wait to be sent.
const QUEUED: usize = 4;

/// How long the daemon may say nothing when it is asked what it has.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may neither take nor give a byte of an archive. Before the first one of a save, and after the last one of
/// a load, it writes all of the images to its disk.
const WORK_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A daemon that can be reached.
struct Daemon {
    client: Client,
    socket: PathBuf,
}

/// An image that the daemon lists.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    id: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// A line of the answer to a load.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    error: Option<String>,
}

impl Daemon {
    fn new() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let socket = match (host.is_empty(), host.strip_prefix("unix://")) {
            (true, _) => PathBuf::from(SOCKET),
            (false, Some(path)) => PathBuf::from(path),
            (false, None) => {
                let reason = format!(
                    "DOCKER_HOST is `{host}`, and only a socket of this machine (unix://PATH) is supported"
                );
                return Err(Error::new(SIDE, "connecting", Kind::Config(reason)));
            }
        };
        Self::at(socket)
    }

    fn at(socket: PathBuf) -> Result<Self> {
        tls::choose_provider();
        let client = Client::builder()
            .unix_socket(socket.clone())
            .connect_timeout(Duration::from_secs(10))
            .no_proxy()
            // There is no TLS on a socket, so nothing need be trusted.
            .tls_certs_only([])
            .build()
            .map_err(|e| Error::new(SIDE, "connecting", Kind::Config(e.to_string())))?;
        Ok(Self { client, socket })
    }

    /// Waits for the daemon for at most `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        doing: &str,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        within(limit, work).await.map_err(|_| self.stalled(limit, doing))
    }

    fn stalled(&self, limit: Duration, doing: &str) -> Error {
        let side = format!("{SIDE} ({})", self.socket.display());
        Error::new(side, doing, Kind::Stalled(limit))
    }

    fn error(&self, doing: &str, error: &reqwest::Error) -> Error {
        if error.is_connect() {
            let reason = format!(
                "{}: {}; is the daemon running, and may you use its socket?",
                self.socket.display(),
                root_cause(error)
            );
            return Error::new(SIDE, doing, Kind::Connect(reason));
        }
        Error::new(SIDE, doing, Kind::Interrupted(root_cause(error)))
    }

    /// The answer, if it is one of success.
    async fn checked(&self, doing: &str, answer: reqwest::Result<Response>) -> Result<Response> {
        let answer = answer.map_err(|e| self.error(doing, &e))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = self.within(ANSWER_TIMEOUT, doing, text_of(answer)).await?.unwrap_or_default();
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let message = serde_json::from_slice::<Message>(&text).map(|m| m.message);
        let message =
            message.unwrap_or_default().chars().filter(|c| !disturbs(*c)).take(500).collect();
        Err(Error::new(
            SIDE,
            doing,
            match status.as_u16() {
                404 => Kind::NotFound(message),
                status => Kind::Status { status, message, retry_after: None },
            },
        ))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let doing = "listing images";
        let answer = self.client.get("http://docker/images/json").send();
        let answer = self.within(ANSWER_TIMEOUT, doing, answer).await?;
        let answer = self.checked(doing, answer).await?;
        let text = self.within(ANSWER_TIMEOUT, doing, text_of(answer)).await?;
        let text = text.map_err(|e| self.error(doing, &e))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::new(SIDE, doing, Kind::Protocol(e.to_string())))
    }

    /// Saves images, named as the daemon knows them, into a file without a name.
    async fn save(&self, names: &[String]) -> Result<std::fs::File> {
        let doing = format!("saving {}", names.join(", "));
        let request = self.client.get("http://docker/images/get");
        let request = request.query(&names.iter().map(|name| ("names", name)).collect::<Vec<_>>());
        let answer = self.within(WORK_TIMEOUT, &doing, request.send()).await?;
        let answer = self.checked(&doing, answer).await?;
        let io = |e: std::io::Error| Error::new(SIDE, &doing, e);
        let mut file = archive::unnamed_file().map_err(io)?;
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = self.within(WORK_TIMEOUT, &doing, pieces.next()).await? {
            let piece = piece.map_err(|e| self.error(&doing, &e))?;
            let written = tokio::task::spawn_blocking(move || {
                std::io::Write::write_all(&mut file, &piece).map(|()| file)
            });
            let written = written.await.map_err(|e| io(std::io::Error::other(e)))?;
            file = written.map_err(io)?;
        }
        Ok(file)
    }
}

async fn text_of(answer: Response) -> reqwest::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.try_next().await? {
        let room = MAX_ANSWER.saturating_sub(text.len());
        text.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    Ok(text)
}

/// Saves the image that the daemon calls `name`, or all that have names, and opens what has been saved. Images that
/// the daemon does not name are named below `below`.
pub async fn open(name: Option<&str>, below: Option<&NameBelow>) -> Result<Collection> {
    let daemon = Daemon::new()?;
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            let images = daemon.images().await?;
            let named = images.into_iter().flat_map(|image| {
                let tags = image.repo_tags.unwrap_or_default();
                let tags: Vec<String> =
                    tags.into_iter().filter(|tag| tag != "<none>:<none>").collect();
                if tags.is_empty() && below.is_some() { vec![image.id] } else { tags }
            });
            named.take(MAX_IMAGES + 1).collect()
        }
    };
    if names.len() > MAX_IMAGES {
        let reason = format!("it has more than {MAX_IMAGES} images; name one: docker-daemon:NAME");
        return Err(Error::new(SIDE, "listing images", Kind::Unfit(reason)));
    }
    if names.is_empty() {
        let reason = "it has no images".to_owned();
        return Err(Error::new(SIDE, "listing images", Kind::NotFound(reason)));
    }
    let file = daemon.save(&names).await?;
    archive::open_unnamed(file, Path::new("of the docker daemon"), None, below).await
}

/// Images that are loaded into a daemon, while they are packed.
pub struct DaemonPacker {
    archive: ArchivePacker,
    /// `None` once its outcome is known.
    load: Option<JoinHandle<Result<()>>>,
}

impl DaemonPacker {
    /// Begins to load images into the daemon of this machine. An image is called `label` there, if not by its name.
    pub fn begin(label: Option<&str>) -> Result<Self> {
        let daemon = Arc::new(Daemon::new()?);
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUED);
        let archive =
            ArchivePacker::new(SIDE.to_owned(), PackFormat::Docker, label, Output::Channel(sender));
        let load = tokio::spawn(async move { load(&daemon, receiver).await });
        Ok(Self { archive, load: Some(load) })
    }

    /// The outcome of the load, if there is one: what went wrong there is why nothing more can be packed.
    async fn outcome(&mut self) -> Result<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        let ended = load.await;
        ended.unwrap_or_else(|e| Err(Error::new(SIDE, "loading", std::io::Error::other(e))))
    }

    async fn told(&mut self, error: Error) -> Error {
        match matches!(error.kind(), Kind::Io(_)) {
            true => self.outcome().await.err().unwrap_or(error),
            false => error,
        }
    }
}

async fn load(daemon: &Daemon, receiver: mpsc::Receiver<Bytes>) -> Result<()> {
    let doing = "loading";
    // What is on its way is held by the connection for as long as that takes nothing; what is packed must not be.
    let (pipe, pieces) = mpsc::channel::<Bytes>(1);
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<Bytes, std::io::Error>(piece), pieces))
    });
    let request = daemon.client.post("http://docker/images/load?quiet=1");
    let request = request.header("content-type", "application/x-tar");
    let answer = tokio::select! {
        answer = request.body(Body::wrap_stream(pieces)).send() => answer,
        () = pass_on(receiver, pipe) => return Err(daemon.stalled(WORK_TIMEOUT, doing)),
    };
    let answer = daemon.checked(doing, answer).await?;
    let text = daemon.within(WORK_TIMEOUT, doing, text_of(answer)).await?;
    let text = text.map_err(|e| daemon.error(doing, &e))?;
    // The status is sent before anything is loaded; how that went is said in lines.
    for line in text.split(|byte| *byte == b'\n') {
        if let Ok(Line { error: Some(reason) }) = serde_json::from_slice(line) {
            return Err(Error::new(SIDE, doing, Kind::Unfit(reason.chars().take(500).collect())));
        }
    }
    Ok(())
}

/// Gives what is packed to the daemon. Returns when that has taken nothing, or not answered, for too long; how long
/// packing takes does not count.
async fn pass_on(mut receiver: mpsc::Receiver<Bytes>, pipe: mpsc::Sender<Bytes>) {
    while let Some(piece) = receiver.recv().await {
        match within(WORK_TIMEOUT, pipe.send(piece)).await {
            Ok(Ok(())) => {}
            // It has answered before the end.
            Ok(Err(_)) => break,
            Err(_) => return,
        }
    }
    drop(pipe);
    tokio::time::sleep(WORK_TIMEOUT).await;
}

#[async_trait]
impl Packer for DaemonPacker {
    fn keeps_manifests(&self) -> bool {
        false
    }

    fn keeps_attachments(&self) -> bool {
        false
    }

    async fn blob(&mut self, blob: &Descriptor, content: &Arc<dyn Content>) -> Result<Received> {
        match self.archive.blob(blob, content).await {
            Ok(received) => Ok(received),
            Err(error) => Err(self.told(error).await),
        }
    }

    async fn manifest(&mut self, manifest: &Manifest) -> Result<()> {
        self.archive.manifest(manifest).await
    }

    async fn finish(&mut self, images: &[PackedImage]) -> Result<()> {
        if let Err(error) = self.archive.finish(images).await {
            return Err(self.told(error).await);
        }
        self.outcome().await
    }

    async fn abandon(&mut self) {
        // Without the end of the archive and the list in it, the daemon loads nothing.
        if let Some(load) = self.load.take() {
            load.abort();
        }
        self.archive.abandon().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does `work` with a daemon that takes connections, and never says anything.
    fn with_mute_daemon<T>(work: impl AsyncFnOnce(Daemon) -> Result<T>) -> Error {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let result = runtime.block_on(async {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let _accepting = tokio::spawn(async move {
                let mut kept = Vec::new();
                while let Ok((stream, _)) = listener.accept().await {
                    kept.push(stream);
                }
            });
            work(Daemon::at(socket.clone()).unwrap()).await
        });
        let error = result.err().expect("an error");
        assert!(matches!(error.kind(), Kind::Stalled(_)), "{error}");
        assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
        error
    }

    #[test]
    fn a_daemon_that_says_nothing_is_named_and_not_waited_for_without_end() {
        let listing = with_mute_daemon(async |daemon| daemon.images().await);
        assert!(listing.to_string().contains("listing images"), "{listing}");
        let saving = with_mute_daemon(async |daemon| daemon.save(&["nginx:1".to_owned()]).await);
        assert!(saving.to_string().contains("saving nginx:1"), "{saving}");
    }

    #[test]
    fn a_daemon_that_takes_nothing_is_not_loaded_into_without_end() {
        // Whoever packs may take his time; that is not the daemon's.
        let error = with_mute_daemon(async |daemon| {
            let (sender, receiver) = mpsc::channel::<Bytes>(QUEUED);
            let packing = tokio::spawn(async move {
                while sender.send(Bytes::from(vec![0; 1 << 20])).await.is_ok() {
                    tokio::time::sleep(WORK_TIMEOUT * 2).await;
                }
            });
            let loaded = load(&daemon, receiver).await;
            packing.await.unwrap();
            loaded
        });
        assert!(error.to_string().contains("loading"), "{error}");
        // Nor does it get away with taking all and not answering.
        with_mute_daemon(async |daemon| {
            let (sender, receiver) = mpsc::channel::<Bytes>(QUEUED);
            sender.send(Bytes::from_static(b"all")).await.unwrap();
            drop(sender);
            load(&daemon, receiver).await
        });
    }
}
