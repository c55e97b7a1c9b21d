//! The commands of the state machine: how each is asked for, and what may be answered in the
//! state in which it is asked.

use std::collections::BTreeSet;

use bunny_tests::lsn::Lsn;
use rand::Rng;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{ALWAYS, OPTIONAL, PEOPLE};

/// One request and what it is meant to be.
#[derive(Debug, Clone)]
pub struct Command {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Always accepted while the mirror lives.
    Accepted,
    Resume,
    Resync,
    Replay {
        until: bool,
        swap: bool,
    },
    SyncSchema,
    Tables,
    /// Answers with exactly this, whatever the state.
    Exactly(u16),
    /// One of two refusals: which one comes first depends on the state.
    Either(u16, u16),
}

/// What is known of the mirror when a command is asked for.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub status: String,
    /// Kinds of the commands that were open just before; some may have ended since.
    pub open: BTreeSet<String>,
    /// Kind of the newest of the commands that say whether the mirror runs.
    pub last_wish: String,
    pub is_paused: bool,
    pub is_paused_whole: bool,
    /// Every mapped table follows the changes.
    pub all_live: bool,
    pub mapped: BTreeSet<String>,
    /// The table that comes and goes at the source is not there.
    pub is_spare_gone: bool,
}

impl State {
    fn has_open(&self, kinds: &[&str]) -> bool {
        kinds.iter().any(|kind| self.open.contains(*kind))
    }

    /// A replay up to a moment may pause the mirror at any time.
    fn may_pause_itself(&self) -> bool {
        self.open.contains("replay")
    }
}

impl Command {
    fn new(method: Method, path: &str, body: Option<Value>, kind: Kind) -> Command {
        let path = match path.strip_prefix('/') {
            Some(rest) => format!("/v1/{rest}"),
            None => format!("/v1/mirrors/mirror/{path}"),
        };
        Command {
            method,
            path,
            body,
            kind,
        }
    }

    fn post(path: &str, body: Value, kind: Kind) -> Command {
        Command::new(Method::POST, path, Some(body), kind)
    }

    /// The source tables it names, if it has to name mapped ones.
    fn named(&self) -> Vec<String> {
        let body = self.body.as_ref();
        let listed = body.and_then(|body| body["tables"].as_array().cloned());
        let single = body.and_then(|body| body["table_name"].as_str().map(str::to_owned));
        let in_path = self.path.split("/resync/").nth(1).map(str::to_owned);
        let listed = listed.into_iter().flatten();
        let listed = listed.filter_map(|table| table.as_str().map(str::to_owned));
        listed.chain(single).chain(in_path).collect()
    }

    /// Whether a list of mappings has a table that the mirror has not.
    fn adds_any(&self, state: &State) -> bool {
        let list = self.body.as_ref().map(|body| &body["table_mappings"]);
        let tables = list.and_then(Value::as_array).into_iter().flatten();
        let mut names = tables.filter_map(|table| table["source_table"].as_str());
        names.any(|name| !state.mapped.contains(name))
    }

    /// The statuses that are right as an answer in this state.
    pub fn allowed(&self, state: &State) -> Vec<u16> {
        let names_mapped_only = self
            .named()
            .iter()
            .all(|table| state.mapped.contains(table));
        if !names_mapped_only && !matches!(self.kind, Kind::Exactly(_) | Kind::Either(..)) {
            return vec![404];
        }
        let loading = ["resync", "replay", "tables", "sync_schema"];
        match self.kind {
            Kind::Exactly(status) => vec![status],
            Kind::Either(one, other) => vec![one, other],
            Kind::Accepted => vec![202],
            // A table that is not there cannot come, nor one whose columns the destination lacks.
            Kind::Tables if state.is_spare_gone || self.adds_any(state) => {
                vec![200, 202, 409, 422]
            }
            Kind::Tables if state.open.is_empty() => vec![200, 202],
            Kind::Tables => vec![200, 202, 409],
            Kind::Resume if state.may_pause_itself() => vec![202, 409],
            Kind::Resume if state.is_paused || state.last_wish == "resume" => vec![202],
            Kind::Resume => vec![409],
            Kind::Resync if state.has_open(&loading) => vec![202, 409],
            Kind::Resync => vec![202],
            Kind::Replay { .. } if state.is_paused_whole && !state.may_pause_itself() => vec![409],
            Kind::Replay { until, swap } => {
                // Before the moment asked for there may be no copy of a table, and by swap the
                // table has to be able to take the copy's rows as it is.
                let is_sure = !until && !swap && state.all_live && !state.has_open(&loading);
                if is_sure { vec![202] } else { vec![202, 409] }
            }
            Kind::SyncSchema if state.is_paused => vec![409],
            Kind::SyncSchema => {
                let is_sure =
                    state.status == "RUNNING" && state.all_live && !state.has_open(&loading);
                if is_sure { vec![202] } else { vec![202, 409] }
            }
        }
    }
}

/// A table of the mirror, now or at another time, or one that never is.
fn any_table(random: &mut StdRng) -> String {
    let tables: Vec<&str> = ALWAYS.iter().chain(&OPTIONAL).copied().collect();
    match random.random_range(0..12) {
        0 => "public.unknown".to_owned(),
        _ => tables[random.random_range(0..tables.len())].to_owned(),
    }
}

fn some_tables(random: &mut StdRng) -> BTreeSet<String> {
    let count = random.random_range(1..4);
    (0..count).map(|_| any_table(random)).collect()
}

fn strategy(random: &mut StdRng) -> &'static str {
    ["truncate", "swap"][random.random_range(0..2)]
}

/// A list of mappings: what is always there, and of the others whatever chance says.
fn mappings(random: &mut StdRng) -> Vec<Value> {
    let mut mappings = Vec::new();
    for table in ALWAYS.iter().chain(&OPTIONAL) {
        if OPTIONAL.contains(table) && random.random_ratio(1, 4) {
            continue;
        }
        let destination = match *table {
            PEOPLE => "public.humans",
            other => other,
        };
        let mut mapping = json!({"source_table": table, "destination_table": destination});
        if *table == PEOPLE && random.random_ratio(1, 2) {
            mapping["exclude_columns"] = json!(["secret"]);
        }
        mappings.push(mapping);
    }
    mappings
}

/// The next command. `moments` are positions and times of the source that have been.
pub fn draw(random: &mut StdRng, moments: &[(Lsn, String)]) -> Command {
    let get = |path: &str| Command::new(Method::GET, path, None, Kind::Exactly(200));
    match random.random_range(0..100) {
        0..10 => {
            let scope = ["apply", "all"][random.random_range(0..2)];
            Command::post("pause", json!({ "scope": scope }), Kind::Accepted)
        }
        10..26 => Command::post("resume", json!({}), Kind::Resume),
        26..38 => {
            let list = json!({ "table_mappings": mappings(random) });
            // The list names tables that the mirror need not have yet.
            let mut command = Command::new(Method::PUT, "tables", None, Kind::Tables);
            command.body = Some(list);
            command
        }
        38..48 => {
            let path = format!("resync/{}", any_table(random));
            let body = json!({ "strategy": strategy(random) });
            Command::post(&path, body, Kind::Resync)
        }
        48..51 => {
            let body = json!({ "strategy": strategy(random) });
            Command::post("resync", body, Kind::Resync)
        }
        51..53 => {
            let body = json!({ "table_name": any_table(random) });
            Command::post("resync", body, Kind::Resync)
        }
        53..59 => {
            let mode = [json!(null), json!("additive"), json!("all")];
            let mode = &mode[random.random_range(0..mode.len())];
            Command::post(
                "sync-schema",
                json!({ "schema_changes": mode }),
                Kind::SyncSchema,
            )
        }
        59..64 => {
            let tables = random
                .random_ratio(2, 3)
                .then(|| some_tables(random))
                .map_or(json!({}), |tables| json!({ "tables": tables }));
            Command::post("checkpoint", tables, Kind::Accepted)
        }
        64..71 => replay(random, moments),
        71..77 => {
            let body = random
                .random_ratio(1, 2)
                .then(|| json!({ "table_name": any_table(random) }));
            Command::post("retry", body.unwrap_or_else(|| json!({})), Kind::Accepted)
        }
        77..81 => {
            let body = json!({"max_batch_size": random.random_range(50..400), "resync_strategy": strategy(random)});
            Command::new(Method::PATCH, "/mirrors/mirror", Some(body), Kind::Accepted)
        }
        81..88 => [
            get("/mirrors/mirror"),
            get("metrics"),
            get("logs?limit=20&search=table"),
            get("commands"),
            get("tables"),
            get("available-tables"),
            get("/mirrors"),
        ][random.random_range(0..7)]
        .clone(),
        _ => wrong(random),
    }
}

fn replay(random: &mut StdRng, moments: &[(Lsn, String)]) -> Command {
    let until = random.random_ratio(1, 3) && !moments.is_empty();
    // A moment cannot be had by swap.
    let swap = !until && strategy(random) == "swap";
    let mut body = json!({ "strategy": if swap { "swap" } else { "truncate" } });
    if random.random_ratio(2, 3) {
        body["tables"] = json!(some_tables(random));
    }
    if until {
        let (lsn, time) = &moments[random.random_range(0..moments.len())];
        body["until"] = match random.random_ratio(1, 2) {
            true => json!({ "lsn": lsn.to_string() }),
            false => json!({ "timestamp": time }),
        };
    }
    Command::post("replay", body, Kind::Replay { until, swap })
}

/// What is refused in every state.
fn wrong(random: &mut StdRng) -> Command {
    let put = |body: Value, status| {
        Command::new(Method::PUT, "tables", Some(body), Kind::Exactly(status))
    };
    let post = |path: &str, body: Value, status| Command::post(path, body, Kind::Exactly(status));
    let mapping = |from: &str, to: &str| json!({"source_table": from, "destination_table": to});
    let accounts = mapping("public.accounts", "public.accounts");
    let all = [
        post("pause", json!({"scope": "everything"}), 400),
        post("pause", json!({"scop": "all"}), 400),
        post("resume", json!({"scope": "all"}), 400),
        post("resume", json!([1, 2]), 400),
        post("resync", json!({"strategy": "fast"}), 400),
        Command::post("resync/not%20a%20table", json!({}), Kind::Either(400, 404)),
        post("resync/public.unknown", json!({}), 404),
        post("retry", json!({"table_name": 7}), 400),
        post("retry", json!({"table_name": "public.unknown"}), 404),
        post("checkpoint", json!({"tables": "public.accounts"}), 400),
        post("checkpoint", json!({"tables": ["public.unknown"]}), 404),
        post(
            "replay",
            json!({"strategy": "swap", "until": {"lsn": "0/1"}}),
            400,
        ),
        post("replay", json!({"until": {"lsn": "x"}}), 400),
        post(
            "replay",
            json!({"tables": ["public.unknown"], "strategy": "truncate"}),
            404,
        ),
        post("sync-schema", json!({"schema_changes": "manual"}), 400),
        post("sync-schema", json!("all"), 400),
        put(json!({"table_mappings": []}), 400),
        put(json!({}), 400),
        put(json!({"table_mappings": [accounts, accounts]}), 422),
        put(
            json!({"table_mappings": [accounts, mapping("public.unknown", "public.u")]}),
            422,
        ),
        put(
            json!({"table_mappings": [accounts, mapping("public.never", "public.accounts")]}),
            422,
        ),
        Command::new(
            Method::PATCH,
            "/mirrors/mirror",
            Some(json!({})),
            Kind::Exactly(400),
        ),
        Command::new(
            Method::PATCH,
            "/mirrors/mirror",
            Some(json!({"name": "other"})),
            Kind::Exactly(400),
        ),
        Command::new(Method::DELETE, "/mirrors/unknown", None, Kind::Exactly(404)),
        Command::new(Method::DELETE, "/peers/source", None, Kind::Exactly(409)),
        Command::new(Method::GET, "/mirrors/unknown", None, Kind::Exactly(404)),
        Command::new(
            Method::GET,
            "commands/no-uuid",
            None,
            Kind::Either(400, 404),
        ),
        Command::new(Method::GET, "logs?limit=0", None, Kind::Exactly(400)),
        Command::new(Method::DELETE, "tables", None, Kind::Exactly(405)),
        post("/mirrors", json!({"name": "mirror"}), 400),
    ];
    all[random.random_range(0..all.len())].clone()
}
