//! The destination table as it stands.

use bunny_postgres::TableName;
use tokio_postgres::Client;

use crate::error::{Error, Result};

/// One column there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) name: String,
    pub(crate) type_name: String,
    pub(crate) not_null: bool,
    /// A row that leaves it out gets a value: default, identity or generated.
    pub(crate) fills_itself: bool,
    /// It is computed, and takes no values.
    pub(crate) is_generated: bool,
}

/// The table there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PresentTable {
    pub(crate) columns: Vec<Present>,
    /// Name and columns of the primary key, in key order.
    pub(crate) primary_key: Option<(String, Vec<String>)>,
    pub(crate) has_rows: bool,
}

impl PresentTable {
    pub(crate) fn column(&self, name: &str) -> Option<&Present> {
        self.columns.iter().find(|column| column.name == name)
    }

    pub(crate) fn is_key(&self, name: &str) -> bool {
        let key = self.primary_key.iter().flat_map(|(_, columns)| columns);
        key.into_iter().any(|column| column == name)
    }
}

/// Looks the table up; without columns when it is not there.
pub(crate) async fn look(client: &Client, table: &TableName) -> Result<PresentTable> {
    let doing = || format!("looking at destination table {table}");
    let oid = client
        .query_one("SELECT to_regclass($1)::oid", &[&table.quoted()])
        .await
        .map_err(Error::sql(doing()))?;
    let Some(oid) = oid.get::<_, Option<u32>>(0) else {
        return Ok(PresentTable::default());
    };
    let columns = client
        .query(
            "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull,
                    atthasdef OR attidentity <> '' OR attgenerated <> '', attgenerated <> ''
             FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&oid],
        )
        .await
        .map_err(Error::sql(doing()))?;
    let key = client
        .query_opt(
            "SELECT c.conname::text, array_agg(a.attname::text ORDER BY k.position)
             FROM pg_constraint c CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY k (attnum, position)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
             WHERE c.conrelid = $1 AND c.contype = 'p' GROUP BY c.conname",
            &[&oid],
        )
        .await
        .map_err(Error::sql(doing()))?;
    let rows = client
        .query_one(
            &format!("SELECT EXISTS (SELECT FROM {})", table.quoted()),
            &[],
        )
        .await
        .map_err(Error::sql(doing()))?;
    Ok(PresentTable {
        columns: columns
            .iter()
            .map(|row| Present {
                name: row.get(0),
                type_name: row.get(1),
                not_null: row.get(2),
                fills_itself: row.get(3),
                is_generated: row.get(4),
            })
            .collect(),
        primary_key: key.map(|row| (row.get(0), row.get(1))),
        has_rows: rows.get(0),
    })
}
