//! Cells of COPY text as one cell that holds an array of their texts. Pure.

use bunny_postgres::copy_text;

/// NULL in COPY text.
const NULL: &[u8] = b"\\N";

/// Appends a cell of COPY text: the literal of a `text[]` with the texts of `cells`.
pub(super) fn write_array(out: &mut Vec<u8>, cells: &[&[u8]]) {
    let mut literal = vec![b'{'];
    for (index, cell) in cells.iter().enumerate() {
        if index > 0 {
            literal.push(b',');
        }
        if *cell == NULL {
            literal.extend_from_slice(b"NULL");
            continue;
        }
        // Quoted, an element may hold anything but these two as they are.
        literal.push(b'"');
        for &byte in copy_text::unescape(cell).iter() {
            if matches!(byte, b'"' | b'\\') {
                literal.push(b'\\');
            }
            literal.push(byte);
        }
        literal.push(b'"');
    }
    literal.push(b'}');
    copy_text::escape_into(out, &literal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_for_the_array_and_then_for_copy() {
        let mut out = b"x\t".to_vec();
        write_array(&mut out, &[b"1", b"\\N", b"", b"\\\\N", b"a\"b\\tc"]);
        let expected = "x\t".to_owned() + r#"{"1",NULL,"","\\\\N","a\\"b\tc"}"#;
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
