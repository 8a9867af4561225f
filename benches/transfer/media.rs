//! Other media than directories of images and registries: an OCI image layout, an archive, and an object store, each
//! against the program that does nothing else with the same files.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::Job;
use crate::places::Place;
use crate::report::Report;
use crate::tally::{Goal, Tally};
use crate::{Bench, Result};

/// Where `scripts/setup --object-store` puts SeaweedFS.
const STORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/object-store/bin/weed");

const PORT: u16 = 18_333;

impl Bench {
    pub(crate) fn media(&mut self, report: &mut Report) -> Result<()> {
        // On the disk only: three times the images would not fit into the tmpfs.
        let place = self.workshop.places().swap_remove(0);
        place.clear()?;
        let source = place.images_dir();
        self.imgfs_pull(&source, &self.registry.host()).run()?;
        report.tally(self.layouts(place.name, &place, &source)?);
        report.tally(self.archives_written(place.name, &place, &source)?);
        report.tally(self.archives_read(place.name, &place, &source)?);
        place.clear()?;
        match Path::new(STORE).exists() {
            true => self.object_store(report),
            false => {
                eprintln!(
                    "bench: no object store, which is not measured; scripts/setup --object-store installs one"
                );
                Ok(())
            }
        }
    }

    fn imgfs_copy(&self, from: &Path, to: &str) -> Job {
        Job::new(&self.imgfs)
            .args(["copy", "--all", "--quiet", "--from"])
            .arg(from)
            .args(["--to", to])
    }

    /// Into a layout and out of it: links. The target is 100 ms, whatever `cp -al` takes.
    fn layouts(&self, name: &str, place: &Place, source: &Path) -> Result<Tally> {
        let mut tally =
            Tally::new(format!("{name}: 12 images between a directory and an OCI layout"));
        let numbered = |what: &str, round| place.path.join(format!("{what}-{round}"));
        let all = |round| ["links", "layout", "back"].map(|what| numbered(what, round));
        for round in 0..self.options.rounds {
            self.progress(round, name, "layouts");
            let [links, layout, back] = all(round);
            remove(&[&links, &layout, &back])?;
            tally.add(
                "`cp -al`",
                None,
                Job::new("cp").arg("-al").arg(source).arg(&links).run()?.wall,
            );
            // Whoever gives a file one more name changes its ctime, by which its record knows it.
            Job::new(&self.imgfs).args(["verify", "--images-dir"]).arg(source).run()?;
            let to = format!("oci:{}", layout.display());
            tally.add("**into a layout**", None, self.imgfs_copy(source, &to).run()?.wall);
            let to = back.display().to_string();
            tally.add(
                "**out of a layout**",
                None,
                self.imgfs_copy(&PathBuf::from(format!("oci:{}", layout.display())), &to)
                    .run()?
                    .wall,
            );
        }
        for round in 0..self.options.rounds {
            remove(&all(round).each_ref().map(PathBuf::as_path))?;
        }
        Ok(tally)
    }

    fn archives_written(&self, name: &str, place: &Place, source: &Path) -> Result<Tally> {
        let mut tally = Tally::new(format!("{name}: 12 images into an archive"));
        let archive = place.path.join("images.tar");
        for round in 0..self.options.rounds {
            self.progress(round, name, "archives");
            remove(&[&archive])?;
            let tar = Job::new("tar").arg("-cf").arg(&archive).arg("-C").arg(source).arg("blobs");
            tally.add("`tar` of the blobs", None, tar.run()?.wall);
            remove(&[&archive])?;
            let to = format!("oci-archive:{}", archive.display());
            let taken = self.imgfs_copy(source, &to).run()?.wall;
            tally.add("**`oci-archive:`**", Some(Goal::Time(1.1)), taken);
        }
        Ok(tally)
    }

    /// Out of an archive, against a copy of it and the hash of its bytes.
    fn archives_read(&self, name: &str, place: &Place, source: &Path) -> Result<Tally> {
        let mut tally = Tally::new(format!("{name}: 12 images out of an archive"));
        let (archive, target) = (place.path.join("images.tar"), place.path.join("target"));
        self.imgfs_copy(source, &format!("oci-archive:{}", archive.display())).run()?;
        for round in 0..self.options.rounds {
            self.progress(round, name, "archives");
            remove(&[&target])?;
            let copied = Job::new("cp").arg(&archive).arg(&target).run()?;
            let hashed = Job::new("openssl").args(["dgst", "-sha256"]).arg(&target).run()?;
            tally.add("`cp` and the hash", None, copied.then(hashed).wall);
            remove(&[&target])?;
            let to = target.display().to_string();
            let taken = self.imgfs_copy(&archive, &to).run()?.wall;
            tally.add("**into a directory**", Some(Goal::Time(1.1)), taken);
        }
        remove(&[&archive, &target])?;
        Ok(tally)
    }

    /// Up and down over loopback, against `curl` with as many connections.
    fn object_store(&self, report: &mut Report) -> Result<()> {
        let place = self.workshop.places().into_iter().next().ok_or("no place")?;
        place.clear()?;
        let source = place.images_dir();
        self.imgfs_pull(&source, &self.registry.host()).run()?;
        let mut store = ObjectStore::start(&place.path.join("store"))?;
        let mut up = Tally::new("object store on loopback, upload");
        let mut down = Tally::new("object store on loopback, download");
        let list = self.curl_list(&source, &place)?;
        for round in 0..self.options.rounds {
            self.progress(round, place.name, "object store");
            let curl = |list: &Path| {
                Job::new("curl").args(["-sfZ", "--parallel-max", "8", "-K"]).arg(list)
            };
            up.add("`curl -T`", None, curl(&list.0).run()?.wall);
            down.add("`curl`", None, curl(&list.1).run()?.wall);
            let to = format!("s3://bench/round-{round}");
            let job = store.environment(self.imgfs_copy(&source, &to));
            up.add("**imgfs**", Some(Goal::Time(1.2)), job.run()?.wall);
            let target = place.path.join("target");
            remove(&[&target])?;
            let job = self.imgfs_copy(Path::new(&to), &target.display().to_string());
            let usage = store.environment(job).run()?;
            down.add("**imgfs**", Some(Goal::Time(1.2)), usage.wall);
            report.bound(
                "memory of a download from an object store, KiB",
                usage.peak_rss_kib,
                48 << 10,
            );
        }
        store.stop();
        report.tally(up);
        report.tally(down);
        place.clear()
    }

    /// What curl is to send, and to fetch again: all blobs of the directory.
    fn curl_list(&self, source: &Path, place: &Place) -> Result<(PathBuf, PathBuf)> {
        let (mut up, mut down) = (String::new(), String::new());
        for entry in std::fs::read_dir(source.join("blobs"))? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().replace(':', "-");
            let url = format!("http://127.0.0.1:{PORT}/curl/{name}");
            up += &format!("upload-file = \"{}\"\nurl = \"{url}\"\n", entry.path().display());
            down += &format!("url = \"{url}\"\noutput = \"/dev/null\"\n");
        }
        let lists = (place.path.join("up.curl"), place.path.join("down.curl"));
        std::fs::write(&lists.0, up)?;
        std::fs::write(&lists.1, down)?;
        Ok(lists)
    }
}

fn remove(paths: &[&Path]) -> Result<()> {
    for path in paths {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path)?,
            Ok(_) => std::fs::remove_file(path)?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// SeaweedFS with buckets that anybody may use.
struct ObjectStore {
    child: Child,
}

impl ObjectStore {
    fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                STORE,
                "server",
                "-s3",
                "-ip=127.0.0.1",
                "-volume.max=64",
            ])
            .arg(format!("-s3.port={PORT}"))
            .arg(format!("-dir={}", dir.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            if started.elapsed() > Duration::from_secs(60) {
                return Err("the object store does not start".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for bucket in ["bench", "curl"] {
            let url = format!("http://127.0.0.1:{PORT}/{bucket}");
            Job::new("curl")
                .args(["-sf", "--retry", "20", "--retry-all-errors", "-X", "PUT", &url])
                .run()?;
        }
        Ok(Self { child })
    }

    fn environment(&self, job: Job) -> Job {
        job.env("AWS_ENDPOINT", &format!("http://127.0.0.1:{PORT}"))
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_SKIP_SIGNATURE", "true")
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.stop();
    }
}
