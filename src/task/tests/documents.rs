//! What the documents and the roles of KubeKey have in them, as it stands there.

use serde_json::json;

use super::means;

/// The examples of KubeKey's English document, as they are printed.
#[test]
fn the_english_document() {
    means(
        r#"- name: pull images
  image:
    pull:
      images_dir: /tmp/images/
      platform: [amd64, arm64]
      manifests:
        - "docker.io/kubesphere/ks-apiserver:v4.1.3"
        - "docker.io/kubesphere/ks-controller-manager:v4.1.3"
        - "docker.io/kubesphere/ks-console:3.19"
"#,
        json!({}),
        &["registry:// -> /tmp/images/ [docker.io/kubesphere/ks-apiserver:v4.1.3 \
           docker.io/kubesphere/ks-controller-manager:v4.1.3 docker.io/kubesphere/ks-console:3.19] \
           linux/amd64,linux/arm64"],
    );
    means(
        r#"- name: push images
  image:
    push:
      images_dir: /tmp/images/
      dest: "hub.kubekey/{{ .module.image.src.reference.repository }}:{{ .module.image.src.reference.reference }}"
"#,
        json!({}),
        &["/tmp/images/ -> registry:// all dest=hub.kubekey/library/nginx:1.25"],
    );
    means(
        "- name: file to file
  image:
    copy:
      from:
        path: /tmp/images/
        manifests:
          - docker.io/calico/apiserver:v3.28.2
      to:
        path: /tmp/others/images/
",
        json!({}),
        &["/tmp/images/ -> /tmp/others/images/ [docker.io/calico/apiserver:v3.28.2]"],
    );
}

/// Those of the Chinese one, with its `push` that stands right in the task.
#[test]
fn the_chinese_document() {
    means(
        r#"- name: pull images
  image:
    pull:
      images_dir: /tmp/images/
      platform: linux/amd64
      manifests:
        - "docker.io/kubesphere/ks-apiserver:v4.1.3"
        - "docker.io/kubesphere/ks-controller-manager:v4.1.3"
        - "docker.io/kubesphere/ks-console:3.19"
"#,
        json!({}),
        &["registry:// -> /tmp/images/ [docker.io/kubesphere/ks-apiserver:v4.1.3 \
           docker.io/kubesphere/ks-controller-manager:v4.1.3 docker.io/kubesphere/ks-console:3.19] \
           linux/amd64"],
    );
    means(
        "- name: push images
  push:
    images_dir: /tmp/images/
    dest: hub.kubekey/{{ .module.image.src.reference.repository }}:{{ .module.image.src.reference.reference }}
",
        json!({}),
        &["/tmp/images/ -> registry:// all dest=hub.kubekey/library/nginx:1.25"],
    );
    means(
        r#"- name: file to file
  image:
    copy:
      from:
        path: "/tmp/images/"
        manifests:
          - docker.io/calico/apiserver:v3.28.2
      to:
        path: "/tmp/others/images/"
"#,
        json!({}),
        &["/tmp/images/ -> /tmp/others/images/ [docker.io/calico/apiserver:v3.28.2]"],
    );
}

/// Tasks as KubeKey's own roles have them: the newer form, all of it made by templates.
#[test]
fn kubekeys_own_roles() {
    let vars = json!({
        "binary_dir": "/opt/kk",
        "download": {
            "fetch": true,
            "arch": ["amd64", "arm64"],
            "images": {
                "policy": "warn",
                "manifests": ["docker.io/library/nginx:1.25", "registry.k8s.io/pause:3.9"],
            },
        },
        "cri": {"registry": {"auths": [{"registry": "hub.example.com", "username": "u", "password": 123}]}},
        "image_registry": {"auth": {
            "registry": "hub.example.com:5000", "username": "admin", "password": "p",
            "plain_http": false, "ca_file": "", "cert_file": "", "key_file": "",
        }},
    });
    let platform = "    platform: >
      {{- $platform := list }}
      {{- range .download.arch }}
        {{- $platform = append $platform (printf \"linux/%s\" .) }}
      {{- end }}
      {{- $platform | toJson }}
";
    let pull = format!(
        "- name: Download container images
  tags: [\"pull\", \"image_registry\"]
  image:
{platform}    policy: \"{{{{ .download.images.policy }}}}\"
    auths: \"{{{{ .cri.registry.auths | toJson }}}}\"
    manifests: \"{{{{ .download.images.manifests | toJson }}}}\"
    src: \"oci://{{{{ .module.image.reference.registry }}}}/{{{{ .module.image.reference.repository }}}}:{{{{ .module.image.reference.reference }}}}\"
    dest: \"local://{{{{ .binary_dir }}}}/images/\"
  when:
    - .download.fetch
"
    );
    means(
        &pull,
        vars.clone(),
        &[
            "registry:// -> /opt/kk/images/ [docker.io/library/nginx:1.25 registry.k8s.io/pause:3.9] \
           source=docker.io/library/nginx:1.25 linux/amd64,linux/arm64 hub.example.com=u/123",
        ],
    );
    let push = format!(
        "- name: Push images
  run_once: true
  image:
{platform}    auths: >
      {{{{- $auths := list }}}}
      {{{{- $auths = append $auths .image_registry.auth }}}}
      {{{{- $auths | toJson }}}}
    manifests: \"{{{{ .download.images.manifests | toJson }}}}\"
    src: \"local://{{{{ .binary_dir }}}}/images/\"
    dest: >-
      {{{{- if and (eq .module.image.reference.registry \"registry.k8s.io\") (.module.image.reference.repository | contains \"/\" | not) -}}}}
      oci://{{{{ .image_registry.auth.registry }}}}/kubernetes/{{{{ .module.image.reference.repository }}}}:{{{{ .module.image.src.reference.reference }}}}
      {{{{- else -}}}}
      oci://{{{{ .image_registry.auth.registry }}}}/{{{{ .module.image.reference.repository }}}}:{{{{ .module.image.reference.reference }}}}
      {{{{- end -}}}}
"
    );
    means(
        &push,
        vars,
        &[
            "/opt/kk/images/ -> registry:// [docker.io/library/nginx:1.25 registry.k8s.io/pause:3.9] \
           dest=hub.example.com:5000/library/nginx:1.25 linux/amd64,linux/arm64 strict \
           hub.example.com:5000=admin/p",
        ],
    );
}
