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
    /// Docker with the image store of containerd.
    Docker,
}

/// The configuration with which `runtime` uses the snapshotter that listens at `socket` and keeps its snapshots
/// below `root`: what is to be added to which file.
///
/// ```
/// use std::path::Path;
/// use imgfs::snapshotter::{Runtime, setup};
///
/// let (socket, root) = (Path::new("/run/imgfs/snapshotter.sock"), Path::new("/var/lib/imgfs/snapshotter"));
/// let text = setup(Runtime::Containerd2, socket, root);
/// assert!(text.contains("disable_snapshot_annotations = false"));
/// ```
pub fn setup(runtime: Runtime, socket: &Path, root: &Path) -> String {
    let plugin = plugin(socket, root);
    let endpoint = format!("unix://{}", socket.display());
    let kubelet = format!(
        "\
# kubelet, so that private images can be read while they run: it sends the credentials of images to imgfs, which
# passes everything on to containerd (imgfs snapshotter --image-service /run/containerd/containerd.sock)
#   --image-service-endpoint={endpoint}
"
    );
    match runtime {
        // With `version = 2`, containerd 2.x starts, and leaves these two settings of CRI out without a word: it
        // would fetch all layers.
        Runtime::Containerd1 => format!(
            "\
# containerd 1.x (2.x: --for containerd-2), /etc/containerd/config.toml itself: a file that it imports would replace
# all that it says of CRI
version = 2

{plugin}
[plugins.\"io.containerd.grpc.v1.cri\".containerd]
  snapshotter = \"imgfs\"
  disable_snapshot_annotations = false

{kubelet}"
        ),
        Runtime::Containerd2 => format!(
            "\
# containerd 2.x (1.x: --for containerd-1), /etc/containerd/config.toml
version = 3

{plugin}
[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"imgfs\"
  disable_snapshot_annotations = false

# From containerd 2.1 on, for `ctr images pull --snapshotter imgfs` and whatever else uses the transfer service. Without
# the first of these, which containerd has by default, it would unpack images for no other snapshotter any more.
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = \"linux\"
  snapshotter = \"overlayfs\"

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = \"linux\"
  snapshotter = \"imgfs\"

{kubelet}"
        ),
        Runtime::Docker => format!(
            "\
# /etc/containerd/config.toml
version = 2

{plugin}
# /etc/docker/daemon.json (Docker 23 or later); images of the store that it has had until then are not seen any more
#   {{ \"features\": {{ \"containerd-snapshotter\": true }}, \"storage-driver\": \"imgfs\" }}
"
        ),
        Runtime::K3s => format!(
            "\
# /var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl (with containerd 2.x: config-v3.toml.tmpl)
# RKE2: /var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl (with containerd 2.x: config-v3.toml.tmpl)
{{{{ template \"base\" . }}}}

{plugin}
# /etc/rancher/k3s/config.yaml (RKE2: /etc/rancher/rke2/config.yaml)
#   snapshotter: imgfs
# If config.toml beside the template has disable_snapshot_annotations = true after that, copy all of it into the
# template in place of its first line, and set it to false there.

# In config.yaml as well, so that private images can be read while they run: the kubelet sends the credentials of
# images to imgfs, which passes everything on to the containerd of k3s and RKE2
# (imgfs snapshotter --image-service /run/k3s/containerd/containerd.sock)
#   kubelet-arg: [\"image-service-endpoint={endpoint}\"]
"
        ),
    }
}

/// The snapshotter as a plugin. containerd 1.6 does not know the exports, and leaves them out.
///
/// By its root, CRI says on which file system snapshots are, so that the kubelet can see to it that it does not get
/// full. The transfer service of containerd 2.1 sends annotations to whoever says there that they want them.
fn plugin(socket: &Path, root: &Path) -> String {
    let [address, root] =
        [socket, root].map(|path| serde_json::Value::from(path.display().to_string()).to_string());
    format!(
        "\
[proxy_plugins.imgfs]
  type = \"snapshot\"
  address = {address}

  [proxy_plugins.imgfs.exports]
    root = {root}
    enable_remote_snapshot_annotations = \"true\"
"
    )
}
