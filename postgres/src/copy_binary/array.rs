//! Arrays of one dimension that begin at 1; others go as text.

use super::{Known, NULL, NotKnown, Put, Scalar, with_length};

/// An array of small numbers is several times as large in binary. What memory a batch takes is
/// reckoned by its text, so that goes as text: this many times as much is bearable,
const GROWTH_MAX: usize = 4;
/// and this many bytes on top.
const GROWTH_FREE: usize = 256;

/// Appends the array whose literal is `text`: dimensions, whether there are NULLs, the elements' type,
/// length and lower bound, elements.
pub(super) fn write(out: &mut Vec<u8>, text: &[u8], element: Scalar, element_oid: u32) -> Known {
    let inside = text
        .strip_prefix(b"{")
        .and_then(|text| text.strip_suffix(b"}"))
        .ok_or(NotKnown)?;
    if inside.is_empty() {
        write_header(out, 0, false, element_oid);
        return Ok(());
    }
    let header = out.len();
    write_header(out, 1, false, element_oid);
    let length_at = out.len();
    0_i32.to_be_bytes().put(out);
    1_i32.to_be_bytes().put(out);

    let mut rest = inside;
    let mut length = 0_i32;
    let mut has_nulls = false;
    let mut unquoted = Vec::new();
    loop {
        let value = take_element(&mut rest, &mut unquoted)?;
        match value {
            Some(value) => with_length(out, |out| element.write(out, value))?,
            None => {
                has_nulls = true;
                NULL.put(out);
            }
        }
        length = length.checked_add(1).ok_or(NotKnown)?;
        match rest.split_first() {
            None => break,
            Some((b',', after)) => rest = after,
            Some(_) => return Err(NotKnown),
        }
    }
    if out.len() - header > GROWTH_MAX * text.len() + GROWTH_FREE {
        return Err(NotKnown);
    }
    if has_nulls {
        out[header + 4..header + 8].copy_from_slice(&1_i32.to_be_bytes());
    }
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn write_header(out: &mut Vec<u8>, dimensions: i32, has_nulls: bool, element_oid: u32) {
    dimensions.to_be_bytes().put(out);
    i32::from(has_nulls).to_be_bytes().put(out);
    element_oid.to_be_bytes().put(out);
}

/// Takes an element off the front; `None` is NULL. A quoted one is put together in `unquoted`.
fn take_element<'u, 'a: 'u>(
    rest: &mut &'a [u8],
    unquoted: &'u mut Vec<u8>,
) -> Result<Option<&'u [u8]>, NotKnown> {
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let end = rest.iter().position(|&byte| byte == b',');
        let (value, after) = rest.split_at(end.unwrap_or(rest.len()));
        *rest = after;
        // What holds any of these is quoted, or no element.
        let is_odd = |byte: &u8| {
            matches!(
                byte,
                b'{' | b'}' | b'"' | b'\\' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c
            )
        };
        if value.is_empty() || value.iter().any(is_odd) {
            return Err(NotKnown);
        }
        return Ok((!value.eq_ignore_ascii_case(b"NULL")).then_some(value));
    };
    unquoted.clear();
    let mut bytes = quoted.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' => {
                *rest = bytes.as_slice();
                return Ok(Some(unquoted));
            }
            b'\\' => unquoted.push(*bytes.next().ok_or(NotKnown)?),
            plain => unquoted.push(plain),
        }
    }
    Err(NotKnown)
}
