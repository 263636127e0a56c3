//! The house rules that a tool can check, read from the sources themselves. `self_tests.rs` proves that every rule can fail.
#![cfg(test)]

mod documents;
mod floors;
mod rules;
mod self_tests;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

fn repository() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo test says where the package is"))
}

/// The files below `folder` with one of the extensions, as paths relative to the repository.
fn files_below(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
            if path.is_dir() && !hidden && entry.file_name() != "target" {
                folders.push(path);
            } else if path.is_file() && extensions.contains(&extension.as_deref().unwrap_or("")) {
                found.push(path.strip_prefix(repository()).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Rust files below the folders, with those marked that only tests use.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut sources: Vec<Source> = folders
        .iter()
        .flat_map(|folder| files_below(folder, &["rs"]))
        .map(|path| Source::parse(&path, &read(&path)).unwrap_or_else(|error| panic!("{error}")))
        .collect();
    assert!(!sources.is_empty(), "found no Rust files in {folders:?}");
    let mut test_prefixes = Vec::new();
    for source in &sources {
        let folder = source
            .path
            .trim_end_matches(".rs")
            .trim_end_matches("/mod")
            .trim_end_matches("/lib")
            .trim_end_matches("/main");
        test_prefixes.extend(source.test_modules.iter().map(|module| format!("{folder}/{module}")));
    }
    for source in &mut sources {
        let is_test =
            |prefix: &String| source.path == format!("{prefix}.rs") || source.path.starts_with(&format!("{prefix}/"));
        source.all_test |= test_prefixes.iter().any(is_test);
    }
    sources
}

fn report(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}\n", faults.len(), faults.join("\n"));
}

fn check(folders: &[&str], rule: fn(&Source) -> Vec<String>) {
    report(sources(folders).iter().flat_map(rule).collect());
}

const PRODUCT: &[&str] = &["src", "tools/src"];
const ALL_CODE: &[&str] = &["src", "tools/src", "tests", "benches"];

/// Every text file that people write: sources, scripts, documents, settings.
fn texts() -> Vec<String> {
    let mut paths = files_below("", &["rs", "md", "toml", "sh", "py"]);
    for folder in ["tools", ".ci"] {
        let scripts = fs::read_dir(repository().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let scripts = scripts.filter(|path| path.is_file() && path.extension().is_none());
        paths.extend(scripts.map(|path| path.strip_prefix(repository()).unwrap().to_string_lossy().into_owned()));
    }
    paths
}

#[test]
fn imports_point_down_only() {
    check(&["src"], rules::edges);
}

#[test]
fn the_map_in_lib_rs_shows_the_floors() {
    report(floors::map_of_the_house(&read("src/lib.rs")));
}

#[test]
fn files_are_short() {
    check(ALL_CODE, rules::file_length);
}

#[test]
fn functions_are_short() {
    check(ALL_CODE, rules::function_length);
}

#[test]
fn texts_are_ascii() {
    report(texts().iter().flat_map(|path| rules::ascii(path, &read(path))).collect());
}

#[test]
fn nothing_is_left_for_later() {
    report(texts().iter().flat_map(|path| rules::leftovers(path, &read(path))).collect());
    check(ALL_CODE, rules::stubs);
}

#[test]
fn only_format_turns_integers_into_bytes() {
    check(PRODUCT, rules::integer_bytes);
}

#[test]
fn only_the_clock_tells_the_time() {
    check(PRODUCT, rules::time);
}

#[test]
fn only_the_edges_touch_files() {
    check(PRODUCT, rules::files);
}

#[test]
fn nothing_unwraps_outside_tests() {
    check(PRODUCT, rules::panics);
}

#[test]
fn every_exception_has_a_reason() {
    for exception in [rules::INTEGER_BYTES, rules::TIME, rules::FILES].into_iter().flatten() {
        assert!(exception.reason.len() > 10, "{}: say why", exception.path);
    }
}

#[test]
fn documents_have_one_title() {
    report(files_below("", &["md"]).iter().flat_map(|path| documents::one_title(path, &read(path))).collect());
}

#[test]
fn links_lead_somewhere() {
    let exists = |path: &Path| repository().join(path).exists();
    let pages = files_below("", &["md"]);
    report(pages.iter().flat_map(|path| documents::links_resolve(path, &read(path), &exists)).collect());
}

#[test]
fn every_design_page_is_linked() {
    let pages: Vec<String> =
        files_below("design", &["md"]).iter().map(|path| path.trim_start_matches("design/").to_owned()).collect();
    report(documents::design_is_linked(&read("design/README.md"), &pages));
}

#[test]
fn every_promise_names_tests_that_exist() {
    let page = read("design/promises.md");
    assert!(documents::named_tests(&page).len() > 50, "the page of promises names hardly any tests");
    let text = |path: &str| fs::read_to_string(repository().join(path)).ok();
    report(documents::named_tests_exist("design/promises.md", &page, &text));
}

#[test]
fn every_fault_of_the_catalogue_has_a_test() {
    report(documents::every_fault_has_a_test("design/promises.md", &read("design/promises.md")));
}
