//! The key that seals secrets: changed, and lost.

use super::*;

async fn audited(catalog: &Catalog, action: &str) -> Vec<String> {
    let (entries, _) = catalog.list_audit(100, 0).await.unwrap();
    let of_action = entries.into_iter().filter(|entry| entry.action == action);
    of_action.map(|entry| entry.subject).collect()
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_rotation_says_what_was_done_before() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    catalog.check_key().await.unwrap();
    let new = EncryptionKey::generate();
    let first = catalog.rotate_key(&new).await.unwrap();
    assert_eq!((first.sealed, first.before), (3, 0));
    let again = catalog.rotate_key(&new).await.unwrap();
    assert_eq!((again.sealed, again.before), (3, 3));
    assert_eq!(audited(&catalog, "rotate").await, ["encryption key"]);
    let same = database.open_with(new.clone()).rotate_key(&new).await;
    let refused = same.unwrap_err();
    assert!(refused.to_string().contains("present key"), "{refused}");
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn what_a_lost_key_sealed_is_given_up_and_given_again() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    catalog.check_key().await.unwrap();
    let signed_before = catalog.jwt_secret(None).await.unwrap();

    // Nothing is given up while the key is at hand.
    let new = EncryptionKey::generate();
    let refused = catalog.lose_key(&new).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    assert!(refused.to_string().contains("without --lost"), "{refused}");
    let kept = catalog.get_peer("source").await.unwrap();
    assert_eq!(kept.password.unwrap().expose_secret(), "hunter2");

    // Another key is refused, and says what can be done.
    let anew = database.open_with(new.clone());
    let refused = anew.check_key().await.unwrap_err();
    assert!(
        refused.to_string().contains("rotate-key --lost"),
        "{refused}"
    );
    for attempt in ["first", "again"] {
        let lost = anew.lose_key(&new).await.unwrap();
        assert_eq!(lost, ["destination", "source"], "{attempt}");
    }
    assert_eq!(
        audited(&anew, "give up password").await,
        ["source", "destination"]
    );
    anew.check_key().await.unwrap();
    assert!(catalog.check_key().await.is_err());
    let signs_now = anew.jwt_secret(None).await.unwrap();
    assert_ne!(signs_now.expose_secret(), signed_before.expose_secret());

    // Processes that still have the lost key read on, and seal nothing with it.
    for catalog in [&anew, &catalog] {
        let peers = catalog.list_peers().await.unwrap();
        let refused = peers[0].connect_options().unwrap_err();
        assert!(
            refused.to_string().contains("PUT /v1/peers/destination"),
            "{refused}"
        );
    }
    let refused = catalog.update_peer(&peer("source"), &[], "admin").await;
    assert!(
        matches!(refused, Err(Error::Conflict { .. })),
        "{refused:?}"
    );

    // A rotation leaves alone what is lost; what is given again is like any other.
    anew.update_peer(&peer("source"), &[], "admin")
        .await
        .unwrap();
    let third = EncryptionKey::generate();
    let rotated = anew.rotate_key(&third).await.unwrap();
    assert_eq!((rotated.sealed, rotated.before), (3, 0));
    let at_last = database.open_with(third.clone());
    let source = at_last.get_peer("source").await.unwrap();
    assert_eq!(source.password.unwrap().expose_secret(), "hunter2");
    assert_eq!(at_last.lose_key(&third).await.unwrap(), ["destination"]);
    database.drop().await;
}
