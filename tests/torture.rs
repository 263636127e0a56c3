//! `varve torture` on both stores: it proves what it says it proves, and leaves nothing behind, also when it is interrupted.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use support::daemon::{StoreKind, World, binary, both_stores};
use support::process::{self, text_of};

both_stores!(proves_the_promises_and_cleans_up, cleans_up_when_interrupted);

/// Nothing is left of it, neither in the store nor on the disk.
#[track_caller]
fn is_clean(world: &World, state: &std::path::Path) {
    assert_eq!(world.names(), Vec::<String>::new(), "objects are left in the store");
    assert!(!state.exists(), "{} is left", state.display());
}

fn proves_the_promises_and_cleans_up(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let report = host.varve_json(&["torture", "--rounds", "1"]);
    for count in
        ["rounds", "kills", "hosts_lost", "owners_fenced", "snapshots", "forks", "moves", "checks", "writes", "removed"]
    {
        assert!(report[count].as_u64() >= Some(1), "{count}: {report}");
    }
    assert!(report["broken"].is_null(), "{report}");
    assert!(report["verified"].as_u64() >= Some(8 * (64 << 20)), "{report}");
    is_clean(&world, &host.state());
}

fn cleans_up_when_interrupted(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let log = world.path().join("torture.log");
    let mut command = Command::new(binary("varve"));
    command.args(["torture", "--minutes", "10"]).envs(host.environment.clone());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    process::until("it is at work", || text_of(&log).contains("snapshot"));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = process::wait(&mut child, process::PATIENCE).expect("an interrupted torture ends");
    assert_eq!(status.code(), Some(1), "{}", text_of(&log));
    assert!(text_of(&log).contains("interrupted"), "{}", text_of(&log));
    is_clean(&world, &host.state());
}
