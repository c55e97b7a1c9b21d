//! Readers from outside that run through a whole soak: `bunny tail`, which sees every event, and the
//! examples, which die again and again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::file_tail;
use bunny_tests::clients::{self, Program, output_of};
use bunny_tests::stage::Stage;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::fan_out::FanOut;
use crate::subscribers::{Compared, Example, offsets_in_order};

/// Until the last event is printed.
const LIMIT: Duration = Duration::from_secs(120);
const TABLES: [Compared; 4] = [
    ("public.accounts", "id, owner, balance, seen"),
    ("public.documents", "id, title, body, revision"),
    ("public.measurements", "sensor, value, note"),
    ("public.journal", "writer, n, entry, at"),
];

pub struct Readers {
    tail: Program,
    examples: Vec<Example>,
    registry: String,
    killed: u32,
}

impl Readers {
    pub async fn start(fan: &FanOut) -> Result<Readers> {
        let python = tokio::task::spawn_blocking(clients::install).await??;
        let stage = &fan.stage;
        let command = stage.reader(&["tail", "mirror", "--json", "--from", "earliest"])?;
        let tail = Program::start(&stage.services, command, stage.directory(), "tail")?;
        let mut readers = Readers {
            tail,
            examples: Example::all(stage, python, &TABLES),
            registry: format!("{}/registry", fan.api.base()),
            killed: 0,
        };
        for example in &mut readers.examples {
            example.start(stage, &readers.registry)?;
        }
        for example in &mut readers.examples {
            example.wait_loaded(1).await?;
        }
        Ok(readers)
    }

    /// One of the examples dies and is started again.
    pub fn kill_one(&mut self, stage: &Stage, random: &mut StdRng) -> Result<()> {
        let index = random.random_range(0..self.examples.len());
        let example = &mut self.examples[index];
        self.killed += 1;
        example.end_or_excused()?;
        example.start(stage, &self.registry)
    }

    /// When nobody writes any more: no event came twice or out of order, and the examples hold what
    /// the source holds. In words, what was seen.
    pub async fn end(mut self, fan: &FanOut) -> Result<String> {
        let stage = &fan.stage;
        let last = output_of(&mut stage.reader(&[
            "tail",
            "mirror",
            "--json",
            "--no-follow",
            "-n",
            "1",
        ])?)?;
        let last = offset_of(&last)?;
        let printed = stage.directory().join("tail.out");
        let deadline = Instant::now() + LIMIT;
        while offset_of(&file_tail(&printed, 1)).ok() != Some(last) {
            ensure!(self.tail.is_running()?, "tail: {}", self.tail.errors());
            ensure!(Instant::now() < deadline, "offset {last} is not printed");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let lines = BufReader::new(File::open(&printed)?).lines();
        let offsets = offsets_in_order(lines.map_while(Result::ok))?;
        let in_order = offsets.windows(2).all(|two| two[0] < two[1]);
        ensure!(in_order && offsets.last() == Some(&last), "tail jumped");
        let source = stage.source.connect().await?;
        source.run("SET TimeZone = 'UTC'").await?;
        let mut loaded = 0;
        for example in &mut self.examples {
            loaded += example.end_or_excused()?;
            example.catch_up(stage, &self.registry)?;
            example.assert_holds(&source).await?;
        }
        Ok(format!(
            "{} events in order; examples killed {} times loaded {loaded} times",
            offsets.len(),
            self.killed
        ))
    }
}

fn offset_of(line: &str) -> Result<i64> {
    let event: Value = serde_json::from_str(line.trim())?;
    event["offset"].as_i64().context("no offset")
}
