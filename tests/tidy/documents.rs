//! The rules for Markdown: one title, links that lead somewhere, every page of `design/` reachable.

use std::path::Path;

/// The lines outside code fences, numbered from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((index + 1, line));
        }
    }
    lines
}

pub fn one_title(path: &str, text: &str) -> Vec<String> {
    let titles = prose(text).iter().filter(|(_, line)| line.starts_with("# ")).count();
    let fault = || format!("{path}: {titles} titles ('# ...') where exactly one belongs");
    (titles != 1).then(fault).into_iter().collect()
}

/// The targets of `[text](target)` with their lines, without what stands in `code`.
pub fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let visible: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        let mut rest = visible.as_str();
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push((number, rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    found
}

/// The file a link names, seen from the folder of the page; `None` for what lies elsewhere or on the same page.
fn target_file(link: &str) -> Option<&str> {
    let elsewhere = link.contains("://") || link.starts_with("mailto:");
    let file = link.split('#').next().unwrap_or(link);
    (!elsewhere && !file.is_empty()).then_some(file)
}

/// `exists` says whether a path relative to the repository is there.
pub fn links_resolve(path: &str, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let links = links(text);
    let dead = links.iter().filter(|(_, link)| target_file(link).is_some_and(|file| !exists(&folder.join(file))));
    dead.map(|(line, link)| format!("{path}:{line}: the link to '{link}' leads nowhere")).collect()
}

/// `pages` are the file names in `design/`; `index` is the text of `design/README.md`.
pub fn design_is_linked(index: &str, pages: &[String]) -> Vec<String> {
    let linked: Vec<String> =
        links(index).into_iter().filter_map(|(_, link)| target_file(&link).map(str::to_owned)).collect();
    let missing = pages.iter().filter(|page| *page != "README.md" && !linked.contains(page));
    missing.map(|page| format!("design/README.md does not link to {page}")).collect()
}

/// The tests that a page names: `file::function` in backticks, with their lines.
pub fn named_tests(text: &str) -> Vec<(usize, String, String)> {
    let mut named = Vec::new();
    for (number, line) in prose(text) {
        for code in line.split('`').skip(1).step_by(2) {
            if let Some((file, function)) = code.split_once(".rs::") {
                named.push((number, format!("{file}.rs"), function.to_owned()));
            }
        }
    }
    named
}

/// `read` gives the text of a file, if there is one.
pub fn named_tests_exist(path: &str, text: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let is_there =
        |file: &str, function: &str| read(file).is_some_and(|text| text.contains(&format!("fn {function}(")));
    let gone = named_tests(text).into_iter().filter(|(_, file, function)| !is_there(file, function));
    gone.map(|(line, file, function)| format!("{path}:{line}: there is no test {function} in {file}")).collect()
}

/// The rows of the catalogue of faults, by letter: how many there are.
const FAULTS: [(&str, u32); 9] =
    [("L", 12), ("C", 4), ("S", 7), ("O", 14), ("X", 6), ("W", 4), ("T", 1), ("N", 11), ("P", 3)];
/// Faults that nothing in varve can meet: no multipart upload is made, and no delete or write rests on such a condition.
const NOT_MET: [&str; 3] = ["O11", "O12", "O13"];

/// The page names a test for every fault of the catalogue: in a row of a table whose first cell begins with the faults that it is about.
pub fn every_fault_has_a_test(path: &str, text: &str) -> Vec<String> {
    let rows: Vec<(Vec<&str>, bool)> = prose(text)
        .into_iter()
        .filter_map(|(_, line)| {
            let (faults, shown) = line.strip_prefix("| ")?.split_once(" | ")?;
            let named = faults.split([',', ' ']).take_while(|word| word.is_empty() || is_fault(word));
            Some((named.filter(|word| !word.is_empty()).collect(), !named_tests(shown).is_empty()))
        })
        .collect();
    let all = FAULTS.iter().flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")));
    all.filter_map(|fault| {
        let about: Vec<bool> =
            rows.iter().filter(|(named, _)| named.contains(&fault.as_str())).map(|(_, has_test)| *has_test).collect();
        match about[..] {
            [] => Some(format!("{path} does not speak of fault {fault}")),
            _ if about.contains(&true) || NOT_MET.contains(&fault.as_str()) => None,
            _ => Some(format!("{path} names no test for fault {fault}")),
        }
    })
    .collect()
}

fn is_fault(word: &str) -> bool {
    let letter = word.get(..1).unwrap_or_default();
    FAULTS.iter().any(|(known, _)| *known == letter) && word[1..].parse::<u32>().is_ok()
}
