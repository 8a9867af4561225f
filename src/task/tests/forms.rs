//! What stands in a file, and which requests it means.

use serde_json::json;

use super::{means, requests};

#[test]
fn every_form_and_spelling() {
    for (text, expected) in [
        // Containers of tasks.
        ("image: {pull: {manifests: [a]}}", "registry:// -> default-dir [a]"),
        ("pull: {manifests: [a]}", "registry:// -> default-dir [a]"),
        (
            "[{hosts: localhost, tasks: [{pull: {manifests: [a]}}]}]",
            "registry:// -> default-dir [a]",
        ),
        ("tasks: [{pull: {manifests: [a]}}]", "registry:// -> default-dir [a]"),
        ("[{name: x, block: [{pull: {manifests: [a]}}]}]", "registry:// -> default-dir [a]"),
        ("---\n- pull: {manifests: [a]}\n", "registry:// -> default-dir [a]"),
        ("\u{feff}- pull: {manifests: [a]}\n", "registry:// -> default-dir [a]"),
        // Lists and what stands for them.
        ("pull: {manifests: 'a:1'}", "registry:// -> default-dir [a:1]"),
        ("pull: {manifests: '[\"a\", \"b\"]'}", "registry:// -> default-dir [a b]"),
        ("pull: {manifests: []}", "registry:// -> default-dir []"),
        ("pull: {manifests: 'null'}", "registry:// -> default-dir []"),
        ("pull: {manifests: '[::1]:5000/a'}", "registry:// -> default-dir [[::1]:5000/a]"),
        ("pull: [a, b]", "registry:// -> default-dir [a b]"),
        ("pull: {manifests: [a, '{{ .none | default \"\" }}']}", "registry:// -> default-dir [a]"),
        ("pull: {manifests: [' a\n']}", "registry:// -> default-dir [a]"),
        // Platforms.
        ("pull: {manifests: [a], platform: []}", "registry:// -> default-dir [a]"),
        ("pull: {manifests: [a], platform: ['*']}", "registry:// -> default-dir [a]"),
        ("pull: {manifests: [a], platform: all}", "registry:// -> default-dir [a]"),
        ("pull: {manifests: [a], platform: 386}", "registry:// -> default-dir [a] linux/386"),
        (
            "pull: {manifests: [a], platform: \"amd64,linux/arm/v7\\n\"}",
            "registry:// -> default-dir [a] linux/amd64,linux/arm/v7",
        ),
        (
            "pull: {manifests: [a], platform: amd64, policy: strict}",
            "registry:// -> default-dir [a] linux/amd64 strict",
        ),
        // Directories.
        ("pull: {manifests: [a], images_dir: 'local:///x'}", "registry:// -> /x [a]"),
        ("pull: {manifests: [a], images_dir: '{{ .dir }}/x'}", "registry:// -> /data/x [a]"),
        // Booleans.
        (
            "pull: {manifests: [a], skip_tls_verify: true}",
            "registry:// -> default-dir [a] skip_tls_verify=true",
        ),
        (
            "pull: {manifests: [a], skipTLSVerify: 'yes'}",
            "registry:// -> default-dir [a] skip_tls_verify=true",
        ),
        (
            "pull: {manifests: [a], insecure: '{{ not .on }}'}",
            "registry:// -> default-dir [a] skip_tls_verify=false",
        ),
        // Credentials.
        (
            "pull: {manifests: [a], auths: [{repo: A.io/x/, username: u, password: 0123}]}",
            "registry:// -> default-dir [a] a.io/x=u/0123",
        ),
        (
            "pull: {manifests: [a], auths: [{registry: a.io, username: '{{ .user | quote | trimAll \"\\\"\" }}', password: '{{ .pass }}'}]}",
            "registry:// -> default-dir [a] a.io=robot/p w",
        ),
        (
            "pull: {manifests: [a], auths: '[{\"repo\": \"a.io\", \"username\": \"{{ .user }}\", \"password\": 007}]'}",
            "registry:// -> default-dir [a] a.io=robot/007",
        ),
        (
            "pull: {manifests: [a], auths: ['{{ .entry | toJson }}', {repo: b.io, plain_http: true}]}",
            "registry:// -> default-dir [a] a.io=u/p b.io",
        ),
        ("pull: {manifests: [a], auths: []}", "registry:// -> default-dir [a]"),
        (
            "pull: {manifests: [a.io/x, a.io/y], username: u, password: '{{ .pass }}'}",
            "registry:// -> default-dir [a.io/x a.io/y] a.io=u/p w",
        ),
        ("pull: {manifests: [], username: u, password: p}", "registry:// -> default-dir []"),
        // push
        ("push: {dest: 'oci://a.io/mirror'}", "default-dir -> registry://a.io/mirror all"),
        (
            "push: {dest: 'a.io/x:{{ .tag }}', src_pattern: '^docker\\.io/'}",
            "default-dir -> registry:// all ~^docker\\.io/ dest=a.io/x:7",
        ),
        (
            "push: {dest: 'a.io/x:1', pattern: nginx}",
            "default-dir -> registry:// all ~nginx dest=a.io/x:1",
        ),
        (
            "push: {dest: ' {{ if true }}oci://a.io/{{ .module.image.reference.repository }}:v1{{ end }} '}",
            "default-dir -> registry:// all dest=a.io/library/nginx:v1",
        ),
        (
            "push: {dest: 'a.io/{{ .module.image.src.reference.repository }}:1', username: u, password: p}",
            "default-dir -> registry:// all dest=a.io/library/nginx:1 a.io=u/p",
        ),
        (
            "push: {registry: a.io:5000, username: u, password: 12}",
            "default-dir -> registry://a.io:5000 all a.io:5000=u/12",
        ),
        (
            "push: {registry: a.io, namespace_override: team}",
            "default-dir -> registry:// all dest=a.io/team/nginx:1.25",
        ),
        (
            "push: {registry: a.io, namespace_override: ''}",
            "default-dir -> registry:// all dest=a.io/nginx:1.25",
        ),
        // copy
        ("copy: {from: {path: x}, to: {path: y}}", "x -> y all"),
        ("copy: {from: {path: x}, to: {path: y, pattern: a}}", "x -> y all ~a"),
        (
            "copy: {platform: arm64, from: {path: x, manifests: [a]}, to: {path: y, src_pattern: a}}",
            "x -> y [a] ~a linux/arm64",
        ),
        (
            "copy: {from: {path: 'oci://a.io', manifests: [a]}, to: {path: 'oci://b.io/mirror'}}",
            "registry://a.io -> registry://b.io/mirror [a]",
        ),
        ("copy: {from: {path: 'oci://a.io/team'}, to: {path: y}}", "registry://a.io/team -> y all"),
        (
            "copy: {from: {path: x}, to: {path: 'oci://b.io/{{ .module.image.src.reference.repository }}:2'}}",
            "x -> registry:// all dest=b.io/library/nginx:2",
        ),
        // The newer form.
        (
            "image: {manifests: [a], src: 'oci://', dest: 'local://x'}",
            "registry:// -> x [a] strict",
        ),
        (
            "image: {src: 'local://x', dest: 'oci://a.io', pattern: q}",
            "x -> registry://a.io all ~q strict",
        ),
        (
            "image: {manifests: [a], src: /x, dest: ./y, policy: warn, skip_tls_verify: true}",
            "/x -> ./y [a] skip_tls_verify=true",
        ),
        (
            "image: {manifests: [], src: 'local://x', dest: 'oci://a.io'}",
            "x -> registry://a.io [] strict",
        ),
        (
            "image: {manifests: [a], src: 'oci://a.io/b:1', dest: 'oci://b.io/c@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'}",
            "registry:// -> registry:// [a] source=a.io/b:1 dest=b.io/c@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 strict",
        ),
        // Tera.
        (
            "when: '{{ on and not off }}'\nvars: {x: '{{ dir }}/y'}\ntemplate: tera\npull: {manifests: [a], images_dir: '{{ x }}'}",
            "registry:// -> /data/y [a]",
        ),
        ("when: on and not off\ntemplate: tera\npull: [a]", "registry:// -> default-dir [a]"),
        (
            "tasks: [{template: tera, pull: ['{{ x }}']}]\nvars: {x: '{{ .tag | toJson }}'}",
            "registry:// -> default-dir [7]",
        ),
        (
            "template: tera\npush: {dest: 'a.io/{{ module.image.src.reference.repository }}:{{ tag }}'}",
            "default-dir -> registry:// all dest=a.io/library/nginx:7",
        ),
        (
            "push: {dest: '{% if tag == 7 %}a.io/x:{{ tag }}{% endif %}'}",
            "default-dir -> registry:// all dest=a.io/x:7",
        ),
    ] {
        let vars = json!({
            "dir": "/data", "on": true, "off": false, "user": "robot", "pass": "p w", "tag": 7,
            "entry": {"registry": "a.io", "username": "u", "password": "p", "ca_file": ""},
        });
        means(text, vars, &[expected]);
    }
}

#[test]
fn several_steps_run_in_the_order_of_kubekey() {
    means(
        "image:\n  copy: {from: {path: d}, to: {path: e}}\n  push: {dest: 'oci://a.io'}\n  pull: {manifests: [a], images_dir: d}\n",
        json!({}),
        &["registry:// -> d [a]", "default-dir -> registry://a.io all", "d -> e all"],
    );
    means(
        "- push: {dest: 'oci://a.io'}\n  pull: {manifests: [a]}\n",
        json!({}),
        &["registry:// -> default-dir [a]", "default-dir -> registry://a.io all"],
    );
}

#[test]
fn variables_conditions_and_loops() {
    let play = "
- hosts: localhost
  vars:
    host: a.io
    name: '{{ .host }}/x'
    list: '{{ list 1 2 | toJson }}'
    deep: {a: 1, b: '{{ .name }}'}
  pre_tasks:
    - pull: {manifests: ['{{ .name }}:0']}
  tasks:
    - block:
        - pull: {manifests: ['{{ .name }}:{{ .v }}']}
          vars: {v: 2}
        - pull: {manifests: ['{{ .deep.b }}:{{ .deep.a }}']}
      vars: {v: 1}
      when: .go
    - pull: {manifests: [never]}
      when: [.go, .host | eq \"b.io\"]
    - pull: {manifests: ['{{ .name }}:{{ .tag }}']}
      loop: '{{ .list | toJson }}'
      when: ne .item 1
      vars: {tag: 't{{ .item }}'}
    - pull: {manifests: ['{{ .item.n }}']}
      loop: [{n: p}, {n: '{{ .name }}'}]
  post_tasks:
    - pull: {manifests: [last]}
";
    means(
        play,
        json!({"go": true}),
        &[
            "registry:// -> default-dir [a.io/x:0]",
            "registry:// -> default-dir [a.io/x:2]",
            "registry:// -> default-dir [a.io/x:1]",
            "registry:// -> default-dir [a.io/x:t2]",
            "registry:// -> default-dir [p]",
            "registry:// -> default-dir [a.io/x]",
            "registry:// -> default-dir [last]",
        ],
    );
    // The command line is stronger than the file, and replaces parts of mappings.
    means(
        "tasks: [{pull: {manifests: ['{{ .m.a }}-{{ .m.b }}-{{ .s }}']}}]\nvars: {m: {a: 1, b: 2}, s: '{{ .nowhere }}'}\n",
        json!({"m": {"b": 3}, "s": "x"}),
        &["registry:// -> default-dir [1-3-x]"],
    );
    for (condition, met) in [
        ("true", true),
        ("'true'", true),
        ("'true '", true),
        ("false", false),
        (".on", true),
        (".off", false),
        (".none", false),
        (".none.of.that", false),
        ("'{{ .on }}'", true),
        ("eq .n 3", true),
        ("\"{{ if .off }}true{{ end }}\"", false),
        ("[.on, .off]", false),
        ("[]", true),
        (".n | default 3 | eq 3", true),
        (".list | empty | not", true),
    ] {
        let text = format!("- pull: {{manifests: [a]}}\n  when: {condition}\n");
        let vars = json!({"on": true, "off": false, "n": 3, "list": [1]});
        let count = requests(&text, vars).unwrap_or_else(|e| panic!("{condition}: {e:?}")).len();
        assert_eq!(count, usize::from(met), "{condition}");
    }
    // What is not carried out is not evaluated.
    means("- pull: {manifests: ['{{ .none }}']}\n  when: .none\n", json!({}), &[]);
    means("- pull: {manifests: [a]}\n  loop: []\n", json!({}), &[]);
}
