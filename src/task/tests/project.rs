//! Playbooks with the files beside them.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::{settings, show, texts};
use crate::{
    ops::Request,
    task::{Files, Playbook, Project, RunEvent, Runner, Selection, Task, TaskOutcome, TaskStatus},
};

/// Files in memory.
struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect())
    }

    /// The first file is the playbook.
    fn playbook(&self, path: &str) -> Result<Playbook, Vec<String>> {
        let project = Project { files: self, playbook: path.into() };
        Playbook::parse_project(&self.0[Path::new(path)], None, &project)
            .map_err(|errors| texts(&errors))
    }
}

impl Files for Tree {
    fn read(&self, path: &Path) -> io::Result<String> {
        assert!(!path.is_absolute() && !path.to_string_lossy().contains(".."), "{path:?}");
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let inside = self.0.keys().filter(|file| file.parent() == Some(path));
        let names: Vec<_> =
            inside.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }
}

#[derive(Default)]
struct Log(Vec<String>);

impl Runner for Log {
    fn carry_out(&mut self, _: &Task, request: &Request) -> TaskOutcome {
        self.0.push(show(request));
        TaskOutcome::Success
    }

    fn tell(&mut self, _: &Task, _: RunEvent<'_>) {}

    fn wait(&mut self, _: Duration) {}
}

/// What is carried out, and the statuses of all tasks.
fn run(playbook: &Playbook, vars: serde_json::Value, tags: &[&str]) -> (Vec<String>, Vec<String>) {
    let settings = settings(vars);
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let selection = Selection { tags, ..Selection::default() };
    let mut log = Log::default();
    if let Err(errors) = playbook.check(&settings, &selection) {
        return (texts(&errors), Vec::new());
    }
    let report = playbook.run(&settings, &selection, &mut log);
    let status = |status: &TaskStatus| match status.reason() {
        Some(reason) => format!("{}: {reason}", status.name()),
        None => status.name().to_owned(),
    };
    (log.0, report.iter().map(status).collect())
}

/// KubeKey's own layout and role, shortened.
fn kubekey() -> Tree {
    Tree::new(&[
        (
            "playbooks/push.yaml",
            "- import_playbook: hook.yaml\n\
             - hosts: [image_registry]\n  gather_facts: true\n  vars_files: [vars/common.yaml]\n  \
             roles:\n    - role: image-registry/push\n      when: ne .push false\n      tags: [registry]\n",
        ),
        (
            "playbooks/hook.yaml",
            "- hosts: [localhost]\n  tasks:\n    - name: hook\n      debug: {msg: x}\n",
        ),
        ("playbooks/vars/common.yaml", "arch: [amd64, arm64]\n"),
        (
            "roles/image-registry/push/defaults/main.yaml",
            "image_registry:\n  auth: {registry: r.io, username: '{{ .facts.user }}'}\narch: [none]\ndir: /images\n",
        ),
        ("roles/image-registry/push/meta/main.yml", "dependencies: [{role: prepare}]\n"),
        ("roles/prepare/tasks/main.yaml", "- name: prepare\n  command: make\n"),
        (
            "roles/image-registry/push/tasks/main.yaml",
            "- name: projects\n  tags: [\"push\"]\n  ignore_errors: true\n  command: |\n    curl {{ .nothing }}\n  register: projects\n\
             - include_tasks: push.yaml\n  tags: [push]\n",
        ),
        (
            "roles/image-registry/push/tasks/push.yaml",
            "- name: push\n  run_once: true\n  image:\n    platform: >\n      {{- $platform := list }}\n      {{- range .arch }}\n        {{- $platform = append $platform (printf \"linux/%s\" .) }}\n      {{- end }}\n      {{- $platform | toJson }}\n    manifests: [a, b]\n    src: \"local://{{ .dir }}/\"\n    dest: \"oci://{{ .image_registry.auth.registry }}/{{ .module.image.reference.repository }}:{{ .module.image.reference.reference }}\"\n",
        ),
    ])
}

#[test]
fn a_role_of_kubekeys_is_carried_out() {
    let playbook = kubekey().playbook("playbooks/push.yaml").unwrap();
    let names: Vec<_> = playbook.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["hook", "prepare", "projects", "push"]);
    let (carried_out, statuses) = run(&playbook, json!({}), &[]);
    assert_eq!(carried_out.len(), 1, "{carried_out:?}");
    for part in ["/images", "r.io/library/nginx", "[a b]", "linux/amd64", "linux/arm64"] {
        assert!(carried_out[0].contains(part), "{part}: {carried_out:?}");
    }
    assert_eq!(
        statuses,
        [
            "skip: imgfs has no module `debug`",
            "skip: imgfs has no module `command`",
            "skip: imgfs has no module `command`",
            "success"
        ]
    );
    let file = playbook.tasks[3].file.as_deref();
    assert_eq!(file, Some("roles/image-registry/push/tasks/push.yaml"));
    // Conditions, tags and variables of the role's entry count.
    let (carried_out, statuses) = run(&playbook, json!({"push": false}), &["push"]);
    assert!(carried_out.is_empty());
    assert_eq!(statuses[1], "not selected");
    assert!(statuses[3].starts_with("skip: `ne .push false`"), "{statuses:?}");
    let (carried_out, _) =
        run(&playbook, json!({"image_registry": {"auth": {"registry": "x.io"}}}), &[]);
    assert!(carried_out[0].contains("x.io/library/nginx"), "{carried_out:?}");
}

#[test]
fn what_a_skipped_task_would_set_is_missed_where_it_is_needed() {
    let tasks = "- name: look\n  command: ls\n  register: found\n\
                 - name: set\n  set_fact: {dir: x}\n\
                 - name: pull\n  pull: {manifests: [a], images_dir: '{{ .dir }}'}\n  when: .found.stdout | eq \"yes\"\n\
                 - name: other\n  pull: {manifests: ['found/dir:1']}\n";
    let tree = Tree::new(&[("tasks.yaml", tasks)]);
    let playbook = tree.playbook("tasks.yaml").unwrap();
    let (errors, _) = run(&playbook, json!({}), &[]);
    assert_eq!(errors.len(), 1, "{errors:?}");
    let expected = "tasks.yaml: task `pull`: when: `found` is set by the task `look`, which is skipped as one for the module `command`; give it with --set found=VALUE";
    assert!(errors[0].starts_with(expected), "{errors:?}");
    let (errors, _) = run(&playbook, json!({"found": {"stdout": "yes"}}), &[]);
    assert!(errors[0].contains("`dir` is set by the task `set`"), "{errors:?}");
    let vars = json!({"found": {"stdout": "yes"}, "dir": "/d"});
    let (carried_out, _) = run(&playbook, vars, &[]);
    assert_eq!(carried_out.len(), 2, "{carried_out:?}");
}

#[test]
fn a_default_that_cannot_be_evaluated_is_an_error_where_it_is_used() {
    let tree = Tree::new(&[
        ("p.yaml", "- hosts: localhost\n  roles: [r]\n"),
        ("roles/r/defaults/main/1.yaml", "user: '{{ .facts.user }}'\nname: a\n"),
        ("roles/r/defaults/main/2.yaml", "more: '{{ .user }}x'\n"),
        ("roles/r/vars/main.yaml", "name: b\n"),
        ("roles/r/tasks/main.yml", "- pull: ['{{ .name }}']\n- pull: ['{{ .more }}']\n"),
    ]);
    let playbook = tree.playbook("p.yaml").unwrap();
    let (errors, _) = run(&playbook, json!({}), &[]);
    assert_eq!(errors.len(), 1, "{errors:?}");
    for part in ["roles/r/defaults/main/1.yaml: line 1", "task `line 2`", "vars.user"] {
        assert!(errors[0].contains(part), "{part}: {errors:?}");
    }
    let (carried_out, _) = run(&playbook, json!({"facts": {"user": "u"}}), &[]);
    assert!(carried_out[0].contains("[b]") && carried_out[1].contains("[ux]"), "{carried_out:?}");
}

#[test]
fn mistakes_have_their_file() {
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Files<'_>, &str)] = &[
        (
            "- hosts: all\n  roles: [r]\n",
            &[("roles/r/tasks/main.yaml", "- name: x\n  wehn: y\n  pull: [a]\n")],
            "roles/r/tasks/main.yaml: line 2, column 3: task `x`: wehn: a task has no such key",
        ),
        (
            "- hosts: all\n  roles: [r]\n",
            &[("roles/r/tasks/main.yaml", "- [\n")],
            "roles/r/tasks/main.yaml: ",
        ),
        (
            "- hosts: all\n  roles: [r]\n",
            &[],
            "p.yaml: line 2, column 11: roles: there is no role `r`: looked for roles/r",
        ),
        (
            "- hosts: all\n  roles: [../r]\n",
            &[("r/tasks/main.yaml", "[]")],
            "`../r` is no name of a role",
        ),
        ("- hosts: all\n  roles: [/etc]\n", &[], "`/etc` is no name of a role"),
        ("- hosts: all\n  roles: ['{{ .r }}']\n", &[], "depends on a variable"),
        (
            "- hosts: all\n  roles: [{role: r, whn: x}]\n",
            &[],
            "whn: a role has no such key; did you mean `when`?",
        ),
        ("- hosts: all\n  roles: [{tags: x}]\n", &[], "the role has no name"),
        ("- hosts: all\n  roles: {a: b}\n", &[], "roles: expected a list of roles"),
        (
            "- include_tasks: ../../x.yaml\n",
            &[],
            "`../../x.yaml` leads out of the project's directory",
        ),
        (
            "- include_tasks: /etc/x.yaml\n",
            &[],
            "`/etc/x.yaml` leads out of the project's directory",
        ),
        ("- include_tasks: x.yaml\n", &[], "include_tasks: there is none of x.yaml, tasks/x.yaml"),
        ("- include_tasks: p.yaml\n", &[], "p.yaml includes itself"),
        (
            "- include_tasks: x.yaml\n  loop: [1]\n",
            &[("x.yaml", "[]")],
            "loop: this cannot stand beside `include_tasks`",
        ),
        (
            "- import_tasks: x.yaml\n",
            &[("x.yaml", "a: b\n")],
            "x.yaml: line 1, column 1: task `line 1`: import_tasks: expected a list of tasks",
        ),
        ("- import_playbook: ../p.yaml\n", &[], "leads out of the project's directory"),
        (
            "- import_playbook: q.yaml\n",
            &[("q.yaml", "- import_playbook: p.yaml\n")],
            "p.yaml includes itself",
        ),
        ("- hosts: all\n  vars_files: [v.yaml]\n", &[], "vars_files: there is no v.yaml"),
        (
            "- hosts: all\n  vars_files: [v.yaml]\n",
            &[("v.yaml", "- a\n")],
            "v.yaml: line 1, column 1: vars_files: expected a mapping",
        ),
        ("- kubectl: x\n", &[], "kubectl: imgfs has no module `kubectl`"),
        ("- command: x\n  wehn: y\n", &[], "wehn: a task has no such key; did you mean `when`?"),
        ("- command: x\n  pull: [a]\n", &[], "pull: this cannot stand beside `command`"),
        ("- become: true\n  pull: [a]\n", &[], "become: refused"),
    ];
    let mut wrong = Vec::new();
    for (playbook, files, expected) in cases {
        let mut all = vec![("p.yaml", *playbook)];
        all.extend_from_slice(files);
        let found = Tree::new(&all).playbook("p.yaml").map(|playbook| playbook.tasks.len());
        let is_right = matches!(&found, Err(errors) if errors.iter().any(|e| e.contains(expected)));
        if !is_right {
            wrong.push(format!("{playbook}: expected {expected}\n  found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_include_each_other_many_times_end() {
    let many = |name: &str| format!("- include_tasks: {name}\n").repeat(50);
    let tree = Tree(
        [("p.yaml", many("a.yaml")), ("a.yaml", many("b.yaml")), ("b.yaml", many("c.yaml"))]
            .into_iter()
            .chain([("c.yaml", "- pull: [a]\n".to_owned())])
            .map(|(path, text)| (path.into(), text))
            .collect(),
    );
    let errors = tree.playbook("p.yaml").unwrap_err();
    assert!(errors[0].contains("more than 1000 files"), "{}", errors[0]);
}

#[test]
fn without_the_files_the_option_is_named() {
    for text in [
        "- command: x\n",
        "- hosts: all\n  roles: [x]\n",
        "- hosts: all\n  gather_facts: true\n",
        "- include_tasks: x.yaml\n",
        "- copy: {src: a, dest: /b}\n",
        "- template: {src: a, dest: /b}\n",
        "- import_playbook: x.yaml\n",
    ] {
        let errors = texts(&Playbook::parse(text, None).unwrap_err());
        assert!(errors.iter().any(|e| e.contains("--skip-other-modules")), "{text}: {errors:?}");
    }
    // The image module has these words, too.
    assert!(
        Playbook::parse("- copy: {from: {path: /a}, to: {path: /b}}\n  template: go\n", None)
            .is_ok()
    );
}
