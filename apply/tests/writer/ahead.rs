//! A batch prepared in one session while another writes the one before it.

use bunny_apply::event::{Before, Body, Change};
use bunny_apply::writer::Writer;
use bunny_apply::{Error, batch::Part};

use crate::stage::{KEYED, Stage, body, commit, keyed, old_key, row, some, version};

const SHOWN: &str = r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#;

fn update(id: &str, code: &str) -> Body {
    let after = some(&[id, code, "1", "x"]);
    body(&keyed(), Change::update(None, after, Vec::new()))
}

fn insert(id: &str, code: &str) -> Body {
    body(&keyed(), Change::Insert(some(&[id, code, "1", "x"])))
}

fn batch(stage: &mut Stage, bodies: Vec<Body>) -> Part {
    stage.parts(vec![bodies], 100).remove(0)
}

async fn write(writer: &mut Writer, part: &Part) -> Result<(), Error> {
    if !writer.is_open() {
        writer.begin(part.first_offset).await?;
    }
    writer.write(part).await?;
    commit(writer, part).await
}

/// A stage with the rows 1 to 3, and two sessions that know the table.
async fn two_writers() -> (Stage, Writer, Writer) {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    let (mut one, mut other) = (stage.writer().await, stage.writer().await);
    let rows = vec![insert("1", "a"), insert("2", "b"), insert("3", "c")];
    let first = batch(&mut stage, [rows, vec![update("1", "a")]].concat());
    write(&mut one, &first).await.unwrap();
    let second = batch(&mut stage, vec![update("2", "b")]);
    assert!(!other.prepare(&second).await.unwrap(), "it knows no table");
    write(&mut other, &second).await.unwrap();
    (stage, one, other)
}

/// Both batches are about the same rows; the second is only right on top of the first.
#[tokio::test]
#[ignore = "needs a server"]
async fn what_is_prepared_is_written_on_top_of_the_batch_before() {
    let (mut stage, mut one, mut other) = two_writers().await;
    let first = vec![
        insert("4", "d"),
        update("1", "e"),
        body(&keyed(), Change::Delete(old_key(2))),
    ];
    let first = batch(&mut stage, first);
    let second = vec![
        insert("2", "a"),
        body(&keyed(), Change::Delete(old_key(4))),
        update("1", "b"),
        update("3", "d"),
    ];
    let second = batch(&mut stage, second);
    one.begin(first.first_offset).await.unwrap();
    one.write(&first).await.unwrap();
    // It waits for nothing, although the rows of the first are locked.
    assert!(other.prepare(&second).await.unwrap());
    assert_eq!(stage.rows(SHOWN).await, ["1|a", "2|b", "3|c"]);
    commit(&mut one, &first).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["1|e", "3|c", "4|d"]);
    write(&mut other, &second).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["1|b", "2|a", "3|d"]);
    assert!(one.drifted().is_empty() && other.drifted().is_empty());
    assert_eq!(stage.counts("keyed").await, (5, 5, 2));
}

/// Two rows swap a unique value: only row by row can that be written.
#[tokio::test]
#[ignore = "needs a server"]
async fn what_is_refused_is_written_with_care() {
    let (mut stage, mut one, mut other) = two_writers().await;
    let first = batch(&mut stage, vec![update("1", "e")]);
    let second = vec![update("1", "between"), update("2", "e"), update("1", "b")];
    let second = batch(&mut stage, second);
    assert!(other.prepare(&second).await.unwrap());
    write(&mut one, &first).await.unwrap();
    write(&mut other, &second).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["1|b", "2|e", "3|c"]);
    let third = batch(&mut stage, vec![update("3", "f")]);
    assert!(other.prepare(&third).await.unwrap());
    write(&mut other, &third).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["1|b", "2|e", "3|f"]);
}

#[tokio::test]
#[ignore = "needs a server"]
async fn what_is_undone_leaves_nothing_and_can_be_written_anew() {
    let (mut stage, _one, mut other) = two_writers().await;
    let first = batch(&mut stage, vec![update("1", "e")]);
    assert!(other.prepare(&first).await.unwrap());
    other.undo_prepared().await.unwrap();
    assert!(!other.is_open());
    write(&mut other, &first).await.unwrap();
    let second = batch(&mut stage, vec![update("2", "f")]);
    assert!(other.prepare(&second).await.unwrap());
    write(&mut other, &second).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["1|e", "2|f", "3|c"]);
}

/// Prepared as the owner, written as a former one.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_former_owner_cannot_write_what_it_has_prepared() {
    let (mut stage, _one, mut other) = two_writers().await;
    let first = batch(&mut stage, vec![update("1", "e")]);
    assert!(other.prepare(&first).await.unwrap());
    // The owner's row is not locked by it, either.
    let raised =
        "SET lock_timeout = '1s'; UPDATE _bunny.owner SET epoch = epoch + 1 WHERE mirror_id = ";
    stage
        .execute(&format!("{raised}'{}'", stage.mirror_id))
        .await;
    let refused = other.write(&first).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    drop(other);
    assert_eq!(stage.rows(SHOWN).await, ["1|a", "2|b", "3|c"]);
}

#[tokio::test]
#[ignore = "needs a server"]
async fn another_batch_than_the_prepared_one_is_not_written() {
    let (mut stage, _one, mut other) = two_writers().await;
    let first = batch(&mut stage, vec![update("1", "e")]);
    let second = batch(&mut stage, vec![update("2", "f")]);
    assert!(other.prepare(&second).await.unwrap());
    let refused = other.write(&first).await.unwrap_err();
    assert!(matches!(refused, Error::Inconsistent(_)), "{refused}");
}

/// What is not rows of known tables, one version of each, is not prepared.
#[tokio::test]
#[ignore = "needs a server"]
async fn what_cannot_be_prepared_is_left_as_it_is() {
    let (mut stage, one, mut other) = two_writers().await;
    let truncate = Body::Truncate {
        tables: vec![keyed().source.clone()],
        restart_identity: false,
    };
    let columns = [
        ("ID", true),
        ("code", false),
        ("amount", false),
        ("big", false),
    ];
    let anew = version(2, "keyed", &columns);
    let of_anew = body(
        &anew,
        Change::update(None, some(&["1", "z", "1", "x"]), Vec::new()),
    );
    for bodies in [
        vec![update("1", "e"), truncate],
        vec![of_anew.clone()],
        vec![update("1", "e"), of_anew],
        vec![insert("7", "g")],
    ] {
        let part = batch(&mut stage, bodies);
        assert!(!other.prepare(&part).await.unwrap(), "{part:?}");
        assert!(!other.is_open());
    }
    let again = [(keyed().source.clone(), 1)];
    assert!(!one.is_outdated_by(&again));
    assert!(one.is_outdated_by(&[(keyed().source.clone(), 2)]));
    let unsent = Change::update(
        Some(Before::Key(row(&[Some("1"), None, None, None]))),
        some(&["9", "k", "1", "x"]),
        vec![false, false, false, true],
    );
    // A key that changes with columns unsent is written by itself, in the same transaction.
    let part = batch(&mut stage, vec![body(&keyed(), unsent)]);
    assert!(other.prepare(&part).await.unwrap());
    write(&mut other, &part).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, ["2|b", "3|c", "9|k"]);
}
