//! The tokens that open the control door over TCP: a file that says of each who has it and what it may do.
//!
//! A line is `NAME SCOPE DIGEST`: `SCOPE` is `all` or `read`, `DIGEST` the SHA-256 of the token in 64 hexadecimal digits. Lines that are empty or
//! begin with `#` say nothing. A token has 256 random bits, so that its digest tells nothing of it, and may be read by anybody: who reads
//! the file gets in nowhere. Who may write it may let anybody in: a file that others may write is refused.
//!
//! The daemon reads the file for each request, so that a token that is taken out of it is worth nothing from then on.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a token.
const NAME_BYTES_MAX: usize = 64;
/// What a token begins with, so that whoever finds one knows what it is.
const PREFIX: &str = "varve-token-";
/// Hexadecimal digits behind that.
const SECRET_DIGITS: usize = 64;
/// How a new file begins.
const HEADING: &str = "# Tokens for the control door of varved: name, what it may do, SHA-256 of the token.\n";

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Whatever the socket allows.
    All,
    /// Look.
    Read,
}

/// A token as the daemon knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who has it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    digest: [u8; SHA256_OUTPUT_LEN],
}

impl Scope {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Read => "read",
        }
    }
}

/// The file of tokens.
#[derive(Clone, Debug)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// The file at `path`, which need not be there yet.
    pub fn new(path: &Path) -> Self {
        TokenFile(path.to_owned())
    }

    /// What is in it.
    ///
    /// # Errors
    /// `NotFound`; `Denied` if somebody else may write it; `Invalid`, with the line; `Io`.
    pub fn read(&self) -> Result<Vec<Token>> {
        let (text, _) = self.text()?;
        parse(&text).context(|| self.shown())
    }

    /// Whose token this is, and what it may do; none if it is nobody's.
    ///
    /// # Errors
    /// What [`TokenFile::read`] says.
    pub fn find(&self, token: &str) -> Result<Option<Token>> {
        // What cannot be a token costs nothing.
        if !token.starts_with(PREFIX) || token.len() != PREFIX.len() + SECRET_DIGITS {
            return Ok(None);
        }
        let presented = digest(&SHA256, token.as_bytes());
        // How far two digests agree tells nothing of a token, so that the time this takes does not matter.
        Ok(self.read()?.into_iter().find(|token| token.digest == presented.as_ref()))
    }

    /// Makes a token for `name`, and returns it: it is kept nowhere else. Makes the file if there is none.
    ///
    /// # Errors
    /// `Invalid` for what cannot be a name; `Conflict` if somebody of that name has one; what [`TokenFile::read`] says; `Io`.
    pub fn create(&self, name: &str, scope: Scope) -> Result<String> {
        check_name(name)?;
        let secret = clock::random_words().iter().fold(PREFIX.to_owned(), |mut text, word| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{word:016x}");
            text
        });
        self.change(true, |text, tokens| {
            if tokens.iter().any(|token| token.name == name) {
                let message = format!("{name} has a token in {} already: revoke it first", self.0.display());
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            let mut text = if text.is_empty() { HEADING.to_owned() } else { text.to_owned() };
            if !text.ends_with('\n') {
                text.push('\n');
            }
            // As above.
            let _ = write!(text, "{name} {} ", scope.name());
            digest(&SHA256, secret.as_bytes()).as_ref().iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
            text.push('\n');
            Ok(text)
        })?;
        Ok(secret)
    }

    /// Takes the token of `name` out: from now on it opens nothing.
    ///
    /// # Errors
    /// `NotFound` if nobody of that name has one; what [`TokenFile::read`] says; `Io`.
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.change(false, |text, tokens| {
            if !tokens.iter().any(|token| token.name == name) {
                return Err(Error::not_found(format!("nobody named '{}' has a token there", name.escape_debug())));
            }
            let is_his = |line: &&str| line.split_whitespace().next() == Some(name);
            Ok(text.lines().filter(|line| !is_his(line)).flat_map(|line| [line, "\n"]).collect())
        })
    }

    fn shown(&self) -> String {
        format!("the token file {}", self.0.display())
    }

    /// The text of the file, and what the system says of the file it was read from.
    fn text(&self) -> Result<(String, Metadata)> {
        let shown = || self.shown();
        // What is no file does not keep us waiting.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(&self.0);
        let file = file.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let path = self.0.display();
                Error::not_found(format!(
                    "there is no token file {path}: make it with: varve tokens create {path} NAME"
                ))
            }
            _ => Error::io(shown(), &error),
        })?;
        let about = file.metadata().context(shown)?;
        if !about.is_file() {
            return Err(Error::invalid(format!("{} is no file", shown())));
        }
        let is_ours = about.uid() == 0 || about.uid() == rustix::process::geteuid().as_raw();
        if !is_ours || about.mode() & 0o022 != 0 {
            let message = format!(
                "{} can be written by others, who could let anybody in: only its owner may, who must be root or the user who reads it",
                shown()
            );
            return Err(Error::new(ErrorKind::Denied, message));
        }
        let mut text = String::new();
        let length = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).context(shown)?;
        if length as u64 > FILE_BYTES_MAX {
            return Err(Error::invalid(format!("{} has more than {FILE_BYTES_MAX} bytes", shown())));
        }
        Ok((text, about))
    }

    /// Puts what `change` makes of the file in its place, while nobody else changes it. Nobody ever reads half of one, and whoever could read it can
    /// read the new one.
    fn change(&self, may_be_new: bool, change: impl FnOnce(&str, &[Token]) -> Result<String>) -> Result<()> {
        let shown = || format!("cannot write {}", self.shown());
        // A link stays one.
        let path = match fs::canonicalize(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.0.clone(),
            other => other.context(shown)?,
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The lock is on the directory, since the file is replaced; it ends with `locked`.
        let locked = File::open(directory).context(shown)?;
        locked.lock().context(shown)?;
        let (text, about) = match self.text() {
            Ok((text, about)) => (text, Some(about)),
            Err(error) if may_be_new && error.kind() == ErrorKind::NotFound => (String::new(), None),
            Err(error) => return Err(error),
        };
        let text = change(&text, &parse(&text).context(|| self.shown())?)?;
        let draft = PathBuf::from(format!("{}.{:x}", path.display(), clock::random_u64()));
        let written = write_draft(&draft, &text, about.as_ref()).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // What matters is why it could not be written.
            let _ = fs::remove_file(&draft);
        }
        written.and_then(|()| locked.sync_all()).context(shown)
    }
}

/// Writes a file with the owner and mode of the one whose place it takes; readable by all if there is none.
fn write_draft(path: &Path, text: &str, old: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    if let Some(old) = old {
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    // Not left to the umask: the daemon may be another user.
    file.set_permissions(Permissions::from_mode(old.map_or(0o644, |old| old.mode() & 0o777)))?;
    file.sync_all()
}

fn parse(text: &str) -> Result<Vec<Token>> {
    let (mut tokens, mut names) = (Vec::new(), BTreeSet::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line is not repeated: somebody may have put a token into it.
        let refuse = |why: &str| Err(Error::invalid(format!("line {}: {why}", number + 1)));
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[name, scope, digits] = words.as_slice() else {
            return refuse("it is not a name, a scope and a digest");
        };
        if let Err(error) = check_name(name) {
            return refuse(error.message());
        }
        let scope = match scope {
            "all" => Scope::All,
            "read" => Scope::Read,
            _ => return refuse("its scope is neither 'all' nor 'read'"),
        };
        let Some(digest) = parse_digest(digits) else {
            return refuse("its digest is not 64 hexadecimal digits: 'varve tokens create' writes such lines");
        };
        if !names.insert(name) {
            return refuse("its name has a token already");
        }
        tokens.push(Token { name: name.to_owned(), scope, digest });
    }
    Ok(tokens)
}

fn parse_digest(digits: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    if digits.len() != 2 * SHA256_OUTPUT_LEN || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; SHA256_OUTPUT_LEN];
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte));
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain {
        return Err(Error::invalid(format!(
            "the name of a token has 1 to {NAME_BYTES_MAX} letters, digits, '-', '_', '.' and '@'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn a_token_opens_until_it_is_revoked_and_is_kept_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let file = TokenFile::new(&path);
        assert_eq!(file.read().unwrap_err().kind(), ErrorKind::NotFound);
        let all = file.create("ada", Scope::All).unwrap();
        let read = file.create("build-7@ci.example", Scope::Read).unwrap();
        assert!(all.starts_with(PREFIX) && all.len() == PREFIX.len() + 64 && all != read);
        let found = file.find(&all).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.scope), ("ada", Scope::All));
        assert_eq!(file.find(&read).unwrap().unwrap().scope, Scope::Read);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&all) && !text.contains(&all[PREFIX.len()..]), "{text}");
        assert_eq!(file.create("ada", Scope::Read).unwrap_err().kind(), ErrorKind::Conflict);
        file.revoke("ada").unwrap();
        assert_eq!(file.find(&all).unwrap(), None);
        assert_eq!(file.revoke("ada").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(file.find(&read).unwrap().unwrap().name, "build-7@ci.example");
        for nobody in ["", " ", &read[1..], &read[..read.len() - 1], &read.to_uppercase()] {
            assert_eq!(file.find(nobody).unwrap(), None, "{nobody}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a draft is left");
    }

    #[test]
    fn many_who_change_it_at_once_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let file = TokenFile::new(&path);
        (0..8).for_each(|number| _ = file.create(&format!("old-{number}"), Scope::All).unwrap());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || file.create(&format!("new-{number}"), Scope::All).unwrap());
                scope.spawn(move || file.revoke(&format!("old-{number}")).unwrap());
            }
        });
        let mut names: Vec<String> = file.read().unwrap().into_iter().map(|token| token.name).collect();
        names.sort();
        assert_eq!(names, (0..8).map(|number| format!("new-{number}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_change_leaves_what_is_said_of_the_file_and_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("tokens"), directory.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs::write(&path, "# of the night shift\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let token = TokenFile::new(&link).create("ada", Scope::All).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(TokenFile::new(&path).find(&token).unwrap().unwrap().name, "ada");
        TokenFile::new(&link).revoke("ada").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# of the night shift\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let new = directory.path().join("new");
        TokenFile::new(&new).create("ada", Scope::All).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o644, "whoever runs the daemon may read it");
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let file = TokenFile::new(&path);
        let token = file.create("ada", Scope::All).unwrap();
        for mode in [0o664, 0o646] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(file.find(&token).unwrap_err().kind(), ErrorKind::Denied, "{mode:o}");
            assert_eq!(file.create("eve", Scope::All).unwrap_err().kind(), ErrorKind::Denied, "{mode:o}");
        }
    }

    #[test]
    fn whatever_is_in_the_file_is_taken_or_refused() {
        let digest = "5a".repeat(SHA256_OUTPUT_LEN);
        let good = format!("# who\nada all {digest}\n\nbuild-7@ci.example read {digest}\n");
        let mut random = StdRng::seed_from_u64(41);
        let mut taken = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..3) {
                    0 => bytes[at] = random.random(),
                    1 => _ = bytes.remove(at),
                    _ => bytes.insert(at, b" \n#all\xc3"[random.random_range(0..7)]),
                }
            }
            if let Ok(tokens) = parse(&String::from_utf8_lossy(&bytes)) {
                taken += 1;
                assert!(tokens.len() <= 2 && tokens.iter().all(|token| check_name(&token.name).is_ok()));
            }
        }
        assert!((100..19_000).contains(&taken), "{taken} of the files are taken, which shows little");
    }

    #[test]
    fn what_is_no_line_is_named_and_not_repeated() {
        let digest = "0f".repeat(SHA256_OUTPUT_LEN);
        let good = parse(&format!("# who\n\n ada all {digest}\nbob\tread {}\n", digest.to_uppercase())).unwrap();
        assert_eq!((good.len(), good[0].digest, good[1].digest), (2, [0x0f; 32], [0x0f; 32]));
        for (line, expected) in [
            (format!("ada {digest}"), "line 2: it is not a name"),
            (format!("ada all {digest} secret"), "line 2: it is not a name"),
            (format!("ada some {digest}"), "line 2: its scope"),
            (format!("ada all {}", &digest[1..]), "line 2: its digest"),
            (format!("ada all {}secret", &digest[6..]), "line 2: its digest"),
            (format!("ad/a all {digest}"), "line 2: the name of a token"),
            (format!("{} all {digest}", "a".repeat(65)), "line 2: the name of a token"),
            (format!("ada all {digest}\nada read {digest}"), "line 3: its name has a token already"),
        ] {
            let error = parse(&format!("\n{line}\n")).unwrap_err();
            assert!(error.message().contains(expected) && !error.message().contains("secret"), "{line}: {error}");
        }
    }
}
