//! The kept inputs: `fuzz/corpus/TARGET.txt`, one a line, as Rust would write the bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file of a target.
pub fn file(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{target}.txt"))
}

/// What is kept for a target.
///
/// # Errors
///
/// If the file is there and cannot be read, or a line of it is no input.
pub fn read(target: &str) -> io::Result<Vec<Vec<u8>>> {
    match fs::read_to_string(file(target)) {
        Ok(text) => parse_all(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Keeps `inputs` for a target, and nothing else.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write(target: &str, inputs: &[Vec<u8>]) -> io::Result<()> {
    let mut lines: Vec<String> = inputs.iter().map(|input| format!("{}\n", input.escape_ascii())).collect();
    lines.sort();
    lines.dedup();
    fs::create_dir_all(file(target).with_file_name(""))?;
    fs::write(file(target), lines.concat())
}

/// The inputs of a file's text.
pub(crate) fn parse_all(text: &str) -> io::Result<Vec<Vec<u8>>> {
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("no input: {line}"));
    let (mut bytes, mut rest) = (Vec::new(), line.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next().ok_or_else(wrong)? {
            b't' => b'\t',
            b'r' => b'\r',
            b'n' => b'\n',
            b'x' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
                (high * 16 + low) as u8
            }
            mark @ (b'\\' | b'\'' | b'"') => mark,
            _ => return Err(wrong()),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parse(&bytes.escape_ascii().to_string()).expect("an input"), bytes);
        assert!(parse("\\q").is_err() && parse("\\x1").is_err() && parse("\\").is_err());
    }
}
