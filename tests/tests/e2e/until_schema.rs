//! Moments on both sides of schema changes, at a mirror and at one that is attached to it.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::{Session, Url};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::fan_out::wait_number;
use crate::lifecycle::{ended, wait_status};

const TABLES: [&str; 2] = ["public.t", "public.u"];

const CREATE: &str = "
    CREATE TABLE t (id int PRIMARY KEY, named text, dropped text, counted int, at timestamp);
    CREATE TABLE u (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT g, 'n' || g, 'd' || g, g, timestamp '2026-01-01' + g * interval '1 hour'
        FROM generate_series(1, 1500) g;
    INSERT INTO u SELECT g, 'first' FROM generate_series(1, 300) g;";

/// After each of these is a moment to go back to; each leaves rows that no event of the new
/// version has touched.
const STEPS: [&str; 5] = [
    "UPDATE t SET named = 'one' WHERE id % 3 = 0; DELETE FROM u WHERE id < 50",
    "ALTER TABLE t ADD COLUMN added text DEFAULT 'filled'; UPDATE t SET added = 'set' WHERE id < 40;
     INSERT INTO t VALUES (2000, 'new', 'd', 1, now(), 'a')",
    "ALTER TABLE t DROP COLUMN dropped; DELETE FROM t WHERE id % 7 = 0; UPDATE u SET v = 'two'",
    "ALTER TABLE t ALTER COLUMN counted TYPE bigint, ALTER COLUMN at TYPE date;
     INSERT INTO t VALUES (2001, 'wide', 12345678901, now(), 'b')",
    "ALTER TABLE t RENAME COLUMN named TO renamed; UPDATE t SET renamed = 'three' WHERE id % 11 = 0; TRUNCATE u",
];
/// On the way of a replay: with rows of a copy of another version, on the way through the changes, and
/// where it is to end.
const DEATHS: [&str; 3] = [
    "apply::chunk_before_commit",
    "apply::catch_up_before_commit",
    "apply::replay_stands",
];
/// No event says anything of these rows.
const UNSEEN: &str = "ALTER TABLE t ALTER COLUMN renamed TYPE text USING upper(renamed)";

/// A table as everybody sees it: columns with their types, and rows. A type that takes every value
/// of a former one stays when the former is gone back to.
async fn table(session: &Session, name: &str) -> Result<[String; 2]> {
    let columns = format!(
        "SELECT string_agg(attname || ' ' || CASE attname WHEN 'counted' THEN 'any' ELSE atttypid::regtype::text END,
             ',' ORDER BY attname)
         FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attnum > 0 AND NOT attisdropped"
    );
    let columns = session.text(&columns).await?;
    let names = columns
        .split(',')
        .filter_map(|column| column.split(' ').next());
    let names: Vec<String> = names.map(str::to_owned).collect();
    let rows = content::fingerprint(session, name, &names).await?;
    Ok([columns, rows])
}

async fn tables(session: &Session) -> Result<[[String; 2]; 2]> {
    Ok([table(session, "t").await?, table(session, "u").await?])
}

struct Moment {
    lsn: Lsn,
    time: String,
    tables: [[String; 2]; 2],
}

impl Moment {
    async fn of(source: &Session) -> Result<Moment> {
        let clock = r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
        Ok(Moment {
            lsn: source.current_lsn().await?,
            time: source.text(clock).await?,
            tables: tables(source).await?,
        })
    }

    fn by_lsn(&self) -> Value {
        json!({"until": {"lsn": self.lsn.to_string()}})
    }

    fn by_time(&self) -> Value {
        json!({"until": {"timestamp": self.time}})
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moments_on_both_sides_of_schema_changes() -> Result<()> {
    let stage = Stage::new("until_schema").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source.run(CREATE).await?;
    let options = json!({
        "snapshot_num_rows_per_partition": 300, "max_batch_size": 50, "schema_changes": "all",
    });
    let owner = stage
        .create_mirror(&api, "mirror", &TABLES, options)
        .await?;
    owner.wait_running().await?;
    let url = stage.another_destination(&api, "second").await?;
    let mapping = |table: &str| json!({"source_table": table, "destination_table": table});
    let body = json!({
        "name": "second", "source_mirror": "mirror", "destination_peer": "second",
        "schema_changes": "all", "max_batch_size": 50, "table_mappings": TABLES.map(mapping),
    });
    api.post("/v1/mirrors", body).await?.expect(201)?;
    let attached = stage.mirror(&api, "second");
    attached.wait_running().await?;

    let mut moments = Vec::new();
    for step in STEPS {
        source.run(step).await?;
        let moment = Moment::of(&source).await?;
        // Capture is to see each version as it was.
        owner.wait_for_lsn(moment.lsn).await?;
        attached.wait_for_lsn(moment.lsn).await?;
        moments.push(moment);
    }
    source.run(UNSEEN).await?;
    source
        .run("UPDATE t SET added = 'last' WHERE id < 9; INSERT INTO u VALUES (1, 'last')")
        .await?;
    let pairs = TablePair::all(&TABLES);
    let both = [(&owner, &stage.destination), (&attached, &url)];
    for (mirror, at) in both {
        // While it is loaded it is empty.
        let unseen =
            "SELECT count(*) FILTER (WHERE renamed <> upper(renamed)) + (count(*) = 0)::int FROM t";
        wait_number(&at.connect().await?, unseen, |rows| rows == 0).await?;
        stage.assert_converges_at(mirror, at, &pairs).await?;
    }

    // Earlier and later ones in turn, the two at different moments at the same time, and apply dies on
    // the way to each.
    let by_lsn = |at: usize| (at, moments[at].by_lsn());
    let by_time = |at: usize| (at, moments[at].by_time());
    for (point, wanted) in DEATHS.into_iter().zip([
        [by_lsn(0), by_time(3)],
        [by_time(4), by_lsn(1)],
        [by_lsn(2), by_time(0)],
    ]) {
        apply.restart_to_crash(point, 1)?;
        let mut commands = Vec::new();
        for ((mirror, _), (_, body)) in both.iter().zip(&wanted) {
            let path = format!("/v1/mirrors/{}/replay", mirror.name);
            let accepted = api.post(&path, body.clone()).await?.expect(202)?;
            // What no event carries came after every moment, or before: nobody knows, so it is said.
            let said = accepted["message"].as_str().unwrap_or_default();
            ensure!(
                said.contains("Table public.t is as it was before a change that no event carries"),
                "{said}"
            );
            ensure!(!said.contains("Table public.u"), "{said}");
            commands.push(accepted);
        }
        apply.wait_crash_point(point, CONVERGE).await?;
        apply.restart()?;
        for (index, (mirror, at)) in both.iter().enumerate() {
            let command = ended(&api, mirror, &stage, &commands[index]).await?;
            assert_eq!(command["state"], "done", "{command}");
            let (moment, _) = wanted[index];
            stands_at(mirror, at, &moments[moment])
                .await
                .with_context(|| format!("{} at moment {moment}", mirror.name))?;
        }
    }
    for (mirror, at) in both {
        let resume = format!("/v1/mirrors/{}/resume", mirror.name);
        api.post(&resume, json!({})).await?.expect(202)?;
        for table in TABLES {
            wait_status(mirror, table, "LIVE").await?;
        }
        stage.assert_converges_at(mirror, at, &pairs).await?;
    }
    Ok(())
}

/// The mirror is paused, and its destination as the source was.
async fn stands_at(mirror: &Mirror, destination: &Url, moment: &Moment) -> Result<()> {
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    mirror.wait_until("PAUSED", CONVERGE, paused).await?;
    let found = tables(&destination.connect().await?).await?;
    ensure!(found == moment.tables, "{found:?}, not {:?}", moment.tables);
    Ok(())
}
