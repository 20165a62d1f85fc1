//! The stored form of small records: bytes one after another, numbers as LEB128, text behind its length. Each record
//! begins with a version byte of its own, so that a later form can be told from this one.

/// Stored bytes that are no record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored {what} is damaged")]
pub struct Damaged {
    /// What was being read.
    pub what: &'static str,
}

/// Writes a record.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A record of form `version`.
    pub fn new(version: u8) -> Writer {
        Writer(vec![version])
    }

    /// A record of form `version` that will have about `bytes` bytes.
    pub fn with_capacity(version: u8, bytes: usize) -> Writer {
        let mut record = Vec::with_capacity(bytes);
        record.push(version);
        Writer(record)
    }

    /// One byte.
    pub fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    /// An unsigned number.
    pub fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// A signed number, small in either direction.
    pub fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)).cast_unsigned());
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// How long the record is so far, in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a record has its version.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a record.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// The record in `bytes`, which must be of form `version`; `what` it is goes into the error.
    pub fn new(bytes: &'a [u8], version: u8, what: &'static str) -> Result<Reader<'a>, Damaged> {
        match bytes {
            [first, rest @ ..] if *first == version => Ok(Reader { rest, what }),
            _ => Err(Damaged { what }),
        }
    }

    /// The error of this record.
    pub fn damaged(&self) -> Damaged {
        Damaged { what: self.what }
    }

    /// Whether everything was read.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Damaged> {
        let (first, rest) = self.rest.split_first().ok_or(Damaged { what: self.what })?;
        self.rest = rest;
        Ok(*first)
    }

    /// An unsigned number.
    #[inline]
    pub fn number(&mut self) -> Result<u64, Damaged> {
        let first = self.byte()?;
        // Most are small.
        if first < 0x80 { Ok(u64::from(first)) } else { self.rest_of_number(first) }
    }

    fn rest_of_number(&mut self, first: u8) -> Result<u64, Damaged> {
        let mut number = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.damaged())
    }

    /// A number that fits.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Damaged> {
        self.number()?.try_into().map_err(|_| self.damaged())
    }

    /// A signed number.
    pub fn signed(&mut self) -> Result<i64, Damaged> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let count = self.small()?;
        self.raw(count)
    }

    /// `count` bytes.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Damaged { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    /// Text behind its length.
    pub fn text(&mut self) -> Result<&'a str, Damaged> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.damaged())
    }
}
