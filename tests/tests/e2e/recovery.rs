//! What is left of a disaster: a catalog that is of yesterday or gone, a Kafka that is new and
//! empty. Nothing is applied twice (the load's journal has no key), nothing is missing, and no
//! schema id means two things.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bunny_tests::backup;
use bunny_tests::content::TablePair;
use bunny_tests::load;
use bunny_tests::stage::CONVERGE;
use bunny_tests::topic;
use serde_json::{Value, json};

use crate::crashes::{Scene, scene};
use crate::lifecycle::mappings;

const MIRROR: &str = "/v1/mirrors/mirror";
const TABLES: &str = "/v1/mirrors/mirror/tables";
const ADOPT: &str = "/v1/mirrors/mirror/adopt";
const RESYNC: &str = "/v1/mirrors/mirror/resync";
const GENERATION: &str = "SELECT string_agg(generation::text, ',') FROM bunny.mirrors";
/// What would change if a table were loaded again.
const COPIES: &str = "SELECT string_agg(concat_ws(' ', source_table, request_id, attempt, generation), ', ' ORDER BY source_table) FROM _bunny.tables";

/// Passed by an adoption: the log is read, then the destination.
pub const ADOPTION: [(&str, u32); 2] = [("capture::log_told", 1), ("apply::copies_found", 1)];

impl Scene {
    fn dump_file(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}.dump", self.stage.name))
    }

    fn kill_all(&mut self) {
        for process in [&mut self.capture, &mut self.apply, &mut self.api_process] {
            process.kill9();
        }
    }

    fn start_all_again(&mut self) -> Result<()> {
        for process in [&mut self.capture, &mut self.apply, &mut self.api_process] {
            process.restart()?;
        }
        Ok(())
    }

    async fn fails_saying(&self, words: &[&str]) -> Result<()> {
        let what = format!("FAILED {words:?}");
        self.mirror
            .wait_until(&what, CONVERGE, |mirror, _| {
                let said = mirror["error_message"].as_str().unwrap_or_default();
                mirror["status"] == "FAILED" && words.iter().all(|word| said.contains(word))
            })
            .await
    }

    async fn posts(&self, path: &str) -> Result<()> {
        let accepted = self.api.post(path, json!({})).await?.expect(202)?;
        let command = self.ended(&accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        self.mirror.wait_running().await
    }

    /// What is committed at the source by now is applied.
    async fn follows(&self) -> Result<()> {
        self.load.advance(20).await;
        let source = self.stage.source.connect().await?;
        self.mirror.wait_for_lsn(source.current_lsn().await?).await
    }

    /// A table has another version, whose schemas have ids that none had before.
    async fn follows_another_version(&self, change: &str) -> Result<()> {
        let (brokers, prefix) = (&self.stage.services.brokers, &self.stage.name);
        let before = topic::schema_ids(brokers, prefix).await?;
        let source = self.stage.source.connect().await?;
        load::run_beside(&source, change).await?;
        self.follows().await?;
        let after = topic::schema_ids(brokers, prefix).await?;
        ensure!(after > before, "no new id among {after}");
        Ok(())
    }

    async fn puts_tables(&self, tables: &[&str]) -> Result<()> {
        let accepted = self.api.put(TABLES, mappings(tables)).await?.expect(202)?;
        let command = self.ended(&accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        Ok(())
    }

    async fn slot(&self) -> Result<String> {
        let source = self.stage.source.connect().await?;
        source
            .text("SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = current_database() AND NOT temporary")
            .await
    }
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_of_yesterday_repeats_no_wish() -> Result<()> {
    let mut scene = scene("yesterday", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let file = scene.dump_file();
    backup::dump(&scene.stage.catalog, &file).await?;
    let destination = scene.stage.destination.connect().await?;
    // The catalog of then knows nothing of this version.
    let change =
        "ALTER TABLE accounts ADD COLUMN since text; UPDATE accounts SET since = 's' WHERE id < 9";
    scene.follows_another_version(change).await?;

    // Nothing that decides about tables was asked for since: it goes on, with workers that ran
    // all the while and hold leases the catalog does not know of.
    scene
        .api
        .post("/v1/mirrors/mirror/pause", json!({}))
        .await?
        .expect(202)?;
    scene
        .mirror
        .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    let copies = destination.text(COPIES).await?;
    backup::restore(&scene.stage.catalog, &file).await?;
    scene.follows().await?;
    assert_eq!(destination.text(COPIES).await?, copies);

    // A table leaves, and comes back with another copy: in between its rows are in no log. The
    // wish of yesterday would load the copy of before, and never learn of them.
    let others = ["public.accounts", "public.documents", "public.measurements"];
    scene.puts_tables(&others).await?;
    scene.load.advance(40).await;
    destination.run("DROP TABLE journal").await?;
    scene.puts_tables(&load::TABLES).await?;
    scene
        .posts("/v1/mirrors/mirror/resync/public.accounts")
        .await?;
    let copies = destination.text(COPIES).await?;
    let rows = destination.number("SELECT count(*) FROM journal").await?;
    scene.kill_all();
    backup::restore(&scene.stage.catalog, &file).await?;
    scene.start_all_again()?;
    scene.api = scene.stage.api().await?;
    scene
        .fails_saying(&["backup", "adopt", "resync the mirror"])
        .await?;
    // Nobody has acted on it, and what would only add to the confusion is refused.
    assert_eq!(destination.text(COPIES).await?, copies);
    assert!(destination.number("SELECT count(*) FROM journal").await? >= rows);
    let refused = scene
        .api
        .post(&format!("{RESYNC}/public.accounts"), json!({}))
        .await?;
    assert_eq!(refused.status, 409, "{}", refused.body);

    scene.posts(ADOPT).await?;
    scene
        .follows_another_version(
            "ALTER TABLE documents ADD COLUMN today text DEFAULT 'd'; UPDATE documents SET revision = 9 WHERE id = 3",
        )
        .await?;
    assert_eq!(destination.text(COPIES).await?, copies);
    // By contents only: the oracle of the topics knows no table that left in between.
    scene.converge(&load::pairs()).await
}

#[cfg(feature = "full")]
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_of_yesterday_never_begins_again() -> Result<()> {
    let mut scene = scene("old_generation", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    let destination = scene.stage.destination.connect().await?;
    // The backup is of the moment in which a generation has been asked for and not begun.
    scene.lose_slot(&source).await?;
    scene.fails_saying(&["slot is gone"]).await?;
    scene.capture.kill9();
    scene.api.post(RESYNC, json!({})).await?.expect(202)?;
    let file = scene.dump_file();
    backup::dump(&scene.stage.catalog, &file).await?;
    scene.capture.restart()?;
    scene.mirror.wait_running().await?;
    scene.lose_slot(&source).await?;
    scene.fails_saying(&["slot is gone"]).await?;
    scene.posts(RESYNC).await?;
    let generation = scene.stage.catalog_text(GENERATION).await?;
    let copies = destination.text(COPIES).await?;
    let slot = scene.slot().await?;

    // Workers run while the catalog becomes yesterday's.
    backup::restore(&scene.stage.catalog, &file).await?;
    scene
        .fails_saying(&["backup", "adopt", "resync the mirror"])
        .await?;
    assert_eq!(scene.slot().await?, slot);
    assert_eq!(destination.text(COPIES).await?, copies);
    scene.posts(ADOPT).await?;
    assert_eq!(scene.stage.catalog_text(GENERATION).await?, generation);
    assert_eq!(destination.text(COPIES).await?, copies);
    scene.follows().await?;

    // The other way back: everything anew.
    backup::restore(&scene.stage.catalog, &file).await?;
    scene
        .fails_saying(&["backup", "adopt", "resync the mirror"])
        .await?;
    scene.posts(RESYNC).await?;
    assert_ne!(scene.stage.catalog_text(GENERATION).await?, generation);
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_catalog_is_made_anew_from_what_is_left() -> Result<()> {
    let mut scene = scene("lost_catalog", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    scene
        .posts("/v1/mirrors/mirror/resync/public.documents")
        .await?;
    let change = "ALTER TABLE accounts ADD COLUMN before text; UPDATE accounts SET before = 'b' WHERE id < 9";
    scene.follows_another_version(change).await?;
    let destination = scene.stage.destination.connect().await?;
    let copies = destination.text(COPIES).await?;
    let generation = scene.stage.catalog_text(GENERATION).await?;
    scene.kill_all();
    backup::lose(&scene.stage.catalog).await?;
    scene.load.advance(30).await;
    scene.stage.migrate()?;
    scene.start_all_again()?;
    scene.api = scene.stage.api().await?;
    scene.mirror = scene.stage.mirror(&scene.api, "mirror");
    scene.stage.create_peers(&scene.api).await?;

    // As a new mirror it is refused, and taking it back leaves everything where it is.
    let create = |more: Value| {
        let mut body = mappings(&load::TABLES);
        body["name"] = json!("mirror");
        body["source_peer"] = json!("source");
        body["destination_peer"] = json!("destination");
        for (option, value) in more.as_object().into_iter().flatten() {
            body[option] = value.clone();
        }
        scene.api.post("/v1/mirrors", body)
    };
    let refused = create(json!({})).await?;
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert!(
        refused.body.to_string().contains("adopt"),
        "{}",
        refused.body
    );
    let slot = scene.slot().await?;
    create(json!({"on_existing_rows": "truncate"}))
        .await?
        .expect(201)?;
    scene.fails_saying(&["did not make", "adopt"]).await?;
    scene.api.delete(MIRROR).await?.expect(202)?;
    while scene.api.get(MIRROR).await?.status != 404 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(scene.slot().await?, slot);
    assert_eq!(destination.text(COPIES).await?, copies);

    // Both roles die before the catalog has all of it.
    let [(log_told, _), (copies_found, _)] = ADOPTION;
    scene.capture.restart_to_crash(log_told, 1)?;
    scene.apply.restart_to_crash(copies_found, 1)?;
    create(json!({"adopt": true})).await?.expect(201)?;
    for (process, point) in [
        (&mut scene.capture, log_told),
        (&mut scene.apply, copies_found),
    ] {
        process.wait_crash_point(point, CONVERGE).await?;
    }
    let open = "SELECT count(*) FROM bunny.commands WHERE kind = 'adopt' AND state IN ('pending', 'running')";
    assert_eq!(scene.stage.catalog_text(open).await?, "1");
    scene.capture.restart()?;
    scene.apply.restart()?;
    scene.mirror.wait_running().await?;
    scene.follows().await?;
    assert_eq!(destination.text(COPIES).await?, copies);
    assert_eq!(scene.stage.catalog_text(GENERATION).await?, generation);
    let change = "ALTER TABLE documents ADD COLUMN after text DEFAULT 'd'; UPDATE documents SET revision = 9 WHERE id = 3";
    scene.follows_another_version(change).await?;
    // It is a mirror like any other: a table is copied again, and it can be deleted.
    scene
        .posts("/v1/mirrors/mirror/resync/public.accounts")
        .await?;
    drop(destination);
    scene.settle().await
}

/// The query of docs/operations.md that tells what the mappings were.
fn query_for_mappings() -> Result<&'static str> {
    let page = include_str!("../../../docs/operations.md");
    let (before, _) = page
        .split_once("AS exclude_columns")
        .context("no query for exclude_columns")?;
    let start = before.rfind("```sql").context("no begin of the query")? + "```sql".len();
    let end = page[start..].find(';').context("no end of the query")?;
    Ok(&page[start..start + end])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_tells_which_columns_were_excluded() -> Result<()> {
    let mut scene = crate::scene::Scene::new("lost_mappings").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, secret text, kept text, twice int GENERATED ALWAYS AS (id * 2) STORED);
              CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t (id) VALUES (1)")
        .await?;
    let created = json!([
        {"source_table": "public.t", "destination_table": "public.t", "exclude_columns": ["secret"]},
        {"source_table": "public.u", "destination_table": "public.u"},
    ]);
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, "mirror", created, json!({}))
        .await?;
    mirror.wait_running().await?;
    // A column that comes while the mirror runs is followed, and not one that was excluded.
    scene
        .source
        .run("ALTER TABLE t ADD COLUMN later text; INSERT INTO t (id, later) VALUES (2, 'x')")
        .await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    let destination = scene.stage.destination.connect().await?;
    let rows = destination.query(query_for_mappings()?, &[]).await?;
    let mappings: Vec<Value> = rows
        .iter()
        .map(|row| {
            let text = |column: &str| row.get::<_, String>(column);
            json!({
                "source_table": format!("{}.{}", text("source_schema"), text("source_table")),
                "destination_table": format!("{}.{}", text("dest_schema"), text("dest_table")),
                "exclude_columns": row.get::<_, Vec<String>>("exclude_columns"),
            })
        })
        .collect();
    let excluded = mappings.iter().map(|mapping| &mapping["exclude_columns"]);
    assert_eq!(
        excluded.collect::<Vec<_>>(),
        [&json!(["secret"]), &json!([])]
    );
    let copies = destination.text(COPIES).await?;

    // With these it goes on: nothing is copied again, and the later column is followed on.
    scene.bunny.kill9();
    backup::lose(&scene.stage.catalog).await?;
    scene.stage.migrate()?;
    scene.bunny.restart()?;
    let api = scene.stage.api().await?;
    scene.stage.create_peers(&api).await?;
    let adopting = json!({"adopt": true});
    let mirror = scene
        .stage
        .create_mapped_mirror(&api, "mirror", json!(mappings), adopting)
        .await?;
    mirror.wait_running().await?;
    scene
        .source
        .run("INSERT INTO t (id, secret, later) VALUES (3, 'no', 'y')")
        .await?;
    let pairs = [
        TablePair::same("public.t").without(&["secret"]),
        TablePair::same("public.u"),
    ];
    scene.stage.assert_converges(&mirror, &pairs).await?;
    assert_eq!(destination.text(COPIES).await?, copies);
    Ok(())
}

#[cfg(feature = "full")]
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_and_empty_kafka_is_filled_by_a_resync() -> Result<()> {
    use bunny_tests::services::{Server, Services};

    use crate::crashes::scene_on;

    let (services, _alone) = Services::outage().await?;
    let scene = scene_on(services.clone(), "lost_kafka").await?;
    scene.mirror.wait_running().await?;
    // Ids are given in another order by the next Kafka: what processes know of them is void.
    let source = scene.stage.source.connect().await?;
    load::run_beside(
        &source,
        "ALTER TABLE accounts ADD COLUMN note text; ALTER TABLE documents ADD COLUMN note text",
    )
    .await?;
    scene.follows().await?;
    services.stop(Server::Kafka).await?;
    services.lose_kafka().await?;
    services.start_again(Server::Kafka).await?;
    scene.load.advance(30).await;
    scene.fails_saying(&["resync the mirror"]).await?;
    scene.posts(RESYNC).await?;
    scene.follows().await?;
    scene.settle().await
}
