//! Commands that get in each other's way, and what they leave behind.

use bunny_catalog::{NewReplay, RESYNC, ResyncStrategy, SYNC_SCHEMA, SourceDefinitions};
use bunny_postgres::Lsn;
use uuid::Uuid;

use super::*;

fn definitions(generation: Uuid) -> SourceDefinitions {
    SourceDefinitions {
        generation,
        lsn: Lsn(2),
        published: (Lsn(1), 7),
        tables: json!([]),
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_schema_sync_keeps_copies_waiting_and_leaves_nothing() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let made = catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let wanted = definitions(made.generation);

    let command = catalog
        .request_sync_schema("m", None, "admin")
        .await
        .unwrap();
    let replay = NewReplay {
        named: None,
        tables: Vec::new(),
        strategy: ResyncStrategy::Truncate,
        until: None,
    };
    let truncate = ResyncStrategy::Truncate;
    for refused in [
        catalog.request_resync("m", None, truncate, "admin").await,
        catalog.request_replay("m", &replay, "admin").await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
        assert!(error.to_string().contains(SYNC_SCHEMA), "{error}");
    }

    assert!(
        catalog
            .hand_over_definitions(command, &wanted)
            .await
            .unwrap()
    );
    let kept = catalog.source_definitions(command).await.unwrap();
    assert_eq!(kept.as_ref(), Some(&wanted));
    catalog
        .fail_command(command, "the test says so")
        .await
        .unwrap();

    let next = catalog
        .request_sync_schema("m", None, "admin")
        .await
        .unwrap();
    assert!(catalog.hand_over_definitions(next, &wanted).await.unwrap());
    assert_eq!(catalog.source_definitions(command).await.unwrap(), None);
    assert!(catalog.source_definitions(next).await.unwrap().is_some());
    catalog
        .finish_sync_schema(next, "done", &json!({}))
        .await
        .unwrap();
    assert_eq!(catalog.source_definitions(next).await.unwrap(), None);

    let resync = catalog
        .request_resync("m", None, truncate, "admin")
        .await
        .unwrap();
    assert_eq!(catalog.get_command(resync).await.unwrap().kind, RESYNC);
    let refused = catalog.request_sync_schema("m", None, "admin").await;
    assert!(
        matches!(refused, Err(Error::Conflict { .. })),
        "{refused:?}"
    );
    database.drop().await;
}
