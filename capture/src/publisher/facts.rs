//! What a Relation message leaves out, from the source's catalog. Facts are given only for
//! columns that `recognise` is sure of.

use bunny_postgres::Session;
use bunny_postgres::introspect::ColumnLook;
use bunny_postgres::pgoutput::Relation;
use bunny_schemas::envelope::{ColumnFacts, EnumLabels, OldRows};
use tokio_postgres::Row;
use tokio_postgres::types::Json;

use super::recognise::{self, Described, Former, FormerColumn, Slot};
use super::visibility::Look;
use crate::error::{Error, Result};

/// What is known of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// 0 when it was not recognised.
    pub(super) attnum: i16,
    pub(super) not_null: bool,
    pub(super) type_name: String,
    pub(super) in_primary_key: bool,
    pub(super) facts: Option<ColumnFacts>,
}

/// A column added to a table that is there is filled from `attmissingval`, where the table
/// did not have to be rewritten. A table whose file still has the table's own oid as its
/// number was never rewritten, so a column without such a value is NULL in older rows.
/// A partitioned table has neither: its leaves are asked, by the column's name. A leaf's column
/// is as it was added if nothing touched it, or the leaf, without touching the root: a rewrite
/// that takes the value away leaves its own number on both.
/// Transactions before the slot's `catalog_xmin` had ended before the position that the slot is
/// confirmed up to, so what they wrote last holds for the whole stream.
/// Functions are looked for by name, in whatever schema: one volatile namesake too many
/// only costs a table sync.
const SLOTS: &str = r#"
WITH RECURSIVE tree AS (
    SELECT oid, relkind FROM pg_class WHERE oid = $1 AND relkind = 'p'
  UNION ALL
    SELECT c.oid, c.relkind FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class c ON c.oid = i.inhrelid
), leaves AS (
    SELECT a.attname, a.atthasmissing AS has_missing, l.relfilenode = l.oid AS never_rewritten,
           a.xmin = r.xmin AND l.xmin = c.xmin AS is_as_added,
           CASE WHEN a.atthasmissing THEN CASE WHEN t.typdelim = ','
                THEN (a.attmissingval::text::text[])[1] ELSE btrim(a.attmissingval::text, '{}"') END END AS missing
    FROM tree
    JOIN pg_class l ON l.oid = tree.oid AND tree.relkind <> 'p'
    JOIN pg_class c ON c.oid = $1
    JOIN pg_attribute a ON a.attrelid = l.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_attribute r ON r.attrelid = $1 AND r.attname = a.attname
    LEFT JOIN pg_type t ON t.oid = a.atttypid
), told AS (
    SELECT attname, max(missing) AS missing, bool_or(has_missing) AS have_some,
           bool_and(has_missing OR never_rewritten) AND count(DISTINCT missing) = 1 AS agree,
           bool_and(never_rewritten) AS never_rewritten, bool_and(never_rewritten OR is_as_added) AS are_as_added
    FROM leaves GROUP BY attname
)
SELECT a.attnum, a.attname::text AS name, a.attisdropped AS is_dropped, a.atttypid AS type,
       a.attnotnull AND NOT EXISTS (
           -- Not valid (18): rows from before may hold NULL.
           SELECT FROM pg_constraint nn WHERE nn.conrelid = a.attrelid AND nn.contype = 'n'
               AND nn.conkey = ARRAY[a.attnum] AND NOT nn.convalidated) AS not_null,
       a.attgenerated <> '' AS is_generated,
       a.attgenerated <> '' AND EXISTS (SELECT FROM pg_index r WHERE r.indrelid = a.attrelid
           AND CASE c.relreplident WHEN 'd' THEN r.indisprimary WHEN 'i' THEN r.indisreplident ELSE false END
           AND a.attnum = ANY (r.indkey)) AS is_generated_identity,
       coalesce(i.indimmediate, false) AS key_is_immediate,
       k.position::int2 AS key_position,
       CASE WHEN a.attgenerated = '' THEN d.expression END AS "default",
       coalesce(age(a.xmin) > age(s.catalog_xmin), false) AS is_settled,
       a.attidentity <> '' AS is_identity,
       CASE WHEN a.atthasmissing THEN CASE WHEN t.typdelim = ','
            THEN (a.attmissingval::text::text[])[1] ELSE btrim(a.attmissingval::text, '{}"') END
            WHEN told.agree THEN told.missing END AS missing,
       EXISTS (SELECT FROM regexp_matches(d.expression, '([A-Za-z_][A-Za-z0-9_$]*)"?\(', 'g') AS m
               JOIN pg_proc p ON p.proname = m[1] WHERE p.provolatile = 'v') AS is_volatile,
       coalesce(d.expression ~ '^\(?(-?[0-9.]+|E?''([^'']|'''')*''|true|false)\)?(::[A-Za-z_ ".\[\]]+(\([0-9, ]+\))?)*$',
                false) AS is_constant,
       coalesce(t.typtype = 'd' AND (d.expression IS NOT NULL OR t.typdefault IS NOT NULL), false) AS domain_fills,
       CASE WHEN c.relkind = 'p' THEN coalesce(told.never_rewritten AND NOT told.have_some, true)
            ELSE c.relfilenode = c.oid END AS never_rewritten,
       c.relkind = 'p' AS is_root, coalesce(told.are_as_added AND NOT told.have_some, true) AS leaves_are_as_added,
       CASE WHEN a.attcollation <> t.typcollation THEN
           (SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname)
            FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation)
       END AS collation
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_replication_slots s ON s.slot_name = $2
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN told ON told.attname = a.attname
LEFT JOIN LATERAL (SELECT pg_get_expr(adbin, adrelid) AS expression
                   FROM pg_attrdef WHERE adrelid = a.attrelid AND adnum = a.attnum) d ON true
LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
LEFT JOIN LATERAL (SELECT k.position FROM unnest(i.indkey) WITH ORDINALITY k (attnum, position)
                   WHERE k.attnum = a.attnum AND k.position <= i.indnkeyatts) k ON true
WHERE a.attrelid = $1 AND a.attnum > 0
ORDER BY a.attnum"#;

/// Names of the message's own types, and the labels of the enums they are made of.
const TYPES: &str = "
WITH RECURSIVE wanted AS (
    SELECT * FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS u (type, typmod, position)
), element(position, type) AS (
    SELECT position, type FROM wanted
  UNION ALL
    SELECT e.position, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
    FROM element e JOIN pg_type t ON t.oid = e.type
    WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typelem <> 0
)
SELECT coalesce(format_type(u.type, u.typmod), 'unknown') AS type_name,
       (SELECT jsonb_build_object('schema', n.nspname, 'name', et.typname, 'labels', jsonb_agg(
                   jsonb_build_object('oid', l.oid::int8, 'label', l.enumlabel) ORDER BY l.enumsortorder))
        FROM element e
        JOIN pg_type et ON et.oid = e.type AND et.typtype = 'e'
        JOIN pg_namespace n ON n.oid = et.typnamespace
        JOIN pg_enum l ON l.enumtypid = et.oid
        WHERE e.position = u.position
        GROUP BY n.nspname, et.typname) AS labels
FROM wanted u
ORDER BY u.position";

/// What the catalog says of a relation.
pub(super) struct Facts {
    /// Of each column described, in that order.
    pub(super) columns: Vec<Known>,
    /// What the next version is to be recognised by.
    pub(super) recognised: Former,
    /// Every number there is now.
    pub(super) attributes: Vec<ColumnLook>,
    /// Columns of the primary key there is now.
    pub(super) primary_key: Vec<i16>,
    /// A generated column, which is not described, belongs to the replica identity's index.
    pub(super) identity_is_generated: bool,
}

/// The facts of `relation`.
pub(super) async fn read(
    relation: &Relation,
    former: Option<&Former>,
    (slot, look): (&str, Look),
    source: &Session,
) -> Result<Facts> {
    let failed = |error| Error::Query {
        doing: "describing a table's columns",
        error,
    };
    let types: Vec<u32> = relation.columns.iter().map(|c| c.type_oid).collect();
    let typmods: Vec<i32> = relation.columns.iter().map(|c| c.typmod).collect();
    let slot_rows = source
        .query(SLOTS, &[&relation.oid, &slot])
        .await
        .map_err(failed)?;
    let type_rows = source
        .query(TYPES, &[&types, &typmods])
        .await
        .map_err(failed)?;
    let slots: Vec<Slot> = slot_rows
        .iter()
        .map(|row| Slot {
            attnum: row.get("attnum"),
            name: row.get("name"),
            type_oid: row.get("type"),
            is_dropped: row.get("is_dropped"),
            is_settled: row.get("is_settled"),
            is_generated: row.get("is_generated"),
        })
        .collect();
    let described: Vec<Described<'_>> = relation
        .columns
        .iter()
        .map(|column| Described {
            name: &column.name,
            type_oid: column.type_oid,
        })
        .collect();
    let attnums = recognise::attnums(&described, &slots, former, look);
    let mut known = Vec::with_capacity(described.len());
    for ((column, attnum), types) in relation.columns.iter().zip(&attnums).zip(&type_rows) {
        let slot = slot_rows
            .iter()
            .find(|row| row.get::<_, i16>("attnum") == *attnum);
        known.push(one(column.type_oid, slot, types).map_err(failed)?);
    }
    let recognised = Former {
        columns: described
            .iter()
            .zip(attnums)
            .map(|(column, attnum)| FormerColumn {
                name: column.name.to_owned(),
                type_oid: column.type_oid,
                attnum,
            })
            .collect(),
        dropped: slots
            .iter()
            .filter(|slot| slot.is_dropped)
            .map(|slot| slot.attnum)
            .collect(),
    };
    let attributes = slot_rows.iter().map(|row| ColumnLook {
        attnum: row.get("attnum"),
        name: row.get("name"),
        is_dropped: row.get("is_dropped"),
        is_generated: row.get("is_generated"),
    });
    Ok(Facts {
        columns: known,
        recognised,
        attributes: attributes.collect(),
        primary_key: slot_rows
            .iter()
            .filter(|row| row.get::<_, Option<i16>>("key_position").is_some())
            .map(|row| row.get("attnum"))
            .collect(),
        identity_is_generated: slot_rows.iter().any(|row| row.get("is_generated_identity")),
    })
}

/// `slot`: the column in the catalog, if it was recognised; `types`: its type's name and labels.
fn one(
    type_oid: u32,
    slot: Option<&Row>,
    types: &Row,
) -> std::result::Result<Known, tokio_postgres::Error> {
    let unknown = Known {
        attnum: 0,
        not_null: false,
        type_name: types.try_get("type_name")?,
        in_primary_key: false,
        facts: None,
    };
    let Some(slot) = slot else {
        return Ok(unknown);
    };
    let attnum = slot.try_get("attnum")?;
    let labels: Option<Json<EnumLabels>> = types.try_get("labels")?;
    let labels = labels.map(|Json(labels)| labels);
    if slot.try_get("is_dropped")? {
        // It is gone since, and with it what its older rows held.
        return Ok(Known {
            attnum,
            facts: Some(ColumnFacts {
                old_rows: OldRows::Null,
                labels,
                ..ColumnFacts::default()
            }),
            ..unknown
        });
    }
    let default: Option<String> = slot.try_get("default")?;
    let filling = Filling {
        missing: slot.try_get("missing")?,
        has_default: default.is_some(),
        never_rewritten: slot.try_get("never_rewritten")?,
        leaves: match slot.try_get("is_root")? {
            false => Leaves::None,
            true if slot.try_get("leaves_are_as_added")? => Leaves::AsAdded,
            true => Leaves::Touched,
        },
        differs_per_row: slot.try_get::<_, bool>("is_identity")?
            || slot.try_get::<_, bool>("is_volatile")?
            || slot.try_get::<_, bool>("domain_fills")?,
        is_constant: slot.try_get("is_constant")?,
        not_null: slot.try_get("not_null")?,
    };
    let old_rows = if slot.try_get::<_, u32>("type")? == type_oid {
        old_rows(filling)
    } else {
        OldRows::Unknown
    };
    let primary_key: Option<i16> = slot.try_get("key_position")?;
    let key_is_immediate: bool = slot.try_get("key_is_immediate")?;
    Ok(Known {
        attnum,
        not_null: slot.try_get("not_null")?,
        in_primary_key: primary_key.is_some() && key_is_immediate,
        facts: Some(ColumnFacts {
            default,
            old_rows,
            primary_key,
            key_is_deferrable: primary_key.is_some() && !key_is_immediate,
            collation: slot.try_get("collation")?,
            labels,
            generated: slot.try_get("is_generated")?,
        }),
        ..unknown
    })
}

/// The leaves of a partitioned table, of which none has a value for older rows, or not all the
/// same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// The table is none.
    None,
    /// None has a value, nor has lost one.
    AsAdded,
    /// Some have lost it, or may have, or have another than others.
    Touched,
}

/// What decides how a new column was filled.
struct Filling {
    /// Of a partitioned table: what its leaves agree on.
    missing: Option<String>,
    has_default: bool,
    /// Of a partitioned table: none of its leaves was, and none has a value.
    never_rewritten: bool,
    leaves: Leaves,
    /// Each row may have got its own value: identity, a volatile default, a domain.
    differs_per_row: bool,
    is_constant: bool,
    not_null: bool,
}

/// What rows older than the column hold. Where a later rewrite may have removed the trace,
/// the answer is `Unknown`, except for a constant of a column that is NOT NULL: its old
/// rows had that constant, or were updated, which the stream shows. Of a partitioned table that
/// exception does not hold: there is no trace at the root to be removed, so the constant may
/// just as well have been set later. Pure.
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
            leaves: Leaves::AsAdded,
            ..
        } => OldRows::Null,
        Filling {
            leaves: Leaves::Touched,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn filling() -> Filling {
        Filling {
            missing: None,
            has_default: true,
            never_rewritten: false,
            leaves: Leaves::None,
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

    #[test]
    fn a_root_knows_what_its_leaves_prove() {
        let root = |leaves, has_default, not_null| Filling {
            leaves,
            has_default,
            not_null,
            ..filling()
        };
        for not_null in [false, true] {
            for has_default in [false, true] {
                let touched = root(Leaves::Touched, has_default, not_null);
                assert_eq!(old_rows(touched), OldRows::Unknown);
                let added = root(Leaves::AsAdded, has_default, not_null);
                assert_eq!(old_rows(added), OldRows::Null, "set later, if at all");
            }
        }
        let agreed = Filling {
            missing: Some("5".to_owned()),
            ..root(Leaves::Touched, true, true)
        };
        assert_eq!(old_rows(agreed), OldRows::Value("5".into()));
        let volatile = Filling {
            differs_per_row: true,
            ..root(Leaves::AsAdded, true, true)
        };
        assert_eq!(old_rows(volatile), OldRows::Unknown);
    }
}
