//! What KubeKey's own tasks and documents say.

use serde_json::json;

use crate::template::{Missing, Template, Value, image_vars};

#[track_caller]
fn render(text: &str, vars: serde_json::Value) -> String {
    Template::parse(text, None).unwrap().render(&vars.into(), Missing::Error).unwrap()
}

/// `platform: >` with one list of architectures to be read as JSON.
#[test]
fn platforms_from_architectures() {
    let text = "{{- $platforms := list -}}
{{- range .image_manifests_arch -}}
  {{- $platforms = append $platforms (printf \"linux/%s\" .) -}}
{{- end -}}
{{ $platforms | toJson }}
";
    let vars = json!({"image_manifests_arch": ["amd64", "arm64"]});
    assert_eq!(render(text, vars), "[\"linux/amd64\",\"linux/arm64\"]\n");
    assert_eq!(render(text, json!({"image_manifests_arch": []})), "[]\n");
}

/// A folded scalar: newlines are spaces, and the trim markers take those.
#[test]
fn folded_scalars() {
    let text = "{{- if .all -}} [\"all\"] {{- else -}} {{ .platforms | toJson }} {{- end -}}\n";
    assert_eq!(render(text, json!({"all": true})), "[\"all\"]");
    assert_eq!(
        render(text, json!({"all": false, "platforms": ["linux/arm64"]})),
        "[\"linux/arm64\"]"
    );
}

#[test]
fn auths_as_json() {
    let text = "{{- $auths := list -}}
{{- range .registries -}}
  {{- $auth := dict \"registry\" .host \"username\" .user \"password\" .password -}}
  {{- if .insecure -}}{{- $_ := set $auth \"skip_tls_verify\" true -}}{{- end -}}
  {{- $auths = append $auths $auth -}}
{{- end -}}
{{ $auths | toJson }}";
    let vars = json!({"registries": [
        {"host": "dockerhub.kubekey.local", "user": "admin", "password": "a\"b&c", "insecure": true},
        {"host": "r.io:5000", "user": "x", "password": "y", "insecure": false},
    ]});
    assert_eq!(
        render(text, vars),
        r#"[{"password":"a\"b\u0026c","registry":"dockerhub.kubekey.local","skip_tls_verify":true,"username":"admin"},{"password":"y","registry":"r.io:5000","username":"x"}]"#
    );
}

const DEST: &str = "{{- $image := .module.image.src.reference -}}
{{- $project := $image.repository | splitList \"/\" | first -}}
{{- if and (eq $image.registry \"registry.k8s.io\") ($image.repository | contains \"/\" | not) -}}
oci://{{ .harbor }}/kubernetes/{{ $image.repository }}:{{ $image.reference }}
{{- else if eq $project \"library\" -}}
oci://{{ .harbor }}/{{ default \"library\" .project }}/{{ $image.repository | trimPrefix \"library/\" }}:{{ $image.reference }}
{{- else -}}
oci://{{ .harbor }}/{{ $image.repository }}:{{ .module.image.reference.reference }}
{{- end -}}";

#[test]
fn targets() {
    let template = Template::parse(DEST, None).unwrap();
    for (registry, repository, tag, expected) in [
        ("registry.k8s.io", "pause", "3.9", "oci://h.local/kubernetes/pause:3.9"),
        ("registry.k8s.io", "coredns/coredns", "v1", "oci://h.local/coredns/coredns:v1"),
        ("docker.io", "library/nginx", "1", "oci://h.local/library/nginx:1"),
        ("quay.io", "calico/cni", "v3", "oci://h.local/calico/cni:v3"),
    ] {
        let mut vars: Value = json!({"harbor": "h.local"}).into();
        vars.merge(image_vars(registry, repository, tag, Some(tag), None));
        assert_eq!(template.render(&vars, Missing::Error).unwrap(), expected);
    }
    let vars = image_vars("quay.io", "calico/cni", "v3", Some("v3"), None);
    let error = template.render(&vars, Missing::Error).unwrap_err();
    assert_eq!((error.line(), error.column()), (8, 10));
}

#[test]
fn conditions_of_tasks() {
    let vars = json!({
        "image_registry": {"type": "harbor", "auth": {"registry": "h.local"}},
        "kubernetes": {"kube_version": "v1.30.2"},
        "groups": {"k8s": ["a", "b"]},
        "arch": ["amd64"],
    });
    for (text, expected) in [
        (".image_registry.auth.registry | empty | not", "true"),
        (
            "and (eq .image_registry.type \"harbor\") (.kubernetes.kube_version | semverCompare \">=v1.24.0\")",
            "true",
        ),
        ("or (not .image_registry.auth.registry) (len .groups.k8s | lt 5)", "false"),
        ("has \"arm64\" .arch", "false"),
        ("ternary \"https\" \"http\" (.image_registry.type | eq \"harbor\")", "https"),
        ("index (.groups.k8s | default list) 0", "a"),
        (
            "slice (splitList \".\" (trimPrefix \"v\" .kubernetes.kube_version)) 0 2 | join \".\"",
            "1.30",
        ),
        ("tpl \"{{ .image_registry.type }}\" .", "harbor"),
    ] {
        assert_eq!(render(&format!("{{{{ {text} }}}}"), vars.clone()), expected, "{text}");
    }
}

#[test]
fn images_have_both_trees() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let vars = image_vars("docker.io", "library/nginx", &digest, None, Some(&digest));
    for tree in [".module.image.src.reference", ".module.image.reference"] {
        let text = format!(
            "{{{{ with {tree} }}}}{{{{ .registry }}}}/{{{{ .repository }}}}@{{{{ .reference }}}}[{{{{ .tag }}}}]{{{{ eq .reference .digest }}}}{{{{ end }}}}"
        );
        let rendered = Template::parse(&text, None).unwrap().render(&vars, Missing::Error).unwrap();
        assert_eq!(rendered, format!("docker.io/library/nginx@{digest}[]true"));
    }
}
