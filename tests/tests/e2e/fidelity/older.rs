//! What a destination of an older version cannot hold: the table is set aside, with the column in the
//! message, or what it lacks is said in the log where the rows are as at the source all the same.
//!
//! Runs where the source is newer than the destination, as in half of the pairs of `make test-matrix`.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Mirror};
use serde_json::{Value, json};

use super::major;
use crate::enum_labels::stopped;
use crate::scene::Scene;

/// What becomes of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// No mirror is made.
    Refused,
    /// Its copy is not taken.
    NotLoaded,
    /// It is loaded, and stops at a change.
    NotWritten,
    /// Its rows arrive.
    Said,
}

/// One thing that newer servers know.
pub struct Older {
    pub name: &'static str,
    /// The first major version of the source that knows it.
    pub since: u32,
    /// The last one of the destination that does not.
    pub until: u32,
    /// For docs/fidelity.md.
    pub outcome: &'static str,
    table: &'static str,
    create: &'static str,
    change: &'static str,
    end: End,
    /// Of the answer, the table's message, or the mirror's log.
    says: &'static [&'static str],
}

const STOPS: &str = "the table becomes `ERRORED`";

pub const OLDER: &[Older] = &[
    Older {
        name: "`numeric` with a negative scale, or one above its precision",
        since: 15,
        until: 14,
        outcome: "refused when the mirror is created",
        table: "scaled",
        create: "CREATE TABLE scaled (id int PRIMARY KEY, small numeric(2,4), rounded numeric(5,-3)[])",
        change: "",
        end: End::Refused,
        says: &[
            "column \"small\" of public.scaled",
            "column \"rounded\" of public.scaled",
            "numeric(5,-3)",
            "exclude_columns",
        ],
    },
    Older {
        name: "infinite intervals, in the copy",
        since: 17,
        until: 16,
        outcome: STOPS,
        table: "endless",
        create: "CREATE TABLE endless (id int PRIMARY KEY, v interval); INSERT INTO endless VALUES (1, '1 day'), (2, '-infinity')",
        change: "",
        end: End::NotLoaded,
        says: &["public.endless", "column \"v\"", "-infinity"],
    },
    Older {
        name: "infinite intervals, in the stream",
        since: 17,
        until: 16,
        outcome: STOPS,
        table: "ended",
        create: "CREATE TABLE ended (id int PRIMARY KEY, n int, \"the time\" interval); INSERT INTO ended VALUES (1, 1, '1 day')",
        change: "UPDATE ended SET \"the time\" = 'infinity'",
        end: End::NotWritten,
        says: &["public.ended", "column \"the time\"", "infinity"],
    },
    Older {
        name: "infinite intervals in a table without a key, in the stream",
        since: 17,
        until: 16,
        outcome: STOPS,
        table: "keyless",
        create: "CREATE TABLE keyless (v interval[]); ALTER TABLE keyless REPLICA IDENTITY FULL",
        change: "INSERT INTO keyless VALUES ('{infinity}')",
        end: End::NotWritten,
        says: &["public.keyless", "column \"v\"", "infinity"],
    },
    Older {
        name: "the largest intervals",
        since: 15,
        until: 14,
        outcome: STOPS,
        table: "longest",
        create: "CREATE TABLE longest (id int PRIMARY KEY, v interval); INSERT INTO longest VALUES (1, '2562047788:00:54.775807')",
        change: "",
        end: End::NotLoaded,
        says: &["public.longest", "column \"v\""],
    },
    Older {
        name: "methods of `jsonpath` that came later",
        since: 17,
        until: 16,
        outcome: STOPS,
        table: "paths",
        create: "CREATE TABLE paths (id int PRIMARY KEY, p jsonpath); INSERT INTO paths VALUES (1, '$')",
        change: "UPDATE paths SET p = '$.a.bigint()'",
        end: End::NotWritten,
        says: &["public.paths", "column \"p\"", "jsonpath"],
    },
    Older {
        name: "a collation of the provider `builtin`",
        since: 17,
        until: 16,
        outcome: STOPS,
        table: "sorted",
        create: "CREATE COLLATION built (PROVIDER = builtin, LOCALE = 'C.UTF-8'); CREATE TABLE sorted (id int PRIMARY KEY, v text COLLATE built)",
        change: "",
        end: End::NotLoaded,
        says: &["public.sorted", "built", "builtin"],
    },
    Older {
        name: "NULLS NOT DISTINCT",
        since: 15,
        until: 14,
        outcome: "the table is mirrored without the index or constraint, which the status and the log name",
        table: "alone",
        create: "CREATE TABLE alone (id int PRIMARY KEY, v text, CONSTRAINT once UNIQUE NULLS NOT DISTINCT (v)); CREATE UNIQUE INDEX twice ON alone (v, id) NULLS NOT DISTINCT;
                 INSERT INTO alone VALUES (1, NULL), (2, 'a')",
        change: "INSERT INTO alone VALUES (3, 'c'); DELETE FROM alone WHERE id = 2",
        end: End::Said,
        says: &[
            "unique constraint \\\"once\\\" of public.alone",
            "index \\\"twice\\\" of public.alone",
            "NULLS NOT DISTINCT, which PostgreSQL knows from 15 on",
        ],
    },
    Older {
        name: "virtual generated columns",
        since: 18,
        until: 17,
        outcome: "`STORED` there, which the log says",
        table: "computed",
        create: "CREATE TABLE computed (id int PRIMARY KEY, price numeric, doubled numeric GENERATED ALWAYS AS (price * 2) VIRTUAL); INSERT INTO computed (id, price) SELECT g, g / 3.0 FROM generate_series(1, 20) g",
        change: "UPDATE computed SET price = price + 1 WHERE id < 10; DELETE FROM computed WHERE id = 4; INSERT INTO computed (id, price) VALUES (100, NULL)",
        end: End::Said,
        says: &[
            "column \\\"doubled\\\" of public.computed: it is VIRTUAL at the source and STORED here",
        ],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_destination_cannot_hold_is_named() -> Result<()> {
    let scene = Scene::new("fidelity_older").await?;
    let destination = scene.stage.destination.connect().await?;
    let (newer, older) = (major(&scene.source).await?, major(&destination).await?);
    let is_meant = |one: &&Older| one.since <= newer && older <= one.until;
    let all: Vec<&Older> = OLDER.iter().filter(is_meant).collect();
    let names: Vec<String> = all
        .iter()
        .filter(|one| one.end != End::Refused)
        .map(|one| format!("public.{}", one.table))
        .collect();
    for one in &all {
        scene.source.run(one.create).await.context(one.name)?;
    }
    for one in all.iter().filter(|one| one.end == End::Refused) {
        let table = format!("public.{}", one.table);
        let body = json!({
            "name": "refused", "source_peer": "source", "destination_peer": "destination",
            "table_mappings": [{"source_table": table, "destination_table": table}],
        });
        let refused = scene.api.post("/v1/mirrors", body).await?.expect(422)?;
        let said = refused["error"].as_str().unwrap_or_default();
        for words in one.says {
            ensure!(said.contains(words), "{}: {said}", one.name);
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mirror = scene
        .stage
        .create_mirror(&scene.api, "older", &names, json!({}))
        .await?;
    let arrives = |one: &&&Older| matches!(one.end, End::NotWritten | End::Said);
    let pairs: Vec<TablePair> = all
        .iter()
        .filter(arrives)
        .map(|one| TablePair::same(&format!("public.{}", one.table)))
        .collect();
    scene.stage.assert_converges(&mirror, &pairs).await?;
    for one in all.iter().filter(|one| !one.change.is_empty()) {
        scene.source.run(one.change).await.context(one.name)?;
    }
    for one in &all {
        let table = format!("public.{}", one.table);
        match one.end {
            End::Refused => {}
            End::NotLoaded | End::NotWritten => {
                stopped(&mirror, &table, "").await?;
                let said = message_of(&mirror.get().await?, &table);
                for words in one.says {
                    ensure!(said.contains(words), "{}: {said}", one.name);
                }
            }
            End::Said => {
                let same = [TablePair::same(&table)];
                scene.stage.assert_converges(&mirror, &same).await?;
                for words in one.says {
                    wait_said(&scene, &mirror, words).await.context(one.name)?;
                }
            }
        }
    }
    Ok(())
}

fn message_of(mirror: &Value, table: &str) -> String {
    let mut tables = mirror["tables"].as_array().into_iter().flatten();
    let found = tables.find(|found| found["source_table"] == table);
    found
        .and_then(|found| found["error_message"].as_str())
        .map(|said| format!("{table}: {said}"))
        .unwrap_or_default()
}

async fn wait_said(scene: &Scene, mirror: &Mirror, words: &str) -> Result<()> {
    let started = std::time::Instant::now();
    let path = format!("/v1/mirrors/{}/logs?limit=500", mirror.name);
    loop {
        let log = scene.api.get(&path).await?.expect(200)?["logs"].to_string();
        if log.contains(words) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < CONVERGE,
            "{words} is not in the log: {log}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}
