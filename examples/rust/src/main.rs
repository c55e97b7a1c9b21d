//! Keeps a copy of a table current from BunnyDB's topics alone, in a JSON file.
//!
//! ```sh
//! cargo run -p bunny-example-subscriber -- localhost:9092 bunny shop public.users users.json
//! ```
//!
//! It follows the rules of docs/events.md and may be killed at any moment: rows and the offset
//! they belong to stand in one file, which is replaced as a whole. So it suits tables that fit in
//! memory; examples/python shows the same with a database. Schemas come from the schemas topic.

mod log;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use log::{Log, Record, field, lsn, text};
use table::{State, Table};

/// Between two looks for a copy that is not there yet.
const LOOK: Duration = Duration::from_secs(2);
/// How often the file is written while changes keep coming.
const SAVE: Duration = Duration::from_secs(1);

struct Options {
    brokers: String,
    prefix: String,
    slug: String,
    table: String,
    state: PathBuf,
    stop_at_end: bool,
}

fn options() -> Result<Options> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let before = words.len();
    words.retain(|word| word != "--stop-at-end");
    let stop_at_end = words.len() < before;
    let Ok([brokers, prefix, slug, table, state]) = <[String; 5]>::try_from(words) else {
        bail!("subscriber BROKERS PREFIX SLUG SCHEMA.TABLE STATE_FILE [--stop-at-end]");
    };
    Ok(Options {
        brokers,
        prefix,
        slug,
        table,
        state: state.into(),
        stop_at_end,
    })
}

fn main() -> Result<()> {
    let options = options()?;
    let mut log = Log::new(&options.brokers, &options.prefix, &options.slug);
    let mut state = State::read(&options.state)?;
    loop {
        if state.table.is_none() {
            state.table = load(&mut log, &options.table, &state)?;
        }
        match &state.table {
            None if options.stop_at_end => bail!(
                "there is no copy that {} could begin with: is that a table of the mirror? POST …/checkpoint makes a new copy",
                options.table
            ),
            None => std::thread::sleep(LOOK),
            Some(_) => {
                // At the start of each round memory and file are the same.
                state.write(&options.state)?;
                if follow(&mut log, &options, &mut state)? {
                    return Ok(());
                }
            }
        }
    }
}

/// The newest copy of the table in the snapshot topic that is later than what `state` waits for;
/// none if there is none yet.
fn load(log: &mut Log, name: &str, state: &State) -> Result<Option<Table>> {
    let mut syncs: Vec<(String, i64, apache_avro::types::Value)> = Vec::new();
    let mut finished: Vec<(String, i64, i64, i64)> = Vec::new();
    let snapshot = log.topic("snapshot");
    let first = log.first_offsets(&snapshot)?;
    let first_change = log.first_offsets(&log.topic("changes"))?[0];
    log.read_to_end(&snapshot, &[(0, first[0])], |_, record| {
        let Record { kind, value, .. } = record;
        if kind != "TableSyncStarted" && kind != "TableSyncFinished" {
            return Ok(());
        }
        let table = format!("{}.{}", text(&value, "schema")?, text(&value, "table")?);
        if table != name {
            return Ok(());
        }
        let (request, attempt) = (text(&value, "request_id")?, number(&value, "attempt")?);
        if kind == "TableSyncFinished" {
            finished.push((
                request,
                attempt,
                number(&value, "chunks")?,
                number(&value, "rows")?,
            ));
        } else {
            // A higher attempt voids the lower ones.
            syncs.retain(|(known, _, _)| *known != request);
            syncs.push((request, attempt, value));
        }
        Ok(())
    })?;
    for (request, attempt, started) in syncs.into_iter().rev() {
        let Some((_, _, chunks, rows)) = finished
            .iter()
            .find(|(id, run, ..)| *id == request && *run == attempt)
        else {
            continue;
        };
        let starts = log::numbers(&started, "start_offsets")?;
        let changes_offset = number(&started, "changes_offset")?;
        let generation = text(&started, "generation")?;
        let l = lsn(&started, "lsn")?;
        let is_retained =
            changes_offset >= first_change && starts.iter().zip(&first).all(|(s, f)| s >= f);
        if !is_retained || !state.accepts(&generation, l) {
            continue;
        }
        let mut table = Table::of_copy(&started, generation, l, changes_offset)?;
        let mut copy = table::Copy::default();
        let starts: Vec<(i32, i64)> = (0..).zip(starts).collect();
        log.read_to_end(&snapshot, &starts, |_, record| {
            let ours = record.kind == "SnapshotChunk"
                && text(&record.value, "request_id")? == request
                && number(&record.value, "attempt")? == attempt;
            if ours {
                copy.take(&mut table, &record.value)?;
            }
            Ok(())
        })?;
        copy.check(*chunks, *rows)?;
        eprintln!("{name}: loaded {rows} rows as of {l:X}");
        return Ok(Some(table));
    }
    Ok(None)
}

fn number(value: &apache_avro::types::Value, name: &str) -> Result<i64> {
    log::number(field(value, name)?)
}

/// Applies changes. True: all that is there is applied, and no more is asked for. False: the table
/// needs a newer copy.
fn follow(log: &mut Log, options: &Options, state: &mut State) -> Result<bool> {
    let from = state.next_offset();
    let reader = log.follow(&log.topic("changes"), from)?;
    // Events of a source transaction whose last one has not come.
    let mut open: Vec<Record> = Vec::new();
    let mut saved = Instant::now();
    let mut next = from;
    loop {
        let step = log.next(&reader)?;
        if matches!(step, log::Step::Gone) {
            eprintln!("{}: begins anew, its place is gone", options.table);
            state.begin_anew();
            return Ok(false);
        }
        let idle = !matches!(step, log::Step::Record(..));
        let at_end = matches!(step, log::Step::End);
        if let log::Step::Record(offset, record) = step {
            next = offset + 1;
            if record.kind == "GenerationStarted" {
                // What was open is void, and so is a table of the history before.
                open.clear();
                let generation = text(&record.value, "generation")?;
                if state.begin_generation(&generation) {
                    return Ok(false);
                }
                continue;
            }
            let last = log::flag(field(field(&record.value, "source")?, "last")?)?;
            open.push(record);
            if last {
                for record in open.drain(..) {
                    if let Some(reason) = state.apply(&options.table, &record)? {
                        eprintln!("{}: waits for a newer copy: {reason}", options.table);
                        return Ok(false);
                    }
                }
            }
        }
        // Only whole source transactions are kept.
        if open.is_empty() && next > state.next_offset() && (idle || saved.elapsed() > SAVE) {
            state.advance(next);
            state
                .write(&options.state)
                .context("writing the state file")?;
            saved = Instant::now();
        }
        if at_end && open.is_empty() && options.stop_at_end {
            return Ok(true);
        }
    }
}
