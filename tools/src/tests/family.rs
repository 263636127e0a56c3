//! Snapshots, forks, growth, restores and schedules.

use super::*;

/// The value behind a label.
fn value<'a>(text: &'a str, label: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {label} in {text}"))
}

#[tokio::test]
async fn a_snapshot_from_its_creation_to_its_end() {
    let place = nowhere(vec![detached(1, "demo")]).await;
    let taken = text(&place, "volumes snapshots create demo --name first --retention 5d").await;
    let id = value(&taken, "ID").to_owned();
    assert!(id.starts_with("vs_"), "{taken}");
    assert_eq!(text(&place, &format!("volumes snapshots show {id}")).await, taken);
    for (label, expected) in [
        ("Name", "first"),
        ("Volume", "vol_0000000000001"),
        ("Status", "ready"),
        ("Volume size", "10 GB"),
        ("Stored", "1.5 GB"),
        ("Taken by", "command"),
    ] {
        assert_eq!(value(&taken, label), expected);
    }
    // They are listed by the millisecond of their creation.
    tokio::time::sleep(Duration::from_millis(2)).await;
    text(&place, "vol snapshot create demo").await;
    let listed = text(&place, "volumes snapshots ls demo").await;
    let lines: Vec<&str> = listed.lines().collect();
    let first = format!("{id}  first  ready         10 GB  1.5 GB  just now    {}", value(&taken, "Kept until"));
    assert!(lines[0].starts_with("ID  ") && lines[0].ends_with("STATUS  VOLUME SIZE  STORED  CREATED AT  KEPT UNTIL"));
    assert_eq!(lines[1], first);
    assert!(lines[2].ends_with("just now    destroyed"), "{listed}");
    assert_eq!(value(&text(&place, "volumes show demo").await, "Snapshots"), "2; no scheduled snapshots");
    assert_eq!(message(&place, &format!("volumes snapshots destroy {id}")).await, "nothing was destroyed");
    let gone = text(&place, &format!("volumes snapshots destroy {id} {id} --yes")).await;
    assert!(gone.starts_with(&format!("Destroyed {id} (first, of vol_0000000000001 at ")), "{gone}");
    assert_eq!(gone.lines().count(), 1);
    let missing = message(&place, &format!("volumes snapshots show {id}")).await;
    assert!(missing.starts_with(&format!("there is no snapshot {id} in file://")), "{missing}");
}

#[tokio::test]
async fn volumes_are_made_of_snapshots_and_of_volumes() {
    let mut place = nowhere(vec![detached(1, "demo")]).await;
    let taken = text(&place, "volumes snapshots create demo").await;
    let snapshot = value(&taken, "ID");
    let made = text(&place, &format!("volumes create copy --snapshot-id {snapshot}")).await;
    assert_eq!((value(&made, "Size"), value(&made, "Origin")), ("10 GB", "vol_0000000000001"));
    let larger = text(&place, &format!("volumes create copy --snapshot-id {snapshot} --size 20 -n 2")).await;
    assert_eq!(larger.matches("Size: 20 GB").count(), 2);
    let small = message(&place, &format!("volumes create copy --snapshot-id {snapshot} --size 5")).await;
    assert!(small.contains("10737418240 bytes") && small.contains("cannot have only"), "{small}");

    let fork = text(&place, "volumes fork vol_0000000000001").await;
    assert_eq!((value(&fork, "Name"), value(&fork, "Origin")), ("demo-fork", "vol_0000000000001"));
    assert_eq!(fork.lines().filter(|line| line.contains("ID")).count(), 1);
    let forks = text(&place, "volumes fork vol_0000000000001 --name GRID -n 3").await;
    assert_eq!(forks.lines().filter(|line| line.contains("ID")).count(), 3, "{forks}");
    assert_eq!(place.volumes().await.iter().filter(|volume| volume.name == "GRID").count(), 3);
    place.context.json = true;
    let one = json(&place, "volumes fork vol_0000000000001").await;
    assert_eq!(one["origin"], "vol_0000000000001");
    let list = json(&place, "volumes fork vol_0000000000001 -n 2").await;
    assert_eq!(list.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_volume_says_how_far_back_it_can_go() {
    let place = nowhere(vec![]).await;
    let made = text(&place, "volumes create demo --size 1").await;
    let id = value(&made, "ID").to_owned();
    assert!(value(&text(&place, "volumes show demo").await, "History").starts_with("1day; any moment since "));
    let fork = text(&place, "volumes fork demo --at 0s").await;
    assert_eq!((value(&fork, "Name"), value(&fork, "Origin")), ("demo-fork", &*id));
    let larger = text(&place, "volumes create old --from demo --at 0s --size 2 --history 2d").await;
    assert_eq!((value(&larger, "Size"), value(&larger, "Origin")), ("2 GB", &*id));
    assert!(value(&text(&place, "volumes show old").await, "History").starts_with("2days; any moment since "));
    assert_eq!(value(&text(&place, "volumes update demo --history off").await, "History"), "off");
    assert_eq!(value(&text(&place, "volumes show demo").await, "History"), "off");
    for (line, part) in [
        ("volumes fork demo --at 0s", "'varve volumes update"),
        ("volumes fork old --at 1h", "any moment since"),
        ("volumes fork old --at soon", "'soon' is no moment"),
        ("volumes create x --from old", "--at"),
        ("volumes create x --size 1 --at 1h", "--from"),
    ] {
        let refused = message(&place, line).await;
        assert!(refused.contains(part), "{line}: {refused}");
    }
}

#[tokio::test]
async fn a_disk_grows_and_goes_back() {
    let place = nowhere(vec![detached(1, "demo"), detached(2, "other")]).await;
    let taken = text(&place, "volumes snapshots create demo").await;
    let snapshot = value(&taken, "ID").to_owned();
    assert_eq!(value(&text(&place, "volumes extend demo --size 20").await, "Size"), "20 GB");
    assert_eq!(value(&text(&place, "volumes extend demo --size 20").await, "Size"), "20 GB");
    let refused = message(&place, "volumes extend demo --size 15").await;
    assert!(refused.contains("cannot shrink") && refused.contains("would be lost"), "{refused}");
    let restored = text(&place, &format!("volumes restore demo --to {snapshot}")).await;
    assert_eq!((value(&restored, "Restored to"), value(&restored, "Size")), (&*snapshot, "20 GB"));
    let kept = value(&restored, "Kept as").split(' ').next().unwrap();
    assert_eq!(value(&text(&place, &format!("volumes snapshots show {kept}")).await, "Volume size"), "20 GB");
    let foreign = message(&place, &format!("volumes restore other --to {snapshot}")).await;
    assert!(foreign.contains("is of volume vol_0000000000001") && foreign.contains("--snapshot-id"), "{foreign}");
    assert_eq!(text(&place, "volumes snapshots list other").await.lines().count(), 1, "nothing is left half-made");
}

#[tokio::test]
async fn schedules_are_given_and_changed() {
    let place = nowhere(vec![]).await;
    for (name, flags, expected) in [
        ("usual", "", "0; every 1day, each kept for 5days"),
        ("often", "--snapshot-interval 1h", "0; every 1h, each kept for 5days"),
        ("never", "--no-scheduled-snapshots", "0; no scheduled snapshots"),
    ] {
        text(&place, &format!("volumes create {name} --size 1 {flags}")).await;
        assert_eq!(value(&text(&place, &format!("volumes show {name}")).await, "Snapshots"), expected);
    }
    for (change, expected) in [
        ("often --snapshot-retention 2h", "every 1h, each kept for 2h"),
        ("often --no-scheduled-snapshots --durability store", "no scheduled snapshots"),
        ("never --snapshot-interval 1s", "every 1s, each kept for 5days"),
        ("usual --durability store", "every 1day, each kept for 5days"),
    ] {
        assert_eq!(value(&text(&place, &format!("volumes update {change}")).await, "Snapshots"), expected);
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_named_and_changes_nothing() {
    let place = nowhere(vec![detached(1, "demo"), attached(2, "busy", "hector", "/c")]).await;
    for (line, expected) in [
        ("volumes create x --snapshot-id vol_0000000000001", "is the id of a volume: this takes the id of a snapshot"),
        ("volumes create x --snapshot-id first", "'first' is not the id of a snapshot"),
        ("volumes create x --snapshot-id vs_1", "'vs_1' is not the id of a snapshot"),
        ("volumes create x --snapshot-id vs_0000000000001", "there is no snapshot vs_0000000000001"),
        ("volumes create x --size 1 --snapshot-interval 0s", "--snapshot-interval: '0s' is too short"),
        ("volumes create x --size 1 --snapshot-retention 5", "--snapshot-retention: '5' is not a span of time"),
        ("volumes create x --size 1 --snapshot-retention -5d", "'-5d' is not a span of time"),
        ("volumes create x --size 1 --no-scheduled-snapshots --snapshot-interval 1d", "cannot be used with"),
        ("volumes update demo", "--durability"),
        ("volumes update demo --no-scheduled-snapshots --snapshot-retention 1d", "cannot be used with"),
        ("volumes fork vs_0000000000001", "is the id of a snapshot: this takes a volume"),
        ("volumes fork demo -n 0", "--count: 0 is not in 1..=1000"),
        ("volumes fork demo -n 1001", "--count: 1001 is not in 1..=1000"),
        ("volumes fork demo -n -1", "--count: -1 is not in 1..=1000"),
        ("volumes fork demo --name a/b", "--name: 'a/b' cannot be a name"),
        ("volumes fork absent", "there is no volume 'absent'"),
        ("volumes fork vol_0000000000009", "there is no volume vol_0000000000009"),
        ("volumes extend demo", "--size"),
        ("volumes extend demo --size -1", "--size: '-1' is negative"),
        ("volumes extend demo --size 100000", "largest size is 16 TiB"),
        ("volumes extend vol_0000000000009 --size 1", "there is no volume vol_0000000000009"),
        ("volumes restore demo", "--to"),
        ("volumes restore demo --to vol_0000000000001", "is the id of a volume"),
        ("volumes restore demo --to vs_0000000000001", "there is no snapshot vs_0000000000001"),
        ("volumes snapshots create vs_0000000000001", "this takes a volume"),
        ("volumes snapshots create demo --name \u{7}", "cannot be a name"),
        ("volumes snapshots create demo --retention 100ms", "--retention: '100ms' is too short"),
        ("volumes snapshots list vs_0000000000001", "this takes a volume"),
        ("volumes snapshots list vol_0000000000009", "there is no volume vol_0000000000009"),
        ("volumes snapshots show demo", "'demo' is not the id of a snapshot"),
        ("volumes snapshots show vs_0000000000001", "there is no snapshot vs_0000000000001"),
        ("volumes snapshots destroy", "required"),
        ("volumes snapshots destroy vol_0000000000001 --yes", "is the id of a volume"),
        ("volumes snapshots destroy vs_0000000000001 --yes", "there is no snapshot vs_0000000000001"),
    ] {
        let message = message(&place, line).await;
        assert!(message.contains(expected), "{line}: {message}");
    }
    let volumes = place.volumes().await;
    assert_eq!(volumes.len(), 2);
    assert!(volumes.iter().all(|volume| volume.snapshots == 0));
    assert!(!place.directory.path().join("snapshots").exists(), "nothing is left half-made");
}

#[tokio::test]
async fn the_owner_is_asked_or_named() {
    with_daemon(async |directory| {
        let place = Place::new(directory, vec![attached(7, "demo", "hector", "/c")]).await;
        let taken = text(&place, "volumes snapshots create demo --name now").await;
        assert_eq!((value(&taken, "ID"), value(&taken, "Name")), ("vs_0000000000001", "now"));
        let forks = text(&place, "volumes fork demo -n 2").await;
        assert_eq!(forks.matches("Origin: vol_0000000000007\n").count(), 2, "{forks}");
        let extended = text(&place, "volumes extend demo --size 30").await;
        assert_eq!(value(&extended, "Size"), "30 GB");
        assert!(extended.contains("2 connected clients") && extended.contains("block_resize DEVICE 32212254720B"));
        assert!(place.volumes().await.iter().all(|volume| volume.snapshots == 0), "the daemon does it, not we");
    })
    .await;
    let there = nowhere(vec![attached(3, "there", "hector", "/c")]).await;
    for command in ["fork there", "snapshots create there", "extend there --size 20", "update there --durability store"]
    {
        let message = message(&there, &format!("volumes {command}")).await;
        assert!(message.contains("attached by hector (process 42"), "{message}");
        assert!(message.contains("run this on that host") && message.contains("--takeover"), "{message}");
    }
}

#[tokio::test]
async fn a_snapshot_and_a_fork_cost_four_requests_at_most() {
    for line in ["volumes snapshots create vol_0000000000001", "volumes fork vol_0000000000001"] {
        let mut place = nowhere(vec![detached(1, "demo")]).await;
        let faults = Faults::new();
        place.context = place.context.with_store(Admin::new(faults.wrap(place.raw.clone())));
        text(&place, line).await;
        let requests = faults.log();
        // Opening the store takes one more: its header.
        assert_eq!(requests.len(), 3, "{line}: {requests:?}");
    }
}
