//! The floors of the house: which room may know which. This table is the one that counts; `src/lib.rs` shows it to people, and a test
//! holds the two together.

/// Rooms by floor. A room may import from the floors below its own. The words of floor 0 know one another.
pub const FLOORS: &[&[&str]] = &[
    &["units", "limits", "error", "block_device", "service", "clock", "work", "compression", "settings"],
    &["map", "seal", "tls"],
    &["format", "keys"],
    &["disk", "store"],
    &["log", "segment", "cache", "index"],
    &["checkpoint", "ownership", "clean"],
    &["lineage"],
    &["volume"],
    &["admin"],
    &["fleet"],
    &["nbd", "control"],
];

/// The floor of a room.
pub fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// True if `room` may name `other`. A name that is no room is no business of ours: the compiler refuses it.
pub fn may_import(room: &str, other: &str) -> bool {
    match (floor_of(room), floor_of(other)) {
        (Some(own), Some(others)) => room == other || others < own || (own == 0 && others == 0),
        _ => true,
    }
}

/// What is wrong between the table and the map in `src/lib.rs`: its `pub mod` lines and its table for people.
pub fn map_of_the_house(lib: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let declared: Vec<&str> =
        lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    for room in declared.iter().filter(|room| floor_of(room).is_none()) {
        faults.push(format!("src/lib.rs declares '{room}', which has no floor in tests/tidy/floors.rs"));
    }
    for (floor, rooms) in FLOORS.iter().enumerate() {
        for room in rooms.iter() {
            if !declared.contains(room) {
                faults.push(format!("src/lib.rs does not declare '{room}' of floor {floor}"));
            }
            let row = format!("//! | {floor} ");
            let shown = lib.lines().any(|line| line.starts_with(&row) && line.contains(&format!("[`{room}`]")));
            if !shown {
                faults.push(format!("the map in src/lib.rs does not show '{room}' on floor {floor}"));
            }
        }
    }
    faults
}
