//! What has to be configured elsewhere.

use std::path::Path;

/// The configuration with which podman, CRI-O and buildah read the store `dir`, and call `helper` before they
/// pull: what is to be added to which file.
///
/// ```
/// use std::path::Path;
///
/// let text = imgfs::store::setup(Path::new("/srv/store"), Path::new("/usr/libexec/imgfs-store-helper"));
/// assert!(text.contains("additionalimagestores = [\"/srv/store\"]"));
/// ```
pub fn setup(dir: &Path, helper: &Path) -> String {
    let (dir, helper) = (quoted(dir), quoted(helper));
    format!(
        "\
# /etc/containers/storage.conf: the last line. If there is no such file, all of it, which is what podman does without one
[storage]
driver = \"overlay\"
runroot = \"/run/containers/storage\"
graphroot = \"/var/lib/containers/storage\"

[storage.options]
additionalimagestores = [{dir}]

# /etc/containers/registries.conf.d/imgfs.conf (podman 5.2 and CRI-O 1.31, or later)
additional-layer-store-auth-helper = {helper}

# With podman before 5.2 and CRI-O before 1.31, before an image is pulled:
#   echo '{{\"IMAGE\": {{}}}}' | {helper}
"
    )
}

/// A path as a string of TOML, which is written as in JSON.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_one_that_podman_reads() {
        let text = setup(Path::new("/srv/a \"b\""), Path::new("/usr/libexec/helper"));
        let (storage, registries) = text.split_once("# /etc/containers/registries").unwrap();
        let storage = storage.parse::<toml::Table>().unwrap();
        let of = &storage["storage"];
        // podman 4 ends if the file lacks one of these.
        for (name, value) in [
            ("driver", "overlay"),
            ("runroot", "/run/containers/storage"),
            ("graphroot", "/var/lib/containers/storage"),
        ] {
            assert_eq!(of[name].as_str(), Some(value));
        }
        assert_eq!(of["options"]["additionalimagestores"][0].as_str(), Some("/srv/a \"b\""));
        let registries = format!("#{registries}").parse::<toml::Table>().unwrap();
        let helper = registries["additional-layer-store-auth-helper"].as_str();
        assert_eq!(helper, Some("/usr/libexec/helper"));
    }
}
