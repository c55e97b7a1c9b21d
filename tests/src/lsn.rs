//! A position in a server's WAL, parsed and printed as Postgres does.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;

/// A WAL position; compares by place in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

impl FromStr for Lsn {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Lsn> {
        let (high, low) = text
            .split_once('/')
            .with_context(|| format!("'{text}' is no LSN"))?;
        let high = u64::from(u32::from_str_radix(high, 16)?);
        let low = u64::from(u32::from_str_radix(low, 16)?);
        Ok(Lsn(high << 32 | low))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for text in ["0/0", "0/16B3748", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert!("1/2".parse::<Lsn>().unwrap() > "0/FFFFFFFF".parse().unwrap());
        assert!("12".parse::<Lsn>().is_err());
    }
}
