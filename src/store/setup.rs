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
# /etc/containers/storage.conf, [storage.options]
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
