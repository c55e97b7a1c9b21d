//! The labels of the enums that a table's values are made of.

use std::collections::BTreeMap;

use crate::{Result, ResultExt, Session};

/// The labels of one enum. A label keeps its oid when it is renamed, and rows hold the oid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnumLook {
    /// Its type, qualified and quoted.
    pub type_name: String,
    /// The text of each label, by `pg_enum.oid`.
    pub labels: BTreeMap<u32, String>,
}

/// Through domains, arrays, composites and ranges. What the server brings along is made of no
/// enum, and has numbers below 16384 (`FirstNormalObjectId`).
const LABELS: &str = "
    WITH RECURSIVE made (held, type) AS (
        SELECT attrelid, atttypid FROM pg_attribute
        WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped AND atttypid >= 16384
        UNION
        SELECT made.held, part.type
        FROM made
        JOIN pg_type t ON t.oid = made.type
        CROSS JOIN LATERAL (
            SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL
            SELECT t.typelem WHERE t.typelem >= 16384
            UNION ALL
            SELECT a.atttypid FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) part (type)
        WHERE part.type >= 16384
    )
    SELECT made.held, e.enumtypid, format_type(e.enumtypid, NULL), e.oid, e.enumlabel::text
    FROM made JOIN pg_enum e ON e.enumtypid = made.type";

/// The enums of each of `tables` that is made of some: by table, by type.
///
/// Within a transaction that keeps a snapshot these are the labels of the snapshot, which are
/// not those that values are printed with: printing knows no snapshot.
pub async fn enums(
    session: &Session,
    tables: &[u32],
) -> Result<BTreeMap<u32, BTreeMap<u32, EnumLook>>> {
    let doing = "looking at the labels of enums";
    let mut found: BTreeMap<u32, BTreeMap<u32, EnumLook>> = BTreeMap::new();
    for row in session.query(LABELS, &[&tables]).await.doing(doing)? {
        let enums = found.entry(row.get(0)).or_default();
        let look = enums.entry(row.get(1)).or_insert_with(|| EnumLook {
            type_name: row.get(2),
            labels: BTreeMap::new(),
        });
        look.labels.insert(row.get(3), row.get(4));
    }
    Ok(found)
}
