//! Every rule, fed with what it must refuse and with what it must let pass.

use std::path::Path;

use crate::source::Source;
use crate::{documents, floors, rules};

fn source(path: &str, text: &str) -> Source {
    Source::parse(path, text).unwrap()
}

fn faults(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&source(path, text)).len()
}

#[test]
fn forbidden_edges_are_found() {
    for (path, text) in [
        ("src/log/mod.rs", "use crate::volume::Volume;"),
        ("src/log/mod.rs", "use crate::segment;"),
        ("src/map/mod.rs", "use crate::format;"),
        ("src/units.rs", "use crate::map::Extent;"),
        ("src/log/ring.rs", "use crate::{units::Lba, cache::{Cache, Slot}};"),
        ("src/log/ring.rs", "fn f() { crate::volume::open(); }"),
        ("src/log/ring.rs", "fn f() { println!(\"{}\", crate::nbd::PORT); }"),
        ("src/log/ring.rs", "use super::super::volume::Volume;"),
        ("src/log/mod.rs", "use super::volume::Volume;"),
        ("src/log/mod.rs", "mod inner { use super::super::volume::Volume; }"),
        ("src/log/mod.rs", "use super::{units::Lba, volume::Volume};"),
        ("src/attic/mod.rs", "fn f() {}"),
    ] {
        assert_eq!(faults(rules::edges, path, text), 1, "{path}: {text}");
    }
}

#[test]
fn allowed_edges_pass() {
    for (path, text) in [
        ("src/log/mod.rs", "use crate::disk::Disk; use crate::{units::Lba, format::record};"),
        ("src/log/ring.rs", "use super::frame::Frame; use crate::log::scan;"),
        ("src/log/ring.rs", "mod tests { use super::*; use super::super::frame; }"),
        ("src/units.rs", "use crate::error::{Error, Result};"),
        ("src/volume/mod.rs", "//! See [`crate::nbd`].\nuse crate::{log, segment, ownership};"),
        ("src/main.rs", "use varve::nbd; fn f() { crate::nbd::x(); }"),
    ] {
        assert_eq!(rules::edges(&source(path, text)), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn the_map_and_the_floors_are_held_together() {
    let mut lib = String::new();
    for (floor, rooms) in floors::FLOORS.iter().enumerate() {
        for room in rooms.iter() {
            lib.push_str(&format!("//! | {floor} name | [`{room}`] | what |\npub mod {room};\n"));
        }
    }
    assert_eq!(floors::map_of_the_house(&lib), Vec::<String>::new());
    assert_eq!(floors::map_of_the_house(&lib.replace("pub mod cache;", "")).len(), 1);
    assert_eq!(floors::map_of_the_house(&lib.replace("pub mod cache;", "pub mod cache;\npub mod attic;")).len(), 1);
    assert_eq!(floors::map_of_the_house(&lib.replace("| 4 name | [`cache`]", "| 5 name | [`cache`]")).len(), 1);
}

#[test]
fn long_files_and_functions_are_found() {
    let lines = |count: usize| "    let _ = 1;\n".repeat(count);
    assert_eq!(faults(rules::file_length, "src/a.rs", &"\n".repeat(500)), 0);
    assert_eq!(faults(rules::file_length, "src/a.rs", &"\n".repeat(501)), 1);
    let with_notes = format!("fn f() {{\n{}    // why\n\n}}\n", lines(68));
    assert_eq!(faults(rules::function_length, "src/a.rs", &with_notes), 0);
    for text in [
        format!("fn f() {{\n{}}}\n", lines(69)),
        format!("impl A {{ fn f() {{\n{}}} }}\n", lines(69)),
        format!("trait A {{ fn f() {{\n{}}} }}\n", lines(69)),
        format!("mod m {{ fn f() {{\n{}}} }}\n", lines(69)),
    ] {
        assert_eq!(faults(rules::function_length, "src/a.rs", &text), 1, "{text}");
    }
}

#[test]
fn foreign_letters_and_leftovers_are_found() {
    assert_eq!(rules::ascii("a", "plain\ncaf\u{e9}\n").len(), 1);
    assert_eq!(rules::ascii("a", "plain\n").len(), 0);
    for word in [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")] {
        assert_eq!(rules::leftovers("a", &format!("fine\n// {word}: later\n")).len(), 1, "{word}");
        assert_eq!(rules::leftovers("a", &format!("my{word}s mktemp.{word}X\n")).len(), 0, "{word}");
    }
    assert_eq!(faults(rules::stubs, "src/a.rs", "fn f() { todo!() }"), 1);
    assert_eq!(faults(rules::stubs, "src/a.rs", "fn f() { vec![unimplemented!(\"x\")]; }"), 1);
    assert_eq!(faults(rules::stubs, "src/a.rs", "fn todo() {} // todo!"), 0);
}

#[test]
fn integer_bytes_are_kept_in_their_room() {
    for name in ["to_le_bytes", "to_be_bytes", "to_ne_bytes"] {
        let text = format!("fn f(a: u32) {{ a.{name}(); }}");
        assert_eq!(faults(rules::integer_bytes, "src/log/mod.rs", &text), 1, "{name}");
        assert_eq!(faults(rules::integer_bytes, "src/format/record.rs", &text), 0, "{name}");
        assert_eq!(
            faults(rules::integer_bytes, "src/log/mod.rs", &format!("#[cfg(test)]\nmod tests {{\n{text}\n}}")),
            0
        );
    }
    assert_eq!(faults(rules::integer_bytes, "src/nbd/mod.rs", "fn f() { u16::from_be_bytes([0, 1]); }"), 1);
    assert_eq!(faults(rules::integer_bytes, "src/nbd/protocol.rs", "fn f() { u16::from_be_bytes([0, 1]); }"), 0);
}

#[test]
fn time_and_files_are_kept_at_the_edges() {
    for text in ["fn f() { std::time::SystemTime::now(); }", "use tokio::time::Instant; fn f() { Instant::now(); }"] {
        assert_eq!(faults(rules::time, "src/log/mod.rs", text), 1, "{text}");
        assert_eq!(faults(rules::time, "src/clock.rs", text), 0, "{text}");
        assert_eq!(
            faults(
                rules::time,
                "src/log/mod.rs",
                &format!("#[test]\n{}", text.replace("use tokio::time::Instant; ", ""))
            ),
            0
        );
    }
    for text in
        ["use std::fs;", "fn f() { std::fs::read(\"x\"); }", "fn f() { File::open(\"x\"); }", "use tokio::fs::read;"]
    {
        assert_eq!(faults(rules::files, "src/log/mod.rs", text), 1, "{text}");
        assert_eq!(faults(rules::files, "src/disk/real.rs", text), 0, "{text}");
        assert_eq!(faults(rules::files, "src/store/directory.rs", text), 0, "{text}");
    }
}

#[test]
fn unwraps_are_found_outside_tests() {
    for text in ["fn f() { a.unwrap(); }", "fn f() { a\n.expect(\"b\"); }", "fn f() { debug!(a.unwrap()); }"] {
        assert_eq!(faults(rules::panics, "src/log/mod.rs", text), 1, "{text}");
        assert_eq!(
            faults(rules::panics, "src/log/mod.rs", &format!("#[cfg(test)]\nmod tests {{ {text} }}")),
            0,
            "{text}"
        );
        assert_eq!(faults(rules::panics, "src/log/mod.rs", &format!("impl A {{ #[cfg(test)] {text} }}")), 0, "{text}");
        assert_eq!(faults(rules::panics, "src/log/mod.rs", &format!("#![cfg(test)]\n{text}")), 0, "{text}");
    }
    assert_eq!(
        faults(
            rules::panics,
            "src/log/mod.rs",
            "fn f() { a.unwrap_or(1); a.unwrap_or_default(); b.expect(bytes_needed); } // .unwrap()"
        ),
        0
    );
    assert_eq!(source("src/log/mod.rs", "#[cfg(test)]\nmod tests;\nmod ring;").test_modules, ["tests"]);
}

#[test]
fn titles_and_links_are_checked() {
    assert_eq!(documents::one_title("a.md", "# One\n\n```sh\n# a comment\n```\n## Two\n").len(), 0);
    assert_eq!(documents::one_title("a.md", "# One\n# Two\n").len(), 1);
    assert_eq!(documents::one_title("a.md", "no title\n").len(), 1);
    let exists = |path: &Path| path == Path::new("design/there.md");
    let links = "[a](there.md) [b](there.md#part) [c](#here) [d](https://example.org/x) `[e](gone.md)` [f](gone.md)";
    assert_eq!(documents::links_resolve("design/a.md", links, &exists).len(), 1);
    let pages = ["README.md".to_owned(), "there.md".to_owned(), "lost.md".to_owned()];
    assert_eq!(
        documents::design_is_linked("# Design\n[a](there.md)\n", &pages),
        ["design/README.md does not link to lost.md"]
    );
}

#[test]
fn a_named_test_that_does_not_exist_is_found() {
    let read = |path: &str| (path == "tests/a.rs").then(|| "fn is_there() {}".to_owned());
    let page = "| x | `tests/a.rs::is_there`, `tests/a.rs::is_gone` and `tests/b.rs::is_there` |";
    let faults = documents::named_tests_exist("page", page, &read);
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn a_fault_without_a_test_is_noticed() {
    let all: Vec<String> = ["L", "C", "S", "O", "X", "W", "T", "N", "P"]
        .iter()
        .flat_map(|letter| (1..=14).map(move |number| format!("{letter}{number}")))
        .collect();
    let page = format!("| {} a fault | `tests/a.rs::b` |\n", all.join(", "));
    assert_eq!(documents::every_fault_has_a_test("page", &page).len(), 0);
    let untested = page.replace("L3, ", "").replace("C2, ", "") + "| L3 stale records | open |\n";
    let faults = documents::every_fault_has_a_test("page", &untested);
    assert_eq!(faults, ["page names no test for fault L3", "page does not speak of fault C2"]);
}
