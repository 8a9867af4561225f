//! A real object store in a child process: SeaweedFS, which `scripts/setup --object-store` installs, with its data
//! in a temporary directory.

use super::cli::Imgfs;
use super::process;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BUCKET: &str = "bucket";
const KEY: &str = "key";
const SECRET: &str = "secret";

/// Another program may take a port between its choice and its use.
const ATTEMPTS: usize = 3;

/// The ports of a store; the S3 protocol is on [`S3_PORT`].
const PORTS: [&str; 10] = [
    S3_PORT,
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
];
const S3_PORT: &str = "s3.port";

/// Its program, where it is installed.
pub(crate) fn weed() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/object-store/bin/weed");
    if ours.is_file() { Some(ours) } else { process::find_program("weed") }
}

/// A running store with an empty bucket.
pub(crate) struct SeaweedFs {
    child: Child,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl SeaweedFs {
    pub(crate) fn start() -> Self {
        let started = (0..ATTEMPTS).find_map(|_| Self::try_start());
        started.expect("SeaweedFS starts")
    }

    fn try_start() -> Option<Self> {
        let data = tempfile::tempdir().expect("making a temporary directory");
        let program = weed().expect("the test needs an object store");
        let config = data.path().join("s3.json");
        let identity = serde_json::json!({"identities": [{
            "name": "bed",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(&config, identity.to_string()).expect("writing a file");
        // All of them are held until all are chosen.
        let chosen = PORTS.map(|_| TcpListener::bind("127.0.0.1:0").expect("finding a free port"));
        let ports = chosen.map(|port| port.local_addr().expect("it has an address").port());
        let child = process::spawn_tied(super::text(&program), |command| {
            command
                .arg("mini")
                .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
                .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
                .args(PORTS.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")))
                .arg(format!("-dir={}", data.path().join("data").display()))
                .arg(format!("-s3.config={}", config.display()))
                .current_dir(data.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
        });
        std::fs::create_dir_all(data.path().join("data")).expect("making a directory");
        let endpoint = format!("http://127.0.0.1:{}", ports[0]);
        let mut store = Self { child: child.expect("starting weed"), endpoint, _data: data };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !store.makes_a_bucket() {
            let has_ended = store.child.try_wait().expect("looking after weed").is_some();
            if has_ended || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(store)
    }

    fn makes_a_bucket(&self) -> bool {
        let made = Command::new("curl")
            .args(["--silent", "--fail", "--output", "/dev/null", "--request", "PUT"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{KEY}:{SECRET}")])
            .arg(format!("{}/{BUCKET}", self.endpoint))
            .status();
        made.expect("running curl").success()
    }

    /// What the environment of a process is to have that uses it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// A client that may use it.
    pub(crate) fn client(&self) -> Imgfs {
        Imgfs::scratch().envs(self.environment())
    }

    /// `s3://bucket/prefix`
    pub(crate) fn place(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
