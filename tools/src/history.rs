//! A volume's past as people speak of it: how long it is kept, and which moment of it is meant.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use varve::error::{Error, Result};
use varve::units::UnixMillis;

use crate::render;
use crate::schedule::{parse_seconds, span};

/// Reads how long the past is kept, in seconds: `24h`, or `off`, which is zero.
///
/// # Errors
/// `Invalid` for what is neither.
pub fn parse_window(text: &str) -> Result<u64> {
    if text == "off" { Ok(0) } else { parse_seconds(text) }
}

/// Reads a moment: `2026-11-21T04:23:58Z`, `2026-11-21 04:23:58` (UTC), or how long ago it was: `15m`.
///
/// # Errors
/// `Invalid` for what is none of them.
pub fn parse_time(text: &str) -> Result<UnixMillis> {
    let ago = |span: Duration| SystemTime::now().checked_sub(span);
    let time = match humantime::parse_rfc3339_weak(text) {
        Ok(time) => Some(time),
        Err(_) => humantime::parse_duration(text.trim_end_matches("ago").trim_end()).ok().and_then(ago),
    };
    let millis = time.and_then(|time| u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok());
    millis.map(UnixMillis).ok_or_else(|| {
        Error::invalid(format!(
            "'{}' is no moment: write one such as 2026-11-21T04:23:58Z, or how long ago it was, such as 15m",
            text.escape_default()
        ))
    })
}

/// What can be gone back to, in words.
pub fn words(seconds: u64, since: Option<UnixMillis>) -> String {
    match since {
        _ if seconds == 0 => "off".to_owned(),
        None => span(seconds),
        Some(since) => format!("{}; any moment since {}", span(seconds), render::moment(since)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_by_the_clock_and_by_how_long_ago_they_were() {
        let exact = UnixMillis(1_795_235_038_000);
        for text in ["2026-11-21T04:23:58Z", "2026-11-21 04:23:58", "2026-11-21T04:23:58"] {
            assert_eq!(parse_time(text).ok(), Some(exact), "{text}");
        }
        let (hour, two) = (parse_time("1h").unwrap(), parse_time("2h ago").unwrap());
        assert!((3_590_000..3_610_000).contains(&(hour.0 - two.0)), "{hour:?} {two:?}");
        for text in ["", "yesterday", "5", "-5m", "1969-01-01T00:00:00Z", "9999999999999d"] {
            let error = parse_time(text).map(|time| format!("{text}: {time:?}")).unwrap_err();
            assert!(error.message().contains("is no moment"), "{error}");
        }
    }

    #[test]
    fn a_window_may_be_off() {
        assert_eq!(parse_window("off").ok(), Some(0));
        assert_eq!(parse_window("2d").ok(), Some(172_800));
        assert!(parse_window("0s").is_err());
        assert_eq!(words(0, None), "off");
        assert_eq!(words(86_400, Some(UnixMillis(1_795_235_038_000))), "1day; any moment since 2026-11-21T04:23:58Z");
    }
}
