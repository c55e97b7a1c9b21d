//! What a Relation message leaves out, from the source's catalog.
//!
//! The walsender describes a table as it was at that place of the stream; the catalog
//! answers for this moment. Between the two columns may have been dropped, renamed and
//! added. So facts are given only where the catalog still holds every column of the
//! message, in the same order: otherwise a name may mean another column now, and nothing is
//! said of any (`attnum` 0).

use std::collections::HashSet;

use bunny_postgres::Session;
use bunny_postgres::pgoutput::Relation;
use bunny_schemas::envelope::{ColumnFacts, EnumLabels, OldRows};
use tokio_postgres::Row;
use tokio_postgres::types::Json;

use crate::error::{Error, Result};

/// What is known of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// 0 when the table was not recognised.
    pub(super) attnum: i16,
    pub(super) not_null: bool,
    pub(super) type_name: String,
    pub(super) in_primary_key: bool,
    pub(super) facts: Option<ColumnFacts>,
}

/// A column added to a table that is there is filled from `attmissingval`, where the table
/// did not have to be rewritten. A table whose file still has the table's own oid as its
/// number was never rewritten, so a column without such a value is NULL in older rows.
/// Functions are looked for by name, in whatever schema: one volatile namesake too many
/// only costs a table sync.
const COLUMNS: &str = r#"
WITH RECURSIVE wanted AS (
    SELECT * FROM unnest($1::text[], $2::oid[], $3::int4[]) WITH ORDINALITY AS u (name, type, typmod, position)
), element(position, type) AS (
    SELECT position, type FROM wanted
  UNION ALL
    SELECT e.position, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
    FROM element e JOIN pg_type t ON t.oid = e.type
    WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typelem <> 0
)
SELECT coalesce(a.attnum, 0)::int2 AS attnum,
       coalesce(a.attnotnull, false) AS not_null,
       coalesce(format_type(u.type, u.typmod), 'unknown') AS type_name,
       coalesce(i.indimmediate, false) AS key_is_immediate,
       k.position::int2 AS key_position,
       a.atttypid IS NOT DISTINCT FROM u.type AS same_type,
       CASE WHEN a.attgenerated = '' THEN d.expression END AS "default",
       coalesce(a.attidentity <> '', false) AS is_identity,
       CASE WHEN a.atthasmissing THEN CASE WHEN t.typdelim = ','
            THEN (a.attmissingval::text::text[])[1] ELSE btrim(a.attmissingval::text, '{}"') END END AS missing,
       EXISTS (SELECT FROM regexp_matches(d.expression, '([A-Za-z_][A-Za-z0-9_$]*)"?\(', 'g') AS m
               JOIN pg_proc p ON p.proname = m[1] WHERE p.provolatile = 'v') AS is_volatile,
       coalesce(d.expression ~ '^\(?(-?[0-9.]+|E?''([^'']|'''')*''|true|false)\)?(::[A-Za-z_ ".\[\]]+(\([0-9, ]+\))?)*$',
                false) AS is_constant,
       coalesce(t.typtype = 'd' AND (d.expression IS NOT NULL OR t.typdefault IS NOT NULL), false) AS domain_fills,
       c.relfilenode = c.oid AS never_rewritten,
       CASE WHEN a.attcollation <> t.typcollation THEN
           (SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname)
            FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation)
       END AS collation,
       (SELECT jsonb_build_object('schema', n.nspname, 'name', et.typname, 'labels', jsonb_agg(
                   jsonb_build_object('oid', l.oid::int8, 'label', l.enumlabel) ORDER BY l.enumsortorder))
        FROM element e
        JOIN pg_type et ON et.oid = e.type AND et.typtype = 'e'
        JOIN pg_namespace n ON n.oid = et.typnamespace
        JOIN pg_enum l ON l.enumtypid = et.oid
        WHERE e.position = u.position
        GROUP BY n.nspname, et.typname) AS labels
FROM wanted u
LEFT JOIN pg_class c ON c.oid = $4
LEFT JOIN pg_attribute a ON a.attrelid = $4 AND a.attname = u.name AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN LATERAL (SELECT pg_get_expr(adbin, adrelid) AS expression
                   FROM pg_attrdef WHERE adrelid = $4 AND adnum = a.attnum) d ON true
LEFT JOIN pg_index i ON i.indrelid = $4 AND i.indisprimary
LEFT JOIN LATERAL (SELECT k.position FROM unnest(i.indkey) WITH ORDINALITY k (attnum, position)
                   WHERE k.attnum = a.attnum AND k.position <= i.indnkeyatts) k ON true
ORDER BY u.position"#;

/// The facts of each column of `relation`, in its order.
pub(super) async fn read(relation: &Relation, source: &Session) -> Result<Vec<Known>> {
    let names: Vec<&str> = relation.columns.iter().map(|c| c.name.as_str()).collect();
    let types: Vec<u32> = relation.columns.iter().map(|c| c.type_oid).collect();
    let typmods: Vec<i32> = relation.columns.iter().map(|c| c.typmod).collect();
    let failed = |error| Error::Query {
        doing: "describing a table's columns",
        error,
    };
    let rows = source
        .query(COLUMNS, &[&names, &types, &typmods, &relation.oid])
        .await
        .map_err(failed)?;
    let known: Vec<Known> = rows
        .iter()
        .map(known)
        .collect::<std::result::Result<_, _>>()
        .map_err(failed)?;
    Ok(recognised(known))
}

fn known(row: &Row) -> std::result::Result<Known, tokio_postgres::Error> {
    let default: Option<String> = row.try_get("default")?;
    let filling = Filling {
        missing: row.try_get("missing")?,
        has_default: default.is_some(),
        never_rewritten: row.try_get::<_, Option<bool>>("never_rewritten")? == Some(true),
        differs_per_row: row.try_get::<_, bool>("is_identity")?
            || row.try_get::<_, bool>("is_volatile")?
            || row.try_get::<_, bool>("domain_fills")?,
        is_constant: row.try_get("is_constant")?,
        not_null: row.try_get("not_null")?,
    };
    let old_rows = if row.try_get("same_type")? {
        old_rows(filling)
    } else {
        OldRows::Unknown
    };
    let labels: Option<Json<EnumLabels>> = row.try_get("labels")?;
    let primary_key: Option<i16> = row.try_get("key_position")?;
    Ok(Known {
        attnum: row.try_get("attnum")?,
        not_null: row.try_get("not_null")?,
        type_name: row.try_get("type_name")?,
        in_primary_key: primary_key.is_some() && row.try_get("key_is_immediate")?,
        facts: Some(ColumnFacts {
            default,
            old_rows,
            primary_key,
            collation: row.try_get("collation")?,
            labels: labels.map(|Json(labels)| labels),
        }),
    })
}

/// What decides how a new column was filled.
struct Filling {
    missing: Option<String>,
    has_default: bool,
    never_rewritten: bool,
    /// Each row may have got its own value: identity, a volatile default, a domain.
    differs_per_row: bool,
    is_constant: bool,
    not_null: bool,
}

/// What rows older than the column hold. Where a later rewrite may have removed the trace,
/// the answer is `Unknown`, except for a constant of a column that is NOT NULL: its old
/// rows had that constant, or were updated, which the stream shows. Pure.
fn old_rows(filling: Filling) -> OldRows {
    match filling {
        Filling {
            missing: Some(value),
            ..
        } => OldRows::Value(value),
        Filling {
            never_rewritten: true,
            ..
        } => OldRows::Null,
        Filling {
            differs_per_row: true,
            ..
        } => OldRows::Unknown,
        Filling {
            has_default: false, ..
        } => OldRows::Null,
        Filling {
            is_constant: true,
            not_null: true,
            ..
        } => OldRows::Default,
        _ => OldRows::Unknown,
    }
}

/// All or nothing: facts hold only if every column is found, in the same order. Pure.
fn recognised(mut known: Vec<Known>) -> Vec<Known> {
    let ordered: HashSet<i16> = known.iter().map(|column| column.attnum).collect();
    let is_recognised = ordered.len() == known.len()
        && known.iter().all(|column| column.attnum > 0)
        && known.is_sorted_by_key(|column| column.attnum);
    if !is_recognised {
        for column in &mut known {
            column.attnum = 0;
            column.facts = None;
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(attnums: &[i16]) -> Vec<Known> {
        attnums
            .iter()
            .map(|&attnum| Known {
                attnum,
                not_null: false,
                type_name: "text".into(),
                in_primary_key: false,
                facts: Some(ColumnFacts::default()),
            })
            .collect()
    }

    fn is_recognised(attnums: &[i16]) -> bool {
        recognised(known(attnums))
            .iter()
            .all(|column| column.attnum > 0 && column.facts.is_some())
    }

    #[test]
    fn a_table_is_recognised_whole_or_not_at_all() {
        assert!(is_recognised(&[1, 2, 4]));
        assert!(!is_recognised(&[1, 0, 2]), "a column is gone");
        assert!(!is_recognised(&[1, 3, 2]), "names have changed hands");
        let lost = recognised(known(&[1, 0]));
        assert_eq!(lost[0].attnum, 0, "its name may mean another column");
    }

    fn filling() -> Filling {
        Filling {
            missing: None,
            has_default: true,
            never_rewritten: false,
            differs_per_row: false,
            is_constant: true,
            not_null: false,
        }
    }

    #[test]
    fn old_rows_are_known_or_said_not_to_be() {
        let value = Some("5".to_owned());
        let missing = |differs_per_row| Filling {
            missing: value.clone(),
            differs_per_row,
            ..filling()
        };
        assert_eq!(old_rows(missing(false)), OldRows::Value("5".into()));
        assert_eq!(old_rows(missing(true)), OldRows::Value("5".into()));
        let untouched = Filling {
            never_rewritten: true,
            ..filling()
        };
        assert_eq!(old_rows(untouched), OldRows::Null, "set later");
        let plain = Filling {
            has_default: false,
            ..filling()
        };
        assert_eq!(old_rows(plain), OldRows::Null);
        let volatile = Filling {
            differs_per_row: true,
            ..filling()
        };
        assert_eq!(old_rows(volatile), OldRows::Unknown);
        assert_eq!(old_rows(filling()), OldRows::Unknown, "set, or rewritten");
        let not_null = Filling {
            not_null: true,
            ..filling()
        };
        assert_eq!(old_rows(not_null), OldRows::Default);
    }
}
