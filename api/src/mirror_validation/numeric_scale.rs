//! Scales of `numeric` that older servers do not know: they refuse even to be asked about such a type. Pure.

use bunny_postgres::ServerInfo;

/// Scales below 0 and above the precision came with 15.
const ANY_SCALE_SINCE: i32 = 150_000;

/// Whether the server knows the scale of a type, as `format_type` writes it; of all but `numeric`, true.
pub(super) fn is_known(type_name: &str, server: &ServerInfo) -> bool {
    server.version_num >= ANY_SCALE_SINCE || !has_odd_scale(type_name)
}

/// Whether a `numeric(precision,scale)`, or an array of it, has a scale below 0 or above its precision.
fn has_odd_scale(type_name: &str) -> bool {
    let modifier = type_name
        .trim_end_matches("[]")
        .strip_prefix("numeric(")
        .and_then(|rest| rest.strip_suffix(')'));
    let numbers = modifier.and_then(|modifier| modifier.split_once(','));
    let parsed = numbers.and_then(|(precision, scale)| {
        Some((precision.parse::<i32>().ok()?, scale.parse::<i32>().ok()?))
    });
    parsed.is_some_and(|(precision, scale)| scale < 0 || scale > precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_that_came_late() {
        for (type_name, is_odd) in [
            ("numeric(2,4)", true),
            ("numeric(5,-3)[]", true),
            ("numeric(5,5)", false),
            ("numeric(5,0)", false),
            ("numeric", false),
            ("numeric[]", false),
            ("time(2)", false),
            ("shop.\"numeric(2,4)\"", false),
        ] {
            assert_eq!(has_odd_scale(type_name), is_odd, "{type_name}");
        }
    }
}
