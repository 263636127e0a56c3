//! Makes hostile inputs of good ones: flips, cuts, splices, lengths set to extremes, swaps between examples.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Longest input made, in bytes, beyond the longest example.
const GROWTH_MAX: usize = 4096;

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "7",
    "255",
    "4096",
    "65535",
    "4294967295",
    "4294967296",
    "1048576",
    "2147483648",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551614",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "-9223372036854775808",
    "0.5",
    "1e308",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
];

const EXTREMES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    255,
    256,
    4095,
    4096,
    65535,
    65536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    1 << 52,
    (1 << 52) + 1,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Bytes at the front and at the end of a binary example in which headers and trailers lie.
const EDGE_BYTES: usize = 256;

/// Gives one input after the other in which one field of `example` has an extreme value: every number of a text; every 4 and 8 bytes
/// at the front and at the end of others.
pub fn sweep(example: &[u8], visit: &mut dyn FnMut(Vec<u8>)) {
    if example.iter().all(|&byte| byte < 128) {
        for range in numbers(example) {
            for number in NUMBERS {
                let mut input = example.to_vec();
                input.splice(range.clone(), number.bytes());
                visit(input);
            }
        }
        return;
    }
    for at in (0..example.len().saturating_sub(3)).step_by(4) {
        if at >= EDGE_BYTES && at + EDGE_BYTES < example.len() {
            continue;
        }
        for width in [4, 8] {
            for value in EXTREMES {
                let mut input = example.to_vec();
                if let Some(field) = input.get_mut(at..at + width) {
                    field.copy_from_slice(&value.to_le_bytes()[..width]);
                    visit(input);
                }
            }
        }
    }
}

/// Where the numbers of a text are.
fn numbers(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let begins = |at: usize| text[at].is_ascii_digit() && (at == 0 || !text[at - 1].is_ascii_alphanumeric());
    let starts = (0..text.len()).filter(|&at| begins(at));
    starts.map(|at| at..at + text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count()).collect()
}

/// A source of mutations of some examples.
pub struct Mutator {
    pub random: SmallRng,
    examples: Vec<Vec<u8>>,
}

impl Mutator {
    pub fn new(seed: u64, examples: Vec<Vec<u8>>) -> Self {
        assert!(!examples.is_empty(), "there is nothing to mutate");
        Mutator { random: SmallRng::seed_from_u64(seed), examples }
    }

    /// One of the examples.
    pub fn example(&mut self) -> Vec<u8> {
        self.examples.choose(&mut self.random).cloned().unwrap_or_default()
    }

    /// Changes `bytes` in one to four ways.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.random.random_range(1..=4) {
            self.step(bytes);
        }
    }

    fn step(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.extend((0..self.random.random_range(1..80)).map(|_| self.random.random::<u8>()));
            return;
        }
        let is_text = bytes.iter().all(|&byte| byte < 128);
        match self.random.random_range(0..14) {
            0..=2 => {
                let at = self.random.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.random.random_range(0..8);
            }
            3 => {
                let at = self.random.random_range(0..bytes.len());
                bytes[at] = self.random.random();
            }
            4 | 5 if is_text => self.number(bytes),
            4..=7 => self.extreme(bytes),
            8 => {
                let length = self.random.random_range(0..=bytes.len());
                bytes.truncate(length);
            }
            9 => {
                let range = self.range(bytes.len());
                bytes.drain(range);
            }
            10 => self.repeat(bytes),
            11 => self.swap(bytes),
            _ => self.splice(bytes),
        }
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.random.random_range(0..length);
        // Short ranges are those of fields.
        let longest = if self.random.random() { 16.min(length - start) } else { length - start };
        start..start + self.random.random_range(0..=longest)
    }

    /// Sets a field, as wide as integers are, to a value at which something might tip over.
    fn extreme(&mut self, bytes: &mut [u8]) {
        let width = [1, 2, 4, 8][self.random.random_range(0..4)].min(bytes.len());
        let mut at = self.random.random_range(0..=bytes.len() - width);
        if self.random.random() {
            at -= at % width;
        }
        let value = EXTREMES[self.random.random_range(0..EXTREMES.len())];
        let ordered = if self.random.random_range(0..4) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
        let from = if ordered == value.to_le_bytes() { 0 } else { 8 - width };
        bytes[at..at + width].copy_from_slice(&ordered[from..from + width]);
    }

    /// Puts another number, or something that is none, in the place of a number in a text.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let Some(range) = numbers(bytes).choose(&mut self.random).cloned() else { return };
        let number = NUMBERS[self.random.random_range(0..NUMBERS.len())];
        bytes.splice(range, number.bytes());
    }

    /// Says a part again, up to many times: nesting and long lists come of this.
    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let range = self.range(bytes.len());
        let part = bytes[range.clone()].to_vec();
        if part.is_empty() {
            return;
        }
        let times = self.random.random_range(1..=(GROWTH_MAX / part.len()).clamp(1, 300));
        let copies = part.repeat(times);
        bytes.splice(range.end..range.end, copies.into_iter().take(GROWTH_MAX));
    }

    fn swap(&mut self, bytes: &mut [u8]) {
        let range = self.range(bytes.len());
        let to = self.random.random_range(0..=bytes.len() - range.len());
        let part = bytes[range.clone()].to_vec();
        let other = bytes[to..to + part.len()].to_vec();
        bytes[range].copy_from_slice(&other);
        bytes[to..to + part.len()].copy_from_slice(&part);
    }

    /// Puts a part of some example in the place of a part.
    fn splice(&mut self, bytes: &mut Vec<u8>) {
        let other = self.example();
        if other.is_empty() {
            return;
        }
        let from = self.range(other.len());
        let mut to = self.range(bytes.len());
        if self.random.random() {
            // The same place: fields stay where they belong.
            to = from.start.min(bytes.len())..from.end.min(bytes.len());
        }
        bytes.splice(to, other[from].iter().copied());
    }
}
