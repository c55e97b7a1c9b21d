//! How a part and a transaction end.

use bunny_apply::bookkeeping;
use bunny_apply::event::{Body, Change};

use crate::stage::{KEYED, Stage, body, commit, keyed, some, version};

const CODES: &str = r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#;

fn insert(id: &str, code: &str) -> Body {
    body(&keyed(), Change::Insert(some(&[id, code, "1", "x"])))
}

fn update(id: &str, code: &str) -> Body {
    let after = some(&[id, code, "1", "x"]);
    body(&keyed(), Change::update(None, after, Vec::new()))
}

/// COMMIT is sent together with the progress. If that is refused, COMMIT has to be a rollback.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_batch_whose_progress_is_refused_is_rolled_back() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    let refuse = format!(
        "ALTER TABLE _bunny.progress ADD CONSTRAINT \"refuse {0}\" CHECK (mirror_id <> '{0}') NOT VALID",
        stage.mirror_id
    );
    stage.execute(&refuse).await;
    let part = stage.parts(vec![vec![insert("1", "a")]], 100).remove(0);
    let mut writer = stage.writer().await;
    writer.begin(part.first_offset).await.unwrap();
    writer.write(&part).await.unwrap();
    let refused = commit(&mut writer, &part).await.unwrap_err();
    assert!(refused.to_string().contains("progress"), "{refused}");
    drop(writer);

    assert!(stage.rows(CODES).await.is_empty());
    assert_eq!(stage.counts("keyed").await, (0, 0, 0));
    let progress = bookkeeping::progress(&*stage.session, stage.mirror_id).await;
    assert!(progress.unwrap().is_none());
    let allow = format!(
        "ALTER TABLE _bunny.progress DROP CONSTRAINT \"refuse {}\"",
        stage.mirror_id
    );
    stage.execute(&allow).await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn the_rows_of_every_table_are_counted() {
    let names: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    let ddl: String = names
        .iter()
        .map(|name| format!("CREATE TABLE {{s}}.{name} (id int PRIMARY KEY);"))
        .collect();
    let tables: Vec<(&str, &[&str])> = names.iter().map(|name| (&**name, &["id"][..])).collect();
    let mut stage = Stage::new(&ddl, &tables).await;
    let bodies = (1..).zip(&names).flat_map(|(n, name)| {
        let table = version(n, name, &[("id", true)]);
        let insert = move |id: u32| body(&table, Change::Insert(some(&[&id.to_string()])));
        (0..n).map(insert).collect::<Vec<Body>>()
    });
    let bodies: Vec<Body> = bodies.collect();
    stage.apply(vec![bodies], 1000).await.unwrap();
    for (n, name) in (1..).zip(&names) {
        assert_eq!(stage.counts(name).await, (n, 0, 0), "{name}");
    }
}

/// The second part of a transaction meets a table for the first time, and is refused: what was
/// made for the table stays, and so does the first part.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_part_that_is_refused_leaves_the_parts_before_it() {
    let ddl = format!("{KEYED} CREATE TABLE {{s}}.later (id int PRIMARY KEY, v text);");
    let mut stage = Stage::new(&ddl, &[("keyed", &["ID"]), ("later", &["id"])]).await;
    stage
        .execute("INSERT INTO {s}.later VALUES (1, 'before')")
        .await;
    let later = version(2, "later", &[("id", true), ("v", false)]);
    let transaction = vec![
        insert("1", "a"),
        insert("2", "b"),
        body(
            &later,
            Change::update(None, some(&["1", "after"]), Vec::new()),
        ),
        update("1", "between"),
        update("2", "a"),
        update("1", "b"),
    ];
    stage.apply(vec![transaction], 2).await.unwrap();
    assert_eq!(stage.rows(CODES).await, ["1|b", "2|a"]);
    assert_eq!(stage.rows("SELECT v FROM {s}.later").await, ["after"]);
    assert_eq!(stage.counts("keyed").await, (2, 3, 0));
}
