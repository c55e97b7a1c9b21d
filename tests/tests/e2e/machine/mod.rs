//! The lifecycle as a state machine: random commands, right and wrong ones, against a mirror
//! whose source is written to and changes its definitions all the time, while processes are
//! killed. Every answer must be one that the state allows; whenever everything has come to
//! rest, the contents are equal and nothing is left over.
//!
//! `BUNNY_MACHINE_SEED` names a sequence (printed by every run), `BUNNY_MACHINE_COMMANDS` its length.

mod commands;
mod world;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bunny_tests::api::{Answer, Api};
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{Mirror, Stage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use commands::{Command, State, draw};
use world::{PEOPLE, SPARE};

/// How long everything may take to come to rest, however loaded the machine is.
const REST: Duration = Duration::from_secs(400);
/// Steps between two moments at which everything is let come to rest.
const STEPS_BETWEEN_RESTS: usize = 40;
/// An answer that takes longer counts as a hang. A list of tables is examined at both servers.
const ANSWER_MAX: Duration = Duration::from_secs(100);
/// What is told of the past when something is wrong.
const HISTORY: usize = 60;

struct Machine {
    random: StdRng,
    seed: u64,
    processes: [Bunny; 3],
    /// Steps after which a dead process is started again.
    dead_for: [u32; 3],
    load: Option<(Load, JoinHandle<Result<()>>)>,
    /// Positions and times that the source has passed.
    moments: Vec<(Lsn, String)>,
    history: VecDeque<String>,
    answers: std::collections::BTreeMap<String, u32>,
    started: Instant,
    source: Session,
    mirror: Mirror,
    api: Api,
    stage: Stage,
}

impl Machine {
    async fn start(test: &str, seed: u64) -> Result<Machine> {
        let stage = Stage::new(test).await?;
        let processes = stage.start_all()?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        let source = stage.source.connect().await?;
        load::create_tables(&source, 3000).await?;
        world::create_tables(&source).await?;
        let mapping = |from: &str, to: &str| json!({"source_table": from, "destination_table": to});
        let mappings = json!([
            mapping("public.accounts", "public.accounts"),
            mapping("public.documents", "public.documents"),
            mapping(PEOPLE, "public.humans"),
        ]);
        let options = json!({
            "snapshot_num_rows_per_partition": 400, "snapshot_max_parallel_workers": 2,
            "snapshot_num_tables_in_parallel": 2, "max_batch_size": 100,
            "on_existing_rows": "truncate", "schema_changes": "all",
        });
        let mirror = stage
            .create_mapped_mirror(&api, "mirror", mappings, options)
            .await?;
        let mut machine = Machine {
            random: StdRng::seed_from_u64(seed),
            seed,
            processes,
            dead_for: [0; 3],
            load: None,
            moments: Vec::new(),
            history: VecDeque::new(),
            answers: Default::default(),
            started: Instant::now(),
            source,
            mirror,
            api,
            stage,
        };
        machine.write();
        machine.mirror.wait_running().await?;
        Ok(machine)
    }

    fn write(&mut self) {
        let load = Load::start(&self.stage.source, 2, 25);
        self.load = Some((load, world::write(&self.stage.source)));
    }

    fn note(&mut self, what: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let at = self.started.elapsed().as_secs_f32();
        self.history.push_back(format!("{at:7.1} s  {what}"));
    }

    async fn is_spare_gone(&self) -> Result<bool> {
        let gone = "SELECT to_regclass('public.spare') IS NULL";
        Ok(self.source.text(gone).await? == "t")
    }

    /// What the API says of the mirror.
    async fn state(&self) -> Result<State> {
        let commands = self
            .api
            .get("/v1/mirrors/mirror/commands")
            .await?
            .expect(200)?;
        let mirror = self.mirror.get().await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let commands = commands.as_array().cloned().unwrap_or_default();
        let is_open = |command: &&Value| {
            ["pending", "running"]
                .iter()
                .any(|open| command["state"] == *open)
        };
        let open = commands.iter().filter(is_open);
        let wish = |command: &&Value| {
            ["pause", "resume"]
                .iter()
                .any(|kind| command["kind"] == *kind)
        };
        let is_whole = commands
            .iter()
            .find(wish)
            .is_some_and(|found| found["args"]["scope"] == "all");
        let status = text(&mirror["status"]);
        let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
        let is_paused = ["PAUSED", "PAUSING"].contains(&status.as_str());
        Ok(State {
            is_spare_gone: self.is_spare_gone().await?,
            is_paused,
            is_paused_whole: is_paused && is_whole,
            open: open.map(|command| text(&command["kind"])).collect(),
            last_wish: commands
                .iter()
                .find(wish)
                .map_or(String::new(), |found| text(&found["kind"])),
            all_live: tables.iter().all(|table| table["status"] == "LIVE"),
            mapped: tables
                .iter()
                .map(|table| text(&table["source_table"]))
                .collect(),
            status,
        })
    }

    async fn ask(&self, command: &Command) -> Result<Answer> {
        let request = self
            .api
            .request(command.method.clone(), &command.path, command.body.clone());
        tokio::time::timeout(ANSWER_MAX, request)
            .await
            .with_context(|| format!("no answer to {command:?}"))?
    }

    /// One command, or two at once, and the answer against what the state allows.
    async fn command(&mut self) -> Result<()> {
        let command = draw(&mut self.random, &self.moments);
        let second = self
            .random
            .random_ratio(1, 8)
            .then(|| draw(&mut self.random, &self.moments));
        let before = self.state().await?;
        match second {
            None => {
                let answer = self.ask(&command).await?;
                let mut allowed = command.allowed(&before);
                if answer.status == 409 {
                    // The mirror asks for syncs by itself, at any moment since.
                    allowed.extend(command.allowed(&self.state().await?));
                }
                self.judge(&command, &answer, &allowed, &before)
            }
            // Which is first nobody knows: what either may meet depends on the other.
            Some(second) => {
                let (one, other) = tokio::join!(self.ask(&command), self.ask(&second));
                for (command, answer) in [(&command, one?), (&second, other?)] {
                    let mut allowed = command.allowed(&before);
                    allowed.extend([200, 202, 404, 409, 422]);
                    self.judge(command, &answer, &allowed, &before)?;
                }
                Ok(())
            }
        }
    }

    fn judge(
        &mut self,
        command: &Command,
        answer: &Answer,
        allowed: &[u16],
        before: &State,
    ) -> Result<()> {
        let body = command
            .body
            .as_ref()
            .map_or(String::new(), Value::to_string);
        let told = match answer.status {
            200 => String::new(),
            _ => answer.body.to_string(),
        };
        let line = format!(
            "{} {} {body} -> {} {told}",
            command.method, command.path, answer.status
        );
        self.note(line.clone());
        *self.answers.entry(answer.status.to_string()).or_default() += 1;
        ensure!(
            allowed.contains(&answer.status),
            "{line}\nbut only {allowed:?} is right in {before:?}"
        );
        if answer.status >= 400 {
            let why = answer.body["error"].as_str().unwrap_or_default();
            ensure!(!why.is_empty(), "{line}: no reason given");
        }
        Ok(())
    }

    /// Kills, revives, changes a definition, or waits: what happens between two commands.
    async fn happen(&mut self, step: usize) -> Result<()> {
        for which in 0..3 {
            if self.dead_for[which] > 0 {
                self.dead_for[which] -= 1;
                if self.dead_for[which] == 0 {
                    self.processes[which].restart()?;
                    self.note(format!("process {which} is started again"));
                }
            }
        }
        if self.random.random_ratio(1, 8) {
            let which = self.random.random_range(0..3);
            self.processes[which].kill9();
            self.note(format!("process {which} is killed"));
            // Nobody could ask anything without an API.
            self.dead_for[which] = if which == 2 {
                0
            } else {
                self.random.random_range(0..4)
            };
            if self.dead_for[which] == 0 {
                self.processes[which].restart()?;
            }
            if which == 2 {
                self.api.wait_ready(REST).await?;
            }
        }
        if self.random.random_ratio(1, 10) {
            let changed = world::change_definition(&self.source, &mut self.random, step).await;
            self.note(format!("definition: {changed:?}"));
        }
        if self.random.random_ratio(1, 5) {
            let clock = r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
            let moment = (
                self.source.current_lsn().await?,
                self.source.text(clock).await?,
            );
            self.moments.push(moment);
        }
        // Mostly in quick succession; now and then what was asked for can come to its end.
        let pause_ms = match self.random.random_range(0..10) {
            0..6 => self.random.random_range(0..300),
            6..9 => self.random.random_range(300..1500),
            _ => self.random.random_range(1500..6000),
        };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        Ok(())
    }

    /// Everything that was asked for ends, the mirror runs, all tables follow, the contents are
    /// equal, and nothing is left.
    async fn rest(&mut self) -> Result<()> {
        for which in 0..3 {
            if self.dead_for[which] > 0 {
                self.dead_for[which] = 0;
                self.processes[which].restart()?;
            }
        }
        self.note("everything is let come to rest".to_owned());
        let deadline = Instant::now() + REST;
        // A table that was dropped leaves the mirror, as its message says: what waits for it would
        // wait for ever.
        if self.is_spare_gone().await? {
            self.take_out_what_is_gone().await?;
        }
        self.run_on(deadline).await?;
        // What was set aside on the way gets its chance; what is not there stays set aside.
        let retry = self.api.post("/v1/mirrors/mirror/retry", json!({})).await?;
        retry.expect(202)?;
        self.settle(deadline).await?;
        let (load, writer) = self.load.take().context("no load")?;
        load.stop().await;
        writer.abort();
        let _ = writer.await;
        // A change of definition that was still on its way may set its table aside.
        let end = self.source.current_lsn().await?;
        self.mirror.wait_for_lsn(end).await?;
        let mirror = self.settle(deadline).await?;
        let pairs = pairs(&mirror);
        self.stage.assert_converges(&self.mirror, &pairs).await?;
        let lag = |metrics: &Value| {
            (
                metrics["lag_seconds"].as_f64(),
                metrics["lag_bytes"].as_i64(),
            )
        };
        self.mirror
            .wait_until("no lag", REST, |_, metrics| {
                lag(metrics) == (Some(0.0), Some(0))
            })
            .await?;
        let tables = mirror["tables"].as_array().into_iter().flatten();
        let names = tables.filter_map(|table| table["source_table"].as_str());
        let mapped: Vec<String> = names.map(str::to_owned).collect();
        world::assert_nothing_left(&self.stage, &mapped, Duration::from_secs(60)).await?;
        world::forget(&self.stage.destination.connect().await?, &mapped).await?;
        world::bring_spare_back(&self.source).await?;
        self.note(format!("at rest with {mapped:?}"));
        self.write();
        Ok(())
    }

    /// Until nothing is under way and every table follows its source, with what their messages ask for
    /// done.
    async fn settle(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            self.run_on(deadline).await?;
            let mirror = self.mirror.get().await?;
            let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
            let is_settled = |table: &Value| table["status"] == "LIVE";
            if mirror["status"] == "RUNNING" && tables.iter().all(is_settled) {
                return Ok(mirror);
            }
            ensure!(
                Instant::now() < deadline,
                "the tables do not settle: {mirror:#}"
            );
            self.do_as_said(&tables).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Does what the messages of tables that are set aside ask a user for.
    async fn do_as_said(&mut self, tables: &[Value]) -> Result<()> {
        for table in tables {
            let error = table["error_message"].as_str().unwrap_or_default();
            if table["status"] != "ERRORED" {
                continue;
            }
            let name = |side: &str| table[side].as_str().unwrap_or_default();
            let (source, destination) = (name("source_table"), name("destination_table"));
            let body = json!({ "table_name": source });
            // A table that left the mirror and came back finds what it left at the destination, which
            // may lack columns by now, or have others: the mirror does not change what it takes for
            // another's, but creates it anew.
            let mut leftovers =
                ["lacks the columns", "cannot take the source's values"].into_iter();
            // What capture, dead or behind, could not tell any more.
            let is_doubtful = error.contains("altered again before capture could read");
            let answer = if leftovers.any(|of| error.contains(of)) {
                let session = self.stage.destination.connect().await?;
                let drop = format!("DROP TABLE IF EXISTS {destination}");
                session.run(&drop).await?;
                self.api.post("/v1/mirrors/mirror/retry", body).await?
            } else if is_doubtful && error.contains("sync the table again") {
                // By swap it would not do where columns have to come first, as its command says then.
                let body = json!({ "table_name": source, "strategy": "truncate" });
                self.api.post("/v1/mirrors/mirror/resync", body).await?
            } else {
                continue;
            };
            self.note(format!("{error}: done as it says: {}", answer.status));
            let deadline = Instant::now() + REST;
            self.run_on(deadline).await?;
        }
        Ok(())
    }

    /// Asks for the list of tables without the one that was dropped, if that is on it.
    async fn take_out_what_is_gone(&self) -> Result<()> {
        let mirror = self.mirror.get().await?;
        let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
        let count = tables.len();
        let kept = ["source_table", "destination_table", "exclude_columns"];
        let mapping = |table: &Value| -> Value {
            let fields = kept
                .iter()
                .map(|&field| (field.to_owned(), table[field].clone()));
            fields.collect::<serde_json::Map<_, _>>().into()
        };
        let stay = tables.iter().filter(|table| table["source_table"] != SPARE);
        let list: Vec<Value> = stay.map(mapping).collect();
        if list.len() < count {
            let (path, list) = (
                "/v1/mirrors/mirror/tables",
                json!({ "table_mappings": list }),
            );
            let answer = self.api.request(reqwest::Method::PUT, path, Some(list));
            answer.await?.expect(202)?;
        }
        Ok(())
    }

    /// Resumes whenever it is paused, until no command is open.
    async fn run_on(&self, deadline: Instant) -> Result<()> {
        loop {
            let state = self.state().await?;
            if state.is_paused {
                self.api
                    .post("/v1/mirrors/mirror/resume", json!({}))
                    .await?
                    .expect(202)?;
            } else if state.open.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let commands = self.api.get("/v1/mirrors/mirror/commands").await?.body;
                let open = commands.as_array().cloned().unwrap_or_default();
                let open = open
                    .into_iter()
                    .filter(|command| command["finished_at"].is_null());
                bail!(
                    "open commands do not end: {:#}\n{:#}\n{}",
                    json!(open.collect::<Vec<_>>()),
                    self.mirror.get().await?,
                    self.stage.logs_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn run(&mut self, steps: usize) -> Result<()> {
        for step in 1..=steps {
            self.command().await?;
            self.happen(step).await?;
            if step % STEPS_BETWEEN_RESTS == 0 || step == steps {
                self.rest().await?;
                println!(
                    "seed {}: {step} of {steps} commands in {:?}, answers {:?}",
                    self.seed,
                    self.started.elapsed(),
                    self.answers
                );
            }
        }
        Ok(())
    }
}

/// The tables that can be compared: those that follow their source.
fn pairs(mirror: &Value) -> Vec<TablePair> {
    let tables = mirror["tables"].as_array().into_iter().flatten();
    let live = tables.filter(|table| table["status"] == "LIVE");
    live.filter_map(|table| {
        let excluded: BTreeSet<&str> = table["exclude_columns"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let excluded: Vec<&str> = excluded.into_iter().collect();
        let name = |side: &str| table[side].as_str();
        let pair = TablePair::renamed(name("source_table")?, name("destination_table")?);
        Some(pair.without(&excluded))
    })
    .collect()
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

async fn random_commands(test: &str, steps: usize) -> Result<()> {
    let seed =
        setting("BUNNY_MACHINE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let steps = setting("BUNNY_MACHINE_COMMANDS").unwrap_or(steps);
    println!(
        "seed {seed}: BUNNY_MACHINE_SEED={seed} BUNNY_MACHINE_COMMANDS={steps} does the same again"
    );
    let mut machine = Machine::start(test, seed).await?;
    let outcome = machine.run(steps).await;
    let history: Vec<String> = machine.history.iter().cloned().collect();
    outcome.with_context(|| format!("seed {seed}, what happened last:\n{}", history.join("\n")))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_commands_are_answered_rightly_and_leave_nothing() -> Result<()> {
    random_commands("machine", 500).await
}
