//! Raw disk images: files whose holes are passed over and made again, or pipes.
//!
//! A written image appears under its name only when it is complete and synced; until then it is `NAME.part`, which goes with the writer. After a
//! crash the part is left, and the next writer of that name begins it anew.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::units::BLOCK_SIZE;

/// Most bytes that one step of a reader takes.
const STEP_BYTES: usize = 1 << 20;
static ZERO_BLOCK: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// True if there is nothing but zeros in what may be a block or less.
pub fn is_zero(block: &[u8]) -> bool {
    ZERO_BLOCK.get(..block.len()) == Some(block)
}

enum Input {
    /// Something with a length, and whether its holes can be asked for.
    File {
        file: File,
        length: u64,
        sparse: bool,
    },
    Stream(Box<dyn Read + Send>),
}

/// Reads an image from the front.
pub struct ImageReader {
    name: String,
    input: Input,
    at: u64,
}

impl ImageReader {
    /// Opens a file, a block device or a named pipe.
    ///
    /// # Errors
    /// `Io`; `Invalid` for a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).context(|| &name)?;
        let kind = file.metadata().context(|| &name)?.file_type();
        if kind.is_dir() {
            return Err(Error::invalid(format!("{name} is a directory, not a raw disk image")));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Ok(ImageReader::of_stream(name, file));
        }
        let length = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| Error::io(&name, &error.into()))?;
        Ok(ImageReader { name, input: Input::File { file, length, sparse: kind.is_file() }, at: 0 })
    }

    /// Reads a stream, called `name` in messages, to its end.
    pub fn of_stream(name: impl Into<String>, input: impl Read + Send + 'static) -> Self {
        ImageReader { name: name.into(), input: Input::Stream(Box::new(input)), at: 0 }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes; of a stream it is not known before.
    pub fn length(&self) -> Option<u64> {
        match self.input {
            Input::File { length, .. } => Some(length),
            Input::Stream(_) => None,
        }
    }

    /// How far it was read, in bytes; at the end, its length.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Puts the next bytes that are in no hole into `buffer`, and says at which offset they lie: a multiple of the block size. All steps but the last
    /// of a stream or of a run of data bring whole blocks. `None` at the end.
    ///
    /// # Errors
    /// `Io`; `Invalid` if a file changes its length meanwhile.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>> {
        buffer.clear();
        match &mut self.input {
            Input::Stream(stream) => {
                let step = stream.take(STEP_BYTES as u64).read_to_end(buffer).context(|| &self.name)?;
                let offset = self.at;
                self.at += step as u64;
                Ok((step > 0).then_some(offset))
            }
            Input::File { file, length, sparse } => {
                let Some((start, end)) = next_data(file, self.at, *length, *sparse).context(|| &self.name)? else {
                    return end_of_file(file, &self.name, *length).map(|()| {
                        self.at = *length;
                        None
                    });
                };
                buffer.resize((end - start).min(STEP_BYTES as u64) as usize, 0);
                match file.read_exact_at(buffer, start) {
                    Err(error) if error.kind() == IoErrorKind::UnexpectedEof => return Err(changed(&self.name)),
                    other => other.context(|| &self.name)?,
                }
                self.at = start + buffer.len() as u64;
                Ok(Some(start))
            }
        }
    }
}

/// The next run of data from `at` on, widened to whole blocks within the file.
fn next_data(file: &File, at: u64, length: u64, sparse: bool) -> std::io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    if !sparse {
        return Ok(Some((at, length)));
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start / BLOCK_SIZE * BLOCK_SIZE,
        Err(Errno::NXIO) => return Ok(None),
        // This file system knows nothing of holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(error) => return Err(error.into()),
    };
    let start = start.max(at);
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(std::io::Error::from)?;
    let end = end.max(start + 1).next_multiple_of(BLOCK_SIZE).min(length);
    Ok((start < end).then_some((start, end)))
}

fn end_of_file(file: &File, name: &str, length: u64) -> Result<()> {
    let now = rustix::fs::seek(file, SeekFrom::End(0)).map_err(|error| Error::io(name, &error.into()))?;
    if now == length { Ok(()) } else { Err(changed(name)) }
}

fn changed(name: &str) -> Error {
    Error::invalid(format!("{name} changed its length while it was read: make sure that nothing writes to it"))
}

enum Output {
    File { file: File, part: PathBuf, path: PathBuf, force: bool },
    Stream(Box<dyn Write + Send>),
}

/// Writes an image from the front.
pub struct ImageWriter {
    name: String,
    output: Output,
    /// Where a stream is.
    at: u64,
    complete: bool,
}

impl ImageWriter {
    /// Begins a sparse file that will be called `path`. With `force` it may replace another.
    ///
    /// # Errors
    /// `Conflict` if there is something of that name; `Busy` if somebody else writes the same; `Io`.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        may_replace(path, force)?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let name = part.display().to_string();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&part).context(|| &name)?;
        if file.try_lock().is_err() {
            return Err(Error::new(
                crate::error::ErrorKind::Busy,
                format!("{name} is being written by somebody else just now"),
            ));
        }
        file.set_len(0).context(|| &name)?;
        let output = Output::File { file, part, path: path.to_owned(), force };
        Ok(ImageWriter { name, output, at: 0, complete: false })
    }

    /// Writes to a stream, called `name` in messages; holes become zeros.
    pub fn of_stream(name: impl Into<String>, output: impl Write + Send + 'static) -> Self {
        ImageWriter { name: name.into(), output: Output::Stream(Box::new(output)), at: 0, complete: false }
    }

    /// True if what takes the bytes may keep the writer waiting for as long as it likes.
    pub fn is_stream(&self) -> bool {
        matches!(self.output, Output::Stream(_))
    }

    /// Writes whole blocks at a byte offset not before the end of what was written. In a file, blocks of zeros become holes.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        match &mut self.output {
            Output::File { file, .. } => write_sparse(file, offset, data).context(|| &self.name),
            Output::Stream(stream) => {
                let written = write_zeros(stream, offset.saturating_sub(self.at)).and_then(|()| stream.write_all(data));
                self.at = offset + data.len() as u64;
                written.context(|| &self.name)
            }
        }
    }

    /// Ends the image at `size` bytes: a file is synced and gets its name.
    ///
    /// # Errors
    /// `Io`, `Full`; `Conflict` if somebody else has made a file of that name meanwhile.
    pub fn finish(mut self, size: u64) -> Result<()> {
        match &mut self.output {
            Output::File { file, part, path, force } => {
                file.set_len(size).and_then(|()| file.sync_all()).context(|| &self.name)?;
                may_replace(path, *force)?;
                std::fs::rename(part, &*path).context(|| path.display())?;
                self.complete = true;
                let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let directory = directory.unwrap_or(Path::new("."));
                File::open(directory).and_then(|directory| directory.sync_all()).context(|| directory.display())
            }
            Output::Stream(stream) => {
                let written = write_zeros(stream, size.saturating_sub(self.at)).and_then(|()| stream.flush());
                written.context(|| &self.name)
            }
        }
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if let (Output::File { part, .. }, false) = (&self.output, self.complete)
            && let Err(error) = std::fs::remove_file(part)
        {
            tracing::warn!(%error, part = %part.display(), "an unfinished image could not be removed");
        }
    }
}

fn may_replace(path: &Path, force: bool) -> Result<()> {
    let name = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(name, &error)),
        Ok(found) if !found.is_file() => Err(Error::invalid(format!(
            "{name} is no regular file: write the image to standard output ('-') and put it there yourself"
        ))),
        Ok(_) if force => Ok(()),
        Ok(_) => Err(Error::new(
            crate::error::ErrorKind::Conflict,
            format!("{name} exists already: choose another name, or give --force to replace it"),
        )),
    }
}

fn write_sparse(file: &File, offset: u64, data: &[u8]) -> std::io::Result<()> {
    let mut start = 0;
    while start < data.len() {
        let mut end = start;
        let mut zero = None;
        // The longest run of blocks that are, or are not, nothing but zeros.
        while end < data.len() {
            let next = (end + BLOCK_SIZE as usize).min(data.len());
            let is_zero = is_zero(&data[end..next]);
            if zero.is_some_and(|zero| zero != is_zero) {
                break;
            }
            zero = Some(is_zero);
            end = next;
        }
        if zero == Some(false) {
            file.write_all_at(&data[start..end], offset + start as u64)?;
        }
        start = end;
    }
    Ok(())
}

fn write_zeros(stream: &mut dyn Write, mut count: u64) -> std::io::Result<()> {
    let zeros = vec![0; count.min(STEP_BYTES as u64) as usize];
    while count > 0 {
        let step = count.min(zeros.len() as u64) as usize;
        stream.write_all(&zeros[..step])?;
        count -= step as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::error::ErrorKind;

    const BLOCK: usize = BLOCK_SIZE as usize;

    fn all_of(mut reader: ImageReader) -> (Vec<(u64, usize)>, u64) {
        let (mut steps, mut buffer) = (Vec::new(), Vec::new());
        while let Some(offset) = reader.next(&mut buffer).unwrap() {
            assert!(offset.is_multiple_of(BLOCK_SIZE));
            steps.push((offset, buffer.len()));
        }
        (steps, reader.position())
    }

    #[test]
    fn holes_are_passed_over_and_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let mut writer = ImageWriter::create(&path, false).unwrap();
        writer.write(0, &[1; BLOCK]).unwrap();
        let mut data = vec![0; 64 * BLOCK];
        data[40 * BLOCK] = 1;
        writer.write(1 << 30, &data).unwrap();
        assert!(!path.exists(), "it has its name only when it is complete");
        writer.finish(2 << 30).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 2 << 30);
        assert!(found.blocks() * 512 <= 64 << 10, "{} sectors", found.blocks());
        let reader = ImageReader::open(&path).unwrap();
        assert_eq!(reader.length(), Some(2 << 30));
        let (steps, end) = all_of(reader);
        assert_eq!(end, 2 << 30);
        assert!(steps.iter().map(|(_, length)| length).sum::<usize>() <= 64 << 10, "{steps:?}");
        assert!(steps.contains(&(0, BLOCK)), "{steps:?}");
    }

    #[test]
    fn a_stream_is_read_to_its_end_and_written_with_zeros() {
        let bytes = vec![7; STEP_BYTES + 100];
        let (steps, end) = all_of(ImageReader::of_stream("pipe", std::io::Cursor::new(bytes)));
        assert_eq!((steps, end), (vec![(0, STEP_BYTES), (STEP_BYTES as u64, 100)], STEP_BYTES as u64 + 100));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stream");
        let mut writer = ImageWriter::of_stream("pipe", File::create(&path).unwrap());
        writer.write(BLOCK_SIZE, &[7; BLOCK]).unwrap();
        writer.finish(3 * BLOCK_SIZE).unwrap();
        let expected = [vec![0; BLOCK], vec![7; BLOCK], vec![0; BLOCK]].concat();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn what_is_there_stays_and_what_is_not_finished_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, b"precious").unwrap();
        assert_eq!(ImageWriter::create(&path, false).err().map(|error| error.kind()), Some(ErrorKind::Conflict));
        let writer = ImageWriter::create(&path, true).unwrap();
        assert_eq!(ImageWriter::create(&path, true).err().map(|error| error.kind()), Some(ErrorKind::Busy));
        drop(writer);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(ImageWriter::create(directory.path(), true).is_err());
        assert!(ImageReader::open(directory.path()).is_err());
    }

    #[test]
    fn a_file_that_shrinks_meanwhile_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![1; 3 * STEP_BYTES]).unwrap();
        let mut reader = ImageReader::open(&path).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(reader.next(&mut buffer).unwrap(), Some(0));
        OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert_eq!(reader.next(&mut buffer).err().map(|error| error.kind()), Some(ErrorKind::Invalid));
    }
}
