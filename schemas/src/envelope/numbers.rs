//! Typed values as Postgres prints and reads them.

/// Appends a whole number.
pub(crate) fn print_int(out: &mut Vec<u8>, value: i64) {
    let _ = (out, value);
}
/// Appends a `real`.
pub(crate) fn print_float(out: &mut Vec<u8>, value: f32) {
    let _ = (out, value);
}
/// Appends a `double precision`.
pub(crate) fn print_double(out: &mut Vec<u8>, value: f64) {
    let _ = (out, value);
}
/// Appends a `bytea` in its hex form.
pub(crate) fn print_bytea(out: &mut Vec<u8>, value: &[u8]) {
    let _ = (out, value);
}
