//! `imgfs serve`: what happens while it runs for long, and how a service manager starts it.

use crate::support::client::Client;
use crate::support::content::digest;
use crate::support::hostile::Hostile;
use crate::support::image::single;
use crate::support::process::{require_program, spawn_tied};
use crate::support::serving::Serving;
use crate::support::tls::{Authority, Certificate};
use crate::support::{text, wait_for};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn what_nothing_needs_is_removed_from_time_to_time() {
    let serving = Serving::fresh(&["--prune-every", "1s", "--upload-ttl", "1s"]);
    let client = serving.client();
    let image = single(1);
    image.push_to(&client, "team/app", "v1");
    client.upload("team/app", b"that no manifest names");
    let path = serving.images().join("blobs").join(digest(b"that no manifest names"));
    assert!(path.exists());
    wait_for("the blob to go", LIMIT, || !path.exists());
    for blob in image.blobs.keys() {
        assert_eq!(client.get(&format!("/v2/team/app/blobs/{blob}")).status, 200, "{blob}");
    }
    assert_eq!(client.get("/v2/team/app/manifests/v1").status, 200);
}

#[test]
fn an_older_copy_is_served_for_as_long_as_was_said() {
    let upstream = Hostile::start();
    single(2).push_to(&upstream, "team/app", "v1");
    let host = upstream.host();
    let target = format!("/v2/{}/team/app/manifests/v1", host.replace(':', "__"));
    let args = ["--upstream", &*host, "--tag-ttl", "0s", "--upstream-wait", "1s", "--max-stale"];
    let start = |patience| Serving::fresh(&[&args[..], &[patience]].concat());
    let (soon, never) = (start("2s"), start("forever"));
    for serving in [&soon, &never] {
        assert_eq!(serving.client().get(&target).status, 200);
    }
    drop(upstream);
    wait_for("it to be too old", LIMIT, || soon.client().get(&target).status == 502);
    let stale = never.client().get(&target);
    assert_eq!(stale.status, 200);
    assert!(stale.header("age").parse::<u64>().expect("seconds") >= 2, "{stale:?}");
}

#[test]
fn a_new_certificate_is_used_without_a_restart() {
    require_program("curl", "curl");
    let files = tempfile::tempdir().expect("a directory");
    let [before, after] = ["before", "after"].map(Authority::new);
    let [old, new] =
        [(&before, "before"), (&after, "after")].map(|(a, n)| a.write(files.path(), n));
    let (cert, key) = before.server(Certificate::Good).write(files.path(), "server");
    let serving = Serving::fresh(&["--tls-cert", text(&cert), "--tls-key", text(&key)]);
    let url = format!("https://{}/v2/", serving.host());
    let is_trusted = |authority: &std::path::Path| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert", text(authority), &url]);
        curl.output().expect("running curl").status.success()
    };
    assert!(is_trusted(&old) && !is_trusted(&new));
    // Between the two files, the key is not that of the certificate: what was read before holds.
    after.server(Certificate::Good).write(files.path(), "server");
    wait_for("the new certificate", LIMIT, || is_trusted(&new));
    assert!(!is_trusted(&old));
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens a socket and becomes the program of its arguments, with the socket as systemd hands it over.
const ACTIVATE: &str = "
import os, socket, sys
listening = socket.socket()
listening.bind(('127.0.0.1', 0))
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
environment = dict(os.environ, LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execve(sys.argv[1], sys.argv[1:], environment)
";

#[test]
fn a_socket_that_the_service_manager_has_opened_is_taken() {
    let place = tempfile::tempdir().expect("a directory");
    let said = place.path().join("stdout");
    let (stdout, images) = (std::fs::File::create(&said), place.path().join("images"));
    let child = spawn_tied("python3", |command| {
        command
            .args(["-c", ACTIVATE, env!("CARGO_BIN_EXE_imgfs"), "serve", "--images-dir"])
            .arg(&images)
            // It is not listened there as well.
            .args(["--listen", "127.0.0.1:1"])
            .stdin(Stdio::null())
            .stdout(stdout.expect("creating a file"));
    });
    let _child = Killed(child.expect("starting imgfs"));
    let line = || std::fs::read_to_string(&said).unwrap_or_default();
    wait_for("the server", LIMIT, || line().ends_with('\n'));
    let line = line();
    let (_, host) = line.trim().rsplit_once("http://").expect("an address");
    assert_ne!(host, "127.0.0.1:1");
    let client = Client::new(host);
    let image = single(3);
    image.push_to(&client, "team/app", "v1");
    assert_eq!(client.get("/v2/team/app/manifests/v1").body, image.root().bytes);
}
