//! The names in a client's certificate: the DNS names of its subjectAltName, and the common names of its subject. Pure.
//!
//! TLS has verified the certificate before anybody comes here, so these are names that an authority of ours has vouched for. They are
//! labels of a client, not addresses: nothing is looked up, and a `*` in one of them stands for itself.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Names that count; far more than any certificate has.
const NAMES_MAX: usize = 64;
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Tags of DER.
mod tag {
    pub const OBJECT_IDENTIFIER: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const IA5_STRING: u8 = 0x16;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
}

/// The names of a certificate; DNS names in lower case. None if it cannot be read.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let dns = certificate.valid_dns_names().map(str::to_ascii_lowercase);
    let mut names: Vec<String> = dns.chain(common_names(certificate.subject())).take(NAMES_MAX).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The common names of a subject, which is a list of sets of attributes (RFC 5280, 4.1.2.4). What follows a fault is left out.
fn common_names(mut subject: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(mut attributes) = take(&mut subject, tag::SET) {
        while let Some(mut attribute) = take(&mut attributes, tag::SEQUENCE) {
            if take(&mut attribute, tag::OBJECT_IDENTIFIER) != Some(COMMON_NAME) {
                continue;
            }
            // Other encodings of text are long out of use.
            let encodings = [tag::UTF8_STRING, tag::PRINTABLE_STRING, tag::IA5_STRING];
            let value = encodings.into_iter().find_map(|encoding| take(&mut attribute, encoding));
            let name = value.and_then(|value| std::str::from_utf8(value).ok());
            names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    names
}

/// Takes the value in front of `bytes` if its tag is `wanted`, and returns its content.
fn take<'a>(bytes: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // No name is so long that its length takes more than two bytes.
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => {
            rest.split_first_chunk().map(|(&[high, low], rest)| (usize::from(high) << 8 | usize::from(low), rest))?
        }
        _ => return None,
    };
    if tag != wanted || length > rest.len() {
        return None;
    }
    let (content, rest) = rest.split_at(length);
    *bytes = rest;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match u8::try_from(content.len()) {
            Ok(length) if length < 0x80 => bytes.push(length),
            Ok(length) => bytes.extend([0x81, length]),
            Err(_) => bytes.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]),
        }
        bytes.extend(content);
        bytes
    }

    fn attribute(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        value(tag::SEQUENCE, &[value(tag::OBJECT_IDENTIFIER, kind), value(tag, text)].concat())
    }

    #[test]
    fn common_names_are_found_among_other_attributes() {
        let organisation = attribute(&[0x55, 0x04, 0x0a], tag::UTF8_STRING, b"not a name");
        let long = "x".repeat(300);
        let subject = [
            value(tag::SET, &organisation),
            value(tag::SET, &attribute(COMMON_NAME, tag::UTF8_STRING, "gr\u{fc}n".as_bytes())),
            value(tag::SET, &[organisation.clone(), attribute(COMMON_NAME, tag::PRINTABLE_STRING, b"b 2")].concat()),
            value(tag::SET, &attribute(COMMON_NAME, tag::IA5_STRING, long.as_bytes())),
            value(tag::SET, &attribute(COMMON_NAME, 0x1e, b"\0u\0t\0f\x001\x006")),
            value(tag::SET, &attribute(COMMON_NAME, tag::UTF8_STRING, b"\xff\xfe")),
            value(tag::SET, &attribute(COMMON_NAME, tag::UTF8_STRING, b"")),
        ]
        .concat();
        assert_eq!(common_names(&subject), ["gr\u{fc}n", "b 2", &long]);
    }

    #[test]
    fn cut_and_damaged_subjects_give_no_name_that_was_not_there() {
        let whole = value(tag::SET, &attribute(COMMON_NAME, tag::UTF8_STRING, b"client"));
        for cut in 0..whole.len() {
            assert!(common_names(&whole[..cut]).is_empty());
        }
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[place] ^= 1 << bit;
                assert!(common_names(&bytes).iter().all(|name| name.len() <= 6));
            }
        }
        assert!(common_names(&[tag::SET, 0x83, 0, 0, 1, 0]).is_empty());
        assert!(names(&CertificateDer::from(vec![0x30, 0])).is_empty());
    }
}
