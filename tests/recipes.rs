//! The recipes of the README, run as they stand there: by a shell with the built binaries on its path, against a real daemon.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::path::{Path, PathBuf};
use std::process::Command;

use support::daemon::{Daemon, Host, StoreKind, World, both_stores};
use support::process::{self, Outcome, repository, text_of};

both_stores!(
    a_live_database_restored_next_to_the_original,
    model_weights_forked_three_times,
    a_build_cache_that_comes_and_goes,
    a_fork_for_every_job,
    a_failed_job_leaves_nothing,
);

const RECIPES: [&str; 4] = ["sqlite", "weights", "cache", "ci"];

/// The block of shell behind `<!-- recipe: NAME -->` in the README.
#[track_caller]
fn recipe(readme: &str, name: &str) -> String {
    let mark = format!("<!-- recipe: {name} -->\n```sh\n");
    let parts: Vec<&str> = readme.split(&mark).collect();
    assert_eq!(parts.len(), 2, "the README has exactly one recipe '{name}', right before its block of sh");
    let (script, _) = parts[1].split_once("\n```\n").expect("the block ends");
    format!("{script}\n")
}

fn readme() -> String {
    text_of(&repository().join("README.md"))
}

#[test]
fn every_recipe_is_tested() {
    let readme = readme();
    let marked: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("<!-- recipe: ")?.strip_suffix(" -->")).collect();
    assert_eq!(marked, RECIPES);
    for name in RECIPES {
        let script = recipe(&readme, name);
        assert!(script.is_ascii() && script.lines().count() > 10, "{name}:\n{script}");
    }
}

/// A host with a running daemon, and a shell in the folder of the repository.
struct Kitchen {
    host: Host,
    daemon: Option<Daemon>,
    /// What the recipes make with `mktemp` lies in it.
    folder: PathBuf,
}

impl Kitchen {
    fn open(world: &World, name: &str) -> Kitchen {
        let host = world.host(name).with(&["--log-size", "128MiB"]);
        // A daemon starts on a store that has a volume.
        host.create("some volume", "1MiB");
        let folder = world.path().join(name).join("tmp");
        std::fs::create_dir(&folder).unwrap();
        let daemon = Some(host.start());
        Kitchen { host, daemon, folder }
    }

    /// Runs a script as a CI system does: it ends at the first command that fails.
    fn run(&self, script: &str) -> Outcome {
        let folder = Path::new(env!("CARGO_BIN_EXE_varved")).parent().unwrap().display().to_string();
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(repository())
            .envs(self.host.environment.clone())
            .env("TMPDIR", &self.folder)
            .env("PATH", format!("{folder}:{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        process::run(&mut shell)
    }

    /// Runs a recipe and then, in the same shell, what looks at its work. Returns what both print.
    #[track_caller]
    fn cook(&self, name: &str, look: &str) -> String {
        let text = self.run(&format!("{}\n{look}", recipe(&readme(), name))).succeeded();
        assert_eq!(self.mounted(), [""; 0], "the recipe leaves something mounted");
        text
    }

    fn mounted(&self) -> Vec<String> {
        let mounts = text_of(Path::new("/proc/self/mounts"));
        let folders = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        folders.filter(|folder| Path::new(folder).starts_with(&self.folder)).map(str::to_owned).collect()
    }

    /// Names of the volumes, sorted.
    fn volumes(&self) -> Vec<String> {
        let list = self.host.varve_json(&["volumes", "list"]);
        let names = list.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn close(mut self) {
        self.daemon.take().unwrap().stop();
    }
}

impl Drop for Kitchen {
    /// What a failed recipe has left mounted is let go while the daemon still answers.
    fn drop(&mut self) {
        for folder in self.mounted().iter().rev() {
            let script = "timeout 20 umount \"$0\" || timeout 20 umount -l \"$0\"";
            let _ = Command::new("sh").args(["-c", script, folder]).status();
        }
    }
}

fn a_live_database_restored_next_to_the_original(kind: StoreKind) {
    let world = World::new(kind);
    let kitchen = Kitchen::open(&world, "a");
    // Each order of the snapshot is in the original as well, and none is left out between them.
    let look = r#"
        tools/mount "$SHOP" "$DIR/shop"
        tools/mount "$COPY" "$DIR/copy"
        sqlite3 "$DIR/copy/shop.db" "ATTACH '$DIR/shop/shop.db' AS shop;
            SELECT 'all ' || count(*) FROM shop.orders;
            SELECT 'differ ' || count(*) FROM (SELECT * FROM main.orders EXCEPT SELECT * FROM shop.orders);
            SELECT 'gaps ' || (max(id) - count(*)) FROM main.orders;"
        tools/mount --end "$DIR/copy"
        tools/mount --end "$DIR/shop"
    "#;
    let text = kitchen.cook("sqlite", look);
    let lines: Vec<&str> = text.lines().collect();
    for line in ["ok", "all 2000", "differ 0", "gaps 0"] {
        assert!(lines.contains(&line), "'{line}' is missing:\n{text}");
    }
    let line = lines.iter().find(|line| line.contains("in the snapshot")).unwrap();
    let counts: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(counts.len() == 3 && counts[0] >= 100 && counts.is_sorted() && counts[2] <= 2000, "{text}");
    kitchen.close();
}

fn model_weights_forked_three_times(kind: StoreKind) {
    let world = World::new(kind);
    let kitchen = Kitchen::open(&world, "a");
    let look = r#"
        tools/mount "$WEIGHTS" "$DIR/weights"
        (cd "$DIR/weights" && sha256sum --check SHA256SUMS && echo *)
        tools/mount --end "$DIR/weights"
    "#;
    let text = kitchen.cook("weights", look);
    assert_eq!(text.matches("model.safetensors: OK\n").count(), 4, "{text}");
    assert!(text.contains("tuned by machine 1\ntuned by machine 2\ntuned by machine 3\n"), "{text}");
    assert!(text.ends_with("SHA256SUMS lost+found model.safetensors\n"), "the origin has what a fork wrote:\n{text}");
    assert_eq!(kitchen.volumes(), ["some volume", "weights", "weights-1", "weights-2", "weights-3"]);
    kitchen.close();
}

fn a_build_cache_that_comes_and_goes(kind: StoreKind) {
    let world = World::new(kind);
    let first = Kitchen::open(&world, "a");
    let text = first.cook("cache", "");
    assert!(text.contains("direct_cache_miss\t1\n") && text.contains("direct_cache_hit\t0\n"), "{text}");
    let shown = first.host.varve_json(&["volumes", "show", "build-cache"]);
    assert_eq!(shown["state"], "detached", "{shown}");
    // The next build runs elsewhere, and finds what the first has left. The daemon of the first host still runs.
    let second = Kitchen::open(&world, "b");
    let text = second.cook("cache", "");
    assert!(text.contains("direct_cache_miss\t1\n") && text.contains("direct_cache_hit\t1\n"), "{text}");
    second.close();
    // And the first once more.
    let text = first.cook("cache", "");
    assert!(text.contains("direct_cache_miss\t1\n") && text.contains("direct_cache_hit\t2\n"), "{text}");
    first.close();
}

/// The seed has what it was made with, and nothing of any job.
const LOOK_AT_SEED: &str = r#"
    tools/mount "$SEED" "$DIR/seed"
    sqlite3 "$DIR/seed/test.db" "SELECT 'seed: ' || group_concat(name) FROM users"
    tools/mount --end "$DIR/seed"
"#;

fn a_fork_for_every_job(kind: StoreKind) {
    let world = World::new(kind);
    let kitchen = Kitchen::open(&world, "a");
    let text = kitchen.cook("ci", LOOK_AT_SEED);
    assert!(text.contains("unit,grace\napi,grace\nbrowser,grace\n"), "{text}");
    assert!(text.contains("\nseed: ada,grace\n"), "{text}");
    assert_eq!(kitchen.volumes(), ["seed", "some volume"]);
    kitchen.close();
}

fn a_failed_job_leaves_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let kitchen = Kitchen::open(&world, "a");
    let script = recipe(&readme(), "ci").replace("# here: the job", "[ \"$JOB\" != api ] # here: the job");
    let outcome = kitchen.run(&script);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.report());
    assert!(outcome.stdout.contains("unit,grace") && !outcome.stdout.contains("browser"), "{}", outcome.report());
    assert_eq!(kitchen.volumes(), ["seed", "some volume"], "{}", outcome.report());
    assert_eq!(kitchen.mounted(), [""; 0], "{}", outcome.report());
    kitchen.close();
}
