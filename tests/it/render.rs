//! `imgfs render`

use crate::support::cli::{Imgfs, Output};

fn render(args: &[&str]) -> Output {
    let imgfs = Imgfs::scratch();
    std::fs::write(
        imgfs.home().join("vars.yaml"),
        "registry: r.io\nteam: {name: a, tags: [x, 1.5]}\nno: no\nnumber: 0123\nempty:\n",
    )
    .unwrap();
    std::fs::write(imgfs.home().join("more.json"), r#"{"team": {"size": 3}, "registry": "q.io"}"#)
        .unwrap();
    std::fs::write(imgfs.home().join("bad.yaml"), "a: 1\nb: [1, 2\nc: 3\n").unwrap();
    std::fs::write(imgfs.home().join("list.yaml"), "- a\n").unwrap();
    std::fs::write(imgfs.home().join("nothing.yaml"), "# nothing\n").unwrap();
    let mut all = vec!["render"];
    all.extend(args);
    imgfs.run(&all)
}

#[track_caller]
fn gives(args: &[&str], expected: &str) {
    let output = render(args).success();
    assert_eq!(output.stdout, expected, "{output}");
    assert_eq!(output.stderr, "", "{output}");
}

#[track_caller]
fn fails(args: &[&str], said: &str) {
    let output = render(args).expect_code(2).stderr_has(said);
    assert_eq!(output.stdout, "", "{output}");
}

#[test]
fn a_newline_ends_it() {
    gives(&["plain"], "plain\n");
    gives(&["{{ println 1 }}"], "1\n");
    gives(&[""], "\n");
    gives(&["{{ .missing }}"], "<no value>\n");
    gives(&["-x{{ 1 }}"], "-x1\n");
}

#[test]
fn variables_come_from_files_and_settings() {
    let vars = ["--vars", "vars.yaml"];
    gives(
        &[&vars[..], &["{{ .registry }} {{ .team.tags }} {{ .no }}"]].concat(),
        "r.io [x 1.5] no\n",
    );
    gives(
        &[&vars[..], &["--vars", "more.json", "{{ .registry }} {{ .team.name }}{{ .team.size }}"]]
            .concat(),
        "q.io a3\n",
    );
    gives(
        &[
            &vars[..],
            &[
                "--set",
                "team.name=b",
                "--set",
                "n=2",
                "--set",
                "s='2'",
                "{{ .team.name }} {{ add .n 1 }} {{ kindOf .s }}",
            ],
        ]
        .concat(),
        "b 3 string\n",
    );
    gives(&["--set", "l=[1, {a: b}]", "--set", "e=", "{{ (index .l 1).a }}[{{ .e }}]"], "b[]\n");
    gives(&["--set", "u=a=b", "{{ .u }}"], "a=b\n");
    gives(&["--vars", "nothing.yaml", "{{ len . }}"], "0\n");
}

#[test]
fn an_image_sets_both_trees() {
    gives(
        &[
            "--image",
            "nginx:1.25",
            "{{ .module.image.src.reference.registry }}/{{ .module.image.reference.repository }}:{{ .module.image.reference.tag }}",
        ],
        "docker.io/library/nginx:1.25\n",
    );
    let digest = format!("sha256:{}", "a".repeat(64));
    gives(
        &[
            "--image",
            &format!("r.io:5000/a/b@{digest}"),
            "{{ with .module.image.reference }}{{ .registry }} {{ .reference }} [{{ .tag }}]{{ end }}",
        ],
        &format!("r.io:5000 {digest} []\n"),
    );
    fails(&["--image", "A b", "x"], "--image: `A b` is not an image reference");
}

#[test]
fn strict_means_no_missing_value() {
    fails(
        &["--strict", "a\n {{ .missing }}"],
        "template:2:5: map has no entry for key \"missing\" in {{ .missing }}",
    );
    fails(
        &["--strict", "--vars", "vars.yaml", "{{ .empty }}"],
        "template:1:4: there is no value to print",
    );
    gives(&["--strict", "{{ .missing | default \"d\" }}"], "d\n");
}

#[test]
fn tera_is_there_too() {
    let vars = ["--vars", "vars.yaml"];
    gives(&[&vars[..], &["{% if team.name == 'a' %}{{ registry }}{% endif %}"]].concat(), "r.io\n");
    gives(&[&vars[..], &["--template", "tera", "{{ registry | upper }}"]].concat(), "R.IO\n");
    gives(&["--template", "go", "{% {{ 1 }}"], "{% 1\n");
    fails(&["--template", "tera", "a\n{{ missing }}"], "template:2:4:");
    gives(
        &[
            "--image",
            "quay.io/a/b:1",
            "--template",
            "tera",
            "{{ module.image.reference.repository }}",
        ],
        "a/b\n",
    );
}

#[test]
fn standard_input_is_a_template() {
    let imgfs = Imgfs::scratch().stdin("{{ range $i := 3 -}}\n {{ $i }}\n{{ end }}");
    assert_eq!(imgfs.run(&["render", "-"]).success().stdout, "0\n1\n2\n");
    let imgfs = Imgfs::scratch().stdin(&"x".repeat((1 << 20) + 1));
    imgfs.run(&["render", "-"]).expect_code(2).stderr_has("longer than 1 MiB");
}

#[test]
fn errors_say_where() {
    fails(&["{{ .a "], "template:1:1: unclosed action");
    fails(&["é {{ nope }}"], "template:1:6: function \"nope\" not defined");
    fails(&["{{ splitlist }}"], "did you mean \"splitList\"?");
    fails(&["{{ env \"HOME\" }}"], "not offered");
    fails(&["{{ fail \"so it is\" }}"], "template:1:4: error calling fail: so it is");
    fails(&["{{ range 9999999999 }}{{ end }}"], "steps");
    fails(&["--vars", "bad.yaml", "x"], "--vars bad.yaml: ");
    fails(&["--vars", "list.yaml", "x"], "--vars list.yaml: 1:1: expected a map");
    fails(&["--vars", "none.yaml", "x"], "--vars none.yaml: ");
    fails(&["--set", "a", "x"], "--set a: expected KEY=VALUE");
    fails(&["--set", "a..b=1", "x"], "is not a path");
    fails(&["--set", "a=1", "--set", "a.b=1", "x"], "cannot be set in what is a int");
    fails(&["--set", "a=[1", "x"], "--set a=[1: 1:");
    fails(&["--template", "jinja", "x"], "invalid value");
    fails(&[], "TEMPLATE");
}

/// The place of a mistake in a file of variables is said as `line:column`.
#[test]
fn vars_files_have_places() {
    let output = render(&["--vars", "bad.yaml", "x"]).expect_code(2);
    let rest = output.stderr.split("bad.yaml: ").nth(1).unwrap_or_default();
    let mut place = rest.split(':').map(|part| part.trim().parse::<usize>());
    assert!(matches!((place.next(), place.next()), (Some(Ok(2..)), Some(Ok(1..)))), "{output}");
}
