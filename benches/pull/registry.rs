//! Debian's `docker-registry`, with the images in it.

use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::layout::Layout;

/// How much a registry was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) all: u64,
    pub(crate) blobs: u64,
}

impl Requests {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { all: self.all - earlier.all, blobs: self.blobs - earlier.blobs }
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

    /// Brings the registry's own files back into the page cache: its disk is not what is measured.
    pub(crate) fn warm_up(&self, caches_were_dropped: bool) -> Result<()> {
        if caches_were_dropped { read_all(&self.storage, &mut vec![0; 1 << 20]) } else { Ok(()) }
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
        let (mut all, mut blobs) = (0, 0);
        for line in log.lines() {
            all += 1;
            blobs += u64::from(line.contains("/blobs/"));
        }
        Ok(Requests { all, blobs })
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

fn read_all(directory: &Path, buffer: &mut [u8]) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path(), buffer)?;
        } else {
            let mut file = File::open(entry.path())?;
            while file.read(buffer)? > 0 {}
        }
    }
    Ok(())
}
