//! Bounded little-endian reading and writing: the bricks of the binary formats.

use crate::error::{Error, ErrorKind, Result};

/// Reads fields from the front of a slice; never past its end.
pub struct Reader<'a> {
    what: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which are (part of) `what`, for messages.
    pub fn new(what: &'a str, bytes: &'a [u8]) -> Self {
        Reader { what, rest: bytes }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Damaged` if fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.rest.len() {
            return Err(self.damaged("it ends too early"));
        }
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(taken);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// `Damaged` at the end.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// `Damaged` at the end.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// `Damaged` at the end.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// `Damaged` at the end.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes.
    ///
    /// # Errors
    /// `Damaged` at the end.
    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// Checks that `count` items of `size` bytes can still follow, so that memory may be set aside for them.
    ///
    /// # Errors
    /// `Damaged` if they cannot.
    pub fn expect_items(&self, count: usize, size: usize) -> Result<()> {
        match count.checked_mul(size) {
            Some(bytes) if bytes <= self.rest.len() => Ok(()),
            _ => Err(self.damaged("it announces more than it holds")),
        }
    }

    /// An error of kind `Damaged` that names what is being read.
    pub fn damaged(&self, why: &str) -> Error {
        Error::damaged(format!("{} is damaged: {why}", self.what))
    }

    /// Checks version and features of what is being read.
    ///
    /// # Errors
    /// `Unsupported` if this version of varve cannot read it.
    pub fn check_version(&self, version: u16, known: u16, incompatible: u32) -> Result<()> {
        check_version(self.what, version, known, incompatible)
    }
}

/// Checks version and features of `what`: this program knows versions up to `known` and no incompatible features.
///
/// # Errors
/// `Unsupported` if this version of varve cannot read it.
pub fn check_version(what: &str, version: u16, known: u16, incompatible: u32) -> Result<()> {
    if version == 0 || version > known || incompatible != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{what} has format version {version} with features {incompatible:#x}; this varve reads version {known} \
                 without further features: use the newer varve that wrote it"
            ),
        ));
    }
    Ok(())
}

/// Appends fields to a vector.
#[derive(Default)]
pub struct Writer {
    /// What was written so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Writer { bytes: Vec::with_capacity(capacity) }
    }

    /// Raw bytes.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// The CRC32C of everything so far, as four bytes.
    pub fn crc(&mut self) -> &mut Self {
        let crc = crc32c::crc32c(&self.bytes);
        self.u32(crc)
    }
}
