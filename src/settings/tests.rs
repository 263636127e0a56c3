//! Tests of settings.

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::*;

fn places() -> Places {
    Places { data_home: None, config_home: None, home: Some("/home/ada".into()) }
}

fn daemon(arguments: &[&str]) -> Result<Settings> {
    let all = std::iter::once("varved").chain(arguments.iter().copied());
    DaemonArguments::try_parse_from(all).map_err(|error| Error::invalid(error.to_string()))?.resolve(&places())
}

fn settings_file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

#[test]
fn sizes_are_read_as_flyctl_does() {
    for (text, bytes) in [
        ("10", 10 << 30),
        ("10GB", 10 << 30),
        ("10GiB", 10 << 30),
        ("10 gb", 10 << 30),
        ("1.5", 3 << 29),
        ("0.5TB", 1 << 39),
        ("512MiB", 512 << 20),
        ("512MB", 512 << 20),
        ("4KiB", 4096),
        ("16TiB", 16 << 40),
        ("1.000000000000000000000000", 1 << 30),
        ("0.00000381469726562500", 4096),
    ] {
        assert_eq!(parse_size(text).ok(), Some(ByteLen(bytes)), "{text}");
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused_with_the_remedy() {
    for (text, remedy) in [
        ("", "is not a size"),
        ("ten", "is not a size"),
        ("GB", "is not a size"),
        (".5", "is not a size"),
        ("1.", "is not a size"),
        ("1.2.3", "is not a size"),
        ("10XB", "KiB, MiB, GiB, TiB"),
        ("1e3", "is not a size"),
        ("+1", "is not a size"),
        ("10\n20", "10\\n20"),
        ("-5", "negative"),
        ("0", "larger than 0"),
        ("0.0MiB", "larger than 0"),
        ("0.1KiB", "smaller unit"),
        ("0.1234567890123456789", "smaller unit"),
        ("5KiB", "nearest is 4KiB or 8KiB"),
        ("1KiB", "nearest is 4KiB"),
        ("17TiB", "largest size is 16 TiB"),
        ("16385", "largest size is 16 TiB"),
        ("99999999999999999999999999999999999999999999", "largest size is 16 TiB"),
    ] {
        let error = parse_size(text).err().unwrap_or_else(|| panic!("{text} was accepted"));
        assert!(error.message().contains(remedy), "{text}: {error}");
    }
    assert!(parse_volume_size("512KiB").is_err_and(|error| error.message().contains("smallest volume has 1 MiB")));
    assert_eq!(parse_volume_size("1MiB").ok(), Some(ByteLen(1 << 20)));
    assert!(parse_log_size("64MiB").is_err_and(|error| error.message().contains("smallest write log has 128 MiB")));
}

#[test]
fn names_are_checked() {
    for name in ["a", "demo", "my disk 1", "gr\u{fc}n", "volume", ".hidden", "VOL", &"x".repeat(128)] {
        assert_eq!(parse_name(name).ok().as_deref(), Some(name));
    }
    let long = "x".repeat(129);
    for name in
        ["", "a/b", "../etc/passwd", "..", ".", "a\nb", "a\0b", "\u{202e}gpj", " a", "a ", "vol_1", "vs_x", &long]
    {
        assert!(parse_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn defaults_serve() {
    let settings = daemon(&[]).unwrap();
    assert_eq!(settings.shared.store, "file:///home/ada/.local/share/varve/store");
    assert_eq!(settings.shared.state, PathBuf::from("/home/ada/.local/share/varve/state"));
    assert_eq!(settings.control_socket, PathBuf::from("/home/ada/.local/share/varve/state/control.sock"));
    assert_eq!(settings.nbd, ["127.0.0.1:10809".parse().unwrap()]);
    assert!(settings.nbd_is_default);
    assert_eq!(settings.segment_age, Duration::from_secs(3));
    assert_eq!(settings.tls, None);

    let here = std::env::current_dir().unwrap();
    let relative = daemon(&["--state", "s/t", "--control", "./c.sock"]).unwrap().shared;
    assert_eq!((relative.state, relative.control.socket()), (here.join("s/t"), Some(here.join("c.sock").as_path())));
    assert_eq!(daemon(&["--state", "s"]).unwrap().control_socket, here.join("s/control.sock"));

    let elsewhere = Places { data_home: Some("/data".into()), ..places() };
    let shared = SharedArguments::default().resolve(&elsewhere).unwrap();
    assert_eq!(shared.store, "file:///data/varve/store");
    let nowhere = SharedArguments::default().resolve(&Places::default());
    assert!(nowhere.is_err_and(|error| error.message().contains("HOME")));
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = settings_file(
        "store = 's3://bucket/prefix'\nstate = '/srv/varve'\nnbd = ['[::1]:1', '127.0.0.1:2']\ncache-size = 20\n\
         memory-size = '0.5'\nsegment-age = '1s'\nspace-target = 150\nconnections-max = 7\ntransfer-size = '128MiB'\n",
    );
    let settings =
        daemon(&["--config", file.path().to_str().unwrap(), "--cache-size", "512MiB", "--detach-after", "1h"]).unwrap();
    assert_eq!(settings.shared.store, "s3://bucket/prefix");
    assert_eq!(settings.control_socket, PathBuf::from("/srv/varve/control.sock"));
    assert_eq!(settings.nbd.len(), 2);
    assert!(!settings.nbd_is_default);
    assert_eq!(settings.cache_size, ByteLen(512 << 20));
    assert_eq!(settings.memory_size, ByteLen(512 << 20));
    assert_eq!(settings.segment_age, Duration::from_secs(1));
    assert_eq!(settings.detach_after, Duration::from_hours(1));
    assert_eq!(settings.space_target, SpaceTarget::Percent(150));
    assert_eq!((settings.connections_max, settings.transfer_size), (7, ByteLen(128 << 20)));

    let unix_only = daemon(&["--nbd-unix", "/run/nbd.sock"]).unwrap();
    assert!(unix_only.nbd.is_empty() && !unix_only.nbd_is_default);
}

#[test]
fn a_bad_settings_file_is_named_with_line_and_key() {
    for (content, expected) in [
        ("state = '/a'\ncache_size = 1\n", "line 2 (cache_size): unknown field `cache_size`"),
        ("cache-size = '5KiB'\n", "line 1 (cache-size): '5KiB' is 5120 bytes"),
        ("cache-size = -1\n", "'-1' is negative"),
        ("cache-size = [1]\n", "expected a number or a text"),
        ("nbd = 'localhost'\n", "is not an address and port"),
        ("tls = 'maybe'\n", "`off`, `allow`, `require`"),
        ("segment-age = '0s'\n", "more than 0"),
        ("connections-max = 0\n", "1 to 65536"),
        ("space-target = 100\n", "110 to 1000"),
        ("transfer-size = '127MiB'\n", "smallest memory for transfers has 128 MiB"),
        ("[clients]\n'' = ['a']\n", "an empty name"),
        ("[clients]\na = ['']\n", "an empty name"),
        ("[clients]\na = 'b'\n", "invalid type"),
        ("clients = 5\n", "invalid type"),
        ("allow-insecure-tcp = 'yes'\n", "invalid type"),
        ("store = 5\n", "invalid type"),
        ("store = \n", "line 1 (store)"),
        ("store = 'a'\nstore = 'b'\n", "duplicate key"),
    ] {
        let file = settings_file(content);
        let error = daemon(&["--config", file.path().to_str().unwrap()])
            .err()
            .unwrap_or_else(|| panic!("{content} was accepted"));
        assert!(error.message().contains(expected), "{content}: {error}");
        assert!(error.message().contains(file.path().to_str().unwrap()), "{error}");
    }
    let absent = daemon(&["--config", "/nonexistent/varve.toml"]);
    assert!(absent.is_err_and(|error| error.message() == "there is no settings file /nonexistent/varve.toml"));
}

#[test]
fn doors_are_set_in_the_file() {
    let file = settings_file(
        "allow-insecure-tcp = true\nconnections-max = 9\nhandshake-time = '2s'\nidle-time = '1h'\n\
         [clients]\n'build-*' = ['cache-*', 'vol_x']\n'nobody.example' = []\n",
    );
    let settings = daemon(&["--config", file.path().to_str().unwrap()]).unwrap();
    assert!(settings.allow_insecure_tcp);
    assert_eq!((settings.connections_max, settings.client_connections_max), (9, 5));
    assert_eq!((settings.handshake_time, settings.idle_time), (Duration::from_secs(2), Some(Duration::from_hours(1))));
    let clients = settings.clients.unwrap();
    assert_eq!(clients["build-*"], ["cache-*", "vol_x"]);
    assert!(clients["nobody.example"].is_empty());
    let settings = daemon(&["--client-connections-max", "7", "--allow-insecure-tcp"]).unwrap();
    assert!(settings.allow_insecure_tcp && settings.client_connections_max == 7);
    let settings = daemon(&[]).unwrap();
    assert!(!settings.allow_insecure_tcp && settings.clients.is_none() && settings.idle_time.is_none());
    assert_eq!(settings.client_connections_max, 128);
}

#[test]
fn a_daemon_elsewhere_is_asked_over_tls_with_a_token() {
    let resolve = |flags: &[&str]| {
        let matches = SharedArguments::augment_args(clap::Command::new("varve"))
            .try_get_matches_from(std::iter::once(&"varve").chain(flags));
        SharedArguments::from_arg_matches(&matches.unwrap()).unwrap().resolve(&places())
    };
    let full = ["--control", "https://db1:10810/", "--control-ca", "/ca.pem", "--control-token", "env:TOKEN"];
    let expected = RemoteControl {
        url: "https://db1:10810".into(),
        authority: Some("/ca.pem".into()),
        token: TokenSource::Environment("TOKEN".into()),
    };
    assert_eq!(resolve(&full).unwrap().control, ControlAddress::Remote(expected));
    for (flags, expected) in [
        (&full[..4], "--control-token"),
        (&["--control", "http://db1:1"], "nothing else is encrypted"),
        (&["--control", "https://", "--control-token", "env:T"], "is not an address"),
        (&["--control", "https://a:b@c", "--control-token", "env:T"], "is not an address"),
        (&["--control", "https://a/v1", "--control-token", "env:T"], "is not an address"),
    ] {
        let error = resolve(flags).unwrap_err();
        assert!(error.message().contains(expected), "{flags:?}: {error}");
    }
    for place in [["--control", "/s"], ["--control", "https://a"]] {
        let error = resolve(&[place[0], place[1], "--control-token", "varve-token-1234"]).unwrap_err();
        assert!(error.message().contains("never an argument") && !error.message().contains("1234"), "{error}");
    }
    assert!(daemon(&full).is_err_and(|error| error.message().contains("--control-tcp")));
    let secret = "sesame".parse::<TokenSource>().unwrap_err();
    assert!(secret.message().contains("never an argument") && !secret.message().contains("sesame"), "{secret}");
}

#[test]
fn the_control_door_has_all_it_needs_or_is_not_there() {
    assert!(daemon(&["--control-tcp", "[::]:1"]).is_err_and(|error| error.message().contains("--control-tokens")));
    assert!(daemon(&["--control-tokens", "t"]).is_err_and(|error| error.message().contains("--control-tcp")));
    let file = settings_file(
        "control-tcp = '[::]:1'\ncontrol-tokens = 't'\ntls-certificate = 'c'\ntls-key = 'k'\ncontrol-token = 'file:x'\n",
    );
    let settings = daemon(&["--config", file.path().to_str().unwrap()]).unwrap();
    let expected = ControlDoor {
        address: "[::]:1".parse().unwrap(),
        certificate: "c".into(),
        key: "k".into(),
        tokens: "t".into(),
    };
    assert_eq!((settings.control_door, settings.tls), (Some(expected), None));
}

#[test]
fn tls_is_all_or_nothing() {
    assert!(daemon(&["--tls", "require"]).is_err_and(|error| error.message().contains("--tls-key")));
    assert!(daemon(&["--tls-key", "k.pem"]).is_err_and(|error| error.message().contains("tls is off")));
    let settings =
        daemon(&["--tls", "require", "--tls-key", "k", "--tls-certificate", "c", "--tls-client-ca", "a"]).unwrap();
    let expected =
        TlsSettings { required: true, certificate: "c".into(), key: "k".into(), client_ca: Some("a".into()) };
    assert_eq!(settings.tls, Some(expected));
}

#[test]
fn there_are_no_more_than_these_settings_and_all_but_the_clients_have_a_flag() {
    let command = DaemonArguments::command();
    command.clone().debug_assert();
    let flags: Vec<_> =
        command.get_arguments().filter_map(clap::Arg::get_long).filter(|&flag| flag != "config").collect();
    assert_eq!(flags.len(), 27);
    for flag in flags {
        // A known key with a value of the wrong type is refused, but never as unknown.
        let error = FileSettings::parse(&format!("{flag} = {{}}"), std::path::Path::new("f")).unwrap_err();
        assert!(!error.message().contains("unknown field"), "{error}");
    }
}

#[test]
fn prefetch_is_on_unless_it_is_switched_off() {
    assert_eq!(daemon(&[]).unwrap().prefetch, Prefetch::On);
    assert_eq!(daemon(&["--prefetch", "off"]).unwrap().prefetch, Prefetch::Off);
    let file = settings_file("prefetch = \"off\"\n");
    let config = file.path().display().to_string();
    assert_eq!(daemon(&["--config", &config]).unwrap().prefetch, Prefetch::Off);
    assert_eq!(daemon(&["--config", &config, "--prefetch", "on"]).unwrap().prefetch, Prefetch::On);
    assert!(daemon(&["--prefetch", "maybe"]).is_err());
}
