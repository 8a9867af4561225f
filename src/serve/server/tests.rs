//! How long a connection may keep the server waiting. The clock stands still but when nobody has anything to do, and then
//! goes on to the next moment that somebody waits for: what is asserted is who is sent away, and not when.

use std::{io, path::Path};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::*;
use crate::{
    backend::{ManifestName, Sink},
    image::{Algorithm, Digest, Manifest, Repository},
};

/// How long a client waits, who has time.
const LONG: Duration = Duration::from_secs(3600);

/// A server without listeners, to which connections are brought.
struct Scene {
    dir: tempfile::TempDir,
    images: ImagesDir,
    shared: Arc<Shared>,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    stopping: watch::Sender<bool>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let images = ImagesDir::create(&dir.path().join("images"), None, Linking::Auto).unwrap();
        let upload_ttl = Duration::from_secs(86_400);
        let tree = Directory::new(images.clone(), images.cache_dir(), upload_ttl);
        let shared = Shared::new(Foundation {
            tree: Arc::new(tree),
            names: Names::new("registry.local", None).unwrap(),
            abilities: Abilities { read_only: false, delete: false, sparse: false },
            through: None,
            access: Access::new(&AccessSettings::default()).unwrap(),
            counts: Counts::new(&metrics),
            log: None,
            uploads_at_once: FILE_UPLOADS_AT_ONCE,
        });
        Self { dir, images, shared, tls: None, stopping: watch::channel(false).0 }
    }

    /// The other end of a connection that is served, and what becomes of that.
    async fn connect(&self) -> (TcpStream, tokio::task::JoinHandle<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, address) = listener.accept().await.unwrap();
        let (shared, tls, stopped) =
            (self.shared.clone(), self.tls.clone(), self.stopping.subscribe());
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let served = tokio::spawn(async move {
            let stream = Stream::Tcp(stream);
            serve(&shared, tls, stream, Peer::Tcp(address), stopped, place).await.is_ok()
        });
        (client, served)
    }

    fn overdue(&self) -> u64 {
        self.shared.counts.overdue.get()
    }

    /// A blob of zeros in `team/app`.
    async fn blob(&self, bytes: usize) -> Digest {
        let content = vec![0; bytes];
        let digest = Digest::of(Algorithm::Sha256, &content);
        let root: &Path = self.images.root();
        std::fs::write(root.join("blobs").join(digest.to_string()), &content).unwrap();
        let text = format!(
            r#"{{"schemaVersion": 2, "layers": [], "config": {{
                "mediaType": "x", "digest": "{digest}", "size": {bytes}}}}}"#
        );
        let manifest = Manifest::parse(text.into(), None).unwrap();
        let repository = Repository::new("registry.local", "team/app").unwrap();
        let tag = ManifestName::Tag("v1".to_owned());
        self.images.put(&repository, &manifest, &tag).await.unwrap();
        digest
    }
}

/// Does `work` with a clock that only goes on while nobody has anything to do.
fn paused(work: impl for<'a> FnOnce(&'a mut Scene) -> BoxFuture<'a, ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut scene = Scene::new();
        work(&mut scene).await;
        assert!(scene.dir.path().exists());
    });
}

/// What comes until the other side ends the connection, however it does.
async fn rest(client: &mut TcpStream) -> String {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count) = client.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends `text` byte by byte with a `pause` behind each, until the other side has had enough. Whether all went out.
async fn trickle(client: &mut TcpStream, text: &[u8], pause: Duration) -> io::Result<()> {
    for byte in text {
        client.write_all(&[*byte]).await?;
        sleep(pause).await;
    }
    Ok(())
}

#[test]
fn a_client_that_never_asks_is_sent_away() {
    paused(|scene| {
        Box::pin(async {
            let (mut client, served) = scene.connect().await;
            assert_eq!(rest(&mut client).await, "");
            assert!(served.await.unwrap());
            assert_eq!(scene.overdue(), 1);
        })
    });
}

#[test]
fn a_head_that_trickles_is_not_waited_for() {
    paused(|scene| {
        Box::pin(async {
            for before in ["", "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"] {
                let overdue = scene.overdue();
                let (mut client, served) = scene.connect().await;
                client.write_all(before.as_bytes()).await.unwrap();
                if !before.is_empty() {
                    let mut answer = [0; 12];
                    client.read_exact(&mut answer).await.unwrap();
                    assert_eq!(&answer, b"HTTP/1.1 200");
                }
                let head = format!("GET /v2/ HTTP/1.1\r\nX: {}", "x".repeat(1000));
                // It may be told by the next byte, or by the end.
                let _ = trickle(&mut client, head.as_bytes(), Duration::from_secs(3)).await;
                let said = rest(&mut client).await;
                assert_eq!(said.matches("HTTP/1.1").count(), 0, "{said}");
                assert!(served.await.unwrap());
                assert_eq!(scene.overdue(), overdue + 1);
            }
        })
    });
}

#[test]
fn a_connection_that_rests_is_ended_after_a_while_only() {
    paused(|scene| {
        Box::pin(async {
            let (mut client, served) = scene.connect().await;
            for _ in 0..2 {
                client.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                let mut answer = [0; 12];
                client.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200", "the same connection");
                // What is left of the answer.
                while answer[..2] != *b"{}" {
                    client.read_exact(&mut answer[..1]).await.unwrap();
                    if answer[0] == b'{' {
                        client.read_exact(&mut answer[1..2]).await.unwrap();
                    }
                }
                sleep(Duration::from_secs(60)).await;
            }
            assert_eq!(scene.overdue(), 0);
            assert_eq!(rest(&mut client).await, "");
            assert!(served.await.unwrap());
            assert_eq!(scene.overdue(), 1);
        })
    });
}

#[test]
fn a_client_that_takes_nothing_is_sent_away() {
    paused(|scene| {
        Box::pin(async {
            let blob = scene.blob(64 << 20).await;
            let (mut client, served) = scene.connect().await;
            let ask = format!("GET /v2/team/app/blobs/{blob} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(ask.as_bytes()).await.unwrap();
            assert!(served.await.unwrap(), "it ends though nobody reads");
            assert_eq!(scene.overdue(), 1);
            let all = rest(&mut client).await;
            assert!(all.len() < 64 << 20, "it is told by a break, and not by a clean end");
        })
    });
}

#[test]
fn a_client_of_http2_that_takes_nothing_is_sent_away() {
    paused(|scene| {
        Box::pin(async {
            let blob = scene.blob(64 << 20).await;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            // It may have been chosen already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
            let client = client.tls_certs_only([]).build().unwrap();
            let asking = tokio::spawn(async move {
                let url = format!("http://{address}/v2/team/app/blobs/{blob}");
                client.get(url).send().await.map(|answer| (client, answer))
            });
            let (stream, peer) = listener.accept().await.unwrap();
            let (shared, stopped) = (scene.shared.clone(), scene.stopping.subscribe());
            let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            let served = tokio::spawn(async move {
                let stream = Stream::Tcp(stream);
                serve(&shared, None, stream, Peer::Tcp(peer), stopped, place).await.is_ok()
            });
            let (_client, answer) = asking.await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            // The client keeps the connection alive, and does not read.
            assert!(served.await.unwrap());
            assert_eq!(scene.overdue(), 1);
            assert!(answer.bytes().await.is_err());
        })
    });
}

/// Waits for `work` while the clock goes on. An upload is hashed on another thread all the while, and so the clock does
/// not go on by itself.
async fn while_time_passes<T>(work: impl Future<Output = T>) -> T {
    let passing = async {
        loop {
            tokio::time::advance(Duration::from_secs(1)).await;
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    tokio::select! {
        done = work => done,
        () = passing => unreachable!("it has no end"),
    }
}

#[test]
fn a_body_that_stops_is_an_error_that_says_so() {
    paused(|scene| {
        Box::pin(async {
            for request in [
                "PUT /v2/team/app/manifests/v1",
                "POST /v2/team/app/blobs/uploads/?digest=sha256:{}",
            ] {
                let request = request.replace("{}", &"0".repeat(64));
                let (mut client, _served) = scene.connect().await;
                let head = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
                client.write_all(head.as_bytes()).await.unwrap();
                client.write_all(b"a part").await.unwrap();
                let said = while_time_passes(rest(&mut client)).await;
                assert!(said.starts_with("HTTP/1.1 408"), "{request}: {said}");
            }
        })
    });
}

#[test]
fn a_manifest_that_trickles_is_not_waited_for() {
    paused(|scene| {
        Box::pin(async {
            let (mut client, _served) = scene.connect().await;
            let head =
                "PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = client.into_split();
            tokio::spawn(async move {
                while writer.write_all(b" ").await.is_ok() {
                    sleep(Duration::from_secs(20)).await;
                }
            });
            let mut answer = [0; 12];
            reader.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 408");
        })
    });
}

#[test]
fn an_upload_that_is_slow_comes_to_its_end() {
    paused(|scene| {
        Box::pin(async {
            let text = b"slowly";
            let digest = Digest::of(Algorithm::Sha256, text);
            let (mut client, _served) = scene.connect().await;
            let head = format!(
                "POST /v2/team/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                text.len()
            );
            client.write_all(head.as_bytes()).await.unwrap();
            for (number, byte) in text.iter().enumerate() {
                client.write_all(&[*byte]).await.unwrap();
                // While this looks again and again, the clock stands still.
                while scene.shared.counts.received.get() < number as u64 + 1 {
                    tokio::task::yield_now().await;
                }
                if number + 1 < text.len() {
                    tokio::time::advance(Duration::from_secs(50)).await;
                }
            }
            let said = rest(&mut client).await;
            assert!(said.starts_with("HTTP/1.1 201"), "{said}");
            assert_eq!(scene.overdue(), 0);
        })
    });
}

#[test]
fn a_handshake_that_does_not_end_is_not_waited_for() {
    paused(|scene| {
        Box::pin(async {
            let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let (cert, secret) = (scene.dir.path().join("cert"), scene.dir.path().join("key"));
            std::fs::write(&cert, key.cert.pem()).unwrap();
            std::fs::write(&secret, key.signing_key.serialize_pem()).unwrap();
            let files = TlsFiles { cert, key: secret, client_ca: None };
            scene.tls = Some(Arc::new(tls::config(&files, true).unwrap()));
            // Nothing, the beginning of a record, and what trickles.
            for beginning in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01"] {
                let (mut client, served) = scene.connect().await;
                client.write_all(beginning).await.unwrap();
                if beginning.len() == 3 {
                    let _ = trickle(&mut client, &[1; 200], Duration::from_secs(2)).await;
                }
                rest(&mut client).await;
                assert!(!served.await.unwrap());
            }
            let waited = tokio::time::timeout(LONG, scene.connect()).await;
            assert!(waited.is_ok(), "the next one is welcome");
        })
    });
}
