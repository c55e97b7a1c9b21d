//! Types that a table stands on: enums, domains, composites, ranges. Pure.

use std::collections::BTreeSet;

use bunny_postgres::introspect::{Attribute, DomainCheck, TypeDefinition, TypeShape};
use bunny_postgres::{quote_ident, quote_literal};

/// The statements that create a type.
///
/// # Errors
/// The reason why no statements can.
pub(crate) fn create(definition: &TypeDefinition) -> Result<Vec<String>, String> {
    let name = definition.name.quoted();
    let mut statements = Vec::new();
    match &definition.shape {
        TypeShape::Enum { labels, .. } => {
            let labels: Vec<String> = labels.iter().map(|label| quote_literal(label)).collect();
            statements.push(format!(
                "CREATE TYPE {name} AS ENUM ({})",
                labels.join(", ")
            ));
        }
        TypeShape::Domain {
            base_type,
            collation,
            not_null,
            default,
            checks,
        } => {
            let mut sql = format!("CREATE DOMAIN {name} AS {base_type}");
            if let Some(collation) = collation {
                sql.push_str(&format!(" COLLATE {collation}"));
            }
            if let Some(default) = default {
                sql.push_str(&format!(" DEFAULT {default}"));
            }
            if *not_null {
                sql.push_str(" NOT NULL");
            }
            statements.push(sql);
            // Added one by one: this also takes those that are NOT VALID.
            statements.extend(checks.iter().map(|check| {
                format!(
                    "ALTER DOMAIN {name} ADD CONSTRAINT {} {}",
                    quote_ident(&check.name),
                    check.definition
                )
            }));
        }
        TypeShape::Composite { attributes } => {
            let attributes: Vec<String> = attributes.iter().map(attribute).collect();
            statements.push(format!("CREATE TYPE {name} AS ({})", attributes.join(", ")));
        }
        TypeShape::Range {
            subtype,
            opclass,
            collation,
            subtype_diff,
            canonical,
            multirange,
        } => {
            if canonical.is_some() {
                return Err(
                    "a range type with a canonical function needs that function first".into(),
                );
            }
            let mut parts = vec![
                format!("SUBTYPE = {subtype}"),
                format!("SUBTYPE_OPCLASS = {opclass}"),
            ];
            parts.extend(collation.iter().map(|name| format!("COLLATION = {name}")));
            parts.extend(
                subtype_diff
                    .iter()
                    .map(|name| format!("SUBTYPE_DIFF = {name}")),
            );
            parts.extend(multirange.iter().map(|multirange| {
                let schema = quote_ident(&definition.name.schema);
                format!(
                    "MULTIRANGE_TYPE_NAME = {schema}.{}",
                    quote_ident(multirange)
                )
            }));
            statements.push(format!(
                "CREATE TYPE {name} AS RANGE ({})",
                parts.join(", ")
            ));
        }
    }
    if let Some(comment) = &definition.comment {
        let kind = match definition.shape {
            TypeShape::Domain { .. } => "DOMAIN",
            _ => "TYPE",
        };
        statements.push(super::step::comment_on(kind, &name, comment));
    }
    Ok(statements)
}

fn attribute(attribute: &Attribute) -> String {
    let mut sql = format!("{} {}", quote_ident(&attribute.name), attribute.type_name);
    if let Some(collation) = &attribute.collation {
        sql.push_str(&format!(" COLLATE {collation}"));
    }
    sql
}

/// The statements that give an enum the labels it lacks, each in its place. Not to be
/// used in the transaction that adds them.
pub(crate) fn add_labels(
    definition: &TypeDefinition,
    labels: &[String],
    present: &[String],
) -> Vec<String> {
    let mut statements = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        if present.contains(label) {
            continue;
        }
        let place = match index.checked_sub(1).and_then(|before| labels.get(before)) {
            Some(before) => format!(" AFTER {}", quote_literal(before)),
            None => present.first().map_or_else(String::new, |first| {
                format!(" BEFORE {}", quote_literal(first))
            }),
        };
        statements.push(format!(
            "ALTER TYPE {} ADD VALUE IF NOT EXISTS {}{place}",
            definition.name.quoted(),
            quote_literal(label)
        ));
    }
    statements
}

/// How a type that is there differs from the source's, if in a way that matters to values.
pub(crate) fn difference(wanted: &TypeDefinition, present: &TypeDefinition) -> Option<String> {
    use TypeShape::{Composite, Domain, Enum, Range};
    let name = &wanted.name;
    match (&wanted.shape, &present.shape) {
        (Enum { labels, .. }, Enum { labels: there, .. }) => {
            let missing: Vec<&String> = labels
                .iter()
                .filter(|label| !there.contains(label))
                .collect();
            (!missing.is_empty()).then(|| format!("enum {name} lacks the labels {missing:?}"))
        }
        (Composite { attributes }, Composite { attributes: there }) => {
            let shape = |attributes: &[Attribute]| -> Vec<String> {
                attributes.iter().map(self::attribute).collect()
            };
            let (here, there) = (shape(attributes), shape(there));
            (here != there).then(|| {
                format!(
                    "type {name} is ({}) there and ({}) at the source",
                    there.join(", "),
                    here.join(", ")
                )
            })
        }
        (
            Domain { base_type, .. },
            Domain {
                base_type: there, ..
            },
        ) => (base_type != there).then(|| {
            format!("domain {name} is over {there} there and over {base_type} at the source")
        }),
        (Range { subtype, .. }, Range { subtype: there, .. }) => (subtype != there).then(|| {
            format!("type {name} is a range of {there} there and of {subtype} at the source")
        }),
        _ => Some(format!("type {name} is of another kind there")),
    }
}

/// How a type that is there differs from the source's, if only in what values survive:
/// their order, what is checked, what a new row gets.
pub(crate) fn variation(wanted: &TypeDefinition, present: &TypeDefinition) -> Option<String> {
    use TypeShape::{Domain, Enum, Range};
    let name = &wanted.name;
    let what = match (&wanted.shape, &present.shape) {
        (Enum { labels, .. }, Enum { labels: there, .. }) => {
            let common = |one: &[String], other: &[String]| -> Vec<String> {
                one.iter()
                    .filter(|label| other.contains(label))
                    .cloned()
                    .collect()
            };
            (common(labels, there) != common(there, labels)).then(|| {
                format!(
                    "its labels are in another order there ({}), and so its values sort otherwise",
                    there.join(", ")
                )
            })
        }
        (
            Domain {
                collation,
                not_null,
                default,
                checks,
                ..
            },
            Domain {
                collation: collation_there,
                not_null: not_null_there,
                default: default_there,
                checks: checks_there,
                ..
            },
        ) => {
            let definitions = |checks: &[DomainCheck]| -> BTreeSet<String> {
                checks
                    .iter()
                    .map(|check| check.definition.clone())
                    .collect()
            };
            let is_alike = (collation, not_null, default)
                == (collation_there, not_null_there, default_there)
                && definitions(checks) == definitions(checks_there);
            (!is_alike).then(|| {
                "its collation, default, NOT NULL or checks are others there, or read otherwise"
                    .to_owned()
            })
        }
        (
            Range {
                opclass, collation, ..
            },
            Range {
                opclass: opclass_there,
                collation: collation_there,
                ..
            },
        ) => ((opclass, collation) != (opclass_there, collation_there))
            .then(|| "its operator class or collation is another there".to_owned()),
        _ => None,
    };
    what.map(|what| {
        format!("type {name} was at the destination already: {what}; it is left as it is")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bunny_postgres::TableName;
    use bunny_postgres::introspect::DomainCheck;

    use super::*;

    fn named(shape: TypeShape) -> TypeDefinition {
        TypeDefinition {
            name: TableName::new("Ty pes", "t\"1"),
            shape,
            comment: None,
        }
    }

    fn labels(list: &[&str]) -> Vec<String> {
        list.iter().map(|label| (*label).to_owned()).collect()
    }

    fn mood(list: &[&str]) -> TypeDefinition {
        named(TypeShape::Enum {
            labels: labels(list),
            oids: Vec::new(),
        })
    }

    #[test]
    fn enums_and_their_labels() {
        let mut mood = mood(&["a", "it's"]);
        mood.comment = Some("c".into());
        assert_eq!(
            create(&mood).unwrap(),
            [
                "CREATE TYPE \"Ty pes\".\"t\"\"1\" AS ENUM ('a', 'it''s')",
                "COMMENT ON TYPE \"Ty pes\".\"t\"\"1\" IS 'c'"
            ]
        );
        let all = labels(&["first", "a", "b", "c"]);
        assert_eq!(
            add_labels(&mood, &all, &labels(&["a", "c"])),
            [
                "ALTER TYPE \"Ty pes\".\"t\"\"1\" ADD VALUE IF NOT EXISTS 'first' BEFORE 'a'",
                "ALTER TYPE \"Ty pes\".\"t\"\"1\" ADD VALUE IF NOT EXISTS 'b' AFTER 'a'"
            ]
        );
    }

    #[test]
    fn domains_composites_and_ranges() {
        let domain = named(TypeShape::Domain {
            base_type: "text[]".into(),
            collation: Some("pg_catalog.\"C\"".into()),
            not_null: true,
            default: Some("'x'::text".into()),
            checks: vec![DomainCheck {
                name: "c 1".into(),
                definition: "CHECK ((VALUE <> 'y'::text)) NOT VALID".into(),
            }],
        });
        assert_eq!(
            create(&domain).unwrap(),
            [
                "CREATE DOMAIN \"Ty pes\".\"t\"\"1\" AS text[] COLLATE pg_catalog.\"C\" DEFAULT 'x'::text NOT NULL",
                "ALTER DOMAIN \"Ty pes\".\"t\"\"1\" ADD CONSTRAINT \"c 1\" CHECK ((VALUE <> 'y'::text)) NOT VALID"
            ]
        );
        let composite = named(TypeShape::Composite {
            attributes: vec![Attribute {
                name: "select".into(),
                type_name: "shop.inner[]".into(),
                collation: None,
            }],
        });
        assert_eq!(
            create(&composite).unwrap(),
            ["CREATE TYPE \"Ty pes\".\"t\"\"1\" AS (\"select\" shop.inner[])"]
        );
        let range = |canonical| {
            named(TypeShape::Range {
                subtype: "double precision".into(),
                opclass: "pg_catalog.float8_ops".into(),
                collation: None,
                subtype_diff: Some("pg_catalog.float8mi".into()),
                canonical,
                multirange: Some("m".into()),
            })
        };
        assert_eq!(
            create(&range(None)).unwrap(),
            [
                "CREATE TYPE \"Ty pes\".\"t\"\"1\" AS RANGE (SUBTYPE = double precision, SUBTYPE_OPCLASS = pg_catalog.float8_ops, SUBTYPE_DIFF = pg_catalog.float8mi, MULTIRANGE_TYPE_NAME = \"Ty pes\".\"m\")"
            ]
        );
        assert!(create(&range(Some("f".into()))).is_err());
    }

    #[test]
    fn types_that_differ_are_named() {
        assert_eq!(difference(&mood(&["a"]), &mood(&["b", "a"])), None);
        let found = difference(&mood(&["a", "b"]), &mood(&["a"])).unwrap();
        assert!(found.contains("lacks the labels [\"b\"]"), "{found}");
        let composite = |type_name: &str| {
            named(TypeShape::Composite {
                attributes: vec![Attribute {
                    name: "x".into(),
                    type_name: type_name.into(),
                    collation: None,
                }],
            })
        };
        assert_eq!(difference(&composite("int"), &composite("int")), None);
        let found = difference(&composite("int"), &composite("text")).unwrap();
        assert!(
            found.contains("(\"x\" text) there and (\"x\" int)"),
            "{found}"
        );
        assert!(difference(&mood(&["a"]), &composite("int")).is_some());
    }

    #[test]
    fn types_that_differ_slightly_are_said() {
        assert_eq!(variation(&mood(&["a", "b"]), &mood(&["a", "c", "b"])), None);
        let found = variation(&mood(&["a", "b"]), &mood(&["b", "a"])).unwrap();
        assert!(found.contains("another order there (b, a)"), "{found}");
        let domain = |not_null, name: &str| {
            named(TypeShape::Domain {
                base_type: "integer".into(),
                collation: None,
                not_null,
                default: None,
                checks: vec![DomainCheck {
                    name: name.into(),
                    definition: "CHECK ((VALUE > 0))".into(),
                }],
            })
        };
        assert_eq!(variation(&domain(true, "a"), &domain(true, "b")), None);
        assert!(variation(&domain(true, "a"), &domain(false, "a")).is_some());
    }
}
