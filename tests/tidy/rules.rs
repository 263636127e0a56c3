//! The rules for Rust sources. Each takes a [`Source`] and returns what is wrong, one sentence a fault.

use crate::floors::{floor_of, may_import};
use crate::source::Source;

pub const FILE_LINES_MAX: usize = 500;
pub const FUNCTION_LINES_MAX: usize = 70;

/// A file or folder that may do what others may not, and why.
pub struct Exception {
    pub path: &'static str,
    pub reason: &'static str,
}

const fn exception(path: &'static str, reason: &'static str) -> Exception {
    Exception { path, reason }
}

/// Where integers become bytes and back.
pub const INTEGER_BYTES: &[Exception] = &[
    exception("src/format/", "this is what the room is for"),
    exception("src/seal/", "nonces, places and wrapped keys, of which every byte counts"),
    exception("src/nbd/protocol.rs", "the protocol's own byte layout, which is no format of ours"),
    exception("src/store/s3.rs", "the checksum header of S3"),
    exception("tools/src/torture/client.rs", "the protocol's own byte layout, from the client's side"),
    exception("tools/src/torture/record.rs", "stamps the blocks of a disk that is only there to be judged"),
];

/// Where the time is asked for.
pub const TIME: &[Exception] = &[
    exception("src/clock.rs", "everybody else asks here"),
    exception(
        "src/log/commit.rs",
        "measures how long a sync takes, for the group commit; decides nothing that must be correct",
    ),
    exception("src/store/retry.rs", "how long the tries of one request took, for its message and its deadline"),
    exception("tools/src/", "progress and ages for a person who watches"),
];

/// Where files are touched without the seam of `disk`.
pub const FILES: &[Exception] = &[
    exception("src/disk/", "the seam itself"),
    exception("src/store/directory.rs", "a store that is a directory"),
    exception("src/settings/file.rs", "reads the settings file before anything else exists"),
    exception("src/index/open.rs", "the folder that RocksDB, which does its own I/O, lives in"),
    exception("src/tls.rs", "reads certificates and keys at the start"),
    exception("src/control/tokens.rs", "the file of tokens: read for each request, replaced by a command"),
    exception("src/control/client.rs", "reads a token and an authority"),
    exception("src/keys/source.rs", "reads and makes key files"),
    exception("src/nbd/listen.rs", "Unix sockets: removes a stale one, sets its mode"),
    exception("src/control/listen.rs", "Unix socket: removes a stale one, sets its mode"),
    exception("src/main.rs", "starts and stops the daemon"),
    exception("tools/src/", "a person's own files, named on the command line"),
];

/// True if the path is one of the exceptions, or lies in one that is a folder.
pub fn excepted(path: &str, exceptions: &[Exception]) -> bool {
    exceptions.iter().any(|exception| match exception.path.ends_with('/') {
        true => path.starts_with(exception.path),
        false => path == exception.path,
    })
}

pub fn file_length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let fault = || format!("{}: {lines} lines, of at most {FILE_LINES_MAX}: split it", source.path);
    (lines > FILE_LINES_MAX).then(fault).into_iter().collect()
}

pub fn function_length(source: &Source) -> Vec<String> {
    let long = source.functions.iter().filter(|function| function.code_lines > FUNCTION_LINES_MAX);
    long.map(|function| {
        format!(
            "{}:{}: function {} has {} lines, of at most {FUNCTION_LINES_MAX}: split it",
            source.path, function.line, function.name, function.code_lines
        )
    })
    .collect()
}

/// For any text file: every byte is ASCII.
pub fn ascii(path: &str, text: &str) -> Vec<String> {
    let bad = text.lines().enumerate().filter(|(_, line)| !line.is_ascii());
    bad.map(|(index, _)| format!("{path}:{}: a byte that is not ASCII", index + 1)).collect()
}

/// For any text file: no notes to oneself.
pub fn leftovers(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not find itself.
    let words = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in words.iter().filter(|word| contains_word(line, word)) {
            faults.push(format!("{path}:{}: {word}: do it, or write an issue", index + 1));
        }
    }
    faults
}

fn contains_word(line: &str, word: &str) -> bool {
    line.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|part| part == word)
}

pub fn stubs(source: &Source) -> Vec<String> {
    let find =
        |name: &'static str| source.tokens.windows(2).filter(move |pair| pair[0].text == name && pair[1].text == "!");
    ["todo", "unimplemented"]
        .into_iter()
        .flat_map(|name| find(name).map(move |pair| (name, pair[0].line)))
        .map(|(name, line)| format!("{}:{line}: {name}! is no implementation", source.path))
        .collect()
}

pub fn integer_bytes(source: &Source) -> Vec<String> {
    if excepted(&source.path, INTEGER_BYTES) {
        return Vec::new();
    }
    let conversions = ["to_le_bytes", "to_be_bytes", "to_ne_bytes", "from_le_bytes", "from_be_bytes", "from_ne_bytes"];
    let hits =
        source.tokens.iter().filter(|token| conversions.contains(&token.text.as_str()) && !source.is_test(token.line));
    hits.map(|token| format!("{}:{}: {}: only format/ turns integers into bytes", source.path, token.line, token.text))
        .collect()
}

pub fn time(source: &Source) -> Vec<String> {
    let patterns: [&[&str]; 2] = [&["SystemTime", "::", "now"], &["Instant", "::", "now"]];
    banned(source, TIME, &patterns, "ask crate::clock, or add the file to the table with a reason")
}

pub fn files(source: &Source) -> Vec<String> {
    let patterns: [&[&str]; 5] =
        [&["std", "::", "fs"], &["tokio", "::", "fs"], &["File", "::"], &["OpenOptions", "::"], &["fs", "::", "File"]];
    banned(source, FILES, &patterns, "files are reached through crate::disk, or the file is in the table with a reason")
}

pub fn panics(source: &Source) -> Vec<String> {
    let patterns: [&[&str]; 7] = [
        &[".", "unwrap", "("],
        // A method of our own may have the name; that of the standard library takes a text.
        &[".", "expect", "(", "literal"],
        &[".", "expect", "(", "&"],
        &[".", "unwrap_err", "("],
        &[".", "expect_err", "("],
        &["Result", "::", "unwrap"],
        &["Option", "::", "unwrap"],
    ];
    banned(source, &[], &patterns, "return an error")
}

fn banned(source: &Source, exceptions: &[Exception], patterns: &[&[&str]], remedy: &str) -> Vec<String> {
    if excepted(&source.path, exceptions) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for pattern in patterns {
        for line in source.find(pattern).filter(|&line| !source.is_test(line)) {
            faults.push(format!("{}:{line}: {}: {remedy}", source.path, pattern.concat()));
        }
    }
    faults
}

/// The rooms that a file of `src/` names, with the lines: `crate::room`, `crate::{room, ..}`, and `super` out of the room.
pub fn rooms_named(source: &Source) -> Vec<(String, usize)> {
    let mut rooms = Vec::new();
    let tokens = &source.tokens;
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    // The folders between the file and the crate's root: how many `super` lead to the root.
    let file = source.path.trim_start_matches("src/").trim_end_matches(".rs");
    let depth = file.trim_end_matches("/mod").split('/').count();
    for index in 0..tokens.len() {
        let mut next = index + 1;
        match text(index) {
            "crate" => {}
            "super" if text(index.wrapping_sub(1)) != "::" => {
                let mut climbed = 1;
                while text(next) == "::" && text(next + 1) == "super" {
                    climbed += 1;
                    next += 2;
                }
                if climbed < depth + inline_modules_around(source, index) {
                    continue;
                }
            }
            _ => continue,
        }
        if text(next) != "::" {
            continue;
        }
        match text(next + 1) {
            "{" => rooms.extend(group_heads(source, next + 1)),
            room => rooms.push((room.to_owned(), tokens[next + 1].line)),
        }
    }
    rooms
}

/// The first names of the branches of a `{a::b, c}` whose brace is at `open`.
fn group_heads(source: &Source, open: usize) -> Vec<(String, usize)> {
    let mut heads = Vec::new();
    let mut level = 0;
    for (index, token) in source.tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => level += 1,
            "}" => level -= 1,
            "," => {}
            name if level == 1 && ["{", ","].contains(&source.tokens[index - 1].text.as_str()) => {
                heads.push((name.to_owned(), token.line));
            }
            _ => {}
        }
        if level == 0 {
            break;
        }
    }
    heads
}

/// How many `mod name { .. }` enclose the token at `index`.
fn inline_modules_around(source: &Source, index: usize) -> usize {
    let mut braces = Vec::new();
    for (place, token) in source.tokens[..index].iter().enumerate() {
        match token.text.as_str() {
            "{" => braces.push(place >= 2 && source.tokens[place - 2].text == "mod"),
            "}" => drop(braces.pop()),
            _ => {}
        }
    }
    braces.into_iter().filter(|is_module| *is_module).count()
}

pub fn edges(source: &Source) -> Vec<String> {
    let Some(inside) = source.path.strip_prefix("src/") else { return Vec::new() };
    let room = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if ["lib", "main"].contains(&room) {
        return Vec::new();
    }
    if floor_of(room).is_none() {
        return vec![format!(
            "{}: room '{room}' has no floor: add it to tests/tidy/floors.rs and src/lib.rs",
            source.path
        )];
    }
    let mut faults = Vec::new();
    for (named, line) in rooms_named(source) {
        if !may_import(room, &named) {
            faults.push(format!(
                "{}:{line}: {room} must not know {named}: imports point down only (src/lib.rs)",
                source.path
            ));
        }
    }
    faults
}
