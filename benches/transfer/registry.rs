//! Debian's `docker-registry`, with the images in it.

use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::layout::Layout;

/// How much a registry was asked for, as its access log has it.
#[derive(Clone, Default)]
pub(crate) struct Requests {
    pub(crate) all: u64,
    /// All that have to do with blobs, and what they are.
    pub(crate) blobs: u64,
    pub(crate) blob_heads: u64,
    pub(crate) mounts_asked: u64,
    pub(crate) mounts_won: u64,
    /// Requests with bytes of blobs in them.
    pub(crate) uploads: u64,
    pub(crate) manifests_put: u64,
}

impl Requests {
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            all: self.all - earlier.all,
            blobs: self.blobs - earlier.blobs,
            blob_heads: self.blob_heads - earlier.blob_heads,
            mounts_asked: self.mounts_asked - earlier.mounts_asked,
            mounts_won: self.mounts_won - earlier.mounts_won,
            uploads: self.uploads - earlier.uploads,
            manifests_put: self.manifests_put - earlier.manifests_put,
        }
    }

    /// `... "METHOD PATH HTTP/1.1" STATUS ...`
    fn count(&mut self, line: &str) {
        let mut parts = line.split('"').skip(1);
        let mut request = parts.next().unwrap_or_default().split(' ');
        let method = request.next().unwrap_or_default();
        let path = request.next().unwrap_or_default();
        let status = parts.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default();
        let of_blob = path.contains("/blobs/");
        let mount = of_blob && method == "POST" && path.contains("mount=");
        self.all += 1;
        self.blobs += u64::from(of_blob);
        self.blob_heads += u64::from(of_blob && method == "HEAD");
        self.mounts_asked += u64::from(mount);
        self.mounts_won += u64::from(mount && status == "201");
        self.uploads += u64::from(of_blob && matches!(method, "PATCH" | "PUT"));
        self.manifests_put += u64::from(path.contains("/manifests/") && method == "PUT");
    }
}

/// A running registry; it ends with this value.
pub(crate) struct Registry {
    child: Child,
    port: u16,
    storage: PathBuf,
    access_log: PathBuf,
}

impl Registry {
    /// Starts one on the storage in `seeded`, and fills that first if it does not hold this layout yet.
    pub(crate) fn start(seeded: &Path, layout: &Layout, scratch: &Path) -> Result<Self> {
        let index = std::fs::read(layout.path.join("index.json"))?;
        let mark = seeded.join("seeded-with");
        let is_seeded = std::fs::read(&mark).is_ok_and(|found| found == index);
        if !is_seeded && seeded.exists() {
            std::fs::remove_dir_all(seeded)?;
        }
        std::fs::create_dir_all(seeded)?;
        let registry = Self::launch(&seeded.canonicalize()?.join("storage"), scratch)?;
        if !is_seeded {
            eprintln!("bench: putting {} MB into the registry", layout.bytes() / 1_000_000);
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/seed-registry");
            let url = format!("http://{}", registry.host());
            let status =
                Command::new(&script).arg(&layout.path).arg(url).stdout(Stdio::null()).status();
            if !status.map_err(|e| format!("{}: {e}", script.display()))?.success() {
                return Err("the registry could not be filled".into());
            }
            std::fs::write(mark, index)?;
        }
        Ok(registry)
    }

    /// Starts one with nothing in it, whose storage and logs are in `directory`.
    pub(crate) fn empty(directory: &Path) -> Result<Self> {
        let storage = directory.join("storage");
        std::fs::create_dir_all(&storage)?;
        Self::launch(&storage, directory)
    }

    fn launch(storage: &Path, scratch: &Path) -> Result<Self> {
        let access_log = scratch.join("access.log");
        let errors = scratch.join("registry.err");
        // Between finding a free port and its use somebody else may take it.
        for _ in 0..10 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let config = scratch.join("registry.yml");
            std::fs::write(&config, configuration(storage, port))?;
            let child = Command::new("setpriv") // so that it dies with us, whatever happens to us
                .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
                .arg(&config)
                .env_clear() // it reads REGISTRY_* as settings
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .stdin(Stdio::null())
                .stdout(File::create(&access_log)?)
                .stderr(File::create(&errors)?)
                .spawn()
                .map_err(|e| format!("setpriv (Debian's util-linux): {e}"))?;
            let mut registry =
                Self { child, port, storage: storage.to_owned(), access_log: access_log.clone() };
            if registry.wait_until_ready()? {
                return Ok(registry);
            }
        }
        Err(format!("docker-registry does not start: {}", std::fs::read_to_string(errors)?).into())
    }

    fn wait_until_ready(&mut self) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && self.child.try_wait()?.is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(self.child.try_wait()?.is_none());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn storage(&self) -> &Path {
        &self.storage
    }

    /// Stops it, or lets it go on: its connections stay, and nothing comes.
    pub(crate) fn pause(&self, stop: bool) -> Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let id = i32::try_from(self.child.id())?;
        let id = Pid::from_raw(id).ok_or("the registry has no process")?;
        Ok(kill_process(id, if stop { Signal::STOP } else { Signal::CONT })?)
    }

    /// Counts the lines of the access log, once it has stopped growing.
    pub(crate) fn requests(&self) -> Result<Requests> {
        let length = || std::fs::metadata(&self.access_log).map(|m| m.len());
        let mut before = length()?;
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = length()?;
            if now == before {
                break;
            }
            before = now;
        }
        let mut log = String::new();
        File::open(&self.access_log)?.read_to_string(&mut log)?;
        let mut requests = Requests::default();
        log.lines().for_each(|line| requests.count(line));
        Ok(requests)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(storage: &Path, port: u16) -> String {
    format!(
        r#"version: 0.1
log: {{level: error, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: "{}", maxthreads: 100}}, cache: {{blobdescriptor: inmemory}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"#,
        storage.display()
    )
}
