//! Collations that a table stands on. Pure.

use bunny_postgres::introspect::CollationDefinition;
use bunny_postgres::quote_literal;

use super::step::comment_on;

/// The statements that create a collation.
pub(crate) fn create(definition: &CollationDefinition) -> Vec<String> {
    let name = definition.name.quoted();
    let mut parts = vec![format!("PROVIDER = {}", definition.provider)];
    let texts = [
        ("LOCALE", &definition.locale),
        ("LC_COLLATE", &definition.lc_collate),
        ("LC_CTYPE", &definition.lc_ctype),
        ("RULES", &definition.rules),
    ];
    for (parameter, value) in texts {
        let text = value.as_deref().map(quote_literal);
        parts.extend(text.map(|text| format!("{parameter} = {text}")));
    }
    if !definition.deterministic {
        parts.push("DETERMINISTIC = false".to_owned());
    }
    let mut statements = vec![format!("CREATE COLLATION {name} ({})", parts.join(", "))];
    let comment = definition.comment.as_ref();
    statements.extend(comment.map(|comment| comment_on("COLLATION", &name, comment)));
    statements
}

/// How a collation that is there differs from the source's, if in which texts are equal. How they
/// sort is not asked: versions spell the same locale in different ways.
pub(crate) fn difference(
    wanted: &CollationDefinition,
    present: &CollationDefinition,
) -> Option<String> {
    let kind = |definition: &CollationDefinition| match definition.deterministic {
        true => "deterministic",
        false => "nondeterministic",
    };
    (wanted.deterministic != present.deterministic).then(|| {
        format!(
            "collation {} is {} there and {} at the source",
            wanted.name,
            kind(present),
            kind(wanted)
        )
    })
}

#[cfg(test)]
mod tests {
    use bunny_postgres::TableName;

    use super::*;

    fn anycase() -> CollationDefinition {
        CollationDefinition {
            name: TableName::new("s", "any case"),
            provider: "icu".into(),
            locale: Some("und-u-ks-level2".into()),
            lc_collate: None,
            lc_ctype: None,
            deterministic: false,
            rules: Some("&a < 'g'".into()),
            comment: Some("c".into()),
        }
    }

    #[test]
    fn a_collation_with_all_it_may_have() {
        assert_eq!(
            create(&anycase()),
            [
                "CREATE COLLATION \"s\".\"any case\" (PROVIDER = icu, LOCALE = 'und-u-ks-level2', RULES = '&a < ''g''', DETERMINISTIC = false)",
                "COMMENT ON COLLATION \"s\".\"any case\" IS 'c'"
            ]
        );
    }

    #[test]
    fn one_of_libc() {
        let libc = CollationDefinition {
            provider: "libc".into(),
            locale: None,
            lc_collate: Some("C".into()),
            lc_ctype: Some("C.utf8".into()),
            deterministic: true,
            rules: None,
            comment: None,
            ..anycase()
        };
        assert_eq!(
            create(&libc),
            [
                "CREATE COLLATION \"s\".\"any case\" (PROVIDER = libc, LC_COLLATE = 'C', LC_CTYPE = 'C.utf8')"
            ]
        );
        let found = difference(&anycase(), &libc).unwrap_or_default();
        assert!(found.contains("is deterministic there"), "{found}");
        assert_eq!(difference(&libc, &libc), None);
    }
}
