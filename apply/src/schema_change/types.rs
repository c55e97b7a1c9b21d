//! Which type changes keep every value as it is, and need no new table files.

/// `format_type`'s text, taken apart.
struct Type<'t> {
    base: &'t str,
    /// The numbers in parentheses.
    modifiers: Vec<i64>,
}

fn parse(name: &str) -> Type<'_> {
    let plain = Type {
        base: name,
        modifiers: Vec::new(),
    };
    let Some((base, rest)) = name.split_once('(') else {
        return plain;
    };
    let Some(inner) = rest.strip_suffix(')') else {
        return plain;
    };
    match inner.split(',').map(str::parse).collect() {
        Ok(modifiers) => Type { base, modifiers },
        Err(_) => plain,
    }
}

/// Whether every value of `from` is a value of `to` with the same text, and Postgres only
/// changes the catalog to get there ("ALTER TABLE", Notes).
pub(crate) fn widens(from: &str, to: &str) -> bool {
    let (from, to) = (parse(from), parse(to));
    match (from.base, to.base) {
        ("character varying", "text") => true,
        ("text", "character varying") => to.modifiers.is_empty(),
        ("character varying", "character varying") | ("bit varying", "bit varying") => {
            match (&from.modifiers[..], &to.modifiers[..]) {
                (_, []) => true,
                ([from], [to]) => to >= from,
                _ => false,
            }
        }
        ("numeric", "numeric") => match (&from.modifiers[..], &to.modifiers[..]) {
            (_, []) => true,
            ([from, scale], [to, same]) => to >= from && scale == same,
            _ => false,
        },
        (from_base, to_base) => from_base == to_base && from.modifiers == to.modifiers,
    }
}

#[cfg(test)]
mod tests {
    use super::widens;

    #[test]
    fn what_widens() {
        for (from, to) in [
            ("integer", "integer"),
            ("character varying(10)", "character varying(11)"),
            ("character varying(10)", "character varying"),
            ("character varying(10)", "text"),
            ("character varying", "text"),
            ("text", "character varying"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric"),
            ("bit varying(3)", "bit varying"),
        ] {
            assert!(widens(from, to), "{from} to {to}");
        }
    }

    #[test]
    fn what_does_not() {
        for (from, to) in [
            ("integer", "bigint"),
            ("character varying(11)", "character varying(10)"),
            ("character varying", "character varying(10)"),
            ("text", "character varying(10)"),
            ("character(3)", "text"),
            ("numeric(10,2)", "numeric(10,3)"),
            ("numeric", "numeric(10,2)"),
            (
                "timestamp(3) without time zone",
                "timestamp without time zone",
            ),
            ("public.mood", "text"),
        ] {
            assert!(!widens(from, to), "{from} to {to}");
        }
    }
}
