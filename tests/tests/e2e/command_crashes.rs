//! Commands whose workers die at each step: what was asked for comes about, once, and nothing of
//! what was given up is left. Deaths within a pause, a deletion, a replay, a swap, a schema sync
//! and another generation are in the suites of those.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::broker;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;
use serde_json::{Value, json};

use crate::crashes::{Scene, crash_in_turn, scene, scene_of};
use crate::lifecycle::{mappings, wait_status};

type Points<'a> = &'a [(&'static str, u32)];

const MIRROR: &str = "/v1/mirrors/mirror";
pub const TABLES: &str = "/v1/mirrors/mirror/tables";
pub const KEPT: [&str; 2] = ["public.accounts", "public.journal"];
pub const ADDED: [&str; 2] = ["public.documents", "public.measurements"];

/// Of a table that leaves while it is loaded beside itself (`table_list_points`).
pub const APPLY_LEAVING: [(&str, u32); 2] = [
    ("apply::tables_reconciled", 1),
    ("apply::beside_dropped", 1),
];

/// Changes are followed all the while; a swap may be wanted of a table that leaves.
const PHASES: [&str; 2] = ["CDC", "SWAP"];

/// On the way of tables that are added.
pub const CAPTURE_ADDING: [(&str, u32); 4] = [
    ("capture::wish_remembered", 1),
    ("capture::table_moved", 1),
    ("capture::sync_started", 1),
    ("capture::after_sync_finished", 1),
];
pub const APPLY_ADDING: [(&str, u32); 4] = [
    ("apply::wish_remembered", 1),
    ("apply::tables_reconciled", 1),
    ("apply::chunk_after_commit", 1),
    ("apply::tables_settled", 1),
];

/// A role begins to act, and nobody has been told.
pub const STARTED: [(&str, u32); 1] = [("catalog::role_started", 1)];

/// On the way of a checkpoint.
pub const CAPTURE_CHECKPOINT: [(&str, u32); 2] = [
    ("capture::after_sync_finished", 1),
    ("capture::checkpoint_copied", 1),
];

impl Scene {
    fn kill_workers(&mut self) {
        self.capture.kill9();
        self.apply.kill9();
    }

    pub fn restart_workers(&mut self) -> Result<()> {
        self.capture.restart()?;
        self.apply.restart()
    }

    /// Asks for something while no worker lives.
    pub async fn asks_nobody(&mut self, method: Method, path: &str, body: Value) -> Result<Value> {
        self.kill_workers();
        let path = format!("{MIRROR}{path}");
        self.api
            .request(method, &path, Some(body))
            .await?
            .expect(202)
    }

    /// Both workers die at each of their points, side by side. They are dead at the end.
    async fn workers_die(&mut self, capture: Points<'_>, apply: Points<'_>) -> Result<()> {
        let mirror = &self.mirror;
        tokio::try_join!(
            crash_in_turn(&mut self.capture, mirror, capture, false, &PHASES),
            crash_in_turn(&mut self.apply, mirror, apply, false, &PHASES),
        )?;
        Ok(())
    }

    /// The same, but each lives on after its last point: the other may have to wait for it.
    pub async fn workers_die_and_go_on(
        &mut self,
        capture: Points<'_>,
        apply: Points<'_>,
    ) -> Result<()> {
        let mirror = &self.mirror;
        tokio::try_join!(
            async {
                crash_in_turn(&mut self.capture, mirror, capture, false, &PHASES).await?;
                self.capture.restart()
            },
            async {
                crash_in_turn(&mut self.apply, mirror, apply, false, &PHASES).await?;
                self.apply.restart()
            },
        )?;
        Ok(())
    }

    pub async fn is_done(&self, accepted: &Value) -> Result<Value> {
        let command = self.ended(accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        Ok(command)
    }

    async fn is_open(&self, accepted: &Value) -> Result<()> {
        let id = accepted["command_id"].as_str().unwrap_or_default();
        let path = format!("{MIRROR}/commands/{id}");
        let command = self.api.get(&path).await?.expect(200)?;
        let is_open = command["state"] == "pending" || command["state"] == "running";
        ensure!(is_open, "told before it was so: {command}");
        Ok(())
    }

    /// The source publishes these tables and keeps one slot, the destination knows them and holds
    /// nothing beside them, no command is open, and there are the mirror's topics and no others.
    pub async fn assert_nothing_is_left_but(&self, tables: &[&str]) -> Result<()> {
        let mut wanted = tables.to_vec();
        wanted.sort_unstable();
        let wanted = wanted.join(",");
        let source = self.stage.source.connect().await?;
        let published = "SELECT string_agg(t, ',' ORDER BY t COLLATE \"C\")
             FROM (SELECT schemaname || '.' || tablename FROM pg_publication_tables) AS published (t)";
        becomes(&source, published, &wanted).await?;
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        becomes(&source, slots, "1").await?;
        let destination = self.stage.destination.connect().await?;
        let known = "SELECT string_agg(t, ',' ORDER BY t COLLATE \"C\")
             FROM (SELECT source_schema || '.' || source_table FROM _bunny.tables) AS known (t)";
        becomes(&destination, known, &wanted).await?;
        for (what, left) in [
            (
                "tables beside others",
                "pg_class WHERE relname LIKE '%bunny_resync%'",
            ),
            (
                "chunks",
                "_bunny.chunks WHERE (mirror_id, request_id) NOT IN (SELECT mirror_id, request_id FROM _bunny.tables)",
            ),
            (
                "shapes",
                "_bunny.shapes WHERE (mirror_id, source_table) NOT IN (SELECT mirror_id, source_table FROM _bunny.tables)",
            ),
            (
                "objects",
                "_bunny.objects WHERE (mirror_id, source_table) NOT IN (SELECT mirror_id, source_table FROM _bunny.tables)",
            ),
        ] {
            let left = destination
                .number(&format!("SELECT count(*) FROM {left}"))
                .await?;
            ensure!(left == 0, "{left} {what} are left at the destination");
        }
        let open = "SELECT count(*) FROM bunny.commands WHERE state IN ('pending', 'running')";
        assert_eq!(self.stage.catalog_text(open).await?, "0");
        let name = &self.stage.name;
        let topics = broker::topics(&self.stage.services.brokers, name).await?;
        let own = [
            "mirror.changes",
            "mirror.position",
            "mirror.snapshot",
            "schemas",
        ];
        assert_eq!(topics, own.map(|topic| format!("{name}.{topic}")));
        Ok(())
    }
}

/// Waits until a query gives this.
async fn becomes(session: &Session, sql: &str, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    loop {
        let found = session.text(sql).await?;
        if found == wanted {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{sql} stays {found}, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The tables, of which documents are written without their titles.
pub fn without_titles(tables: &[&str]) -> Value {
    let mut list = mappings(tables);
    for mapping in list["table_mappings"].as_array_mut().into_iter().flatten() {
        if mapping["source_table"] == "public.documents" {
            mapping["exclude_columns"] = json!(["title"]);
        }
    }
    list
}

pub fn pairs_without_titles(tables: &[&str]) -> Vec<TablePair> {
    let without = |table: &&str| match *table {
        "public.documents" => TablePair::same(table).without(&["title"]),
        _ => TablePair::same(table),
    };
    tables.iter().map(without).collect()
}

pub const TITLES: &str = "SELECT count(*) FROM documents WHERE title IS NOT NULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tables_outlives_the_death_of_everyone_who_acts_on_it() -> Result<()> {
    let mut scene = scene_of("list_kills", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    let all = [KEPT, ADDED].concat();
    let added = scene
        .asks_nobody(Method::PUT, "/tables", mappings(&all))
        .await?;
    scene
        .workers_die_and_go_on(&CAPTURE_ADDING, &APPLY_ADDING)
        .await?;
    scene.is_done(&added).await?;
    scene.assert_nothing_is_left_but(&all).await?;

    // One leaves while it is loaded beside itself, one is written without a column from now on.
    let point = "apply::table_loaded";
    scene.apply.restart_to_crash(point, 1)?;
    let swap = format!("{MIRROR}/resync/public.measurements");
    let swap = scene
        .api
        .post(&swap, json!({"strategy": "swap"}))
        .await?
        .expect(202)?;
    scene.apply.wait_crash_point(point, CONVERGE).await?;
    let beside =
        "SELECT count(*) FROM pg_class WHERE relname LIKE '%bunny_resync%' AND relkind = 'r'";
    assert_eq!(destination.number(beside).await?, 1);
    let fewer = [&KEPT[..], &["public.documents"]].concat();
    let changed = scene
        .asks_nobody(Method::PUT, "/tables", without_titles(&fewer))
        .await?;
    let capture = [
        ("capture::table_moved", 1),
        ("capture::before_sync_finished", 1),
    ];
    let apply = [
        ("apply::tables_reconciled", 1),
        ("apply::sync_started", 1),
        ("apply::tables_settled", 1),
    ];
    scene.workers_die_and_go_on(&capture, &apply).await?;
    scene.is_done(&changed).await?;
    scene.ended(&swap).await?;
    assert_eq!(destination.number(TITLES).await?, 0);
    scene.assert_nothing_is_left_but(&fewer).await?;

    // It is to come back, and not after all.
    destination.run("TRUNCATE measurements").await?;
    let all = without_titles(&all);
    let called_off = scene
        .asks_nobody(Method::PUT, "/tables", all.clone())
        .await?;
    scene
        .workers_die(
            &[("capture::table_moved", 1)],
            &[("apply::tables_reconciled", 1)],
        )
        .await?;
    let without = scene
        .asks_nobody(Method::PUT, "/tables", without_titles(&fewer))
        .await?;
    scene.restart_workers()?;
    scene.is_done(&without).await?;
    assert_eq!(scene.ended(&called_off).await?["state"], "failed");
    scene.assert_nothing_is_left_but(&fewer).await?;
    assert_eq!(
        destination
            .number("SELECT count(*) FROM measurements")
            .await?,
        0
    );
    let added = scene.api.put(TABLES, all).await?.expect(202)?;
    scene.is_done(&added).await?;
    scene
        .converge(&pairs_without_titles(&[KEPT, ADDED].concat()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn other_commands_outlive_the_death_of_everyone_who_acts_on_them() -> Result<()> {
    const COPY: &str = "SELECT concat_ws(' ', request_id, attempt) FROM _bunny.tables WHERE source_table = 'documents'";
    let mut scene = scene("command_kills", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("ALTER TABLE accounts ADD CONSTRAINT refused CHECK (owner <> 'new') NOT VALID")
        .await?;
    wait_status(&scene.mirror, "public.accounts", "ERRORED").await?;
    // Main goes on past what the table refuses: where it still stands there, the table would be
    // back without a row of it written.
    scene.load.advance(20).await;
    let source = scene.stage.source.connect().await?;
    scene
        .mirror
        .wait_for_lsn(source.current_lsn().await?)
        .await?;
    let copy = destination.text(COPY).await?;

    // Several at once, for both roles.
    let mut asked = Vec::new();
    for (method, path, body) in [
        (Method::PATCH, "", json!({"max_batch_size": 90})),
        (Method::POST, "/retry", json!({})),
    ] {
        asked.push(scene.asks_nobody(method, path, body).await?);
    }
    scene.workers_die(&STARTED, &STARTED).await?;
    for command in &asked {
        scene.is_open(command).await?;
    }
    // Until now no retry could bring it back.
    destination
        .run("ALTER TABLE accounts DROP CONSTRAINT refused")
        .await?;
    let retry = json!({"table_name": "public.accounts"});
    asked.push(scene.asks_nobody(Method::POST, "/retry", retry).await?);
    // Asked for only now: a capture that dies as it begins may have copied the table by then.
    let checkpoint = json!({"tables": ["public.documents"]});
    let path = "/checkpoint";
    asked.push(scene.asks_nobody(Method::POST, path, checkpoint).await?);
    let apply = [
        ("apply::tables_reconciled", 1),
        ("apply::catch_up_before_join", 1),
    ];
    scene
        .workers_die_and_go_on(&CAPTURE_CHECKPOINT, &apply)
        .await?;
    for command in &asked {
        scene.is_done(command).await?;
    }
    wait_status(&scene.mirror, "public.accounts", "LIVE").await?;
    assert_eq!(scene.mirror.get().await?["config"]["max_batch_size"], 90);
    assert_eq!(
        destination.text(COPY).await?,
        copy,
        "a checkpoint is no sync"
    );

    let paused = scene
        .api
        .post(&format!("{MIRROR}/pause"), json!({"scope": "all"}))
        .await?;
    scene.is_done(&paused.expect(202)?).await?;
    let resume = scene
        .asks_nobody(Method::POST, "/resume", json!({}))
        .await?;
    scene.workers_die(&STARTED, &STARTED).await?;
    scene.is_open(&resume).await?;
    scene
        .workers_die_and_go_on(
            &[("capture::publications_created", 1)],
            &[("apply::after_take_over", 1)],
        )
        .await?;
    let resumed = scene.is_done(&resume).await?;
    assert_eq!(
        resumed["steps"].as_array().map(Vec::len),
        Some(2),
        "{resumed}"
    );
    scene.mirror.wait_running().await?;
    scene
        .assert_nothing_is_left_but(&bunny_tests::load::TABLES)
        .await?;
    scene.settle().await
}
