//! Who waits for the catalog may be gone at any moment: a request whose client has hung up, a task that is stopped.

use super::*;

/// Calls that are given up, each a little later than the one before: before, between and after its statements.
const CALLS: u32 = 200;
const LATER: Duration = Duration::from_micros(20);

#[tokio::test]
#[ignore = "needs a server"]
async fn a_call_that_is_given_up_leaves_no_transaction_open() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let mut beside = database.connect().await;
    for number in 0..CALLS {
        let mut call = Box::pin(catalog.delete_user("nobody", "somebody"));
        let began = Instant::now();
        while began.elapsed() < LATER * number {
            tokio::select! {
                biased;
                _ = &mut call => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(call);
        nobody_is_in_a_transaction(&mut beside, number).await;
    }
    database.drop().await;
}

/// What is on its way ends by itself; what the pool holds open would stay, with all that is done there from then on.
async fn nobody_is_in_a_transaction(beside: &mut PgConnection, number: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
        )
        .fetch_one(&mut *beside)
        .await
        .unwrap();
        if open == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "call {number}: {open} sessions of the pool are in a transaction that nobody ends"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
