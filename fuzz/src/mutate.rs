//! Changes to an input. Some know bytes, some numbers as the stored forms have them, and some the tokens of text: JSON and
//! queries are made of them.

use std::ops::Range;

use rand::RngExt;
use rand::rngs::StdRng;

/// Numbers at which something may change its mind.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    7,
    64,
    65,
    100,
    101,
    127,
    128,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// What mutates inputs of one target.
pub(crate) struct Mutator {
    words: &'static [&'static str],
    bytes_max: usize,
}

impl Mutator {
    pub(crate) fn new(words: &'static [&'static str], bytes_max: usize) -> Mutator {
        Mutator { words, bytes_max }
    }

    /// Changes `input` once or a few times; `other` is another input, to take from.
    pub(crate) fn mutate(&self, rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..1 << rng.random_range(0..4) {
            self.change(rng, input, other);
        }
        input.truncate(self.bytes_max);
    }

    fn change(&self, rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
        match rng.random_range(0..16) {
            0 => on_byte(rng, input, |rng, byte| byte ^ (1 << rng.random_range(0..8))),
            1 => on_byte(rng, input, |rng, _| rng.random()),
            2 => on_byte(rng, input, |rng, byte| byte.wrapping_add(rng.random_range(0..9)).wrapping_sub(4)),
            3 => {
                let at = place(rng, input);
                input.insert(at, rng.random());
            }
            4 => {
                let gone = stretch(rng, input);
                input.drain(gone);
            }
            5 => {
                let again = input[stretch(rng, input)].to_vec();
                let times = if rng.random_ratio(1, 16) { rng.random_range(1..64) } else { 1 };
                let at = place(rng, input);
                input.splice(at..at, again.repeat(times));
            }
            6 => {
                let taken = other[stretch(rng, other)].to_vec();
                let at = place(rng, input);
                let until = if rng.random() { at } else { (at + taken.len()).min(input.len()) };
                input.splice(at..until, taken);
            }
            7 => {
                let at = place(rng, input);
                input.truncate(at);
                input.extend_from_slice(&other[place(rng, other)..]);
            }
            8 => {
                let (at, gone) = (place(rng, input), rng.random_range(0..9));
                let until = (at + gone).min(input.len());
                input.splice(at..until, number(rng));
            }
            9 if !self.words.is_empty() => {
                let at = place(rng, input);
                input.splice(at..at, self.word(rng));
            }
            _ => self.change_token(rng, input, other),
        }
    }

    fn change_token(&self, rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
        let tokens = tokens(input);
        let Some(token) = pick(rng, &tokens) else { return };
        match rng.random_range(0..6) {
            0 => drop(input.splice(token, self.word(rng))),
            1 => drop(input.drain(token)),
            2 => {
                // A few tokens again, or somewhere else: a field, an item of an array.
                let Some(last) = pick(rng, &tokens) else { return };
                let (from, until) = (token.start.min(last.start), token.end.max(last.end));
                let copy = input[from..until].to_vec();
                let at = pick(rng, &tokens).map_or(0, |token| token.start);
                input.splice(at..at, copy);
            }
            3 => {
                let others = self::tokens(other);
                let Some(taken) = pick(rng, &others) else { return };
                input.splice(token, other[taken].iter().copied());
            }
            4 => {
                let Some(last) = pick(rng, &tokens) else { return };
                let (from, until) = (token.start.min(last.start), token.end.max(last.end));
                input.drain(from..until);
            }
            _ => {
                let digits = match rng.random_range(0..3) {
                    0 => NUMBERS[rng.random_range(0..NUMBERS.len())].to_string(),
                    1 => format!("-{}", rng.random::<u32>()),
                    _ => format!("{:02}", rng.random_range(0..100)),
                };
                input.splice(token, digits.into_bytes());
            }
        }
    }

    fn word(&self, rng: &mut StdRng) -> Vec<u8> {
        const PLAIN: [&str; 24] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "null",
            "true",
            "false",
            "0",
            "-1",
            "1e400",
            "\"\"",
            "\\u0000",
            "\\ud800",
            "\\\"",
            " ",
            "\n",
            "%",
            "%ff",
            "&",
            "=",
            "é\u{1f4e7}",
        ];
        let words = if self.words.is_empty() || rng.random_ratio(1, 4) { &PLAIN[..] } else { self.words };
        words[rng.random_range(0..words.len())].as_bytes().to_vec()
    }
}

fn on_byte(rng: &mut StdRng, input: &mut [u8], change: impl Fn(&mut StdRng, u8) -> u8) {
    if !input.is_empty() {
        let at = rng.random_range(0..input.len());
        input[at] = change(rng, input[at]);
    }
}

/// Somewhere in `bytes`, its end included.
fn place(rng: &mut StdRng, bytes: &[u8]) -> usize {
    rng.random_range(0..=bytes.len())
}

/// Some of `bytes`, mostly a little.
fn stretch(rng: &mut StdRng, bytes: &[u8]) -> Range<usize> {
    let (at, reach) = (place(rng, bytes), 1 << rng.random_range(0..10));
    at..(at + rng.random_range(0..=reach)).min(bytes.len())
}

/// A number as LEB128, or as bytes of either order.
fn number(rng: &mut StdRng) -> Vec<u8> {
    let mut number = NUMBERS[rng.random_range(0..NUMBERS.len())];
    match rng.random_range(0..5) {
        0 => (number as u32).to_le_bytes().to_vec(),
        1 => number.to_le_bytes().to_vec(),
        2 => number.to_be_bytes().to_vec(),
        _ => {
            let mut bytes = Vec::new();
            while number >= 0x80 {
                bytes.push((number & 0x7f) as u8 | 0x80);
                number >>= 7;
            }
            bytes.push(number as u8);
            bytes
        }
    }
}

fn pick(rng: &mut StdRng, tokens: &[Range<usize>]) -> Option<Range<usize>> {
    (!tokens.is_empty()).then(|| tokens[rng.random_range(0..tokens.len())].clone())
}

/// The tokens of text: quoted text, words and numbers, single marks. Of text that is long, the first thousand.
fn tokens(input: &[u8]) -> Vec<Range<usize>> {
    let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < input.len() && tokens.len() < 1000 {
        let rest = &input[at..];
        let length = match rest[0] {
            b'"' => {
                let mut end = 1;
                while end < rest.len() && rest[end] != b'"' {
                    end += if rest[end] == b'\\' { 2 } else { 1 };
                }
                (end + 1).min(rest.len())
            }
            byte if is_of_word(&byte) => rest.iter().position(|byte| !is_of_word(byte)).unwrap_or(rest.len()),
            _ => 1,
        };
        tokens.push(at..at + length);
        at += length;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn tokens_are_texts_words_and_marks() {
        let text = br#"{"a\"b":-1.5,x"#;
        let found: Vec<&[u8]> = tokens(text).into_iter().map(|token| &text[token]).collect();
        assert_eq!(found, [&b"{"[..], br#""a\"b""#, b":", b"-1.5", b",", b"x"]);
        assert_eq!(tokens(br#""\"#).first(), Some(&(0..2)));
    }

    #[test]
    fn any_input_can_be_changed_and_stays_within_its_bound() {
        let mut rng = StdRng::seed_from_u64(1);
        let mutator = Mutator::new(&["word"], 64);
        let mut input = Vec::new();
        for _ in 0..20_000 {
            let other = input.clone();
            mutator.mutate(&mut rng, &mut input, &other);
            assert!(input.len() <= 64);
        }
    }
}
