//! What the catalog forgets, and what it must not.

use super::*;

/// Ended commands of a mirror, `count` of them, so many days old.
fn ended(mirror: &str, kind: &str, args: &str, count: u32, days: u32) -> String {
    format!(
        "INSERT INTO bunny.commands (id, mirror_id, mirror_name, kind, args, state, requested_by, created_at, finished_at)
         SELECT gen_random_uuid(), {mirror}, 'm', '{kind}', {args}, 'done', 'admin', at, at
         FROM (SELECT clock_timestamp() - interval '{days} days' + g * interval '1 ms' AS at
               FROM generate_series(1, {count}) g) AS times;"
    )
}

async fn count(database: &Database, what: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {what}");
    let mut connection = database.connect().await;
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
#[ignore = "needs a server"]
async fn only_what_nobody_asks_for_is_forgotten() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let made = catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let wish = catalog.last_wish(made.id).await.unwrap().unwrap();
    let request = made.tables[0].request_id.unwrap();
    let mirror = "(SELECT id FROM bunny.mirrors)";
    let named = format!(
        "jsonb_build_object('awaited', jsonb_build_array(jsonb_build_object('table', 'x', 'request_id', '{request}')))"
    );
    let other = "jsonb_build_object('awaited', jsonb_build_array(jsonb_build_object('table', 'x', 'request_id', gen_random_uuid())))";
    let mut sql = String::from(
        "UPDATE bunny.commands SET created_at = created_at - interval '900 days', finished_at = created_at, state = 'done';",
    );
    for (kind, args, number, days) in [
        // Of these nothing is asked for any more,
        ("resync", other, 1500, 300),
        ("pause", "'{}'", 1500, 200),
        // but of these: the sync of a mapping, tables that were taken out, the last of a kind,
        // and what a destination that is restored may remember.
        ("resync", &named, 1, 400),
        ("tables", "'{\"removed\": [\"public.gone\"]}'", 3, 500),
        ("tables", "'{\"removed\": [\"public.other\"]}'", 3, 450),
        ("adopt", "'{}'", 2, 800),
        ("replay", other, 7, 80),
        ("checkpoint", other, 1500, 300),
        ("checkpoint", &named, 1, 400),
        ("checkpoint", other, 5, 80),
        ("resume", "'{}'", 1000, 50),
    ] {
        sql += &ended(mirror, kind, args, number, days);
    }
    sql += &ended("gen_random_uuid()", "delete", "'{}'", 10_100, 1);
    sql += "UPDATE bunny.commands SET state = 'pending', finished_at = NULL
            WHERE id IN (SELECT id FROM bunny.commands WHERE kind = 'pause' ORDER BY created_at LIMIT 2);
            INSERT INTO bunny.logs (mirror_id, level, message) SELECT id, 'info', g::text FROM bunny.mirrors, generate_series(1, 22000) g;
            INSERT INTO bunny.audit (username, action, subject, created_at)
            SELECT 'admin', 'create user', g::text, clock_timestamp() - g * interval '1 day' FROM generate_series(1, 40) g;";
    let mut connection = database.connect().await;
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    let audit = count(&database, "bunny.audit").await;

    let swept = catalog.sweep(30).await.unwrap();
    assert_eq!(swept.audit, 11, "days 30 to 40");
    assert_eq!(count(&database, "bunny.audit").await, audit - 11);
    assert_eq!(count(&database, "bunny.logs").await, 10_000);
    let newest = "bunny.logs WHERE message::int <= 12000";
    assert_eq!(count(&database, newest).await, 0, "the newest stay");
    let of = |kind: &str| format!("bunny.commands WHERE kind = '{kind}'");
    for (kind, left) in [
        ("create", 1),
        ("resync", 2), // of a mapping, and the last
        ("pause", 3),  // two open ones, and the last
        ("tables", 2), // of each table the last
        ("adopt", 1),
        ("replay", 7),
        ("checkpoint", 6), // of a mapping, and those of late
        ("resume", 1000),
        ("delete", 10_000),
    ] {
        assert_eq!(count(&database, &of(kind)).await, left, "{kind}");
    }
    let all: i64 = [1, 1500 + 1, 1500, 6, 2, 7, 1506, 1000, 10_100]
        .iter()
        .sum();
    let left = count(&database, "bunny.commands").await;
    assert_eq!(i64::try_from(swept.commands).unwrap(), all - left);
    assert!(catalog.knows_wish(made.id, wish).await.unwrap());
    let taken_out = catalog.tables_taken_out(made.id).await.unwrap();
    let taken_out: Vec<&str> = taken_out.iter().map(String::as_str).collect();
    assert_eq!(taken_out, ["public.gone", "public.other"]);
    let again = catalog.sweep(30).await.unwrap();
    assert_eq!(again, Swept::default());
    database.drop().await;
}

/// Whoever guesses writes neither many entries nor what was typed instead of a name.
#[tokio::test]
#[ignore = "needs a server"]
async fn failed_logins_are_few_entries() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let password = SecretString::from("some password");
    catalog
        .create_user("ann", UserRole::Viewer, &password, "admin")
        .await
        .unwrap();
    for number in 0..50 {
        let address = format!("10.0.0.{number}");
        let name = format!("typed-{number}");
        catalog.login_failed(&name, &address).await.unwrap();
        catalog.login_failed("ann", &address).await.unwrap();
    }
    let (entries, _) = catalog.list_audit(100, 0).await.unwrap();
    let told: Vec<_> = entries
        .iter()
        .filter(|entry| entry.action == "failed login")
        .map(|entry| {
            (
                entry.username.as_str(),
                entry.subject.as_str(),
                &entry.details,
            )
        })
        .collect();
    let details = json!({"times": 50, "last_address": "10.0.0.49"});
    assert_eq!(
        told,
        [
            ("(unknown)", "ann", &details),
            ("(unknown)", "(unknown)", &details)
        ]
    );
    let earlier = "UPDATE bunny.audit SET created_at = created_at - interval '11 minutes'";
    database.connect().await.execute(earlier).await.unwrap();
    catalog.login_failed("ann", "10.0.0.1").await.unwrap();
    let entries = count(&database, "bunny.audit WHERE action = 'failed login'").await;
    assert_eq!(entries, 3);
    database.drop().await;
}
