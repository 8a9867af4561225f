//! What is generated from the command line's definitions: help, manual pages, completions.

use crate::support::cli::Imgfs;

#[test]
fn every_command_has_help_a_page_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    let imgfs = Imgfs::new(dir.path());
    for command in ["pull", "ls", "verify", "prune", "render", "run", "completions", "man"] {
        let help = imgfs.run(&[command, "--help"]);
        assert_eq!(help.code(), 0);
        assert!(help.stdout.contains("Usage: imgfs"), "{}", help.stdout);
    }
    assert!(imgfs.run(&["--help"]).stdout.contains("Exit status:"));
    assert!(imgfs.run(&["--version"]).stdout.starts_with("imgfs "));

    let pages = dir.path().join("man");
    assert_eq!(imgfs.run(&["man", pages.to_str().unwrap()]).code(), 0);
    for page in [
        "imgfs.1",
        "imgfs-pull.1",
        "imgfs-ls.1",
        "imgfs-verify.1",
        "imgfs-prune.1",
        "imgfs-render.1",
        "imgfs-run.1",
    ] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = imgfs.run(&["completions", shell]);
        assert_eq!(script.code(), 0);
        assert!(script.stdout.contains("images-dir"), "{shell}");
    }
}
