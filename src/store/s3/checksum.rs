//! The checksum by which the server verifies what arrived, as its header spells it. Pure.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The CRC32C of `body` in base 64, most significant byte first.
pub(super) fn crc32c_header(body: &[u8]) -> String {
    // 32 bits and four zero bits are six letters of six bits.
    let bits = u64::from(crc32c::crc32c(body)) << 4;
    let letters = (0..6).rev().map(|place| char::from(LETTERS[(bits >> (6 * place)) as usize & 63]));
    letters.chain(['=', '=']).collect()
}

#[cfg(test)]
mod tests {
    use super::crc32c_header;

    #[test]
    fn known_sums_are_spelled_right() {
        // CRC32C("") = 00000000, CRC32C("123456789") = e3069283.
        assert_eq!(crc32c_header(b""), "AAAAAA==");
        assert_eq!(crc32c_header(b"123456789"), "4waSgw==");
    }
}
