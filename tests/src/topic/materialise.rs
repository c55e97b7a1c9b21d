//! Tables rebuilt from chunks and events, kept so strictly that any event that does not
//! fit the rows present is an error.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::records::{Event, SnapshotRecord, Sync};
use super::version::{Row, Unknown, Version};
use crate::content::{self, TablePair, qualified};
use crate::database::{Session, quote};

type Key = Vec<Option<String>>;

pub(super) struct Tables(HashMap<(String, String), Table>);

struct Table {
    /// Name and number of those that are compared, as the source has them now.
    compared: Vec<(String, i64)>,
    /// Of the rows, with the indexes of its key.
    version: Arc<Version>,
    key: Vec<usize>,
    /// The consistent point of the load; events of earlier commits are in it already.
    lsn: u64,
    loaded: bool,
    rows: Rows,
    /// Why the log alone does not tell any more what the table holds: its schema says so.
    unknown: Option<String>,
}

/// Rows by key, or counted where there is no key.
enum Rows {
    Keyed(HashMap<Key, Row>),
    Counted(HashMap<Row, u64>),
}

impl Tables {
    /// What is to be compared with the source, as it is now.
    pub(super) async fn describe(source: &Session, pairs: &[TablePair]) -> anyhow::Result<Tables> {
        let mut tables = HashMap::new();
        for pair in pairs {
            tables.insert(pair.source.clone(), Table::describe(source, pair).await?);
        }
        Ok(Tables(tables))
    }

    /// Loads every table from its newest finished sync. Returns the number of rows.
    pub(super) fn load(
        &mut self,
        records: &[SnapshotRecord],
        generation: &str,
    ) -> anyhow::Result<u64> {
        let mut loaded_rows = 0;
        for (name, table) in &mut self.0 {
            let Some(start) = newest_finished(records, name, generation) else {
                continue; // A mirror without initial snapshot.
            };
            table.lsn = start.lsn;
            table.loaded = true;
            table.begin(Version::of_copy(start.columns, start.definition)?);
            let chunks = chunks_of(records, start.sync, start.chunks)
                .with_context(|| format!("the sync of {name:?}"))?;
            let mut rows = 0;
            for line in chunks.iter().flat_map(|data| lines(data)) {
                let cells = copy_cells(line)?;
                ensure!(
                    cells.len() == start.columns.len(),
                    "a line of another width"
                );
                table
                    .insert(&cells)
                    .with_context(|| format!("in the chunks of {name:?}"))?;
                rows += 1;
            }
            ensure!(
                start.rows == rows,
                "{name:?}: {rows} rows in chunks, TableSyncFinished says {}",
                start.rows
            );
            loaded_rows += rows.cast_unsigned();
        }
        Ok(loaded_rows)
    }

    /// Applies an event to the table or tables it concerns.
    pub(super) async fn apply(&mut self, event: &Event, source: &Session) -> anyhow::Result<()> {
        if event.op == "t" {
            ensure!(!event.truncated.is_empty(), "a truncate of nothing");
            for name in &event.truncated {
                if let Some(table) = self.0.get_mut(name)
                    && event.commit_lsn >= table.lsn
                {
                    table.rows.clear();
                }
            }
            return Ok(());
        }
        let Some(table) = self.0.get_mut(&event.table) else {
            bail!("a table that is not mirrored");
        };
        if event.commit_lsn < table.lsn {
            return Ok(());
        }
        if !Arc::ptr_eq(&table.version, &event.version) {
            table.go_on_with(&event.version, source).await?;
        }
        if table.unknown.is_some() {
            return Ok(());
        }
        let after = || event.after.as_ref().context("no `after`");
        match event.op.as_str() {
            "c" => table.insert(after()?),
            "u" => table.update(event, after()?),
            "d" => {
                let before = event.before.as_ref().context("no `before`")?;
                table.remove(before, &event.before_kind).map(drop)
            }
            other => bail!("op {other}"),
        }
    }

    /// Tables of which the log alone does not tell what they hold, and why.
    pub(super) fn unknown(&self) -> BTreeMap<(String, String), String> {
        let tables = self.0.iter();
        tables
            .filter_map(|(name, table)| Some((name.clone(), table.unknown.clone()?)))
            .collect()
    }

    /// Every table that was loaded, and is known, holds exactly the source's rows.
    pub(super) async fn assert_equal_source(&self, source: &Session) -> anyhow::Result<()> {
        for (name, table) in &self.0 {
            ensure!(
                table.loaded,
                "{name:?} has no finished sync in the snapshot topic"
            );
            if table.unknown.is_some() {
                continue;
            }
            let compared = table
                .compared_positions()
                .with_context(|| format!("comparing {name:?}"))?;
            let mut expected: HashMap<Row, i64> = HashMap::new();
            for row in table.source_rows(source, name, &compared).await? {
                *expected.entry(row).or_default() += 1;
            }
            for (row, count) in table.rows.counted() {
                let row = compared.iter().map(|&index| row[index].clone()).collect();
                *expected.entry(row).or_default() -= count.cast_signed();
            }
            expected.retain(|_, count| *count != 0);
            if !expected.is_empty() {
                let shown: Vec<_> = expected.iter().take(10).collect();
                bail!(
                    "the topics of {name:?} do not add up to the source: {} rows differ \
                     (positive: missing from the topics): {shown:?}",
                    expected.len()
                );
            }
        }
        Ok(())
    }
}

impl Table {
    async fn describe(source: &Session, pair: &TablePair) -> anyhow::Result<Table> {
        let table = qualified(&pair.source);
        // Neither COPY nor a stream carries generated columns; the destination computes them.
        let generated = source
            .query(
                "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attgenerated <> ''",
                &[&table],
            )
            .await?;
        let mut names = content::columns(source, pair).await?;
        names.retain(|name| generated.iter().all(|row| row.get::<_, &str>(0) != name));
        let rows = source
            .query(
                "SELECT attname::text, attnum::int8 FROM pg_attribute
                 WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
                &[&table],
            )
            .await?;
        let attnums: HashMap<String, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Table {
            compared: names
                .into_iter()
                .map(|name| {
                    let attnum = attnums.get(&name).copied().unwrap_or_default();
                    (name, attnum)
                })
                .collect(),
            version: Arc::default(),
            key: Vec::new(),
            rows: Rows::Counted(HashMap::new()),
            lsn: 0,
            loaded: false,
            unknown: None,
        })
    }

    /// Empty, under a version.
    fn begin(&mut self, version: Version) {
        self.take(Arc::new(version));
    }

    fn take(&mut self, version: Arc<Version>) {
        self.key = version.key();
        self.rows = if self.key.is_empty() {
            Rows::Counted(HashMap::new())
        } else {
            Rows::Keyed(HashMap::new())
        };
        self.version = version;
    }

    /// The rows become those of another version, as a reader of the topics has to make them.
    async fn go_on_with(&mut self, version: &Arc<Version>, source: &Session) -> anyhow::Result<()> {
        let former = self.version.clone();
        let rows = self.rows.drain();
        self.take(version.clone());
        match version.rows_of(&former, rows, source).await? {
            Ok(rows) => rows.into_iter().try_for_each(|row| self.put(row)),
            Err(Unknown(why)) => {
                self.unknown = Some(why);
                Ok(())
            }
        }
    }

    /// Where the columns that are compared stand in rows.
    fn compared_positions(&self) -> anyhow::Result<Vec<usize>> {
        let compared = self.compared.iter();
        compared
            .map(|(name, attnum)| {
                self.version
                    .position(name, *attnum)
                    .with_context(|| format!("no column {name} in its last version"))
            })
            .collect()
    }

    fn row(&self, cells: &Row) -> anyhow::Result<Row> {
        let columns = self.version.columns.iter().zip(cells);
        columns
            .map(|(column, cell)| column.normal(cell.clone()))
            .collect()
    }

    fn key_of(&self, row: &Row) -> Key {
        self.key.iter().map(|&index| row[index].clone()).collect()
    }

    fn insert(&mut self, cells: &Row) -> anyhow::Result<()> {
        let row = self.row(cells)?;
        self.put(row)
    }

    fn put(&mut self, row: Row) -> anyhow::Result<()> {
        let key = self.key_of(&row);
        match &mut self.rows {
            Rows::Keyed(rows) => {
                let former = rows.insert(key, row);
                ensure!(former.is_none(), "the row was there already: {former:?}");
            }
            Rows::Counted(rows) => *rows.entry(row).or_default() += 1,
        }
        Ok(())
    }

    fn remove(&mut self, before: &Row, kind: &str) -> anyhow::Result<Row> {
        let row = self.row(before)?;
        let key = self.key_of(&row);
        match &mut self.rows {
            Rows::Keyed(rows) => {
                let removed = rows
                    .remove(&key)
                    .with_context(|| format!("no row with key {key:?}"))?;
                ensure!(
                    kind != "row" || removed == row,
                    "the whole old row is said to be {row:?}, and was {removed:?}"
                );
                Ok(removed)
            }
            Rows::Counted(rows) => {
                ensure!(kind == "row", "a table without key needs the whole old row");
                let count = rows
                    .get_mut(&row)
                    .with_context(|| format!("no such row: {row:?}"))?;
                *count -= 1;
                if *count == 0 {
                    rows.remove(&row);
                }
                Ok(row)
            }
        }
    }

    fn update(&mut self, event: &Event, after: &Row) -> anyhow::Result<()> {
        let (before, kind) = match &event.before {
            Some(before) => (before, event.before_kind.as_str()),
            None => (after, "key"),
        };
        let old = self.remove(before, kind)?;
        let mut new = self.row(after)?;
        for (index, column) in self.version.columns.iter().enumerate() {
            if event.unchanged.contains(&column.name) {
                ensure!(
                    new[index].is_none(),
                    "an unchanged column is null on the wire"
                );
                new[index] = old[index].clone();
            }
        }
        self.put(new)
    }

    /// The table's rows at the source, by COPY.
    async fn source_rows(
        &self,
        source: &Session,
        name: &(String, String),
        compared: &[usize],
    ) -> anyhow::Result<Vec<Row>> {
        let columns: Vec<String> = self.compared.iter().map(|(name, _)| quote(name)).collect();
        let own_rows = content::own_rows(source, &[qualified(name)]).await?;
        let sql = format!(
            "COPY (SELECT {} FROM {}) TO STDOUT",
            columns.join(", "),
            own_rows.join("")
        );
        let chunks: Vec<Bytes> = source.copy_out(&sql).await?.try_collect().await?;
        let text = chunks.concat();
        lines(&text)
            .map(|line| {
                let cells = copy_cells(line)?;
                let cells = compared.iter().zip(cells);
                cells
                    .map(|(&index, cell)| self.version.columns[index].normal(cell))
                    .collect()
            })
            .collect()
    }
}

impl Rows {
    fn drain(&mut self) -> Vec<Row> {
        let rows = self.counted();
        let rows = rows.flat_map(|(row, count)| (0..count).map(move |_| row.clone()));
        let rows = rows.collect();
        self.clear();
        rows
    }

    fn clear(&mut self) {
        match self {
            Rows::Keyed(rows) => rows.clear(),
            Rows::Counted(rows) => rows.clear(),
        }
    }

    fn counted(&self) -> Box<dyn Iterator<Item = (Row, u64)> + '_> {
        match self {
            Rows::Keyed(rows) => Box::new(rows.values().map(|row| (row.clone(), 1))),
            Rows::Counted(rows) => Box::new(rows.iter().map(|(row, &count)| (row.clone(), count))),
        }
    }
}

/// A finished sync's start, with what its end says.
struct FinishedSync<'a> {
    sync: &'a Sync,
    lsn: u64,
    columns: &'a [String],
    definition: &'a str,
    chunks: i32,
    rows: i64,
}

fn newest_finished<'a>(
    records: &'a [SnapshotRecord],
    wanted: &(String, String),
    wanted_generation: &str,
) -> Option<FinishedSync<'a>> {
    let finishes: HashMap<&Sync, (i32, i64)> = records
        .iter()
        .filter_map(|record| match record {
            SnapshotRecord::Finished { sync, chunks, rows } => Some((sync, (*chunks, *rows))),
            _ => None,
        })
        .collect();
    let starts = records.iter().filter_map(|record| match record {
        SnapshotRecord::Started {
            sync,
            table,
            generation,
            lsn,
            columns,
            definition,
        } if table == wanted && generation == wanted_generation => {
            let &(chunks, rows) = finishes.get(sync)?;
            Some(FinishedSync {
                sync,
                lsn: *lsn,
                columns,
                definition,
                chunks,
                rows,
            })
        }
        _ => None,
    });
    starts.max_by_key(|start| (start.lsn, start.sync.1))
}

/// The data of chunks 0 to `count`, each checked for all its parts and rows.
fn chunks_of(
    records: &[SnapshotRecord],
    wanted: &Sync,
    count: i32,
) -> anyhow::Result<Vec<Vec<u8>>> {
    struct Part<'a> {
        last: bool,
        rows: i64,
        chunk_rows: i64,
        data: &'a [u8],
    }
    let mut found: BTreeMap<i32, BTreeMap<i32, Part<'_>>> = BTreeMap::new();
    for record in records {
        if let SnapshotRecord::Chunk {
            sync,
            chunk,
            part,
            last,
            rows,
            chunk_rows,
            data,
        } = record
            && sync == wanted
        {
            let part_of = Part {
                last: *last,
                rows: *rows,
                chunk_rows: *chunk_rows,
                data,
            };
            found.entry(*chunk).or_default().insert(*part, part_of);
        }
    }
    let mut all = Vec::new();
    for number in 0..count {
        let parts = found
            .get(&number)
            .with_context(|| format!("chunk {number} of {count} is missing"))?;
        let (&last_number, last) = parts.last_key_value().context("no parts")?;
        let rows: i64 = parts.values().map(|part| part.rows).sum();
        ensure!(
            last.last && parts.len() == usize::try_from(last_number)? + 1,
            "chunk {number} lacks parts: {:?}",
            parts.keys()
        );
        ensure!(
            rows == last.chunk_rows,
            "chunk {number}: {rows} rows in parts, {} said",
            last.chunk_rows
        );
        let data = parts.values().flat_map(|part| part.data).copied().collect();
        all.push(data);
    }
    Ok(all)
}

/// Whole lines; an empty one is a row whose only column is empty.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split_inclusive(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// The cells of one line of COPY text.
fn copy_cells(line: &[u8]) -> anyhow::Result<Vec<Option<String>>> {
    line.split(|&byte| byte == b'\t').map(copy_cell).collect()
}

fn copy_cell(cell: &[u8]) -> anyhow::Result<Option<String>> {
    if cell == br"\N" {
        return Ok(None);
    }
    let mut text = Vec::with_capacity(cell.len());
    let mut bytes = cell.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        text.push(match bytes.next().context("a line ends in a backslash")? {
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0B,
            &other => other,
        });
    }
    Ok(Some(String::from_utf8(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_copy_text() {
        let cells = copy_cells(b"a\\tb\t\\N\t\t\\\\N\t\\\\x00").unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            cells,
            [text("a\tb"), None, text(""), text("\\N"), text("\\x00")]
        );
    }
}
