//! KubeKey's documents, their examples carried out as they are printed, and what is around them.
//! The registries of the examples are on loopback, by `--resolve`.

use crate::support::cli::{Imgfs, Output};
use crate::support::image::{Built, Image, Index};
use crate::support::registry::Registry;
use crate::support::tree::assert_tree_sound;
use serde_json::Value;

/// Docker Hub and the hub of the examples.
struct Hubs {
    docker: Registry,
    kubekey: Registry,
}

impl Hubs {
    fn start() -> Self {
        Self { docker: Registry::plain(), kubekey: Registry::plain() }
    }

    fn run(&self, imgfs: &Imgfs, tasks: &str, args: &[&str]) -> Output {
        // The documents say /tmp/images and /tmp/others/images.
        let home = imgfs.home().display();
        let tasks = tasks.replace("/tmp/", &format!("{home}/"));
        let path = imgfs.home().join("tasks.yaml");
        std::fs::write(&path, tasks).unwrap();
        let docker = format!("docker.io={}", self.docker.host());
        let kubekey = format!("hub.kubekey={}", self.kubekey.host());
        let path = path.to_str().unwrap();
        let mut all = vec!["run", path, "--plain-http", "--resolve", &docker];
        all.extend(["--resolve", &kubekey]);
        all.extend(args);
        imgfs.run(&all)
    }
}

fn image(platform: &str, seed: u64) -> Image {
    Image::new().platform(platform).layer(1, 40_000).layer(seed, 10_000)
}

fn index(seed: u64) -> Built {
    Index::new()
        .child(&image("linux/amd64", seed).build())
        .child(&image("linux/arm64", seed + 1).build())
        .build()
}

const IMAGES: [(&str, &str); 3] = [
    ("kubesphere/ks-apiserver", "v4.1.3"),
    ("kubesphere/ks-controller-manager", "v4.1.3"),
    ("kubesphere/ks-console", "3.19"),
];

const ENGLISH: &str = r#"
- name: pull images
  image:
    pull:
      images_dir: /tmp/images/
      platform: [amd64, arm64]
      manifests:
        - "docker.io/kubesphere/ks-apiserver:v4.1.3"
        - "docker.io/kubesphere/ks-controller-manager:v4.1.3"
        - "docker.io/kubesphere/ks-console:3.19"
- name: push images to remote registry
  image:
    push:
      images_dir: /tmp/images/
      dest: "hub.kubekey/{{ .module.image.src.reference.repository }}:{{ .module.image.src.reference.reference }}"
"#;

#[test]
fn the_english_examples_from_hub_to_hub() {
    let hubs = Hubs::start();
    let images: Vec<Built> = (0..3).map(|n| index(10 * (n + 1))).collect();
    for ((repository, tag), image) in IMAGES.iter().zip(&images) {
        image.push_to(&hubs.docker, repository, tag);
    }
    let imgfs = Imgfs::scratch();
    let output = hubs.run(&imgfs, ENGLISH, &[]).success();
    for ((repository, tag), image) in IMAGES.iter().zip(&images) {
        // KubeKey's documents promise just this line.
        let line =
            format!("docker.io/{repository}:{tag} -> hub.kubekey/{repository}:{tag}: pushed");
        assert!(output.stdout.contains(&line), "{line} is not in {output}");
        assert_eq!(hubs.kubekey.manifest(repository, tag).unwrap(), image.root().bytes);
    }
    assert_tree_sound(&imgfs.home().join("images"));
    let shared = image("linux/amd64", 10).build().layers()[0].clone();
    let puts = hubs.kubekey.requests().iter().filter(|r| r.is_put_of(&shared)).count();
    assert_eq!(puts, 1, "the layer that all share is sent once");
    assert!(hubs.kubekey.has_blob("kubesphere/ks-console", &shared), "and mounted");

    // Once more: there is nothing to do, and that is a success.
    hubs.kubekey.forget_requests();
    hubs.run(&imgfs, ENGLISH, &[]).success();
    let requests = hubs.kubekey.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests.iter().all(|request| request.method == "HEAD"), "{requests:?}");
}

const CHINESE: &str = r#"
- name: pull images
  image:
    pull:
      images_dir: /tmp/images/
      platform: linux/amd64
      manifests:
        - "docker.io/kubesphere/ks-apiserver:v4.1.3"
        - "docker.io/kubesphere/ks-controller-manager:v4.1.3"
        - "docker.io/kubesphere/ks-console:3.19"
- name: push images
  push:
    images_dir: /tmp/images/
    dest: hub.kubekey/{{ .module.image.src.reference.repository }}:{{ .module.image.src.reference.reference }}
- name: file to file
  image:
    copy:
      from:
        path: "/tmp/images/"
        manifests:
        - docker.io/kubesphere/ks-console:3.19
      to:
        path: "/tmp/others/images/"
"#;

#[test]
fn the_chinese_examples_for_one_platform_and_into_another_directory() {
    let hubs = Hubs::start();
    for (n, (repository, tag)) in (1..).zip(IMAGES) {
        index(10 * n).push_to(&hubs.docker, repository, tag);
    }
    let imgfs = Imgfs::scratch();
    let output = hubs.run(&imgfs, CHINESE, &["--json"]).success();
    let report = output.report();
    assert_eq!(report["command"], "run");
    let statuses: Vec<&Value> =
        report["tasks"].as_array().unwrap().iter().map(|task| &task["status"]).collect();
    assert_eq!(statuses, ["success"; 3]);
    for (repository, tag) in IMAGES {
        let manifest = hubs.kubekey.manifest(repository, tag).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let children = manifest["manifests"].as_array().unwrap();
        assert_eq!(children.len(), 1, "{manifest}");
        assert_eq!(children[0]["platform"]["architecture"], "amd64");
    }
    let other = imgfs.home().join("others/images");
    assert_tree_sound(&other);
    let names = std::fs::read_dir(other.join("docker.io/kubesphere")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ks-console"], "only what was asked for");
}

const NEWER: &str = r#"
- name: fetch
  image:
    manifests:
      - docker.io/kubesphere/ks-apiserver:v4.1.3
      - docker.io/kubesphere/ks-console:3.19
    src: "oci://{{ .module.image.reference.registry }}/{{ .module.image.reference.repository }}:{{ .module.image.reference.reference }}"
    dest: local:///tmp/images
    platform: >
      {{- $all := list -}}
      {{- range .arch -}}{{- $all = append $all (printf "linux/%s" .) -}}{{- end -}}
      {{ $all | toJson }}
- name: send
  image:
    manifests: "{{ .images | toJson }}"
    pattern: ks-apiserver
    src: local:///tmp/images
    dest: |
      {{- if and (eq .module.image.reference.registry "docker.io") (.module.image.reference.repository | contains "/" | not) -}}
      oci://hub.kubekey/library/{{ .module.image.reference.repository }}:{{ .module.image.reference.reference }}
      {{- else -}}
      oci://hub.kubekey/{{ .project }}/{{ .module.image.reference.repository | splitList "/" | last }}:{{ .module.image.reference.reference }}
      {{- end -}}
  when: .send
"#;

#[test]
fn the_newer_form_with_its_templates() {
    let hubs = Hubs::start();
    let images = [index(10), index(20)];
    images[0].push_to(&hubs.docker, "kubesphere/ks-apiserver", "v4.1.3");
    images[1].push_to(&hubs.docker, "kubesphere/ks-console", "3.19");
    let imgfs = Imgfs::scratch();
    let vars = imgfs.home().join("vars.yaml");
    std::fs::write(
        &vars,
        "arch: [amd64, arm64]\nproject: mirror\nsend: true\nimages:\n  - docker.io/kubesphere/ks-apiserver:v4.1.3\n  - docker.io/kubesphere/ks-console:3.19\n",
    )
    .unwrap();
    let vars = ["--vars", vars.to_str().unwrap()];
    hubs.run(&imgfs, NEWER, &vars).success();
    let sent = hubs.kubekey.manifest("mirror/ks-apiserver", "v4.1.3").unwrap();
    assert_eq!(sent, images[0].root().bytes, "both platforms were asked for, so nothing changed");
    assert_eq!(hubs.kubekey.manifest("mirror/ks-console", "3.19"), None, "the pattern");

    let output = hubs.run(&imgfs, NEWER, &[&vars[..], &["--set", "send=false"]].concat());
    let output = output.success();
    assert!(output.stdout.contains("TASK [send]\nskip: "), "{output}");
}

#[test]
fn a_dry_run_goes_over_the_whole_file_and_does_nothing() {
    let hubs = Hubs::start();
    for (n, (repository, tag)) in (1..).zip(IMAGES) {
        index(10 * n).push_to(&hubs.docker, repository, tag);
    }
    let imgfs = Imgfs::scratch();
    let output = hubs.run(&imgfs, CHINESE, &["--dry-run"]).success();
    assert!(output.stdout.contains("3 tasks: 1 success, 2 skip"), "{output}");
    assert!(!imgfs.home().join("images").exists());

    hubs.run(&imgfs, CHINESE, &["--tags", "none"]).expect_code(3);
    hubs.run(&imgfs, ENGLISH, &[]).success();
    hubs.kubekey.forget_requests();
    let output = hubs.run(&imgfs, CHINESE, &["--dry-run"]).success();
    assert!(output.stdout.contains("3 tasks: 3 success"), "{output}");
    assert!(!imgfs.home().join("others").exists());
    let requests = hubs.kubekey.requests();
    assert!(requests.iter().all(|request| request.method == "HEAD"), "{requests:?}");
}

#[test]
fn what_fails_ends_the_run_and_the_rest_is_named() {
    let hubs = Hubs::start();
    index(10).push_to(&hubs.docker, "kubesphere/ks-apiserver", "v4.1.3");
    let imgfs = Imgfs::scratch();
    // Two of the three are not there.
    let output = hubs
        .run(&imgfs, ENGLISH, &[])
        .expect_code(1)
        .stderr_has("docker.io/kubesphere/ks-console:3.19: ")
        .stderr_has("task `pull images` failed");
    assert!(output.stdout.contains("TASK [push images to remote registry]\nnot run"), "{output}");
    assert!(hubs.kubekey.requests().is_empty());
    // What there was has come all the same.
    assert_tree_sound(&imgfs.home().join("images"));

    let ignoring = ENGLISH.replacen("- name: pull images", "- ignore_errors: true\n  name: x", 1);
    hubs.run(&imgfs, &ignoring, &[]).success();
    assert!(hubs.kubekey.manifest("kubesphere/ks-apiserver", "v4.1.3").is_some());
}

#[test]
fn nothing_that_matches_is_a_skip_and_said() {
    let hubs = Hubs::start();
    let imgfs = Imgfs::scratch();
    std::fs::create_dir_all(imgfs.home().join("images")).unwrap();
    let push = "- name: push\n  image:\n    push: {images_dir: /tmp/images, src_pattern: nginx, dest: 'hub.kubekey/x:1'}\n";
    let output = hubs.run(&imgfs, push, &[]).expect_code(3).stderr_has("no image matches");
    assert!(output.stdout.contains("skip: nothing matched"), "{output}");
}
