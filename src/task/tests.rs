//! Tables: what stands in a file, and what it means or what is wrong with it.

use std::{fmt::Write, time::Duration};

use proptest::prelude::*;
use serde_json::json;

use super::{error::Findings, prepare::Prepared, side::with_image, *};
use crate::{
    template::Missing,
    transfer::Policy,
    tree::registry::{Credentials, Entry},
};

fn settings(vars: serde_json::Value) -> Settings {
    Settings {
        images_dir: "default-dir".into(),
        base: "/etc/tasks".into(),
        vars: vars.into(),
        ..Settings::default()
    }
}

/// The requests of all tasks, or everything that is wrong.
fn requests(text: &str, vars: serde_json::Value) -> Result<Vec<Request>, Vec<String>> {
    let shown = |errors: Vec<TaskError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let playbook = Playbook::parse(text, None).map_err(shown)?;
    let settings = settings(vars);
    playbook.check(&settings, &Selection::default()).map_err(shown)?;
    let mut requests = Vec::new();
    for task in &playbook.tasks {
        let mut findings = Findings::default();
        match task.prepare(&settings, &Value::map(), &Default::default(), &mut findings) {
            Some(Prepared::Ready(iterations)) => {
                requests
                    .extend(iterations.into_iter().flat_map(|i| i.requests.unwrap_or_default()));
            }
            Some(Prepared::Skip(_)) => {}
            other => panic!("{other:?} {findings:?}"),
        }
    }
    Ok(requests)
}

/// One line for a request. Names are shown for `docker.io/library/nginx:1.25`.
fn show(request: &Request) -> String {
    let mut line = format!("{} -> {}", request.from, request.to);
    match &request.images {
        Images::Listed(images) => write!(line, " [{}]", images.join(" ")).unwrap(),
        Images::All => line += " all",
    }
    if let Some(pattern) = &request.pattern {
        write!(line, " ~{pattern}").unwrap();
    }
    for (what, template) in [("source", &request.source), ("dest", &request.dest)] {
        if let Some(template) = template {
            let image = "docker.io/library/nginx:1.25".parse().unwrap();
            let vars = with_image(&request.vars, &image);
            let name = template.render(&vars, Missing::Error).unwrap();
            write!(line, " {what}={}", bare_name(&name)).unwrap();
        }
    }
    if request.options.platforms != crate::image::PlatformFilter::All {
        write!(line, " {}", request.options.platforms).unwrap();
    }
    if request.options.policy == Policy::Strict {
        line += " strict";
    }
    for Entry { prefix, credentials, .. } in &request.auths {
        write!(line, " {prefix}").unwrap();
        if let Some(Credentials::Basic { username, password }) = credentials {
            write!(line, "={username}/{password}").unwrap();
        }
    }
    if let Some(skip) = request.skip_tls_verify {
        write!(line, " skip_tls_verify={skip}").unwrap();
    }
    line
}

#[track_caller]
fn means(text: &str, vars: serde_json::Value, expected: &[&str]) {
    match requests(text, vars) {
        Ok(requests) => {
            assert_eq!(requests.iter().map(show).collect::<Vec<_>>(), expected, "{text}");
        }
        Err(errors) => panic!("{text}\n{errors:#?}"),
    }
}

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

#[test]
fn mistakes_have_their_place() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        // Files.
        ("", "line 1, column 1: expected a list of tasks, not nothing"),
        ("just text", "expected a list of tasks, not a text"),
        ("- just text", "line 1, column 3: expected a task, not a text"),
        ("- name: x\n  name: y\n  image: {}\n", "line 2, column 3"),
        ("- pull: {manifests: [a]}\n---\n- x: y\n", "document"),
        // Tasks.
        ("- name: x\n", "line 1, column 3: task `x`: the task has no `image`"),
        (
            "- name: say hello\n  command: echo hello\n",
            "line 2, column 3: task `say hello`: command: imgfs has no module `command`; it carries out `image` only",
        ),
        (
            "- name: x\n  wehn: .y\n  pull: [a]\n",
            "line 2, column 3: task `x`: wehn: a task has no such key; did you mean `when`?",
        ),
        (
            "- pull: [a]\n  become: true\n",
            "line 2, column 3: task `line 1`: become: refused: imgfs works as the user",
        ),
        (
            "- pull: [a]\n  delegate_to: h\n",
            "delegate_to: refused: every task is carried out on this machine",
        ),
        ("- pull: [a]\n  environment: {A: b}\n", "environment: refused: set the environment"),
        ("- pull: [a]\n  notify: x\n", "notify: refused: there are no handlers"),
        ("- pull: [a]\n  until: x\n", "until: refused"),
        ("- pull: [a]\n  with_items: [x]\n", "with_items: refused: write `loop`"),
        (
            "- pull: [a]\n  retries: many\n",
            "line 2, column 12: task `line 1`: retries: expected a number from 0 to 1000",
        ),
        ("- pull: [a]\n  retries: -1\n", "retries: expected a number"),
        ("- pull: [a]\n  ignore_errors: perhaps\n", "ignore_errors: expected true or false"),
        ("- pull: [a]\n  register: a b\n", "register: expected the name of a variable"),
        ("- pull: [a]\n  register: item\n", "register: expected the name of a variable"),
        ("- pull: [a]\n  template: jinja\n", "template: expected go or tera"),
        ("- pull: [a]\n  tags: [{a: b}]\n", "tags: expected a word"),
        ("- pull: [a]\n  vars: [a]\n", "vars: expected a mapping, not a list"),
        ("- image: {}\n  pull: [a]\n", "pull: this belongs under `image`"),
        ("- block: []\n  register: x\n", "register: this cannot stand beside `block`"),
        ("- block: {a: b}\n", "block: expected a list of tasks, not a mapping"),
        ("- block: [x]\n", "block: expected a task, not a text"),
        // Plays.
        ("- hosts: all\n  roles: [x]\n", "line 2, column 3: roles: imgfs reads one file"),
        ("- hosts: all\n  gather_facts: true\n", "gather_facts: imgfs knows no facts"),
        ("- hosts: all\n  taks: []\n", "taks: a play has no such key; did you mean `tasks`?"),
        ("- hosts: all\n  tasks: {a: b}\n", "line 2, column 10: tasks: expected a list of tasks"),
        ("- hosts: all\n  vars_files: [x]\n", "vars_files: give them as --vars FILE"),
        ("- import_playbook: x.yaml\n", "import_playbook: imgfs reads one file"),
        // Arguments.
        ("- image: x\n", "image: expected a mapping with pull, push, copy"),
        ("- image: {}\n", "image: `src` is missing"),
        ("- image: {manifests: [a], src: 'oci://'}\n", "image: `dest` is missing"),
        (
            "- image: {push: {dest: 'oci://a.io'}, policy: warn}\n",
            "policy: this cannot stand beside pull, push and copy",
        ),
        ("- pull: {}\n", "pull: `manifests` is missing"),
        ("- pull: {manifests:}\n", "pull: `manifests` is missing"),
        ("- pull: x\n", "pull: expected a mapping, not a text"),
        ("- push: {}\n", "push: `dest` is missing"),
        ("- copy: {to: {path: x}}\n", "copy: `from.path` is missing"),
        ("- copy: {from: x, to: {path: x}}\n", "copy.from: expected a mapping with `path`"),
        (
            "- pull:\n    manifests: [a]\n    plattform: amd64\n",
            "line 3, column 5: task `line 1`: pull.plattform: there is no such argument; did you mean `platform`?",
        ),
        (
            "- push: {dest: 'oci://a.io', platform: amd64}\n",
            "push.platform: there is no such argument",
        ),
        (
            "- copy: {from: {path: x}, to: {path: y, patern: a}}\n",
            "copy.to.patern: there is no such argument; did you mean `pattern`?",
        ),
        (
            "- pull: {manifests: [a], skip_tls_verify: true, insecure: true}\n",
            "insecure: this is said already, as `pull.skip_tls_verify`",
        ),
        (
            "- pull: {manifests: [a, b:c:d]}\n",
            "column 25: task `line 1`: pull.manifests: `b:c:d` is not an image reference",
        ),
        ("- pull: {manifests: [a, '']}\n", "pull.manifests: an empty text"),
        ("- pull: {manifests: [[a]]}\n", "pull.manifests: expected a text, not a list"),
        ("- pull: {manifests: {a: b}}\n", "pull.manifests: expected a list of texts"),
        (
            "- pull: {manifests: '{{ .list }}'}\n",
            "pull.manifests: gives no JSON list; a template ends with `| toJson`",
        ),
        ("- pull: {manifests: '[{}]'}\n", "gives a list of which an element is no text"),
        ("- pull: {manifests: [a], platform: plan9}\n", "pull.platform: `plan9` is not a platform"),
        (
            "- pull: {manifests: [a], policy: lax}\n",
            "pull.policy: expected strict or warn, not `lax`",
        ),
        (
            "- pull: {manifests: [a], images_dir: 'oci://a.io'}\n",
            "pull.images_dir: this is a registry, not a directory",
        ),
        ("- pull: {manifests: [a], images_dir: 'ftp://x'}\n", "`ftp://` is no tree of images"),
        ("- pull: {manifests: [a], images_dir: ''}\n", "pull.images_dir: a tree is a directory or"),
        (
            "- pull: {manifests: [a], images_dir: '{{ .module.image.reference.tag }}'}\n",
            "it cannot depend on the image",
        ),
        (
            "- pull: {manifests: [a], skip_tls_verify: perhaps}\n",
            "pull.skip_tls_verify: expected true or false",
        ),
        (
            "- push: {dest: 'oci://a.io', src_pattern: '('}\n",
            "push.src_pattern: `(` is not a regular expression: unclosed group",
        ),
        ("- push: {dest: a.io/x}\n", "push.dest: `a.io/x` would be the name of every image"),
        (
            "- push: {dest: 'local://x'}\n",
            "push.dest: this is a directory; a push goes to a registry",
        ),
        ("- push: {dest: 'oci://u:hunter2@a.io/x'}\n", "push.dest: credentials do not belong"),
        (
            "- push: {dest: 'a.io/x:1', registry: a.io}\n",
            "push.dest: `registry` and `dest` exclude each other",
        ),
        (
            "- push: {dest: 'a.io/x:1', namespace_override: a}\n",
            "push.namespace_override: this belongs beside `registry`",
        ),
        (
            "- push: {registry: a.io, namespace_override: A}\n",
            "push.namespace_override: `a.io/A` is not the name of a registry",
        ),
        (
            "- copy: {from: {path: 'oci://'}, to: {path: x}}\n",
            "`from.manifests` is missing: registries do not list",
        ),
        (
            "- image: {manifests: [a], src: 'oci://', dest: a.io/x}\n",
            "dest: `a.io/x` could be a directory or a name",
        ),
        (
            "- image: {manifests: [a], src: 'docker://a', dest: /x}\n",
            "src: `docker://` is no tree of images",
        ),
        (
            "- image: {manifests: [a], src: 'oci://', dest: 'local://x/{{ .module.image.reference.repository }}'}\n",
            "for docker.io/library/a:latest, it gives the directory `local://x/library/a`; in a directory",
        ),
        (
            "- image: {manifests: [a], src: 'oci://A B/{{ .module.image.reference.repository }}', dest: /x}\n",
            "src: for docker.io/library/a:latest, it gives a name that is none",
        ),
        // Credentials.
        (
            "- pull: {manifests: [a], auths: x}\n",
            "pull.auths: expected a list of entries with `repo`, not a text",
        ),
        (
            "- pull: {manifests: [a], auths: [x]}\n",
            "pull.auths: expected an entry with `repo`, not a text",
        ),
        (
            "- pull: {manifests: [a], auths: {repo: a.io}}\n",
            "pull.auths: expected a list of entries",
        ),
        ("- pull: {manifests: [a], auths: [{username: u}]}\n", "pull.auths: an entry needs `repo`"),
        (
            "- pull:\n    manifests: [a]\n    auths:\n      - repo: a.io\n        plain_http: perhaps\n",
            "line 5, column 21: task `line 1`: auths.plain_http: expected true or false",
        ),
        (
            "- pull: {manifests: [a], auths: [{repo: a.io, username: [u]}]}\n",
            "auths.username: expected a text, not a list",
        ),
        (
            "- pull: {manifests: [a], auths: '[{'}\n",
            "pull.auths: in the text that it gives, line 1",
        ),
        (
            "- pull: {manifests: [a], username: u}\n",
            "pull.username: `username` and `password` go together",
        ),
        (
            "- pull: {manifests: [a.io/x, b.io/y], username: u, password: p}\n",
            "pull.username: this is for one registry, but the images are in a.io and b.io",
        ),
        (
            "- push: {dest: '{{ .module.image.reference.registry }}/x:1', username: u, password: p}\n",
            "push.username: it depends on the image which registry this is for",
        ),
        // Templates.
        ("- pull: {manifests: ['{{ .none }}']}\n", "pull.manifests: template 1:"),
        (
            "- pull:\n    manifests:\n      - 'é {{ nofunc 1 }}'\n",
            "line 3, column 9: task `line 1`: pull.manifests: template 1:6: function \"nofunc\" not defined",
        ),
        ("- pull: {manifests: [a]}\n  when: eq (\n", "when: template"),
        ("- pull: {manifests: [a]}\n  when: .list\n", "when: `.list` gives neither true nor false"),
        ("- pull: {manifests: [a]}\n  loop: x\n", "loop: gives no JSON list"),
        ("- pull: {manifests: [a]}\n  loop: {a: b}\n", "loop: expected a list"),
        ("- pull: {manifests: [a]}\n  vars: {v: '{{ .none }}'}\n", "vars.v: template"),
        (
            "- pull: {manifests: ['{{ .item }}']}\n  loop: [a, b:c:d]\n",
            "`b:c:d` is not an image reference",
        ),
        (
            "- push: {dest: 'a.io/{{ .none }}/{{ .module.image.reference.tag }}:1'}\n  when: .list | empty\n- push: {dest: '{{'}\n",
            "name of every image",
        ),
        (
            "- push: {dest: '{{ .hub }}/{{ .module.image.reference.repository }}:1'}\n",
            "push.dest: template 1:",
        ),
        // Without quotes, braces are YAML's.
        ("- pull: {manifests: [a]}\n  vars:\n    v: {{ .x }}\n", "in quotes"),
    ] {
        match requests(text, json!({"list": ["a", "b"]})) {
            Ok(requests) => wrong.push(format!("{text}\n{requests:#?}")),
            Err(errors) if errors.iter().any(|error| error.contains(expected)) => {}
            Err(errors) => wrong.push(format!("{text}{expected}\n{errors:#?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn all_mistakes_are_told_at_once_and_no_secret_is() {
    let errors = requests(
        "- pull: {manifests: ['b:c:d', 'e:f:g'], platform: plan9, policy: lax}\n\
         - push: {dest: 'oci://a.io', src_pattern: '('}\n",
        json!({}),
    )
    .unwrap_err();
    assert_eq!(errors.len(), 5, "{errors:#?}");
    for text in [
        "- pull: {manifests: [a], password: hunter2}\n",
        "- pull: {manifests: [a], username: u, password: [hunter2]}\n",
        "- pull: {manifests: [a], auths: [{repo: a.io, password: hunter2}]}\n",
        "- pull: {manifests: [a], auths: [{repo: a.io, password: 'hunter2}]}\n",
        "- pull: {manifests: [a], auths: '[{repo: a.io, password: [hunter2]}]'}\n",
        "- pull: {manifests: [a]}\n  when: .secret\n",
    ] {
        let errors = requests(text, json!({"secret": "hunter2"})).unwrap_err();
        assert!(!format!("{errors:?}").contains("hunter2"), "{errors:?}");
    }
    let [request] = &requests("pull: [a]", json!({"secret": "hunter2"})).unwrap()[..] else {
        panic!()
    };
    assert!(!format!("{request:?}").contains("hunter2"));
}

#[test]
fn what_is_odd_is_warned_about() {
    let text = "- hosts: [web]\n  tasks:\n    - name: p\n      pull:\n        manifests: [a]\n        auths:\n          - repo: a.io\n            usrname: u\n";
    let playbook = Playbook::parse(text, None).unwrap();
    assert_eq!(
        playbook.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["line 1, column 10: hosts: tasks are carried out on this machine, once"]
    );
    let warnings = playbook.check(&settings(json!({})), &Selection::default()).unwrap();
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["line 8, column 13: task `p`: auths.usrname: this key is not known and is ignored"]
    );
}

/// Ends transfers as a table says, by the first image or the target, and writes down what happens.
#[derive(Default)]
struct Script {
    outcomes: Vec<(&'static str, Vec<TaskOutcome>)>,
    log: Vec<String>,
}

impl Runner for Script {
    fn carry_out(&mut self, _: &Task, request: &Request) -> TaskOutcome {
        let shown = show(request);
        let outcome = self.outcomes.iter_mut().find(|(part, _)| shown.contains(part));
        let outcome =
            outcome.and_then(
                |(_, outcomes)| {
                    if outcomes.is_empty() { None } else { Some(outcomes.remove(0)) }
                },
            );
        let outcome = outcome.unwrap_or(TaskOutcome::Success);
        self.log.push(format!("  {shown}: {}", outcome.name()));
        outcome
    }

    fn tell(&mut self, task: &Task, event: RunEvent<'_>) {
        self.log.push(match event {
            RunEvent::Started => format!("TASK [{}]", task.name),
            RunEvent::Item(item) => format!(" item {item}"),
            RunEvent::ItemEnded(item, outcome) => format!(" item {item}: {}", outcome.name()),
            RunEvent::Repeated { retry, reason } => format!("  again {retry}: {reason}"),
            RunEvent::Ended(status) => match status.reason() {
                Some(reason) => format!("{}: {}: {reason}", task.name, status.name()),
                None => format!("{}: {}", task.name, status.name()),
            },
        });
    }

    fn wait(&mut self, delay: Duration) {
        self.log.push(format!("  wait {}", delay.as_secs()));
    }
}

fn failed(reason: &str) -> TaskOutcome {
    TaskOutcome::Failed(reason.into())
}

#[track_caller]
fn runs(text: &str, outcomes: Vec<(&'static str, Vec<TaskOutcome>)>, log: &[&str]) {
    let playbook = Playbook::parse(text, None).unwrap();
    let settings = settings(json!({}));
    let selection = Selection::default();
    playbook.check(&settings, &selection).unwrap();
    let mut script = Script { outcomes, ..Script::default() };
    let report = playbook.run(&settings, &selection, &mut script);
    assert_eq!(report.len(), playbook.tasks.len());
    assert_eq!(script.log, log);
}

#[test]
fn a_failed_task_ends_the_run() {
    let text = "
- {name: a, pull: [a]}
- {name: b, pull: [b], ignore_errors: true}
- {name: c, pull: [c], retries: 2, delay: 7}
- {name: d, pull: [d]}
- {name: e, pull: [e]}
";
    runs(
        text,
        vec![
            ("[b]", vec![failed("no b")]),
            ("[c]", vec![failed("no c"), TaskOutcome::Success]),
            ("[d]", vec![failed("no d")]),
        ],
        &[
            "TASK [a]",
            "  registry:// -> default-dir [a]: success",
            "a: success",
            "TASK [b]",
            "  registry:// -> default-dir [b]: failed",
            "b: ignored: no b",
            "TASK [c]",
            "  registry:// -> default-dir [c]: failed",
            "  again 1: no c",
            "  wait 7",
            "  registry:// -> default-dir [c]: success",
            "c: success",
            "TASK [d]",
            "  registry:// -> default-dir [d]: failed",
            "d: failed: no d",
            "e: not run",
        ],
    );
}

#[test]
fn skips_have_their_reason() {
    let text = "
- {name: a, pull: {manifests: []}}
- {name: b, pull: [b], when: .nothing}
- {name: c, pull: [c], loop: []}
- {name: d, push: {dest: 'oci://d.io'}}
- name: e
  image: {push: {dest: 'oci://e.io'}, pull: {manifests: []}}
";
    let nothing = || vec![TaskOutcome::Skip("no image matches".into())];
    runs(
        text,
        vec![("d.io", nothing())],
        &[
            "TASK [a]",
            "a: skip: the list of images is empty",
            "TASK [b]",
            "b: skip: `.nothing` (line 3) is not true",
            "TASK [c]",
            "c: skip: the loop has no items",
            "TASK [d]",
            "  default-dir -> registry://d.io all: skip",
            "d: skip: no image matches",
            "TASK [e]",
            "  default-dir -> registry://e.io all: success",
            "e: success",
        ],
    );
}

#[test]
fn results_are_registered() {
    let text = "
- {name: a, pull: [a], register: first, ignore_errors: true}
- {name: b, pull: [b], when: .first.status | eq \"failed\", register: second}
- {name: c, pull: [c], when: '{{ eq .first.stdout \"success\" }}'}
- {name: d, pull: ['{{ .first.stderr }}'], loop: [1, 2], register: third}
- {name: e, pull: ['{{ .x }}'], vars: {y: z, x: '{{ (index .third.results 1).status }}-{{ .y }}'}}
- {name: f, pull: ['{{ .second.stderr }}X']}
";
    runs(
        text,
        vec![("[a]", vec![failed("no-a")])],
        &[
            "TASK [a]",
            "  registry:// -> default-dir [a]: failed",
            "a: ignored: no-a",
            "TASK [b]",
            "  registry:// -> default-dir [b]: success",
            "b: success",
            "TASK [c]",
            "c: skip: `{{ eq .first.stdout \"success\" }}` (line 4) is not true",
            "TASK [d]",
            " item 1",
            "  registry:// -> default-dir [no-a]: success",
            " item 1: success",
            " item 2",
            "  registry:// -> default-dir [no-a]: success",
            " item 2: success",
            "d: success",
            "TASK [e]",
            "  registry:// -> default-dir [success-z]: success",
            "e: success",
            "TASK [f]",
            "f: failed: line 7, column 20: task `f`: pull: `X` is not an image reference: a repository is written in lower case",
        ],
    );
}

#[test]
fn tags_select() {
    let text = "
- {name: a, pull: [a], tags: x}
- {name: b, pull: [b], tags: [y, z]}
- {name: c, pull: [c]}
- {name: d, pull: [d], tags: always}
- {name: e, pull: [e], tags: [never, w]}
- {block: [{name: f, pull: [f], tags: u}], tags: 'x, v'}
";
    let playbook = Playbook::parse(text, None).unwrap();
    for (tags, skip_tags, expected) in [
        (&[][..], &[][..], "abcdf"),
        (&["x"], &[], "adf"),
        (&["z", "u"], &[], "bdf"),
        (&["w"], &[], "de"),
        (&["all"], &[], "abcdf"),
        (&["tagged"], &[], "abdef"),
        (&["untagged"], &[], "cd"),
        (&[], &["x"], "bcd"),
        (&["x"], &["v"], "ad"),
        (&[], &["always"], "abcf"),
        (&[], &["untagged"], "abf"),
        (&["nothing"], &["always"], ""),
    ] {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let selection = Selection { tags: words(tags), skip_tags: words(skip_tags) };
        let taken = playbook.tasks.iter().filter(|task| selection.takes(task));
        let names: String = taken.map(|task| task.name.as_str()).collect();
        assert_eq!(names, expected, "{tags:?} {skip_tags:?}");
    }
}

#[test]
fn a_loop_goes_on_after_a_failure() {
    runs(
        "- {name: a, pull: ['{{ .item }}'], loop: [x, y]}\n",
        vec![("[x]", vec![failed("no x")])],
        &[
            "TASK [a]",
            " item x",
            "  registry:// -> default-dir [x]: failed",
            " item x: failed",
            " item y",
            "  registry:// -> default-dir [y]: success",
            " item y: success",
            "a: failed: no x",
        ],
    );
}

#[test]
fn a_mistake_in_the_last_task_is_found_first() {
    let text = "
- {name: a, pull: [a], register: r}
- {name: b, pull: [b], when: .r.status | eq \"failed\"}
- {name: c, pull: {manifests: ['{{ .r.stdout }}'], platform: plan9}}
- {name: d, pull: {manifests: [a], images_dir: '{{ .nowhere }}'}, loop: '{{ .r.results | toJson }}'}
";
    let playbook = Playbook::parse(text, None).unwrap();
    let errors = playbook.check(&settings(json!({})), &Selection::default()).unwrap_err();
    let shown: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 2, "{shown:#?}");
    assert!(shown[0].contains("task `c`: pull.platform: `plan9`"), "{shown:#?}");
    assert!(shown[1].contains("task `d`: pull.images_dir: template"), "{shown:#?}");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = requests(&text, json!({}));
    }

    #[test]
    fn any_value_is_read_or_refused(
        key in "(manifests|platform|policy|auths|images_dir|src|dest|from|to|path|when|loop|vars|[a-z]{1,3})",
        value in "(\\PC{0,20}|\\{\\{ ?[.a-z| \"]{0,12} ?\\}\\}|[a-z]*://\\PC{0,10}|\\[[a-z, ]*\\])",
        form in "(pull|push|copy|image)",
    ) {
        let value = serde_json::to_string(&value).unwrap();
        for text in [
            format!("{form}: {{manifests: [a], dest: x, {key}: {value}}}"),
            format!("{form}: {{manifests: [a], src: 'oci://', dest: ./x}}\n{key}: {value}"),
            format!("copy: {{from: {{path: x, {key}: {value}}}, to: {{path: {value}}}}}"),
        ] {
            let _ = requests(&text, json!({"a": ["b"]}));
        }
    }
}
