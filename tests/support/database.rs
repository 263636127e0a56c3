//! SQLite on a mounted disk: a shell that says what is committed, and the check that all of it is there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use super::process::{PATIENCE, shell};

/// A SQLite shell that commits one row after the other and says each number once it is committed.
pub struct Writer {
    child: Child,
    committed: Receiver<u64>,
    /// The newest row that was said to be committed.
    pub newest: u64,
}

impl Writer {
    /// Writes rows from `first` on into the database.
    pub fn start(database: &Path, first: u64) -> Writer {
        let mut command = Command::new("sqlite3");
        command.arg("-bail").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("sqlite3: run tools/test once, which installs it");
        let mut input = child.stdin.take().unwrap();
        // Ends when the shell does: the pipe breaks.
        std::thread::spawn(move || {
            let head = ".timeout 60000\nPRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\nCREATE TABLE IF NOT EXISTS rows(id INTEGER PRIMARY KEY, text TEXT);\n";
            let mut sent = input.write_all(head.as_bytes());
            for row in first.. {
                if sent.is_err() {
                    break;
                }
                let text = "BEGIN; INSERT INTO rows VALUES({}, hex(randomblob(700))); UPDATE rows SET text = hex(randomblob(900)) WHERE id = {} / 2; COMMIT;\nSELECT 'row {}';\n";
                sent = input.write_all(text.replace("{}", &row.to_string()).as_bytes());
            }
        });
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, committed) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(row) = line.strip_prefix("row ") {
                    let _ = sender.send(row.parse().unwrap());
                }
            }
        });
        Writer { child, committed, newest: 0 }
    }

    /// Waits until this many more rows are committed.
    #[track_caller]
    pub fn commits(&mut self, rows: u64) {
        for _ in 0..rows {
            match self.committed.recv_timeout(PATIENCE) {
                Ok(row) => self.newest = row,
                Err(RecvTimeoutError::Timeout) => panic!("no commit for {PATIENCE:?} after row {}", self.newest),
                Err(RecvTimeoutError::Disconnected) => panic!("sqlite3 gave up after row {}", self.newest),
            }
        }
    }

    /// Ends the shell, and returns the newest row that it said was committed.
    pub fn end(mut self) -> u64 {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Ok(row) = self.committed.recv() {
            self.newest = row;
        }
        self.newest
    }
}

/// Checks the database: sound, and every row up to `newest` is there. Returns the newest row that it has.
#[track_caller]
pub fn check_database(database: &Path, newest: u64) -> u64 {
    let query = "PRAGMA integrity_check; SELECT count(*) FROM rows WHERE id <= $2; SELECT max(id) FROM rows;";
    let query = query.replace("$2", &newest.to_string());
    let text = shell("sqlite3 -bail \"$1\" \"$2\"", &[&database.display().to_string(), &query]).succeeded();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "ok", "{text}");
    assert_eq!(lines[1], newest.to_string(), "committed rows are missing");
    lines[2].parse().unwrap()
}
