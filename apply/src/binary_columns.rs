//! Which binary forms a destination table's columns have.

use std::sync::Arc;

use bunny_postgres::TableName;
use bunny_postgres::copy_binary::Encoding;
use tokio_postgres::Client;

use crate::error::{Error, Result};

/// Domains take the binary form of what they stand for.
const COLUMNS_SQL: &str = "
WITH RECURSIVE base(name, typid) AS (
    SELECT attname::text, atttypid FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT b.name, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.typid WHERE t.typtype = 'd'
)
SELECT b.name, b.typid, t.typtype = 'e'
FROM base b JOIN pg_type t ON t.oid = b.typid AND t.typtype <> 'd'";

/// The forms of these columns, in order; None if one of them has none here.
pub(crate) async fn find(
    client: &Client,
    table: &TableName,
    columns: &[String],
) -> Result<Option<Arc<[Encoding]>>> {
    let found = client
        .query(COLUMNS_SQL, &[&table.quoted()])
        .await
        .map_err(Error::sql(format!("looking at the types of {table}")))?;
    let encoding = |name: &String| {
        let column = found
            .iter()
            .find(|column| column.get::<_, &str>(0) == name)?;
        Encoding::of(column.get(1), column.get(2))
    };
    Ok(columns.iter().map(encoding).collect())
}
