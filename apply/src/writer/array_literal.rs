//! Literals of arrays, from cells of COPY text. Pure.

use bunny_postgres::copy_text;

/// NULL in COPY text.
const NULL: &[u8] = b"\\N";

/// The literal of an array of one dimension, element by element.
#[derive(Debug)]
pub(super) struct ArrayLiteral {
    text: Vec<u8>,
    /// Between elements; a matter of their type.
    delimiter: char,
}

impl ArrayLiteral {
    pub(super) fn new(delimiter: char) -> ArrayLiteral {
        ArrayLiteral {
            text: vec![b'{'],
            delimiter,
        }
    }

    /// Appends the value of a cell of COPY text.
    pub(super) fn push(&mut self, cell: &[u8]) {
        if cell == NULL {
            return self.push_plain("NULL");
        }
        self.separate();
        // Quoted, an element may hold anything but these two as they are.
        self.text.push(b'"');
        for &byte in copy_text::unescape(cell).iter() {
            if matches!(byte, b'"' | b'\\') {
                self.text.push(b'\\');
            }
            self.text.push(byte);
        }
        self.text.push(b'"');
    }

    /// Appends what needs no quotes.
    pub(super) fn push_plain(&mut self, text: &str) {
        self.separate();
        self.text.extend_from_slice(text.as_bytes());
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.text.push(b'}');
        self.text
    }

    fn separate(&mut self) {
        if self.text.len() > 1 {
            self.text
                .extend_from_slice(self.delimiter.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// Appends a cell of COPY text: the literal of a `text[]` with the texts of `cells`.
pub(super) fn write_array(out: &mut Vec<u8>, cells: &[&[u8]]) {
    let mut literal = ArrayLiteral::new(',');
    for cell in cells {
        literal.push(cell);
    }
    copy_text::escape_into(out, &literal.finish());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_separated_as_their_type_wants_it() {
        let mut literal = ArrayLiteral::new(';');
        literal.push(b"(1,1),(0,0)");
        literal.push(b"\\N");
        literal.push_plain("7");
        assert_eq!(literal.finish(), b"{\"(1,1),(0,0)\";NULL;7}");
        assert_eq!(ArrayLiteral::new(',').finish(), b"{}");
    }

    #[test]
    fn texts_are_quoted_for_the_array_and_then_for_copy() {
        let mut out = b"x\t".to_vec();
        write_array(&mut out, &[b"1", b"\\N", b"", b"\\\\N", b"a\"b\\tc"]);
        let expected = "x\t".to_owned() + r#"{"1",NULL,"","\\\\N","a\\"b\tc"}"#;
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
