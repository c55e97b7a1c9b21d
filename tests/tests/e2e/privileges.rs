//! Rights taken away while a mirror runs: what lacks them says so with cause and cure, the rest goes
//! on, and once they are given again the contents are equal.

use anyhow::Result;
use bunny_tests::api::Api;
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::{Session, Url, quote};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

use crate::failures::{LIMIT, post, wait_table};
use crate::lifecycle::{ended, mappings};
use crate::table_failures::limited_peers;

/// Status and health of a mirror that lacks something.
type Shown = (&'static str, &'static str);

/// It comes back by itself.
const TRIED_AGAIN: Shown = ("RUNNING", "DEGRADED");
/// It waits for a retry.
const FAILED: Shown = ("FAILED", "DOWN");

const TABLES: &str = "/v1/mirrors/mirror/tables";

/// A mirror whose peers' users may do what it needs and no more.
struct Scene {
    capture: Bunny,
    // Ends before the stage takes its databases away.
    _others: [Bunny; 2],
    source: Session,
    destination: Session,
    at_source: String,
    at_destination: String,
    mirror: Mirror,
    api: Api,
    stage: Stage,
}

impl Scene {
    async fn new(test: &str, tables: &[&str]) -> Result<Scene> {
        let stage = Stage::new(test).await?;
        stage.migrate()?;
        let capture = stage.start(Role::Capture)?;
        let others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
        let api = stage.api().await?;
        let user = limited_peers(&stage, &api).await?;
        let at_source = format!("{user}_source");
        let source = stage.source.connect().await?;
        for table in tables {
            create(&source, table, &at_source).await?;
        }
        let mirror = stage
            .create_mirror(&api, "mirror", tables, json!({}))
            .await?;
        mirror.wait_running().await?;
        Ok(Scene {
            capture,
            _others: others,
            source,
            destination: stage.destination.connect().await?,
            at_source,
            at_destination: format!("{user}_destination"),
            mirror,
            api,
            stage,
        })
    }

    /// What is not concerned goes on, whatever else the mirror waits for.
    async fn goes_on(&self, value: &str) -> Result<()> {
        let update = format!("UPDATE good SET v = '{value}'");
        self.source.run(&update).await?;
        let lsn = self.source.current_lsn().await?;
        self.mirror
            .wait_until(&format!("applied {lsn}"), LIMIT, |_, metrics| {
                let applied = metrics["apply"]["applied_lsn"].as_str();
                let applied = applied.and_then(|text| text.parse::<Lsn>().ok());
                applied.is_some_and(|applied| applied >= lsn)
            })
            .await?;
        let good = TablePair::all(&["public.good"]);
        content::assert_same(&self.source, &self.destination, &good).await
    }

    async fn converges(&self, tables: &[&str]) -> Result<()> {
        let pairs = TablePair::all(tables);
        self.stage.assert_converges(&self.mirror, &pairs).await
    }

    async fn wait_well(&self) -> Result<()> {
        let is_well = |mirror: &Value| mirror["status"] == "RUNNING" && mirror["health"] == "OK";
        self.mirror
            .wait_until("well again", LIMIT, |mirror, _| is_well(mirror))
            .await
    }

    /// A right is taken and the user's sessions end; when the mirror has said `words` and is not
    /// well, the right is given back.
    async fn loses(
        &self,
        at: &Session,
        user: &str,
        right: &Right,
        words: &[&str],
        shown: Shown,
    ) -> Result<()> {
        let sessions = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{user}'"
        );
        at.run(&right.take).await?;
        at.number(&sessions).await?;
        self.source
            .run("UPDATE good SET v = v || '+'; DELETE FROM good WHERE id = (SELECT max(id) FROM good)")
            .await?;
        self.mirror
            .wait_until(&format!("{shown:?} {words:?}"), LIMIT, |mirror, _| {
                let error = mirror["error_message"].as_str().unwrap_or_default();
                mirror["status"] == shown.0
                    && mirror["health"] == shown.1
                    && words.iter().all(|word| error.contains(word))
            })
            .await?;
        at.run(&right.give).await?;
        if shown == FAILED {
            post(&self.api, "/v1/mirrors/mirror/retry", json!({})).await?;
        }
        self.wait_well().await?;
        self.converges(&["public.good"]).await
    }

    async fn resync(&self, table: &str, strategy: &str) -> Result<Value> {
        let path = format!("/v1/mirrors/mirror/resync/public.{table}");
        let strategy = json!({ "strategy": strategy });
        self.api.post(&path, strategy).await?.expect(202)
    }

    async fn retry(&self, table: &str) -> Result<()> {
        let table = json!({"table_name": format!("public.{table}")});
        post(&self.api, "/v1/mirrors/mirror/retry", table).await
    }

    async fn is_refused(&self, command: &Value, cause: &str) -> Result<()> {
        let refused = self.ended(command).await?;
        let error = refused["error"].as_str().unwrap_or_default();
        assert_eq!(refused["state"], "failed", "{refused}");
        assert!(error.contains(cause), "{refused}");
        Ok(())
    }

    async fn ended(&self, command: &Value) -> Result<Value> {
        ended(&self.api, &self.mirror, &self.stage, command).await
    }
}

async fn create(source: &Session, table: &str, owner: &str) -> Result<()> {
    source
        .run(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text); ALTER TABLE {table} OWNER TO \"{owner}\";
             INSERT INTO {table} SELECT g, 'v' FROM generate_series(1, 100) g;"
        ))
        .await
}

/// How a right is taken, and how it is given.
struct Right {
    take: String,
    give: String,
}

impl Right {
    /// What GRANT gives and REVOKE takes.
    fn granted(what: &str, user: &str) -> Right {
        Right {
            take: format!("REVOKE {what} FROM {user}"),
            give: format!("GRANT {what} TO {user}"),
        }
    }

    /// An attribute of a role, which NO takes.
    fn attribute(name: &str, user: &str) -> Right {
        Right {
            take: format!("ALTER ROLE \"{user}\" NO{name}"),
            give: format!("ALTER ROLE \"{user}\" {name}"),
        }
    }
}

/// Without these nobody gets in.
fn to_log_in(user: &str, url: &Url) -> [(Right, &'static str); 2] {
    let connect = format!("CONNECT ON DATABASE \"{}\"", url.database);
    [
        (Right::attribute("LOGIN", user), "not permitted to log in"),
        (Right::granted(&connect, "PUBLIC"), "CONNECT privilege"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_taken_at_the_source() -> Result<()> {
    let names = ["public.good", "public.closed"];
    let mut scene = Scene::new("rights_source", &names).await?;
    let user = scene.at_source.clone();
    let quoted = quote(&user);
    for (right, cause) in to_log_in(&user, &scene.stage.source) {
        let words = [user.as_str(), cause];
        scene
            .loses(&scene.source, &user, &right, &words, TRIED_AGAIN)
            .await?;
    }
    let right = Right::attribute("REPLICATION", &user);
    let words = ["42501", &right.give];
    scene
        .loses(&scene.source, &user, &right, &words, TRIED_AGAIN)
        .await?;

    // A table that may be read when it is asked for, and not when it is to be copied.
    create(&scene.source, "late", &user).await?;
    let right = Right::granted("SELECT ON late", &quoted);
    let all = [&names[..], &["public.late"]].concat();
    let with_late = mappings(&all);
    scene.source.run(&right.take).await?;
    let refused = scene.api.put(TABLES, with_late.clone()).await?;
    let refused = refused.expect(422)?.to_string();
    assert!(refused.contains("GRANT SELECT"), "{refused}");
    scene.source.run(&right.give).await?;
    scene.capture.kill9();
    let added = scene.api.put(TABLES, with_late).await?.expect(202)?;
    scene.source.run(&right.take).await?;
    scene.capture.restart()?;
    let words = ["permission denied", "retry the table"];
    wait_table(&scene.mirror, "public.late", "ERRORED", &words).await?;
    scene.goes_on("without late").await?;
    scene.source.run(&right.give).await?;
    scene.retry("late").await?;
    wait_table(&scene.mirror, "public.late", "LIVE", &[]).await?;
    scene.ended(&added).await?;
    scene.converges(&["public.late"]).await?;

    // Of a resync by swap, the rows that are there stay.
    let right = Right::granted("SELECT ON closed", &quoted);
    scene.source.run(&right.take).await?;
    let swap = scene.resync("closed", "swap").await?;
    scene
        .is_refused(&swap, "permission denied for table closed")
        .await?;
    scene.goes_on("without closed").await?;
    scene.converges(&["public.closed"]).await?;
    scene.source.run(&right.give).await?;
    let swap = scene.resync("closed", "swap").await?;
    assert_eq!(scene.ended(&swap).await?["state"], "done");

    scene.wait_well().await?;
    let pairs = TablePair::all(&all);
    scene.stage.assert_converges(&scene.mirror, &pairs).await?;
    scene
        .stage
        .assert_topics_hold(&scene.mirror, &pairs)
        .await?;
    Ok(())
}

/// Somebody else makes a table anew, which so is theirs: it waits, and the others do not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_somebody_else_is_not_published() -> Result<()> {
    let names = ["public.good", "public.made_anew"];
    let scene = Scene::new("rights_owner", &names).await?;
    let user = &scene.at_source;
    scene
        .source
        .run(&format!(
            "DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY, v text);
             INSERT INTO made_anew VALUES (1, 'anew'); GRANT SELECT ON made_anew TO \"{user}\""
        ))
        .await?;
    let words = ["another one than before"];
    wait_table(&scene.mirror, "public.made_anew", "ERRORED", &words).await?;
    let resync = scene.resync("made_anew", "truncate").await?;
    scene
        .mirror
        .wait_until("only its owner may publish it", LIMIT, |mirror, _| {
            let messages = mirror["messages"].to_string();
            ["public.made_anew", "must be owner", "OWNER TO"]
                .iter()
                .all(|word| messages.contains(word))
        })
        .await?;
    scene.goes_on("without made_anew").await?;
    scene
        .source
        .run(&format!("ALTER TABLE made_anew OWNER TO \"{user}\""))
        .await?;
    assert_eq!(scene.ended(&resync).await?["state"], "done");
    scene.source.run("UPDATE made_anew SET v = 'ours'").await?;
    scene.wait_well().await?;
    scene.converges(&names).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_taken_at_the_destination() -> Result<()> {
    let names = ["public.good", "public.kept", "public.emptied"];
    let scene = Scene::new("rights_dest", &names).await?;
    let user = scene.at_destination.clone();
    let quoted = quote(&user);
    for (right, cause) in to_log_in(&user, &scene.stage.destination) {
        let words = [user.as_str(), cause];
        scene
            .loses(&scene.destination, &user, &right, &words, FAILED)
            .await?;
    }

    // What fires there has to be kept from it.
    scene
        .destination
        .run(
            "CREATE FUNCTION noticed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''fired''; END';
             CREATE TRIGGER notice AFTER UPDATE ON good FOR EACH ROW EXECUTE FUNCTION noticed();",
        )
        .await?;
    let parameter = "SET ON PARAMETER session_replication_role";
    let right = Right::granted(parameter, &quoted);
    let words = ["GRANT SET ON PARAMETER", "good"];
    scene
        .loses(&scene.destination, &user, &right, &words, FAILED)
        .await?;

    // A resync that may not empty the table.
    let right = Right::granted("TRUNCATE, DELETE ON emptied", &quoted);
    scene.destination.run(&right.take).await?;
    let resync = scene.resync("emptied", "truncate").await?;
    let words = ["permission denied", "retry"];
    wait_table(&scene.mirror, "public.emptied", "ERRORED", &words).await?;
    scene.goes_on("without emptied").await?;
    scene.destination.run(&right.give).await?;
    scene.retry("emptied").await?;
    wait_table(&scene.mirror, "public.emptied", "LIVE", &[]).await?;
    scene.ended(&resync).await?;

    // And one that may make nothing beside it: the table stays as it is.
    let right = Right::granted("CREATE ON SCHEMA public", &quoted);
    scene.destination.run(&right.take).await?;
    let swap = scene.resync("kept", "swap").await?;
    scene
        .is_refused(&swap, "permission denied for schema public")
        .await?;
    scene.goes_on("beside kept").await?;
    scene.destination.run(&right.give).await?;
    let swap = scene.resync("kept", "swap").await?;
    assert_eq!(scene.ended(&swap).await?["state"], "done");
    scene.wait_well().await?;
    scene.converges(&names).await?;
    let pairs = TablePair::all(&names);
    scene
        .stage
        .assert_topics_hold(&scene.mirror, &pairs)
        .await?;
    Ok(())
}
