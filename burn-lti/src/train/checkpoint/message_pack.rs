//! Whether a file of MessagePack is as long as it says, before room is made for what it says.

/// Whether all values that `bytes` begin with, one with what is in it, are within `bytes` (MessagePack specification,
/// "Formats"). A decoder makes room for a string of 4 GiB because four bytes say so.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let mut rest = Rest(bytes);
    let mut values = 1;
    while values > 0 {
        let Some(more) = rest.skip_value() else {
            return false;
        };
        values += more - 1;
        // Each takes a byte at least.
        if values > rest.0.len() as i64 {
            return false;
        }
    }
    true
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    /// Skips a value but for the values in it, and says how many those are. `None` where the bytes end before.
    fn skip_value(&mut self) -> Option<i64> {
        let marker = self.number(1)?;
        match marker {
            0x80..=0x8f => return Some(2 * (marker - 0x80)),
            0x90..=0x9f => return Some(marker - 0x90),
            0xdc => return self.number(2),
            0xdd => return self.number(4),
            0xde => return Some(2 * self.number(2)?),
            0xdf => return Some(2 * self.number(4)?),
            _ => {}
        }
        let bytes = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 0,
            0xa0..=0xbf => marker - 0xa0,
            0xc4 | 0xd9 => self.number(1)?,
            0xc5 | 0xda => self.number(2)?,
            0xc6 | 0xdb => self.number(4)?,
            // An extension has a byte for its type.
            0xc7 => 1 + self.number(1)?,
            0xc8 => 1 + self.number(2)?,
            0xc9 => 1 + self.number(4)?,
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xca | 0xce | 0xd2 => 4,
            0xcb | 0xcf | 0xd3 => 8,
            0xd4..=0xd8 => 1 + (1 << (marker - 0xd4)),
            _ => return None,
        };
        self.0 = self.0.get(usize::try_from(bytes).ok()?..)?;
        Some(0)
    }

    /// A number of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Option<i64> {
        let (number, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(
            number
                .iter()
                .fold(0, |sum, byte| (sum << 8) | i64::from(*byte)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn a_value_ends_within_its_file() {
        // { "a": [1, -1, 2.5, nil], "bin": 2 bytes, "ext": 4 bytes of type 7 }
        let whole = b"\x83\xa1a\x94\x01\xff\xcb\x40\x04\0\0\0\0\0\0\xc0\xa3bin\xc4\x02xy\xa3ext\xd6\x07abcd";
        assert!(is_whole(whole));
        for end in 0..whole.len() {
            assert!(!is_whole(&whole[..end]), "{end}");
        }
    }

    #[test]
    fn what_claims_more_than_there_is_is_refused() {
        for claims in [
            &b"\xc6\xff\xff\xff\xff"[..],
            b"\xdb\x20\0\0\0abc",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff\x01",
            b"\xdc\0\x03\x01\x02",
            b"\xc1",
            b"",
        ] {
            assert!(!is_whole(claims), "{claims:x?}");
        }
    }
}
