//! What stands in a file, and what is wrong with it.

use proptest::prelude::*;
use serde_json::json;

use super::{requests, settings, texts};
use crate::task::{Playbook, Selection};

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
        texts(&playbook.warnings),
        ["line 1, column 10: hosts: tasks are carried out on this machine, once"]
    );
    let warnings = playbook.check(&settings(json!({})), &Selection::default()).unwrap();
    assert_eq!(
        texts(&warnings),
        ["line 8, column 13: task `p`: auths.usrname: this key is not known and is ignored"]
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
    let shown = texts(&playbook.check(&settings(json!({})), &Selection::default()).unwrap_err());
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
