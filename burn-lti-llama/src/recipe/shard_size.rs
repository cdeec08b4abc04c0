//! [`ShardSize`]: how a recipe says how large a file may be, `"5GB"`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes, written as transformers has it: `"500MB"`, `"5GB"` (thousands), `"2GiB"` (1024s).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardSize(NonZeroU64);

const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ShardSize {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for ShardSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = |(unit, bytes): &(&str, u64)| Some((text.strip_suffix(unit)?, *bytes));
        let (number, unit) = UNITS.iter().find_map(unit).unwrap_or((text, 1));
        let bytes = number.trim().parse::<u64>().ok();
        let bytes = bytes.and_then(|number| number.checked_mul(unit));
        let size = bytes.and_then(NonZeroU64::new).map(Self);
        size.ok_or_else(|| {
            format!("{text:?} is no size of a file: write \"5GB\", \"500MB\" or \"2GiB\"")
        })
    }
}

impl TryFrom<String> for ShardSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ShardSize> for String {
    fn from(size: ShardSize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for ShardSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        let mut units = UNITS.iter();
        match units.find(|(_, unit)| bytes.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
            None => write!(f, "{bytes}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("2GiB", 2 << 30),
            ("70 KB", 70_000),
            ("12", 12),
        ] {
            let size: ShardSize = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for wrong in ["", "0GB", "-1GB", "5 gigabytes", "99999999999999GB"] {
            assert!(wrong.parse::<ShardSize>().is_err(), "{wrong}");
        }
    }
}
