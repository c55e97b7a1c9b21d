//! Up to where the log of several mirrors may be trimmed, and who can still be attached to it.

use std::collections::HashSet;

use bunny_catalog::{Attach, InitialCopy};
use uuid::Uuid;

use super::*;

/// A catalog with the mirror "owner", and the mirror.
async fn with_owner(database: &Database) -> (Catalog, Mirror) {
    let catalog = database.migrated().await;
    let owner = catalog.create_mirror(&mirror("owner", "owner")).await;
    (catalog, owner.unwrap())
}

/// A mirror that is to be loaded with a copy whose changes begin at `from`, or with a new one.
fn attached(owner: &Mirror, name: &str, from: Option<i64>) -> NewMirror {
    let seen = owner.tables[0].request_id;
    let copy = InitialCopy {
        seen,
        request_id: seen.filter(|_| from.is_some()),
        changes_offset: from,
    };
    NewMirror {
        attach: Some(Attach {
            owner: owner.name.clone(),
            generation: owner.generation,
            copies: vec![copy],
        }),
        ..mirror(name, name)
    }
}

/// Waits until so many sessions of the database wait for a lock, or `ended`.
async fn waiting_for_locks(database: &Database, sessions: i64, ended: impl Fn() -> bool) {
    let mut watching = database.connect().await;
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut watching)
        .await
        .unwrap();
        if waiting >= sessions || ended() {
            return;
        }
        assert!(Instant::now() < deadline, "{waiting} wait for a lock");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_log_is_trimmed_of_what_nobody_needs() {
    let database = Database::new().await;
    let (catalog, owner) = with_owner(&database).await;
    let generation = owner.generation;
    let grant = async |wanted| {
        let granted = catalog.grant_trim(owner.id, generation, wanted);
        granted.await.unwrap()
    };
    let floor_of = async |id| catalog.needs_log_from(id, generation).await.unwrap();
    assert_eq!(
        (grant(100).await.floor, floor_of(owner.id).await),
        (100, 100)
    );

    // What may have been trimmed is not to be had any more, though it may still be there.
    let late = attached(&owner, "late", Some(99));
    let error = catalog.create_mirror(&late).await.unwrap_err();
    assert!(error.to_string().contains("being trimmed"), "{error}");
    assert!(catalog.get_mirror("late").await.is_err());
    let second = attached(&owner, "second", Some(100));
    let second = catalog.create_mirror(&second).await.unwrap();
    let held = grant(500).await;
    assert_eq!((held.floor, held.held_by.as_deref()), (100, Some("second")));

    // It moves on; a worker that was frozen takes nothing back of what was granted since.
    let need = async |id, floor| {
        let needs = catalog.need_log_from(id, generation, floor, true);
        needs.await.unwrap();
    };
    need(second.id, 300).await;
    assert_eq!(grant(500).await.floor, 300);
    need(second.id, 200).await;
    assert_eq!(
        (grant(500).await.floor, floor_of(owner.id).await),
        (200, 300)
    );
    let late = attached(&owner, "late", Some(250));
    let error = catalog.create_mirror(&late).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    need(second.id, 400).await;

    // What comes yet begins further on, but nobody knows where.
    let third = attached(&owner, "third", None);
    let third = catalog.create_mirror(&third).await.unwrap();
    assert_eq!(floor_of(third.id).await, 300);
    let held = grant(500).await;
    assert_eq!((held.floor, held.held_by.as_deref()), (300, Some("third")));
    need(third.id, 450).await;
    assert_eq!(grant(500).await.floor, 400);

    // Another history says nothing of this one, whoever speaks of it.
    let other = Uuid::from_u128(1);
    let needs = catalog.need_log_from(second.id, other, 9000, true);
    needs.await.unwrap();
    assert_eq!(catalog.needs_log_from(second.id, other).await.unwrap(), 0);
    let granted = catalog.grant_trim(owner.id, other, 9000).await.unwrap();
    assert_eq!((granted.floor, granted.chunks_known), (0, false));
    assert_eq!(grant(500).await.floor, 400);

    // Who leaves needs nothing.
    let deletion = catalog.request_delete("second", false, false, "admin");
    deletion.await.unwrap();
    assert_eq!(grant(500).await.floor, 450);
    database.drop().await;
}

/// A grant that has read what is needed and has not written what it permits.
#[tokio::test]
#[ignore = "needs a server"]
async fn who_attaches_during_a_grant_sees_it() {
    let database = Database::new().await;
    let (catalog, owner) = with_owner(&database).await;
    let mut holding = database.connect().await;
    let lock = "BEGIN; SELECT FROM bunny.log_needs FOR UPDATE";
    holding.execute(lock).await.unwrap();
    let (trims, id, generation) = (catalog.clone(), owner.id, owner.generation);
    let granting = tokio::spawn(async move { trims.grant_trim(id, generation, 100).await });
    waiting_for_locks(&database, 1, || false).await;
    let (attaches, second) = (catalog.clone(), attached(&owner, "second", Some(50)));
    let attaching = tokio::spawn(async move { attaches.create_mirror(&second).await });
    waiting_for_locks(&database, 2, || attaching.is_finished()).await;
    holding.execute("COMMIT").await.unwrap();
    let granted = granting.await.unwrap().unwrap();
    assert_eq!((granted.floor, granted.held_by), (100, None));
    let error = attaching
        .await
        .unwrap()
        .expect_err("what it needs may be gone");
    assert!(error.to_string().contains("being trimmed"), "{error}");
    database.drop().await;
}

/// An attach that has read what may be trimmed and has not written what it needs.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_grant_during_an_attach_sees_who_comes() {
    let database = Database::new().await;
    let (catalog, owner) = with_owner(&database).await;
    let mut holding = database.connect().await;
    let lock = "BEGIN; LOCK TABLE bunny.mirror_tables IN SHARE MODE";
    holding.execute(lock).await.unwrap();
    let (attaches, second) = (catalog.clone(), attached(&owner, "second", Some(50)));
    let attaching = tokio::spawn(async move { attaches.create_mirror(&second).await });
    waiting_for_locks(&database, 1, || false).await;
    let (trims, id, generation) = (catalog.clone(), owner.id, owner.generation);
    let granting = tokio::spawn(async move { trims.grant_trim(id, generation, 100).await });
    waiting_for_locks(&database, 2, || granting.is_finished()).await;
    holding.execute("COMMIT").await.unwrap();
    let second = attaching
        .await
        .unwrap()
        .expect("nothing was permitted before");
    let granted = granting.await.unwrap().unwrap();
    assert_eq!(
        (granted.floor, granted.held_by.as_deref()),
        (50, Some("second"))
    );
    let needs = catalog.needs_log_from(second.id, owner.generation);
    assert_eq!(needs.await.unwrap(), 50);
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn the_copies_that_a_log_is_kept_for_are_all_known() {
    let database = Database::new().await;
    let (catalog, owner) = with_owner(&database).await;
    let of_tables = |mirror: &Mirror| -> HashSet<Uuid> {
        let tables = mirror.tables.iter();
        let named =
            tables.flat_map(|table| [table.request_id, table.since_request, table.checkpoint_id]);
        named.flatten().collect()
    };
    let first = of_tables(&owner);
    assert_eq!(catalog.syncs_named(owner.id).await.unwrap(), first);

    let asked = catalog.request_checkpoint("owner", None, "admin").await;
    asked.unwrap();
    let second = attached(&owner, "second", None);
    let second = catalog.create_mirror(&second).await.unwrap();
    let owner = catalog.get_mirror("owner").await.unwrap();
    let all: HashSet<Uuid> = of_tables(&owner)
        .union(&of_tables(&second))
        .copied()
        .collect();
    assert!(
        all.is_superset(&first) && all.len() > first.len() + 1,
        "{all:?}"
    );
    assert_eq!(catalog.syncs_named(owner.id).await.unwrap(), all);
    let others = catalog.syncs_named(Uuid::new_v4()).await.unwrap();
    assert!(others.is_empty());
}
