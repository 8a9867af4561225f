//! `imgfs serve`: what nobody can make it do, how it ends, and others at work.

use crate::support::cli::Imgfs;
use crate::support::content::digest;
use crate::support::image::{Image, single, two_platforms};
use crate::support::serving::Serving;
use crate::support::tree::assert_tree_sound;
use crate::support::{content::Random, scale, seed, text, wait_for};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn serving(args: &[&str]) -> Serving {
    Serving::fresh(args)
}

/// What the server says to some bytes, until it closes the connection.
fn say(serving: &Serving, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("setting a limit");
    // It may close before all has been sent.
    let _ = stream.write_all(bytes);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn heads_are_bounded() {
    let serving = serving(&[]);
    let long = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(40_000));
    assert!(say(&serving, long.as_bytes()).starts_with("HTTP/1.1 431"), "a long header");
    let many = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(3000));
    assert!(say(&serving, many.as_bytes()).starts_with("HTTP/1.1 431"), "many headers");
    let target = format!("GET /v2/{} HTTP/1.1\r\n\r\n", "a".repeat(70_000));
    let said = say(&serving, target.as_bytes());
    assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    assert!(say(&serving, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert_eq!(serving.client().get("/v2/").status, 200);
}

#[test]
fn no_request_is_smuggled_in_another() {
    let serving = serving(&[]);
    // Who believes the length takes what follows for a body; who believes the encoding for a request.
    let both = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 44\r\n\
                Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n";
    let said = say(&serving, both.as_bytes());
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "one answer, and the end: {said}");
    assert!(!said.contains("repositories"), "{said}");
    for wrong in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: 5, 5 5\r\n",
    ] {
        let request = format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n{wrong}\r\nhello");
        let said = say(&serving, request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 400"), "{wrong}: {said}");
    }
}

/// Sends all of a request, whatever is answered meanwhile, and another one over the same connection. The statuses.
fn send_two(serving: &Serving, first: &str, headers: &str, body: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("setting a limit");
    let length = body.len();
    let head = format!("{first} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sending");
    stream.write_all(body).expect("sending the body");
    let second = "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(second.as_bytes()).expect("asking again");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("a clean end");
    let all = String::from_utf8_lossy(&all).into_owned();
    let statuses = all.match_indices("HTTP/1.1 ").map(|(at, start)| &all[at + start.len()..][..3]);
    statuses.map(|status| status.parse().expect("a status")).collect()
}

#[test]
fn an_answer_that_comes_early_arrives_and_the_next_one_too() {
    let serving = serving(&[]);
    let session = serving.client().ask("POST", "/v2/a/blobs/uploads/", b"");
    let session = session.header("location").to_owned();
    let lengths: Vec<usize> =
        session.rsplit('/').next().expect("a name").split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12], "a UUID: {session}");
    let body = vec![7; 5 << 20];
    let patch = format!("PATCH {session}");
    // What is refused before the body is read.
    for (request, headers, status) in [
        (&*patch, "Content-Range: 9-5242888\r\n", 416),
        ("PATCH /v2/a/blobs/uploads/unknown", "", 404),
        ("PUT /v2/a/manifests/sha256:nonsense", "", 400),
        ("PUT /v2/a/manifests/v1", "", 413),
        ("DELETE /v2/a/manifests/v1", "", 405),
        ("POST /v2/a/manifests/v1", "", 405),
        ("PUT /v2/A/manifests/v1", "", 400),
    ] {
        assert_eq!(send_two(&serving, request, headers, &body), [status, 200], "{request}");
    }
    let chunked =
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let close = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let said = say(&serving, &[chunked.as_bytes(), &chunk, close].concat());
    assert_eq!(said.matches("HTTP/1.1 413").count(), 1, "{said}");
    assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said}");
}

#[test]
fn who_waits_to_be_told_to_send_is_not_told_in_vain() {
    let serving = serving(&[]);
    let head = "PUT /v2/a/manifests/sha256:nonsense HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\
                Expect: 100-continue\r\n\r\n";
    let said = say(&serving, head.as_bytes());
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");
    assert!(said.to_lowercase().contains("connection: close"), "{said}");
}

#[test]
fn many_slow_clients_take_little_and_keep_nobody_out() {
    let serving = serving(&["--max-connections", "2000"]);
    let (before, _) = serving.memory();
    let count = scale(300, 1000);
    let slow: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect(serving.host()).expect("connecting");
            stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("asking");
            stream
        })
        .collect();
    assert_eq!(serving.client().get("/v2/").status, 200);
    let (now, _) = serving.memory();
    let each = now.saturating_sub(before) / count as u64;
    assert!(each < 64 << 10, "{each} bytes for each of {count}");
    // None of them is waited for long.
    wait_for("the slow ones to be sent away", Duration::from_secs(30), || {
        let mut byte = [0];
        let last = slow.last().expect("one");
        last.set_nonblocking(true).expect("setting");
        matches!((&mut &*last).read(&mut byte), Ok(0))
            || (&mut &*last)
                .read(&mut byte)
                .is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock)
    });
}

#[test]
fn an_answer_that_is_under_way_is_given_to_its_end() {
    let mut serving = serving(&[]);
    let image = Image::new().layer(1, 30_000_000).build();
    image.push_to(&serving.client(), "team/app", "v1");
    let blob = image.layers()[0].clone();
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    write!(stream, "GET /v2/team/app/blobs/{blob} HTTP/1.1\r\nHost: x\r\n\r\n").expect("asking");
    let mut got = vec![0; 100_000];
    stream.read_exact(&mut got).expect("a beginning");
    serving.signal(rustix::process::Signal::TERM);
    let host = serving.host();
    wait_for("new clients to be sent away", Duration::from_secs(10), || {
        TcpStream::connect(&host).is_err()
    });
    stream.read_to_end(&mut got).expect("the rest");
    let start = got.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(digest(&got[start..]), blob);
    assert!(serving.wait(Duration::from_secs(20)).success());
}

#[test]
fn metrics_and_the_log_of_requests() {
    let files = tempfile::tempdir().expect("a directory");
    let log = files.path().join("requests");
    let serving = serving(&["--metrics", "127.0.0.1:0", "--access-log", text(&log)]);
    single(2).push_to(&serving.client(), "team/app", "v1");
    assert_eq!(serving.client().get("/v2/team/app/manifests/v1?secret=x").status, 200);
    assert_eq!(serving.client().get("/metrics").status, 404, "they have an address of their own");
    let metrics = crate::support::client::Client::new(&serving.address(1)).get("/metrics");
    let said = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = "imgfs_serve_requests_total{method=\"GET\",about=\"manifest\",status=\"200\"} 1";
    assert!(said.lines().any(|own| own == line), "{said}");
    let lines = std::fs::read_to_string(&log).expect("a log");
    let last: serde_json::Value =
        serde_json::from_str(lines.lines().rfind(|l| l.contains("GET")).expect("a line"))
            .expect("JSON");
    assert!(last["path"].is_string() && last["status"].is_number() && last["peer"] == "127.0.0.1");
    assert!(!lines.contains("secret"), "{lines}");
}

#[test]
fn clients_push_and_pull_while_prune_runs_in_a_loop() {
    let serving = serving(&["--allow-delete"]);
    let is_over = AtomicBool::new(false);
    let prunes = std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let (mut done, mut tried) = (0, 0);
            while !is_over.load(Ordering::Relaxed) || done == 0 {
                tried += 1;
                done += usize::from(Imgfs::new(serving.images()).prune().status.success());
                assert!(tried < 10_000, "it never came to its turn");
            }
            done
        });
        let clients: Vec<_> = (0..4_u64)
            .map(|number| {
                let serving = &serving;
                scope.spawn(move || {
                    for round in 0..scale(5, 50) as u64 {
                        let image = two_platforms(100 + number * 1000 + round);
                        let (client, name) = (serving.client(), format!("team/app-{number}"));
                        image.push_to(&client, &name, "v1");
                        for manifest in &image.manifests {
                            let target = format!("/v2/{name}/manifests/{}", manifest.digest);
                            assert_eq!(client.get(&target).body, manifest.bytes);
                        }
                        for blob in image.blobs.keys() {
                            let got = client.get(&format!("/v2/{name}/blobs/{blob}"));
                            assert_eq!(&digest(&got.body), blob);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("a client");
        }
        is_over.store(true, Ordering::Relaxed);
        pruner.join().expect("the pruner")
    });
    assert!(prunes > 0);
    assert_tree_sound(serving.images());
}

#[test]
fn killed_at_any_moment_it_goes_on_and_what_was_said_to_be_there_is_there() {
    let mut serving = serving(&[]);
    let mut random = Random::new(seed());
    for round in 0..scale(8, 100) as u64 {
        let image = two_platforms(5000 + round);
        let host = serving.host();
        let wait = Duration::from_micros(random.below(60_000));
        let pusher = std::thread::spawn({
            let image = image.clone();
            move || {
                let client = crate::support::client::Client::new(&host);
                let mut said = Vec::new();
                for blob in image.blobs.values() {
                    let Some(begun) = client.send("POST", "/v2/team/app/blobs/uploads/", &[], b"")
                    else {
                        return said;
                    };
                    let put = client.put(begun.header("location"), &blob.content.to_vec());
                    match put {
                        Some(reply) if reply.status == 201 => said.push(blob.digest.clone()),
                        _ => return said,
                    }
                }
                said
            }
        });
        std::thread::sleep(wait);
        serving.kill9();
        let said = pusher.join().expect("the pusher");
        serving.restart();
        let client = serving.client();
        for blob in said {
            assert_eq!(digest(&client.get(&format!("/v2/team/app/blobs/{blob}")).body), blob);
        }
        image.push_to(&client, "team/app", &format!("v{round}"));
    }
    assert_tree_sound(serving.images());
}
