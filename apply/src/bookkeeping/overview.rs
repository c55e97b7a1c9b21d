//! The few facts about tables that are looked at every second; definitions are large.

use std::time::SystemTime;

use bunny_postgres::TableName;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use super::State;
use crate::error::{Error, Result};

/// A table's row of `_bunny.tables`, without what is large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    pub source: TableName,
    pub destination: TableName,
    /// State LIVE.
    pub is_live: bool,
    /// The sync whose definition the table has; another one may bring another.
    pub sync: (Option<Uuid>, i32),
    /// When the table was last brought in line with a version, or with the source's present
    /// schema, which may have brought another definition too.
    pub shaped_at: Option<SystemTime>,
    /// Rows inserted and updated so far: they draw from sequences.
    pub rows_written: (i64, i64),
}

/// All tables of a mirror, sorted by source name (byte by byte, not as a database sorts).
pub async fn overview<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<Vec<Overview>> {
    let rows = client
        .query(
            "SELECT source_schema, source_table, dest_schema, dest_table, state = $2, request_id,
                    attempt, rows_inserted, rows_updated,
                    (SELECT s.updated_at FROM _bunny.shapes s WHERE s.mirror_id = t.mirror_id
                         AND s.source_schema = t.source_schema AND s.source_table = t.source_table)
             FROM _bunny.tables t WHERE mirror_id = $1",
            &[&mirror_id, &State::Live.as_str()],
        )
        .await
        .map_err(Error::sql("looking at the tables"))?;
    let mut tables: Vec<Overview> = rows.iter().map(overview_from).collect();
    tables.sort_by(|one, other| one.source.cmp(&other.source));
    Ok(tables)
}

fn overview_from(row: &Row) -> Overview {
    Overview {
        source: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        destination: TableName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
        is_live: row.get(4),
        sync: (row.get(5), row.get(6)),
        rows_written: (row.get(7), row.get(8)),
        shaped_at: row.get(9),
    }
}
