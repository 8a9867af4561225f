//! What has to be configured in containerd.

use std::path::Path;

/// What runs containers by way of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// containerd 1.x.
    Containerd1,
    /// containerd 2.x.
    Containerd2,
    /// k3s and RKE2, which have a containerd of their own.
    K3s,
}

/// The configuration with which `runtime` uses the snapshotter at `socket`: what is to be added to which file.
///
/// ```
/// use std::path::Path;
/// use imgfs::snapshotter::{Runtime, setup};
///
/// let text = setup(Runtime::Containerd1, Path::new("/run/imgfs/snapshotter.sock"));
/// assert!(text.contains("disable_snapshot_annotations = false"));
/// ```
pub fn setup(runtime: Runtime, socket: &Path) -> String {
    let address = serde_json::Value::from(socket.display().to_string()).to_string();
    let endpoint = format!("unix://{}", socket.display());
    let kubelet = format!(
        "\
# kubelet, so that private images can be read while they run: it sends the credentials of images to imgfs, which
# passes everything on to containerd (imgfs snapshotter --image-service /run/containerd/containerd.sock)
#   --image-service-endpoint={endpoint}
"
    );
    match runtime {
        Runtime::Containerd1 => format!(
            "\
# /etc/containerd/config.toml
version = 2

[proxy_plugins.imgfs]
  type = \"snapshot\"
  address = {address}

[plugins.\"io.containerd.grpc.v1.cri\".containerd]
  snapshotter = \"imgfs\"
  disable_snapshot_annotations = false

{kubelet}"
        ),
        Runtime::Containerd2 => format!(
            "\
# /etc/containerd/config.toml
version = 3

[proxy_plugins.imgfs]
  type = \"snapshot\"
  address = {address}

[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"imgfs\"
  disable_snapshot_annotations = false

# From containerd 2.1 on
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = \"linux\"
  snapshotter = \"imgfs\"

[plugins.'io.containerd.transfer.v1.local']
  enable_remote_snapshot_annotations = true

{kubelet}"
        ),
        Runtime::K3s => format!(
            "\
# /var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl (with containerd 2.x: config-v3.toml.tmpl)
{{{{ template \"base\" . }}}}

[proxy_plugins.imgfs]
  type = \"snapshot\"
  address = {address}

# /etc/rancher/k3s/config.yaml
#   snapshotter: imgfs
# k3s before 1.32 sets disable_snapshot_annotations by itself: copy its whole configuration into the template, and
# set it to false there.

# For private images
#   kubelet-arg: [\"image-service-endpoint={endpoint}\"]
"
        ),
    }
}
