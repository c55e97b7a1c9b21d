//! What a mirror would cost, for `dry_run`: rows, chunks, and the room needed in Kafka and at the
//! destination. All of it is from the source's statistics and sizes: no row is read.

use std::time::Duration;

use bunny_catalog::Peer;
use bunny_postgres::{ResultExt, Session};
use schemars::JsonSchema;
use serde::Serialize;

use super::attach::{AttachRequest, InitialLoad};
use super::request::CreateRequest;
use super::shown::TableMode;
use crate::mirror_validation::facts::open;
use crate::mirror_validation::{Facts, Findings};
use crate::refusal::{Refusal, Result};
use crate::state::Api;

/// How long Kafka may take to say how often it keeps a topic.
const KAFKA_TIME_MAX: Duration = Duration::from_secs(3);

/// Bytes as COPY text, of all indexes, and of the primary key's, over all leaves of a table.
///
/// A value's text is as long as its type prints at most; of types without a fixed length it is
/// derived from the average that ANALYZE found. TOAST is mostly compressed, and a `bytea` doubles
/// in text, so it counts twice. So does a table that was never analyzed. Every row has a line end.
const ROOM: &str = "
WITH held AS (
    SELECT c.oid, c.relname, n.nspname, pg_table_size(c.oid) AS table_size,
           CASE WHEN c.reltoastrelid <> 0 THEN pg_relation_size(c.reltoastrelid) ELSE 0 END AS toast_size,
           CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8 ELSE pg_stat_get_live_tuples(c.oid) END AS rows
    FROM (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf) member
    JOIN pg_class c ON c.oid = member.oid AND c.relkind = 'r'
    JOIN pg_namespace n ON n.oid = c.relnamespace
), widths AS (
    SELECT held.oid, count(s.attname) > 0 AS analyzed, sum(1 + CASE
               WHEN t.typname = 'bool' THEN 1
               WHEN t.typname = 'int2' THEN 6
               WHEN t.typname IN ('int4', 'oid') THEN 11
               WHEN t.typname = 'int8' THEN 20
               WHEN t.typname = 'float4' THEN 15
               WHEN t.typname = 'float8' THEN 24
               WHEN t.typname = 'uuid' THEN 36
               WHEN t.typname = 'bytea' THEN 3 + 2 * coalesce(s.avg_width, 0)
               WHEN t.typname = 'numeric' THEN 2 + 2 * coalesce(s.avg_width, 0)
               WHEN t.typcategory = 'A' THEN 3 * coalesce(s.avg_width, 0)
               WHEN t.typlen > 0 THEN 4 * t.typlen
               ELSE coalesce(s.avg_width, 0) END) AS width
    FROM held
    JOIN pg_attribute a ON a.attrelid = held.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = '' AND a.attname <> ALL ($2::text[])
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_stats s ON s.schemaname = held.nspname AND s.tablename = held.relname
        AND s.attname = a.attname AND NOT s.inherited
    GROUP BY held.oid
)
SELECT coalesce(sum(CASE WHEN rows = 0 AND table_size = 0 THEN 0
                         WHEN widths.analyzed THEN rows * widths.width + 2 * toast_size
                         ELSE 2 * table_size END), 0)::int8,
       coalesce(sum(pg_indexes_size(held.oid)), 0)::int8,
       coalesce(sum((SELECT sum(pg_relation_size(i.indexrelid)) FROM pg_index i
                     WHERE i.indrelid = held.oid AND i.indisprimary)), 0)::int8
FROM held LEFT JOIN widths USING (oid)";

/// Room that a table's rows take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Room {
    /// As COPY text, uncompressed.
    copy_bytes: i64,
    index_bytes: i64,
    primary_key_bytes: i64,
}

/// A mirror could be created, and nothing was.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DryRun {
    message: String,
    #[schemars(extend("const" = true))]
    dry_run: bool,
    tables: Vec<TableEstimate>,
    estimate: Estimate,
    /// What should be known before.
    warnings: Vec<String>,
}

/// What the copy of a table takes, by the source's statistics and sizes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TableEstimate {
    source_table: String,
    destination_table: String,
    mode: TableMode,
    row_estimate: i64,
    /// Of the table at the source, without indexes.
    size_bytes: i64,
    /// As COPY text, uncompressed.
    copy_bytes: i64,
    /// Of the indexes that the destination gets.
    index_bytes: i64,
    chunks: i64,
}

/// What the copy of all tables takes; without `do_initial_snapshot` no room is needed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Estimate {
    rows: i64,
    /// Of the tables at the source, without indexes.
    bytes: i64,
    chunks: i64,
    /// As COPY text, uncompressed.
    copy_bytes: i64,
    /// How often the brokers keep a topic; null where they do not say so.
    kafka_replication_factor: Option<i32>,
    /// Room needed in Kafka: COPY text as often as the brokers keep it.
    kafka_bytes: i64,
    /// Of the indexes that the destination gets.
    index_bytes: i64,
    /// Room needed at the destination: tables and indexes.
    destination_bytes: i64,
}

/// The answer to a `dry_run`.
///
/// # Errors
/// 422 where the source cannot be asked.
pub(super) async fn estimate(
    api: &Api,
    source: &Peer,
    request: &CreateRequest,
    facts: &Facts,
    findings: Findings,
) -> Result<DryRun> {
    let (rooms, replicas) = tokio::join!(
        rooms(source, request, facts),
        tokio::time::timeout(KAFKA_TIME_MAX, api.kafka.default_replication()),
    );
    let rooms = rooms.map_err(|error| {
        Refusal::unprocessable(format!(
            "source peer '{}' could not say how large its tables are: {error}",
            source.name
        ))
    })?;
    let replicas = replicas.ok().and_then(std::result::Result::ok);
    Ok(answer(request, facts, findings, &rooms, replicas))
}

async fn rooms(
    source: &Peer,
    request: &CreateRequest,
    facts: &Facts,
) -> bunny_postgres::Result<Vec<Room>> {
    let session: Session = open(source).await?;
    let mut rooms = Vec::with_capacity(request.tables.len());
    for (mapping, table) in request.tables.iter().zip(&facts.source.tables) {
        let found = table.found.as_ref();
        let Some(definition) = found.and_then(|found| found.definition.as_ref()) else {
            rooms.push(Room::default());
            continue;
        };
        let row = session
            .query_one(ROOM, &[&definition.oid, &mapping.exclude_columns])
            .await
            .doing(format!("asking how large {} is", mapping.source))?;
        rooms.push(Room {
            copy_bytes: row.get(0),
            index_bytes: row.get(1),
            primary_key_bytes: row.get(2),
        });
    }
    Ok(rooms)
}

/// Pure. `replicas`: how often the broker keeps a topic, if it says so.
fn answer(
    request: &CreateRequest,
    facts: &Facts,
    findings: Findings,
    rooms: &[Room],
    replicas: Option<i32>,
) -> DryRun {
    let config = &request.config;
    let rows_per_chunk = i64::try_from(config.snapshot_num_rows_per_partition).unwrap_or(i64::MAX);
    let mut tables = Vec::with_capacity(request.tables.len());
    let (mut rows_sum, mut bytes_sum, mut chunks_sum) = (0_i64, 0_i64, 0_i64);
    let (mut copy_sum, mut index_sum) = (0_i64, 0_i64);
    let named = request.tables.iter().zip(&facts.source.tables);
    for ((mapping, table), room) in named.zip(rooms) {
        let definition = table
            .found
            .as_ref()
            .and_then(|found| found.definition.as_ref());
        let Some(definition) = definition else {
            continue;
        };
        let rows = definition.row_estimate.max(0);
        let chunks = match config.do_initial_snapshot {
            true => 1 + (rows - 1).max(0) / rows_per_chunk.max(1),
            false => 0,
        };
        let index_bytes = match config.replicate_indexes {
            true => room.index_bytes,
            false => room.primary_key_bytes,
        };
        rows_sum = rows_sum.saturating_add(rows);
        bytes_sum = bytes_sum.saturating_add(definition.size_bytes);
        chunks_sum = chunks_sum.saturating_add(chunks);
        copy_sum = copy_sum.saturating_add(room.copy_bytes);
        index_sum = index_sum.saturating_add(index_bytes);
        tables.push(TableEstimate {
            source_table: mapping.source.to_string(),
            destination_table: mapping.destination.to_string(),
            mode: match definition.can_carry_updates() {
                true => TableMode::All,
                false => TableMode::InsertOnly,
            },
            row_estimate: rows,
            size_bytes: definition.size_bytes,
            copy_bytes: room.copy_bytes,
            index_bytes,
            chunks,
        });
    }
    let if_copied = |bytes: i64| match config.do_initial_snapshot {
        true => bytes,
        false => 0,
    };
    // Copies that are in Kafka already take no room there.
    let is_there = |attach: &AttachRequest| attach.load == InitialLoad::Retained;
    let copies = match request.attach.as_ref().is_some_and(is_there) {
        true => 0,
        false => i64::from(replicas.unwrap_or(1).max(1)),
    };
    DryRun {
        message: format!("Mirror '{}' can be created; nothing was", request.name),
        dry_run: true,
        tables,
        estimate: Estimate {
            rows: rows_sum,
            bytes: bytes_sum,
            chunks: chunks_sum,
            copy_bytes: if_copied(copy_sum),
            kafka_replication_factor: replicas,
            kafka_bytes: if_copied(copy_sum.saturating_mul(copies)),
            index_bytes: if_copied(index_sum),
            destination_bytes: if_copied(bytes_sum.saturating_add(index_sum)),
        },
        warnings: findings.warnings,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mirror_validation::testing;

    #[test]
    fn kafka_keeps_text_several_times_and_the_destination_indexes() {
        let mut request = testing::request(&["public.t"]);
        let facts = testing::facts(&request);
        let room = Room {
            copy_bytes: 300,
            index_bytes: 50,
            primary_key_bytes: 20,
        };
        let size = facts.source.tables[0].found.as_ref().unwrap();
        let size = size.definition.as_ref().unwrap().size_bytes;
        let estimate = |request: &CreateRequest, replicas| {
            let answer = answer(request, &facts, Findings::default(), &[room], replicas);
            json!(answer.estimate)
        };
        let with_all = estimate(&request, Some(3));
        assert_eq!(with_all["copy_bytes"], 300);
        assert_eq!(with_all["kafka_bytes"], 900);
        assert_eq!(with_all["index_bytes"], 50);
        assert_eq!(with_all["destination_bytes"], size + 50);
        let unknown = estimate(&request, None);
        assert_eq!(unknown["kafka_bytes"], 300);
        assert!(unknown["kafka_replication_factor"].is_null());
        request.config.replicate_indexes = false;
        assert_eq!(estimate(&request, None)["destination_bytes"], size + 20);
        request.config.do_initial_snapshot = false;
        let nothing = estimate(&request, Some(3));
        for name in [
            "copy_bytes",
            "kafka_bytes",
            "index_bytes",
            "destination_bytes",
        ] {
            assert_eq!(nothing[name], 0, "{name}");
        }
    }
}
