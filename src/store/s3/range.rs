//! Does the answer to a range request hold what was asked for? Pure.

use super::super::ByteRange;

/// What MinIO says of the end of an empty object, where AWS answers 416.
const EMPTY: &str = "bytes 0--1/0";

/// Length of the whole object and of the part, from the length that was announced and the answer's `Content-Range`.
///
/// # Errors
/// Says in what way the answer is not the one to the question.
pub(super) fn expected_part(range: ByteRange, announced: u64, header: Option<&str>) -> Result<(u64, u64), String> {
    let (start, object_length) = match header {
        Some(text) => {
            let parsed = parse(text).ok_or_else(|| format!("'{}' is no Content-Range", text.escape_default()))?;
            if parsed.1 - parsed.0 != announced {
                return Err(format!("the answer has {announced} bytes, but says '{}'", text.escape_default()));
            }
            (parsed.0, parsed.2)
        }
        None => (0, announced),
    };
    match range.within(object_length) {
        Some(expected) if expected == (start, announced) => Ok((object_length, announced)),
        Some((start, length)) => Err(format!(
            "the answer has {announced} bytes ({}) instead of {length} from {start}",
            header.unwrap_or("the whole object").escape_default()
        )),
        None => Err(format!("the object has {object_length} bytes, which do not hold {range:?}")),
    }
}

/// Start, end (exclusive) and length of the object, from `bytes 0-9/100`.
fn parse(text: &str) -> Option<(u64, u64, u64)> {
    if text == EMPTY {
        return Some((0, 0, 0));
    }
    let (part, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last, total): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then(|| (first, last + 1, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_answers_are_accepted() {
        let part = ByteRange::Part { offset: 10, length: 5 };
        assert_eq!(expected_part(part, 5, Some("bytes 10-14/100")), Ok((100, 5)));
        assert_eq!(expected_part(ByteRange::Suffix(7), 7, Some("bytes 93-99/100")), Ok((100, 7)));
        assert_eq!(expected_part(ByteRange::Suffix(700), 100, Some("bytes 0-99/100")), Ok((100, 100)));
        assert_eq!(expected_part(ByteRange::Suffix(700), 100, None), Ok((100, 100)));
        assert_eq!(expected_part(ByteRange::Suffix(7), 0, Some(EMPTY)), Ok((0, 0)));
        assert_eq!(expected_part(ByteRange::Full, 100, None), Ok((100, 100)));
        assert_eq!(expected_part(ByteRange::Full, 0, None), Ok((0, 0)));
    }

    #[test]
    fn wrong_answers_are_refused() {
        let part = ByteRange::Part { offset: 10, length: 5 };
        for (announced, header) in [
            (0, Some("bytes 10-14/100")),
            (5, Some("bytes 11-15/100")),
            (4, Some("bytes 10-13/100")),
            (5, Some("bytes 10-14/*")),
            (5, Some("bytes 10-14/12")),
            (5, Some("bytes 14-10/100")),
            (18446744073709551615, Some("bytes 0-18446744073709551615/18446744073709551615")),
            (0, Some(EMPTY)),
            (0, None),
            (100, None),
        ] {
            assert!(expected_part(part, announced, header).is_err(), "{announced} {header:?}");
        }
    }
}
