//! `imgfs run`, as far as it goes without a transfer.

use crate::support::cli::{Imgfs, Output};

fn run(tasks: &str, args: &[&str]) -> Output {
    let imgfs = Imgfs::scratch();
    let path = imgfs.home().join("tasks.yaml");
    std::fs::write(&path, tasks).unwrap();
    let mut all = vec!["run", path.to_str().unwrap()];
    all.extend(args);
    imgfs.run(&all)
}

#[test]
fn a_wrong_file_does_nothing() {
    for (tasks, args, said) in [
        ("", &[][..], "tasks.yaml: line 1, column 1: expected a list of tasks"),
        ("- command: x\n", &[], "line 1, column 3: task `line 1`: command: imgfs has no module"),
        ("- {name: x, pull: [a, 'B:c:d']}\n", &[], "task `x`: pull: `B:c:d` is not an image"),
        ("- pull: ['{{ .name }}']\n", &[], "template 1:4: map has no entry for key \"name\""),
        ("- pull: ['{{ .name }}']\n", &["--set", "name=B"], "`B` is not an image reference"),
        ("- pull: [a]\n", &["--vars", "/nowhere/x.yaml"], "--vars /nowhere/x.yaml: "),
        ("- pull: [a]\n- push: {dest: 'oci://'}\n- pull: x\n", &[], "line 3, column 9"),
    ] {
        run(tasks, args).expect_code(2).stderr_has(said);
    }
    let imgfs = Imgfs::scratch();
    imgfs.run(&["run", "/nowhere/tasks.yaml"]).expect_code(2).stderr_has("/nowhere/tasks.yaml: ");
    // One mistake does not hide the next.
    run("- pull: {manifests: [a], platform: plan9, policy: lax}\n", &[])
        .expect_code(2)
        .stderr_has("pull.platform: `plan9` is not a platform")
        .stderr_has("pull.policy: expected strict or warn");
}

#[test]
fn nothing_to_do_is_said() {
    for (tasks, args, said) in [
        ("[]", &[][..], "there are no tasks"),
        ("- pull: []\n", &[], "all tasks were skipped"),
        ("- {pull: [a], tags: x}\n", &["--tags", "y"], "no task has the tags"),
        ("- {pull: [a], when: .go}\n", &["--set", "go=false"], "all tasks were skipped"),
    ] {
        run(tasks, args).expect_code(3).stderr_has(said);
    }
    let output = run("- {name: a, pull: [a], when: .go}\n", &["--json"]).expect_code(3);
    let report = output.report();
    assert_eq!(report["command"], "run", "{output}");
    assert_eq!(report["tasks"][0]["status"], "skip", "{output}");
    assert_eq!(report["tasks"][0]["reason"], "`.go` (line 1) is not true", "{output}");
    let output = run("- {name: a, pull: [a], when: .go}\n", &[]).expect_code(3);
    assert!(output.stdout.starts_with("TASK [a]\nskip: `.go` (line 1) is not true\n"), "{output}");
}

/// A role beside the playbook; one that is a link to elsewhere is not followed.
#[test]
fn other_modules_are_skipped_on_demand() {
    let imgfs = Imgfs::scratch();
    let project = imgfs.home().join("project");
    let write = |path: &str, text: &str| {
        let path = project.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("playbooks/pull.yaml", "- hosts: all\n  roles: [images]\n");
    write(
        "roles/images/tasks/main.yaml",
        "- name: prepare\n  command: make\n- name: pull\n  pull: [a]\n  when: .go\n",
    );
    let file = project.join("playbooks/pull.yaml");
    let file = file.to_str().unwrap();
    imgfs.run(&["run", file]).expect_code(2).stderr_has("roles: imgfs reads one file");
    let output = imgfs
        .run(&["run", file, "--skip-other-modules", "--set", "go=false"])
        .expect_code(3)
        .stderr_has("all tasks were skipped");
    let said = "TASK [prepare]\nskip: imgfs has no module `command`\nTASK [pull]\nskip: `.go`";
    assert!(output.stdout.starts_with(said), "{output}");
    write("roles/images/tasks/main.yaml", "- name: pull\n  pull: ['B:c:d']\n");
    imgfs
        .run(&["run", file, "--skip-other-modules"])
        .expect_code(2)
        .stderr_has("roles/images/tasks/main.yaml: line 2, column")
        .stderr_has("task `pull`: pull: `B:c:d` is not an image");
    std::fs::rename(project.join("roles/images"), imgfs.home().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(imgfs.home().join("elsewhere"), project.join("roles/images"))
        .unwrap();
    imgfs
        .run(&["run", file, "--skip-other-modules"])
        .expect_code(2)
        .stderr_has("roles/images is a symbolic link");
}
