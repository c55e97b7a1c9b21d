//! Whether a column can take everything another one holds, and print it the same.

use super::ColumnDefinition;

/// How a destination column suits a source column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The same type.
    Same,
    /// Another type that takes every value and prints it alike.
    Wider,
    /// Some value would be refused, changed, or printed otherwise.
    Differs,
}

/// How the type of `destination` suits the values of `source`.
pub fn fit(source: &ColumnDefinition, destination: &ColumnDefinition) -> Fit {
    if source.type_name == destination.type_name {
        return Fit::Same;
    }
    if is_wider(
        &Shape::of(&source.type_name),
        &Shape::of(&destination.type_name),
    ) {
        Fit::Wider
    } else {
        Fit::Differs
    }
}

/// A type as `format_type` writes it, in parts.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    /// Without modifier and brackets.
    base: String,
    /// The modifier's numbers.
    modifier: Vec<i32>,
    is_array: bool,
}

impl Shape {
    fn of(type_name: &str) -> Shape {
        let element = type_name.trim_end_matches("[]");
        let is_array = element.len() < type_name.len();
        // The name of a type that is not built in may hold anything; it has no modifier
        // that is understood here.
        let parts = element
            .split_once('(')
            .and_then(|(before, rest)| {
                rest.split_once(')')
                    .map(|(inside, after)| (before, inside, after))
            })
            .filter(|_| !element.contains(['"', '.']));
        let Some((before, inside, after)) = parts else {
            return Shape {
                base: element.to_owned(),
                modifier: Vec::new(),
                is_array,
            };
        };
        Shape {
            base: format!("{before}{after}"),
            modifier: inside
                .split(',')
                .filter_map(|number| number.trim().parse().ok())
                .collect(),
            is_array,
        }
    }
}

fn is_wider(source: &Shape, destination: &Shape) -> bool {
    if !destination.is_array && takes_any_text(destination) {
        return true;
    }
    if source.is_array != destination.is_array {
        return false;
    }
    if source.is_array && takes_any_text(destination) {
        // Quoting inside an array's text depends on the element's type only by its text.
        return source.base == "character varying";
    }
    let (from, to) = (source.base.as_str(), destination.base.as_str());
    if from == to {
        return has_room(from, &source.modifier, &destination.modifier);
    }
    match (from, to) {
        ("smallint", "integer" | "bigint") | ("integer", "bigint") => true,
        ("smallint" | "integer" | "bigint", "numeric") => destination.modifier.is_empty(),
        ("real", "double precision") | ("jsonb", "json") => true,
        _ => false,
    }
}

/// `text`, and `varchar` without a limit, hold whatever a type prints.
fn takes_any_text(shape: &Shape) -> bool {
    shape.base == "text" || (shape.base == "character varying" && shape.modifier.is_empty())
}

/// Whether the same type with another modifier takes everything unchanged.
fn has_room(base: &str, from: &[i32], to: &[i32]) -> bool {
    // Fractional digits of a second, when none are named.
    const SECOND_DIGITS: i32 = 6;
    match base {
        "character varying" | "bit varying" => match (from, to) {
            (_, []) => true,
            ([from], [to]) => to >= from,
            _ => false,
        },
        "numeric" => match (from, to) {
            (_, []) => true,
            ([precision, scale], [wide, same]) => wide >= precision && same == scale,
            _ => false,
        },
        _ if base.starts_with("time") || base.starts_with("interval") => {
            let digits = |modifier: &[i32]| modifier.first().copied().unwrap_or(SECOND_DIGITS);
            digits(to) >= digits(from)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(type_name: &str) -> ColumnDefinition {
        ColumnDefinition {
            name: "c".into(),
            attnum: 1,
            type_oid: 0,
            type_name: type_name.into(),
            typmod: -1,
            type_schema: "pg_catalog".into(),
            not_null: false,
            default: None,
            identity: None,
            generated: None,
            collation: None,
        }
    }

    #[test]
    fn types_that_take_everything() {
        for (from, to) in [
            ("smallint", "integer"),
            ("integer", "bigint"),
            ("bigint", "numeric"),
            ("real", "double precision"),
            ("character varying(10)", "character varying(20)"),
            ("character varying(10)", "character varying"),
            ("character varying(10)", "text"),
            ("character(3)", "text"),
            ("public.mood", "text"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric"),
            (
                "timestamp(3) without time zone",
                "timestamp without time zone",
            ),
            ("time(0) with time zone", "time(3) with time zone"),
            ("bit varying(3)", "bit varying"),
            ("integer[]", "bigint[]"),
            ("character varying(3)[]", "text[]"),
            ("jsonb", "json"),
        ] {
            assert_eq!(fit(&column(from), &column(to)), Fit::Wider, "{from} {to}");
        }
        assert_eq!(fit(&column("point"), &column("point")), Fit::Same);
    }

    #[test]
    fn types_that_do_not() {
        for (from, to) in [
            ("integer", "smallint"),
            ("bigint", "double precision"),
            ("bigint", "numeric(10,0)"),
            ("double precision", "real"),
            ("numeric(10,2)", "numeric(12,4)"),
            ("numeric", "numeric(10,2)"),
            ("character varying(20)", "character varying(10)"),
            ("text", "character varying(10)"),
            ("character(3)", "character(5)"),
            ("bit(3)", "bit(4)"),
            ("json", "jsonb"),
            ("timestamp without time zone", "timestamp with time zone"),
            (
                "timestamp without time zone",
                "timestamp(3) without time zone",
            ),
            ("date", "timestamp without time zone"),
            ("integer", "integer[]"),
            ("public.a", "public.b"),
            ("public.\"a(1)\"", "public.\"a(2)\""),
        ] {
            assert_eq!(fit(&column(from), &column(to)), Fit::Differs, "{from} {to}");
        }
    }
}
