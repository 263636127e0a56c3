//! The built binary: exit status, where messages go, and the environment.

#![expect(clippy::unwrap_used, reason = "helpers of tests may, as tests may")]

use std::process::{Command, Output};

fn varve(directory: &std::path::Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    for name in
        ["VARVE_STORE", "VARVE_STATE", "VARVE_CONTROL", "VARVE_KEY", "VARVE_CONFIG", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
    {
        command.env_remove(name);
    }
    command.env("HOME", directory).args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn errors_go_to_standard_error_with_a_status() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, status, expected) in [
        (&["volumes", "fly"][..], 2, "Error: unrecognized subcommand 'fly'"),
        (&["volumes", "show", "vol_1"], 2, "Error: 'vol_1' is not the id of a volume"),
        (&["status"], 1, "Error: no daemon listens at "),
        (&["--config", "/nonexistent/f", "status"], 1, "Error: there is no settings file /nonexistent/f"),
    ] {
        let output = varve(directory.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(text(&output.stderr).starts_with(expected), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let help = varve(directory.path(), &["volumes", "--help"], &[]);
    assert!(help.status.success() && text(&help.stdout).contains("undelete") && help.stderr.is_empty());
    let version = varve(directory.path(), &["--version"], &[]);
    assert_eq!(text(&version.stdout), concat!("varve ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("varve.toml");
    std::fs::write(&file, "control = '/of/file.sock'\nstate = '/of/file'\n").unwrap();
    let file = file.to_str().unwrap();
    let asked = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = varve(directory.path(), &[arguments, &["status"]].concat(), environment);
        let message = text(&output.stderr).to_owned();
        let path = message.strip_prefix("Error: no daemon listens at ").and_then(|rest| rest.split_once(": "));
        path.map_or(message.clone(), |(path, _)| path.to_owned())
    };
    let home = directory.path().join(".local/share/varve/state/control.sock");
    assert_eq!(asked(&[], &[]), home.to_str().unwrap());
    assert_eq!(asked(&[], &[("XDG_DATA_HOME", "/of/data")]), "/of/data/varve/state/control.sock");
    assert_eq!(asked(&[], &[("VARVE_CONFIG", file)]), "/of/file.sock");
    assert_eq!(asked(&["--config", file], &[("VARVE_CONTROL", "/of/env.sock")]), "/of/env.sock");
    assert_eq!(
        asked(&["--config", file, "--control", "/of/flag.sock"], &[("VARVE_CONTROL", "/of/env.sock")]),
        "/of/flag.sock"
    );
    assert_eq!(asked(&["--state", "/of/flag"], &[]), "/of/flag/control.sock");
    std::fs::write(file, "colour = 'red'\n").unwrap();
    assert!(asked(&["--config", file], &[]).contains("varve.toml, line 1 (colour)"));
}
