//! Sizes and names as people write them.
//!
//! A bare number is a number of GB, as in flyctl, where GB means 2^30 bytes. The units KB, MB, GB and TB mean the same powers of
//! two as KiB, MiB, GiB and TiB: a volume of `10`, `10GB` and `10GiB` is the same volume.

use crate::error::{Error, Result};
use crate::limits;
use crate::units::{BLOCK_SIZE, ByteLen};

/// Digits after the point that are looked at: more than 2^40 needs to name every byte.
const FRACTION_DIGITS_MAX: usize = 18;

fn malformed(text: &str) -> Error {
    Error::invalid(format!(
        "'{}' is not a size: write a number of GB such as 10, or a number with a unit such as 512MiB \
         (KiB, MiB, GiB, TiB; KB, MB, GB, TB mean the same)",
        text.escape_default()
    ))
}

fn unit_shift(unit: &str) -> Option<u32> {
    match unit.to_ascii_lowercase().as_str() {
        "kib" | "kb" => Some(10),
        "mib" | "mb" => Some(20),
        "" | "gib" | "gb" => Some(30),
        "tib" | "tb" => Some(40),
        _ => None,
    }
}

/// `number` times two to the power of `shift`, if the text is a number and the product a whole one.
fn scaled(text: &str, number: &str, shift: u32) -> Result<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(malformed(text));
    }
    let too_large = || {
        Error::invalid(format!(
            "'{}' is too large: the largest size is {} TiB",
            text.escape_default(),
            limits::VOLUME_BYTES_MAX >> 40
        ))
    };
    let no_whole_bytes = || {
        Error::invalid(format!(
            "'{}' is no whole number of bytes: use a smaller unit, such as MiB or KiB",
            text.escape_default()
        ))
    };
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err(no_whole_bytes());
    }
    let denominator = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().map_err(|_| malformed(text))? };
    let whole = whole.parse::<u128>().map_err(|_| too_large())?;
    // Also keeps what follows below 2^(44 + 60) and so within its type.
    if whole > u128::from(limits::VOLUME_BYTES_MAX >> shift) {
        return Err(too_large());
    }
    let numerator = (whole * denominator + part) << shift;
    if !numerator.is_multiple_of(denominator) {
        return Err(no_whole_bytes());
    }
    let bytes = u64::try_from(numerator / denominator).map_err(|_| too_large())?;
    if bytes > limits::VOLUME_BYTES_MAX { Err(too_large()) } else { Ok(bytes) }
}

/// Reads a size: `10` (GB of 2^30 bytes), `1.5GB`, `512MiB`, `64 KB`. Letters of either case.
///
/// # Errors
/// `Invalid` for what is no number with a known unit, negative, zero, no whole number of bytes or of 4096-byte blocks, or more than
/// [`limits::VOLUME_BYTES_MAX`].
pub fn parse_size(text: &str) -> Result<ByteLen> {
    let trimmed = text.trim();
    if trimmed.strip_prefix('-').is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit())) {
        return Err(Error::invalid(format!("'{}' is negative: a size is larger than 0", text.escape_default())));
    }
    let unit_at = trimmed.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let shift = unit_shift(unit.trim_start()).ok_or_else(|| malformed(text))?;
    let bytes = scaled(text, number, shift)?;
    if bytes == 0 {
        return Err(Error::invalid(format!("'{}' is zero: a size is larger than 0", text.escape_default())));
    }
    if !bytes.is_multiple_of(BLOCK_SIZE) {
        let above = bytes.div_ceil(BLOCK_SIZE) * 4;
        let nearest =
            if bytes < BLOCK_SIZE { format!("{above}KiB") } else { format!("{}KiB or {above}KiB", above - 4) };
        return Err(Error::invalid(format!(
            "'{}' is {bytes} bytes, not a multiple of {BLOCK_SIZE}: the nearest is {nearest}",
            text.escape_default()
        )));
    }
    Ok(ByteLen(bytes))
}

/// Reads the size of a volume: [`parse_size`], and not less than [`limits::VOLUME_BYTES_MIN`].
///
/// # Errors
/// `Invalid`.
pub fn parse_volume_size(text: &str) -> Result<ByteLen> {
    at_least(text, limits::VOLUME_BYTES_MIN, "the smallest volume")
}

/// Reads the length of a write log: [`parse_size`], and not less than [`limits::LOG_BYTES_MIN`].
///
/// # Errors
/// `Invalid`.
pub fn parse_log_size(text: &str) -> Result<ByteLen> {
    at_least(text, limits::LOG_BYTES_MIN, "the smallest write log")
}

/// Reads the memory for what NBD clients send and get: [`parse_size`], and enough for one connection both ways.
///
/// # Errors
/// `Invalid`.
pub fn parse_transfer_size(text: &str) -> Result<ByteLen> {
    at_least(text, 2 * limits::NBD_INFLIGHT_BYTES_MAX, "the smallest memory for transfers")
}

fn at_least(text: &str, minimum: u64, what: &str) -> Result<ByteLen> {
    let size = parse_size(text)?;
    if size.0 < minimum {
        return Err(Error::invalid(format!(
            "'{}' is too small: {what} has {} MiB",
            text.escape_default(),
            minimum >> 20
        )));
    }
    Ok(size)
}

/// Checks the name of a volume or snapshot: 1 to [`limits::NAME_BYTES_MAX`] bytes, printable, without `/`, without
/// space at either end, and nothing that could be taken for an id.
///
/// # Errors
/// `Invalid`, saying which rule it breaks.
pub fn parse_name(text: &str) -> Result<String> {
    let refuse = |why: String| {
        let shown: String = text.chars().take(limits::NAME_BYTES_MAX).collect();
        Err(Error::invalid(format!("'{}' cannot be a name: {why}", shown.escape_debug())))
    };
    if text.is_empty() || text.len() > limits::NAME_BYTES_MAX {
        return refuse(format!("a name has 1 to {} bytes, this has {}", limits::NAME_BYTES_MAX, text.len()));
    }
    if let Some(letter) = text.chars().find(|&letter| letter == '/' || !is_printable(letter)) {
        return refuse(format!(
            "it contains '{}'; '/' and what cannot be printed are not allowed",
            letter.escape_unicode()
        ));
    }
    if text.trim() != text {
        return refuse("it begins or ends with a space".into());
    }
    if text == "." || text == ".." {
        return refuse("it is the name of a directory".into());
    }
    if let Some(prefix) = ["vol_", "vs_"].into_iter().find(|prefix| text.starts_with(prefix)) {
        return refuse(format!("names that begin with {prefix} could be taken for ids"));
    }
    Ok(text.to_owned())
}

/// False for control characters, and for the invisible ones that change how the text around them looks.
fn is_printable(letter: char) -> bool {
    let invisible = matches!(u32::from(letter),
        0xad | 0x61c | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0xe0000..=0xe007f);
    !letter.is_control() && !invisible
}
