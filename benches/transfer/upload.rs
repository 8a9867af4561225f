//! The cheapest upload there can be: curl, each unique blob with one POST and one PUT.

use std::fmt::Write as _;
use std::path::Path;

use crate::layout::{Blob, Manifest};
use crate::measure::{Job, Usage};
use crate::registry::Registry;
use crate::{Bench, Result};

impl Bench {
    /// Uploads everything in the layout into an empty registry, `parallel` blobs at a time: a POST for each
    /// unique blob, then a PUT for each with all of it, a mount for each further repository that has it, and
    /// the manifests. Only curl's own time counts, not ours for writing its configurations.
    pub(crate) fn curl_upload(&self, target: &Registry, parallel: usize) -> Result<Usage> {
        let scratch = self.workshop.path().join("upload");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir(&scratch)?;
        let host = target.host();

        let mut config = String::new();
        for (n, Blob { repository, .. }) in self.layout.blobs.iter().enumerate() {
            let _ = writeln!(
                config,
                "url = http://{host}/v2/{repository}/blobs/uploads/\noutput = {n}.started"
            );
        }
        let post = ["--include", "--request", "POST", "--header", "Content-Length: 0"];
        let mut usage = curl(&scratch, &config, 8, &post)?;

        config.clear();
        for (n, Blob { digest, .. }) in self.layout.blobs.iter().enumerate() {
            let answer = std::fs::read_to_string(scratch.join(format!("{n}.started")))?;
            let location = answer
                .lines()
                .find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("location").then_some(value.trim())
                })
                .ok_or("the registry did not say where to upload to")?;
            let file = self.layout.file_of(digest);
            let _ = writeln!(
                config,
                "url = \"{location}&digest={digest}\"\nupload-file = \"{}\"",
                file.display()
            );
        }
        let put = ["--header", "Expect:", "--header", "Content-Type: application/octet-stream"];
        usage = usage.then(curl(&scratch, &config, parallel, &put)?);

        config.clear();
        for (n, (repository, digest)) in self.layout.elsewhere.iter().enumerate() {
            let first = self.layout.blobs.iter().find(|blob| blob.digest == *digest);
            let from = first.map(|blob| blob.repository.as_str()).unwrap_or_default();
            let _ = writeln!(
                config,
                "url = \"http://{host}/v2/{repository}/blobs/uploads/?mount={digest}&from={from}\"\noutput = {n}.mounted"
            );
        }
        if !config.is_empty() {
            usage = usage.then(curl(&scratch, &config, 8, &post)?);
        }

        for manifests in &self.layout.manifests {
            let each = manifests.iter().map(|manifest| {
                let Manifest { repository, reference, digest, media_type } = manifest;
                let file = self.layout.file_of(digest);
                format!(
                    "fail\nsilent\nshow-error\nnoproxy = *\nurl = http://{host}/v2/{repository}/manifests/{reference}\nupload-file = \"{}\"\nheader = \"Expect:\"\nheader = \"Content-Type: {media_type}\"\n",
                    file.display()
                )
            });
            let config = each.collect::<Vec<_>>().join("next\n");
            usage = usage.then(curl(&scratch, &config, 8, &[])?);
        }
        std::fs::remove_dir_all(&scratch)?;
        self.layout.check_stored(target.storage())?;
        Ok(usage)
    }
}

fn curl(directory: &Path, config: &str, parallel: usize, options: &[&str]) -> Result<Usage> {
    let file = directory.join("curl.conf");
    std::fs::write(&file, config)?;
    Job::new("curl")
        .args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*"])
        .args(["--parallel", "--parallel-max", &parallel.to_string()])
        .args(options)
        .arg("--config")
        .arg(&file)
        .within(directory)
        .run()
}
