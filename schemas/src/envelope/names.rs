//! Avro names for Postgres names.
//!
//! Avro allows `[A-Za-z_][A-Za-z0-9_]*`. Every other byte of the UTF-8 name, a
//! digit in front, and the `_` of a literal `_x`, become `_xHH` (upper-case
//! hexadecimal); the empty name becomes `_x`. No two names get the same result.

use crate::{Error, Result};

/// Escapes one name.
pub fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_x".to_owned();
    }
    let bytes = name.as_bytes();
    let mut escaped = String::with_capacity(name.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = match byte {
            b'a'..=b'z' | b'A'..=b'Z' => true,
            b'0'..=b'9' => at > 0,
            b'_' => bytes.get(at + 1) != Some(&b'x'),
            _ => false,
        };
        if plain {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("_x{byte:02X}"));
        }
    }
    escaped
}

/// Gives the name back from its escaped form.
pub fn unescape(escaped: &str) -> Result<String> {
    let refuse = || Error::Schema(format!("{escaped:?} is not an escaped name"));
    if escaped == "_x" {
        return Ok(String::new());
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'_' && after.first() == Some(&b'x') {
            let digits = after.get(1..3).ok_or_else(refuse)?;
            let digits = std::str::from_utf8(digits).map_err(|_| refuse())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| refuse())?);
            rest = &after[3..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_avro_name(name: &str) -> bool {
        let mut chars = name.chars();
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    #[test]
    fn examples() {
        assert_eq!(escape("users"), "users");
        assert_eq!(escape("Order Items"), "Order_x20Items");
        assert_eq!(escape("2fa"), "_x32fa");
        assert_eq!(escape("a_x20b"), "a_x5Fx20b");
        assert_eq!(escape("_"), "_");
        assert_eq!(escape("é"), "_xC3_xA9");
        assert_eq!(escape(""), "_x");
    }

    proptest! {
        // An inverse exists, so no two names share an escaped form.
        #[test]
        fn escaping_is_injective(name in prop_oneof![".*", "[_x0-9A-F]{0,12}", "(_|x|_x|_x5F|5F|é| ){0,8}"]) {
            let escaped = escape(&name);
            prop_assert!(is_avro_name(&escaped), "{}", escaped);
            prop_assert_eq!(unescape(&escaped).unwrap(), name);
        }

        #[test]
        fn unescape_answers_anything(text: String) {
            let _ = unescape(&text);
        }
    }
}
