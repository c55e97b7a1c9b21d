//! What log and destination remember and the catalog does not know, and how it is taken over.

use bunny_catalog::{AdoptedTable, FoundLog};
use uuid::Uuid;

use super::*;

/// A catalog with the mirror "m", whose generation has begun.
async fn with_mirror(database: &Database) -> (Catalog, Mirror) {
    let catalog = database.migrated().await;
    let created = catalog.create_mirror(&mirror("m", "one")).await.unwrap();
    catalog
        .set_generation_ready(created.id, created.generation)
        .await
        .unwrap();
    (catalog, created)
}

#[tokio::test]
#[ignore = "needs a server"]
async fn an_unknown_wish_is_passed_over_only_by_a_decision() {
    let database = Database::new().await;
    let (catalog, m) = with_mirror(&database).await;
    let created = catalog.last_wish(m.id).await.unwrap().unwrap();
    assert!(catalog.knows_wish(m.id, created).await.unwrap());
    let error = catalog.request_adopt("m", "admin").await.unwrap_err();
    assert!(error.to_string().contains("nothing to adopt"), "{error}");

    let unknown = Uuid::from_u128(1);
    assert!(!catalog.knows_wish(m.id, unknown).await.unwrap());
    assert!(!catalog.knows_wish(m.id, unknown).await.unwrap());
    // A pause decides nothing about it.
    let scope = bunny_catalog::PauseScope::Apply;
    catalog.request_pause("m", scope, "admin").await.unwrap();
    assert!(!catalog.knows_wish(m.id, unknown).await.unwrap());

    let adopt = catalog.request_adopt("m", "admin").await.unwrap();
    assert_eq!(adopt, catalog.request_adopt("m", "admin").await.unwrap());
    assert!(!catalog.knows_wish(m.id, unknown).await.unwrap());
    let found = FoundLog {
        generation: Uuid::from_u128(2),
        wish: Some(unknown),
    };
    catalog.adopt_log(adopt, found).await.unwrap();
    let command = catalog.get_command(adopt).await.unwrap();
    assert_eq!(FoundLog::of(&command), Some(found));
    let table = AdoptedTable {
        source: m.tables[0].source.clone(),
        request_id: Some(Uuid::from_u128(3)),
        retry_id: None,
    };
    let here = Uuid::from_u128(4);
    let tables = [table];
    for _ in 0..2 {
        catalog
            .finish_adopt(m.id, &command, found, &tables, &[unknown, here, here], None)
            .await
            .unwrap();
    }
    let adopted = catalog.get_mirror("m").await.unwrap();
    assert!(adopted.generation_ready && adopted.generation == found.generation);
    assert_eq!(adopted.tables[0].request_id, tables[0].request_id);
    assert_eq!(adopted.tables[0].since_request, tables[0].request_id);
    assert_eq!(catalog.last_wish(m.id).await.unwrap(), Some(adopt));
    for wish in [unknown, here] {
        assert!(catalog.knows_wish(m.id, wish).await.unwrap());
    }

    // Whoever deletes it in spite of what was said decides, too.
    let other = Uuid::from_u128(5);
    assert!(!catalog.knows_wish(m.id, other).await.unwrap());
    for (force, unknown) in [(false, other), (true, Uuid::from_u128(6))] {
        assert!(!catalog.knows_wish(m.id, unknown).await.unwrap());
        let deletion = catalog.request_delete("m", false, force, "admin");
        deletion.await.unwrap();
        assert!(catalog.knows_wish(m.id, unknown).await.unwrap());
    }
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_lease_rises_above_what_a_restored_catalog_forgot() {
    let database = Database::new().await;
    let (catalog, m) = with_mirror(&database).await;
    let lease = catalog
        .acquire_lease(m.id, Role::Capture, "one", TTL)
        .await
        .unwrap()
        .unwrap();
    let raise = |epoch, seen| catalog.raise_lease_above(m.id, Role::Capture, epoch, seen);
    // Not for a holder that has lost it.
    assert!(!raise(lease.epoch - 1, 7).await.unwrap());
    assert!(raise(lease.epoch, 7).await.unwrap());
    let ours = catalog
        .renew_leases(Role::Capture, "one", TTL, Uuid::new_v4())
        .await
        .unwrap();
    assert_eq!(ours.len(), 1);
    assert_eq!((ours[0].mirror_id, ours[0].epoch), (m.id, 8));
    database.drop().await;
}
