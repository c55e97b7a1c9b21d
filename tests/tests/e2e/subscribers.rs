//! Readers of the topics that are no part of the product: the examples keep tables current while
//! the source is written to and they are killed, and clients that no one here wrote see the same
//! records as we do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::clients::{self, Program, output_of};
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::services::repository;
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

use crate::generations::lose_slot;
use crate::lifecycle::ended;

/// Starting Python alone takes seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A table and what of each row is compared: numbers where the events carry numbers.
pub type Compared = (&'static str, &'static str);

/// Tables of the load, after the changes that are made here.
const TABLES: [Compared; 4] = [
    ("public.accounts", "id, owner, balance, seen, tier"),
    ("public.documents", "id, heading, body, revision"),
    ("public.measurements", "sensor, value, note"),
    ("public.journal", "writer, n, entry, at"),
];

/// Prints the rows of a SQLite table, one JSON array a line.
const DUMP: &str = "
import json, sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(json.dumps(row))
";

/// An example at work: the Python one keeps all tables in a SQLite file, the Rust one a table in a
/// JSON file.
pub struct Example {
    name: String,
    /// The Python that runs it, if it needs one.
    python: Option<PathBuf>,
    tables: Vec<Compared>,
    state: PathBuf,
    running: Option<Program>,
}

impl Example {
    pub fn all(stage: &Stage, python: PathBuf, tables: &[Compared]) -> Vec<Example> {
        let in_python = Example {
            name: "python".to_owned(),
            python: Some(python),
            tables: tables.to_vec(),
            state: stage.directory().join("python.sqlite"),
            running: None,
        };
        let in_rust = tables.iter().map(|(table, columns)| Example {
            name: format!("rust.{table}"),
            python: None,
            tables: vec![(*table, *columns)],
            state: stage.directory().join(format!("{table}.json")),
            running: None,
        });
        std::iter::once(in_python).chain(in_rust).collect()
    }

    fn command(&self, stage: &Stage, registry: &str) -> Result<Command> {
        let brokers = &stage.services.brokers;
        let Some(python) = &self.python else {
            let mut command = Command::new(clients::built("subscriber")?);
            command
                .args([brokers, &stage.name, "mirror", self.tables[0].0])
                .arg(&self.state);
            return Ok(command);
        };
        let mut command = Command::new(python);
        command
            .arg(repository().join("examples/python/subscriber.py"))
            .args(["--registry", registry, "--registry-user", "admin"])
            .env("REGISTRY_PASSWORD", stage.password())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["--brokers", brokers])
            .args(["--topics", &format!("{}.mirror", stage.name)])
            .arg("--state")
            .arg(&self.state);
        for (table, _) in &self.tables {
            command.args(["--table", table]);
        }
        Ok(command)
    }

    pub fn start(&mut self, stage: &Stage, registry: &str) -> Result<()> {
        let command = self.command(stage, registry)?;
        let program = Program::start(&stage.services, command, stage.directory(), &self.name)?;
        self.running = Some(program);
        Ok(())
    }

    /// Waits until it has loaded each of its tables so many times.
    pub async fn wait_loaded(&mut self, times: usize) -> Result<()> {
        let (tables, running) = (self.tables.len(), self.running.as_mut());
        let wanted = tables * times;
        running
            .context("not started")?
            .wait_errors(LIMIT, |said| said.matches(": loaded ").count() >= wanted)
            .await
    }

    /// Kills it. It may have ended by itself only because a topic was trimmed while it read that;
    /// whoever runs it starts it again then. How often it has loaded a table so far.
    pub fn end_or_excused(&mut self) -> Result<usize> {
        let mut running = self.running.take().context("not started")?;
        let (is_running, said) = (running.is_running()?, running.errors());
        running.kill9();
        let last = said.lines().last().unwrap_or_default();
        let is_excused = ["trimmed while it was read", "AUTO_OFFSET_RESET"];
        ensure!(
            is_running || is_excused.iter().any(|words| last.contains(words)),
            "{}: {said}",
            self.name
        );
        Ok(said.matches(": loaded ").count())
    }

    /// Runs it until everything that is there is applied.
    pub fn catch_up(&self, stage: &Stage, registry: &str) -> Result<()> {
        output_of(self.command(stage, registry)?.arg("--stop-at-end")).map(drop)
    }

    /// So that what it says from now on can be told from what it has said.
    fn forget_errors(&self, stage: &Stage) -> Result<()> {
        let said = stage.directory().join(format!("{}.err", self.name));
        std::fs::write(said, "").context("forgetting what an example has said")
    }

    pub fn kill9(&mut self) -> Result<()> {
        let mut running = self.running.take().context("not started")?;
        ensure!(running.is_running()?, "{}: {}", self.name, running.errors());
        running.kill9();
        Ok(())
    }

    fn rows(&self, table: &str, columns: &str) -> Result<Vec<String>> {
        let Some(python) = &self.python else {
            return json_rows(&std::fs::read(&self.state)?, columns);
        };
        sqlite_rows(python, &self.state, table, columns)
    }

    pub async fn assert_holds(&self, source: &Session) -> Result<()> {
        for (table, columns) in &self.tables {
            let wanted = source_rows(source, table, columns).await?;
            let found = self.rows(table, columns)?;
            ensure!(!wanted.is_empty(), "{table} is empty");
            ensure!(
                wanted == found,
                "{}: {table} has {} rows, the source {}; the first that differ: {:?}",
                self.name,
                found.len(),
                wanted.len(),
                wanted.iter().zip(&found).find(|(a, b)| a != b)
            );
        }
        Ok(())
    }
}

/// Offsets of another topic, which was there before Kafka was lost: beyond its end, or in the middle
/// of a generation that is not the one that was followed.
fn begins_anew_without_its_offsets(example: &Example, stage: &Stage, registry: &str) -> Result<()> {
    let python = example.python.as_ref().context("not in Python")?;
    for change in [
        "UPDATE _tables SET next_offset = 1000000000",
        "UPDATE _tables SET generation = 'another', next_offset = next_offset - 20",
    ] {
        let code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])";
        output_of(
            Command::new(python)
                .args(["-c", code])
                .arg(&example.state)
                .arg(change),
        )?;
        example.catch_up(stage, registry)?;
    }
    Ok(())
}

/// What cannot be had is said by name, without a traceback, and not waited for.
fn ends_with_a_reason(example: &Example, stage: &Stage, registry: &str) -> Result<()> {
    let mut wrong = Example {
        name: format!("{}.wrong", example.name),
        python: example.python.clone(),
        tables: vec![("public.nosuch", "")],
        state: stage.directory().join(format!("{}.wrong", example.name)),
        running: None,
    };
    let mut commands = vec![(wrong.command(stage, registry)?, "public.nosuch")];
    if wrong.python.is_some() {
        wrong.tables = example.tables.clone();
        let mut elsewhere = wrong.command(stage, registry)?;
        // The last one given counts.
        elsewhere.args(["--topics", "no.such"]);
        commands.push((elsewhere, "no.such.changes"));
    }
    for (mut command, named) in commands {
        let output = command.arg("--stop-at-end").output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{said}");
        ensure!(
            said.contains(named) && !said.contains("Traceback"),
            "{said}"
        );
    }
    Ok(())
}

/// The rows in the state file of the Python example.
pub fn sqlite_rows(python: &Path, state: &Path, table: &str, columns: &str) -> Result<Vec<String>> {
    let printed = output_of(
        Command::new(python)
            .args(["-c", DUMP])
            .arg(state)
            .arg(format!("SELECT {columns} FROM \"{table}\"")),
    )?;
    let rows = printed.lines().map(serde_json::from_str);
    normal(rows.collect::<Result<_, _>>()?)
}

/// The rows in the state file of the Rust example.
fn json_rows(state: &[u8], columns: &str) -> Result<Vec<String>> {
    let state: Value = serde_json::from_slice(state)?;
    let known = state["table"]["columns"].as_array().context("no columns")?;
    let place = |name: &str| known.iter().position(|column| column[1] == name);
    let places: Option<Vec<usize>> = columns.split(", ").map(place).collect();
    let places = places.with_context(|| format!("not all of {columns} in {known:?}"))?;
    let groups = state["table"]["rows"].as_object().context("no rows")?;
    let rows = groups.values().filter_map(Value::as_array).flatten();
    normal(
        rows.map(|row| places.iter().map(|place| row[*place].clone()).collect())
            .collect(),
    )
}

/// Sorted, numbers as floats: SQLite, Postgres and JSON each write them in their own way.
fn normal(rows: Vec<Value>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for row in rows {
        let cells = row.as_array().context("a row is an array")?.iter();
        let cells: Vec<Value> = cells
            .map(|cell| match cell.as_f64() {
                Some(number) => json!(number),
                None => cell.clone(),
            })
            .collect();
        lines.push(json!(cells).to_string());
    }
    lines.sort_unstable();
    Ok(lines)
}

/// The rows at the source, in the same form.
pub async fn source_rows(source: &Session, table: &str, columns: &str) -> Result<Vec<String>> {
    // What has no type of its own in Avro is text there.
    let cells = columns.split(", ").map(|column| match column {
        "balance" | "seen" | "at" => format!("{column}::text"),
        column => column.to_owned(),
    });
    let cells: Vec<String> = cells.collect();
    let rows = source
        .text(&format!(
            "SELECT coalesce(json_agg(json_build_array({})), '[]')::text FROM {table}",
            cells.join(", ")
        ))
        .await?;
    normal(serde_json::from_str(&rows)?)
}

/// The offsets of the change topic's records, as `bunny tail` shows them.
fn tail_offsets(stage: &Stage) -> Result<Vec<i64>> {
    let mut tail = stage.reader(&["tail", "mirror", "--json", "--no-follow"])?;
    let printed = output_of(tail.args(["--from", "earliest"]))?;
    offsets_in_order(printed.lines())
}

/// The offsets of events that `bunny tail --json` has printed. Within a generation each is later
/// than the one before.
pub fn offsets_in_order(lines: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<i64>> {
    let mut offsets = Vec::new();
    let mut before: Option<(u64, i64)> = None;
    for line in lines {
        let event: Value = serde_json::from_str(line.as_ref())?;
        offsets.push(event["offset"].as_i64().context("no offset")?);
        let Some(lsn) = event["source"]["commit_lsn"].as_str() else {
            before = None;
            continue;
        };
        let lsn: bunny_tests::lsn::Lsn = lsn.parse()?;
        let position = (lsn.0, event["source"]["seq"].as_i64().context("no seq")?);
        ensure!(
            before.is_none_or(|before| before < position),
            "{position:?} after {before:?}"
        );
        before = Some(position);
    }
    Ok(offsets)
}

/// The slot is lost and a resync begins another generation, which the examples meet while they run.
async fn another_history(
    stage: &Stage,
    api: &Api,
    mirror: &Mirror,
    examples: &mut [Example],
) -> Result<()> {
    let registry = format!("{}/registry", api.base());
    for example in &mut *examples {
        example.forget_errors(stage)?;
        example.start(stage, &registry)?;
    }
    let source = stage.source.connect().await?;
    source.run("SET TimeZone = 'UTC'").await?;
    lose_slot(&source).await?;
    // In no log.
    source
        .run("DELETE FROM accounts WHERE id % 3 = 0; UPDATE documents SET heading = 'unseen' WHERE id % 2 = 0")
        .await?;
    mirror
        .wait_until("FAILED, with the cure", LIMIT, |mirror, _| {
            let said = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "FAILED" && said.contains("resync the mirror")
        })
        .await?;
    let resync = json!({"strategy": "truncate"});
    let asked = api.post("/v1/mirrors/mirror/resync", resync).await?;
    let ended = ended(api, mirror, stage, &asked.expect(202)?).await?;
    ensure!(ended["state"] == "done", "{ended}");
    for example in &mut *examples {
        example.wait_loaded(1).await?;
    }
    source
        .run("UPDATE accounts SET tier = 5 WHERE id = 2; INSERT INTO journal VALUES (9, 9, 'anew', now())")
        .await?;
    stage.assert_converges(mirror, &load::pairs()).await?;
    for example in examples {
        example.kill9()?;
        example.catch_up(stage, &registry)?;
        example.assert_holds(&source).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_hold_what_the_source_holds() -> Result<()> {
    let python = tokio::task::spawn_blocking(clients::install).await??;
    let stage = Stage::new("subscribers").await?;
    let [mut capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source.run("SET TimeZone = 'UTC'").await?;
    load::create_tables(&source, 1000).await?;
    let load = Load::start(&stage.source, 2, 25);
    let options = json!({
        "snapshot_num_rows_per_partition": 200, "snapshot_max_parallel_workers": 2,
        "schema_changes": "all",
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, options)
        .await?;
    mirror.wait_running().await?;

    let registry = format!("{}/registry", api.base());
    let mut examples = Example::all(&stage, python, &TABLES);
    for example in &mut examples {
        example.start(&stage, &registry)?;
    }
    for example in &mut examples {
        example.wait_loaded(1).await?;
    }
    load.advance(100).await;
    for example in &mut examples {
        example.kill9()?;
    }
    // While they are away: versions that rows of before have to follow, and an emptied table.
    for change in [
        "ALTER TABLE accounts ADD COLUMN tier int NOT NULL DEFAULT 3",
        "ALTER TABLE documents RENAME title TO heading",
        "TRUNCATE measurements; INSERT INTO measurements VALUES (1, 0.1, 'anew'), (1, 'NaN', NULL)",
    ] {
        source.run(change).await?;
    }
    // One transaction of the source is published in two parts, and one of Kafka's is aborted: it
    // stays in the topic, for readers of committed data to pass over.
    let point = "capture::mid_transaction";
    capture.restart_to_crash(point, 1)?;
    capture.wait_crash_point(point, LIMIT).await?;
    let topic = format!("{}.{}.changes", stage.name, mirror.slug());
    let brokers = &stage.services.brokers;
    let slow = Duration::from_secs(3);
    capture.restart_slowed("capture::before_kafka_commit", slow)?;
    let deadline = Instant::now() + LIMIT;
    while clients::kcat_not_committed(brokers, &topic)? == 0 {
        ensure!(Instant::now() < deadline, "nothing is sent");
    }
    capture.restart()?;
    load.advance(100).await;
    for example in &mut examples {
        example.start(&stage, &registry)?;
    }
    load.advance(100).await;
    for example in &mut examples {
        example.kill9()?;
    }

    // What is rebuilt at the destination is none of a subscriber's business.
    let replay = json!({"tables": ["public.documents"]});
    let asked = api
        .post("/v1/mirrors/mirror/replay", replay)
        .await?
        .expect(202)?;
    load.stop().await;
    source
        .run("UPDATE accounts SET tier = 4 WHERE id = 1; UPDATE documents SET heading = 'x' WHERE id = 1;")
        .await?;
    let replay = ended(&api, &mirror, &stage, &asked).await?;
    ensure!(replay["state"] == "done", "{replay}");
    stage.assert_converges(&mirror, &load::pairs()).await?;

    for example in &examples {
        example.catch_up(&stage, &registry)?;
        example.assert_holds(&source).await?;
    }

    begins_anew_without_its_offsets(&examples[0], &stage, &registry)?;
    examples[0].assert_holds(&source).await?;
    for example in &examples[..2] {
        ends_with_a_reason(example, &stage, &registry)?;
    }

    another_history(&stage, &api, &mirror, &mut examples).await?;
    let ours = tail_offsets(&stage)?;
    ensure!(ours.len() > 300, "{} events", ours.len());
    ensure!(clients::kcat_not_committed(brokers, &topic)? > 0);
    let of_kcat = clients::kcat_records(brokers, &topic)?;
    assert_eq!(
        of_kcat
            .iter()
            .map(|(offset, _)| *offset)
            .collect::<Vec<_>>(),
        ours
    );
    for id in of_kcat
        .iter()
        .map(|(_, id)| id)
        .collect::<std::collections::BTreeSet<_>>()
    {
        let path = format!("/registry/schemas/ids/{id}");
        api.get(&path).await?.expect(200)?;
    }
    let of_console = clients::console_consumer_offsets(brokers, &topic, ours.len())?;
    assert_eq!(of_console, ours);
    Ok(())
}
