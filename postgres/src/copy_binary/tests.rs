use proptest::collection::vec;
use proptest::prelude::*;
use tokio_postgres::types::Type;

use super::*;

fn encoding(known: &Type) -> Encoding {
    Encoding::of(known.oid(), false).expect("a type that is known")
}

/// The column with its length, or nothing.
fn encoded(known: &Type, text: &str) -> Option<Vec<u8>> {
    let mut escaped = Vec::new();
    copy_text::escape_into(&mut escaped, text.as_bytes());
    let mut out = Vec::new();
    cell(&mut out, encoding(known), &escaped).ok()?;
    Some(out)
}

#[test]
fn a_copy_is_header_rows_and_trailer() {
    let mut out = Vec::new();
    begin(&mut out);
    row(&mut out, 2).unwrap();
    cell(&mut out, encoding(&Type::INT2), b"-2").unwrap();
    cell(&mut out, encoding(&Type::TEXT), b"\\N").unwrap();
    end(&mut out);
    let expected =
        b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x02\xff\xfe\xff\xff\xff\xff\xff\xff";
    assert_eq!(out, expected);
}

#[test]
fn escapes_are_undone() {
    assert_eq!(
        encoded(&Type::TEXT, "a\tb\\N").unwrap(),
        b"\0\0\0\x05a\tb\\N"
    );
    assert_eq!(
        encoded(&Type::BYTEA, "\\x00fF").unwrap(),
        b"\0\0\0\x02\0\xff"
    );
}

#[test]
fn types_without_a_form_are_none() {
    for unknown in [
        Type::INET,
        Type::INTERVAL,
        Type::MONEY,
        Type::CHAR,
        Type::INET_ARRAY,
    ] {
        assert_eq!(Encoding::of(unknown.oid(), false), None, "{unknown}");
    }
    assert_eq!(Encoding::of(1_000_000, false), None);
    assert_eq!(
        Encoding::of(1_000_000, true),
        Encoding::of(Type::TEXT.oid(), false)
    );
}

/// A server accepts some of them, and is asked.
#[test]
fn what_no_server_prints_is_not_known() {
    for (known, text) in [
        (Type::BOOL, "true"),
        (Type::INT4, " 1"),
        (Type::INT4, "+1"),
        (Type::INT4, "0x1"),
        (Type::INT4, "2147483648"),
        (Type::INT4, ""),
        (Type::OID, "-1"),
        (Type::FLOAT8, "1e400"),
        (Type::FLOAT8, "1e-400"),
        (Type::FLOAT4, "1e39"),
        (Type::FLOAT8, "inf"),
        (Type::FLOAT8, "nan"),
        (Type::NUMERIC, "1e5"),
        (Type::NUMERIC, ".5"),
        (Type::NUMERIC, "1.2.3"),
        (Type::NUMERIC, "-"),
        (Type::BYTEA, "abc"),
        (Type::BYTEA, "\\x0"),
        (Type::BYTEA, "\\xgg"),
        (Type::UUID, "{00000000-0000-0000-0000-000000000000}"),
        (Type::UUID, "00000000-0000-0000-0000-00000000000g"),
        (Type::DATE, "2026-02-29"),
        (Type::DATE, "2026-13-01"),
        (Type::DATE, "2026-00-01"),
        (Type::DATE, "2026-01-00"),
        (Type::DATE, "0000-01-01"),
        (Type::DATE, "01.02.2026"),
        (Type::DATE, "2026-01-01 AD"),
        (Type::DATE, "20260-01-011"),
        (Type::TIME, "24:00:01"),
        (Type::TIME, "12:00"),
        (Type::TIMESTAMP, "2026-01-01 24:00:00"),
        (Type::TIMESTAMP, "2026-01-01 10:60:00"),
        (Type::TIMESTAMP, "2026-01-01 10:00:00.1234567"),
        (Type::TIMESTAMP, "2026-01-01T10:00:00"),
        (Type::TIMESTAMP, "2026-01-01 10:00:00+00"),
        (Type::DATE, "02026-01-01"),
        (Type::DATE, "5881610-07-11"),
        (Type::TIMESTAMPTZ, "2026-01-01 10:00:00"),
        (Type::TIMESTAMPTZ, "2026-01-01 10:00:00+16"),
        (Type::TIMESTAMPTZ, "2026-01-01 10:00:00+01:60"),
        (Type::TIMESTAMP, "2026-01-01"),
        (Type::DATE, "2026-01-01 10:00:00"),
        (Type::TIMESTAMPTZ, "2026-01-01 10:00:00 CET"),
        (Type::TIMESTAMP, "9999999-01-01 00:00:00"),
        (Type::TEXT_ARRAY, "{a, b}"),
        (Type::TEXT_ARRAY, "{{a},{b}}"),
        (Type::TEXT_ARRAY, "[0:0]={a}"),
        (Type::TEXT_ARRAY, "{a,}"),
        (Type::TEXT_ARRAY, "{,a}"),
        (Type::TEXT_ARRAY, "{\"a}"),
        (Type::TEXT_ARRAY, "{\"a\"b}"),
        (Type::TEXT_ARRAY, "{\"a\\"),
        (Type::TEXT_ARRAY, ""),
        (Type::INT4_ARRAY, "{1,x}"),
    ] {
        assert_eq!(encoded(&known, text), None, "{known} {text}");
    }
}

#[test]
fn an_array_that_is_much_larger_in_binary_goes_as_text() {
    let of = |elements: usize| format!("{{{}}}", vec!["1"; elements].join(","));
    assert!(encoded(&Type::INT8_ARRAY, &of(10)).is_some());
    assert!(encoded(&Type::INT8_ARRAY, &of(200)).is_none());
}

proptest! {
    /// A server that is sent something malformed drops the batch; it is not to come from here.
    #[test]
    fn lengths_are_true_whatever_the_text(text in "[-+0-9a-fxtNULinty\\\\{}\",.: BC]{0,40}") {
        for known in [
            Type::BOOL, Type::INT2, Type::INT8, Type::FLOAT4, Type::FLOAT8, Type::NUMERIC, Type::BYTEA, Type::UUID,
            Type::DATE, Type::TIME, Type::TIMESTAMP, Type::TIMESTAMPTZ, Type::TEXT_ARRAY, Type::NUMERIC_ARRAY,
        ] {
            if let Some(out) = encoded(&known, &text) {
                let (length, value) = out.split_first_chunk::<4>().unwrap();
                prop_assert_eq!(i32::from_be_bytes(*length) as usize, value.len());
            }
        }
    }

    #[test]
    fn any_bytes_are_looked_at(bytes in vec(any::<u8>(), 0..60)) {
        for known in [Type::TEXT_ARRAY, Type::BYTEA_ARRAY, Type::NUMERIC, Type::TIMESTAMPTZ, Type::UUID] {
            let _ = cell(&mut Vec::new(), encoding(&known), &bytes);
        }
    }
}
