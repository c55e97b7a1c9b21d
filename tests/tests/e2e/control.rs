//! The control plane: users and passwords, peers and options changed under a running mirror.

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;

const PATCH: Method = Method::PATCH;
const PUT: Method = Method::PUT;

fn error_of(body: &Value) -> &str {
    body["error"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_change_their_password_and_go() -> Result<()> {
    let scene = Scene::new("users").await?;
    let admin = &scene.api;
    let ann = json!({"username": "ann", "password": "first password", "role": "viewer"});
    admin.post("/v1/users", ann.clone()).await?.expect(201)?;
    admin.post("/v1/users", ann.clone()).await?.expect(409)?;
    let mut viewer = Api::new(admin.base())?;
    let login = viewer.login("ann", "first password").await?;
    assert_expiry_is_the_tokens(&scene, &login).await?;
    let earlier = viewer.clone();
    viewer.get("/v1/users").await?.expect(403)?;
    viewer.get("/v1/audit").await?.expect(403)?;
    viewer
        .post("/v1/mirrors/x/pause", json!({}))
        .await?
        .expect(403)?;

    // The right password is asked for, and every earlier token is void.
    let change =
        |current: &str| json!({"current_password": current, "new_password": "second password"});
    let path = "/v1/auth/change-password";
    viewer
        .post(path, change("wrong password"))
        .await?
        .expect(403)?;
    let short = json!({"current_password": "first password", "new_password": "short"});
    viewer.post(path, short).await?.expect(400)?;
    viewer
        .post(path, change("first password"))
        .await?
        .expect(200)?;
    for old in [&earlier, &viewer] {
        let refused = old.get("/v1/peers").await?.expect(401)?;
        assert!(error_of(&refused).contains("revoked"), "{refused}");
    }
    assert!(viewer.login("ann", "first password").await.is_err());
    viewer.login("ann", "second password").await?;
    viewer.get("/v1/peers").await?.expect(200)?;

    // Nobody deletes themself, the last administrator stays, a deleted user's token is void,
    // also once another of that name comes.
    admin.delete("/v1/users/admin").await?.expect(409)?;
    let second = json!({"username": "second", "password": "second admin", "role": "admin"});
    admin.post("/v1/users", second).await?.expect(201)?;
    let mut second = Api::new(admin.base())?;
    second.login("second", "second admin").await?;
    let own = admin.delete("/v1/users/admin").await?.expect(409)?;
    assert!(error_of(&own).contains("their own user"), "{own}");
    admin.delete("/v1/users/ann").await?.expect(200)?;
    admin.delete("/v1/users/ann").await?.expect(404)?;
    viewer.get("/v1/peers").await?.expect(401)?;
    admin.post("/v1/users", ann).await?.expect(201)?;
    viewer.get("/v1/peers").await?.expect(401)?;
    second.delete("/v1/users/admin").await?.expect(200)?;
    admin.get("/v1/users").await?.expect(401)?;
    let users = second.get("/v1/users").await?.expect(200)?;
    let names: Vec<&str> = users
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|user| user["username"].as_str())
        .collect();
    assert_eq!(names, ["ann", "second"]);

    let audit = second.get("/v1/audit?limit=50").await?.expect(200)?;
    let told = told(&audit)?;
    let expected = [
        "admin: create peer source",
        "admin: create peer destination",
        "admin: create user ann",
        "(unknown): failed login ann",
        "ann: change password ann",
        "admin: create user second",
        "admin: delete user ann",
        "admin: create user ann",
        "second: delete user admin",
    ];
    assert_eq!(told, expected);
    assert!(!audit.to_string().contains("password\":"), "{audit}");
    let guesses = "SELECT details ->> 'times' FROM bunny.audit WHERE action = 'failed login'";
    assert_eq!(scene.stage.catalog_text(guesses).await?, "2");
    guessing_is_turned_away(&scene).await?;
    administrators_delete_each_other(&mut second).await
}

/// What the entries of who did what say, the oldest first.
fn told(audit: &Value) -> Result<Vec<String>> {
    let entries = audit["audit"].as_array().context("audit")?;
    let told = entries.iter().rev().map(|entry| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let (who, what) = (text("username"), text("action"));
        format!("{who}: {what} {}", text("subject"))
    });
    Ok(told.collect())
}

/// One of two who delete each other at once is left.
async fn administrators_delete_each_other(second: &mut Api) -> Result<()> {
    for round in 0..3 {
        let third = json!({"username": "third", "password": "second admin", "role": "admin"});
        second.post("/v1/users", third).await?.expect(201)?;
        let mut third = Api::new(second.base())?;
        third.login("third", "second admin").await?;
        let (of_third, of_second) = tokio::join!(
            second.delete("/v1/users/third"),
            third.delete("/v1/users/second")
        );
        let (of_third, of_second) = (of_third?, of_second?);
        let mut statuses = [of_third.status, of_second.status];
        statuses.sort_unstable();
        // The loser is no user any more, or the last one who may not go.
        assert!(
            statuses[0] == 200 && [401, 409].contains(&statuses[1]),
            "{round}: {of_third:?} {of_second:?}"
        );
        let left = if of_third.status == 200 {
            &*second
        } else {
            &third
        };
        let users = left.get("/v1/users").await?.expect(200)?;
        let admins = users.as_array().into_iter().flatten();
        let admins = admins.filter(|user| user["role"] == "admin").count();
        assert_eq!(admins, 1, "{round}: {users}");
        if of_third.status != 200 {
            let again = json!({"username": "second", "password": "second admin", "role": "admin"});
            third.post("/v1/users", again).await?.expect(201)?;
            second.login("second", "second admin").await?;
            second.delete("/v1/users/third").await?.expect(200)?;
        }
    }
    Ok(())
}

/// What a login says of its end is what its token says.
async fn assert_expiry_is_the_tokens(scene: &Scene, login: &Value) -> Result<()> {
    let expires_at = login["expires_at"].as_str().context("expires_at")?;
    let token = login["token"].as_str().context("token")?;
    let claims = token.split('.').nth(1).context("claims")?;
    let agree = format!(
        "SELECT (extract(epoch FROM timestamptz '{expires_at}')::bigint
             = (convert_from(decode(rpad(translate('{claims}', '-_', '+/'), {}, '='), 'base64'), 'UTF8')::json->>'exp')::bigint
             AND timestamptz '{expires_at}' > now())::int::bigint",
        claims.len().next_multiple_of(4)
    );
    assert_eq!(scene.source.number(&agree).await?, 1, "{login}");
    Ok(())
}

/// Guesses at one name wait, and those that would wait too long are turned away; other names
/// are not.
async fn guessing_is_turned_away(scene: &Scene) -> Result<()> {
    let guess = json!({"username": "nobody", "password": "a wrong password"});
    let api = Api::new(scene.api.base())?;
    for _ in 0..4 {
        api.post("/v1/auth/login", guess.clone())
            .await?
            .expect(401)?;
    }
    let mut guesses = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (api, guess) = (api.clone(), guess.clone());
        guesses.spawn(async move { api.post("/v1/auth/login", guess).await });
    }
    loop {
        let answer = guesses
            .join_next()
            .await
            .context("nothing was turned away")???;
        if answer.status == 429 {
            assert!(
                error_of(&answer.body).contains("try again"),
                "{}",
                answer.body
            );
            break;
        }
        assert_eq!(answer.status, 401, "{}", answer.body);
    }
    Api::new(scene.api.base())?
        .login("second", "second admin")
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn options_and_peers_change_under_a_running_mirror() -> Result<()> {
    let scene = Scene::new("change").await?;
    let api = &scene.api;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g;
              CREATE TABLE other (id int PRIMARY KEY); CREATE UNLOGGED TABLE hidden (id int); CREATE TABLE keyless (n int);
              CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
              CREATE FOREIGN TABLE far (id int) SERVER nowhere; CREATE VIEW seen AS SELECT 1 AS one;
              CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (9);
              CREATE TABLE mixed (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (1) TO (9)")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;

    // What else there is, and why not where it cannot be.
    let available = api
        .get("/v1/mirrors/mirror/available-tables")
        .await?
        .expect(200)?;
    let available = available.as_array().context("tables")?;
    let names: Vec<&str> = available
        .iter()
        .filter_map(|table| table["table_name"].as_str())
        .collect();
    let expected = ["far", "hidden", "keyless", "mixed", "other", "parts"];
    assert_eq!(names, expected, "{available:?}");
    for (table, why_not, to_know) in [
        ("far", "is a foreign table", ""),
        (
            "hidden",
            "run ALTER TABLE \"public\".\"hidden\" SET LOGGED",
            "",
        ),
        ("keyless", "", "insert-only"),
        ("mixed", "a partition of table public.mixed", ""),
        ("other", "", ""),
        ("parts", "", ""),
    ] {
        let table = available.iter().find(|found| found["table_name"] == table);
        let table = table.context("listed")?;
        let says = |what: &str, words: &str| {
            let said = table[what].as_array().into_iter().flatten();
            let mut said = said.filter_map(Value::as_str).peekable();
            match words.is_empty() {
                true => what == "warnings" || said.peek().is_none(),
                false => said.any(|said| said.contains(words)),
            }
        };
        assert_eq!(table["available"], why_not.is_empty(), "{table}");
        assert!(
            says("reasons", why_not) && says("warnings", to_know),
            "{table}"
        );
    }

    let tables = api.get("/v1/peers/source/tables").await?.expect(200)?;
    let mut listed = tables.as_array().into_iter().flatten();
    let t = listed
        .find(|table| table["table_name"] == "t")
        .context("t")?;
    let fields = [
        ("schema", json!("public")),
        ("replica_identity", json!("default")),
        ("has_primary_key", json!(true)),
    ];
    for (name, wanted) in fields {
        assert_eq!(t[name], wanted, "{name}: {t}");
    }
    assert!(
        t["row_estimate"].is_i64() && t["size_bytes"].as_i64() > Some(0),
        "{t}"
    );

    // Options.
    let path = "/v1/mirrors/mirror";
    for (body, expected) in [
        (json!({}), 400),
        (json!({"max_batch_size": 0}), 400),
        (json!({"do_initial_snapshot": false}), 400),
    ] {
        let answer = api.request(PATCH, path, Some(body)).await?;
        assert_eq!(answer.status, expected, "{}", answer.body);
    }
    let change = json!({"max_batch_size": 7, "idle_timeout_seconds": 3, "snapshot_max_parallel_workers": 2, "resync_strategy": "swap", "topic_max_bytes": 1 << 30});
    let answer = api.request(PATCH, path, Some(change)).await?.expect(202)?;
    let command = format!(
        "{path}/commands/{}",
        answer["command_id"].as_str().context("command_id")?
    );
    mirror.wait_running().await?;
    let deadline = std::time::Instant::now() + CONVERGE;
    loop {
        let command = api.get(&command).await?.expect(200)?;
        if command["state"] == "done" {
            assert_eq!(command["steps"], json!(["apply running"]));
            assert_eq!(command["args"]["options"]["max_batch_size"], 7);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{command}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let unknown = format!("{path}/commands?limit=1");
    let unknown = api.get(&unknown).await?.expect(400)?;
    assert!(error_of(&unknown).contains("limit"), "{unknown}");
    the_log_is_read_in_parts(api).await?;
    let config = mirror.get().await?["config"].clone();
    assert_eq!(
        (
            &config["max_batch_size"],
            &config["resync_strategy"],
            &config["topic_max_bytes"]
        ),
        (&json!(7), &json!("swap"), &json!(1 << 30))
    );
    api.request(PATCH, path, Some(json!({"topic_max_bytes": null})))
        .await?
        .expect(202)?;
    assert!(mirror.get().await?["config"]["topic_max_bytes"].is_null());

    // Peers: another user and password for the same database are taken, and the mirror works
    // with them; the former user could not even log in any more.
    let pair = [TablePair::same("public.t")];
    for (name, url, other) in [
        ("source", &scene.stage.source, &scene.stage.destination),
        ("destination", &scene.stage.destination, &scene.stage.source),
    ] {
        let server = url.connect().await?;
        let user = format!("{}_{name}", scene.stage.name);
        server
            .run(&format!(
                "CREATE ROLE \"{user}\" SUPERUSER LOGIN REPLICATION PASSWORD 'n3w secret'"
            ))
            .await?;
        let described = |user: &str, password: &str, database: &str| json!({"host": url.host, "port": url.port, "user": user, "password": password, "database": database, "ssl_mode": "disable"});
        let path = format!("/v1/peers/{name}");
        let put = async |body: Value| api.request(PUT, &path, Some(body)).await;
        let elsewhere = put(described(&user, "n3w secret", "postgres"))
            .await?
            .expect(422)?;
        assert!(
            error_of(&elsewhere).contains("another database"),
            "{elsewhere}"
        );
        // A database of that name on another server.
        let mut of_another = described(&other.user, &other.password, &other.database);
        of_another["port"] = json!(other.port);
        let of_another = put(of_another).await?.expect(422)?;
        assert!(
            error_of(&of_another).contains("system identifier"),
            "{of_another}"
        );
        let unreachable = put(described(&user, "wrong", &url.database))
            .await?
            .expect(422)?;
        assert!(
            !unreachable.to_string().contains("wrong\""),
            "{unreachable}"
        );
        let mut renamed = described(&user, "n3w secret", &url.database);
        renamed["name"] = json!("another");
        put(renamed).await?.expect(400)?;
        let answer = put(described(&user, "n3w secret", &url.database))
            .await?
            .expect(200)?;
        assert_eq!(answer["user"], json!(user));
        assert!(!answer.to_string().contains("n3w"), "{answer}");
        // Sessions of the mirror as the new user: it has connected anew.
        let sessions = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}' AND application_name LIKE 'bunny %'"
        );
        let deadline = std::time::Instant::now() + CONVERGE;
        while server.number(&sessions).await? == 0 {
            assert!(
                std::time::Instant::now() < deadline,
                "no session of {user}: {:?}",
                mirror.get().await
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        scene.source.run("UPDATE t SET v = v || 'w' WHERE id % 3 = 0; INSERT INTO t SELECT max(id) + 1, 'n' FROM t").await?;
        scene.stage.assert_converges(&mirror, &pair).await?;
    }
    let missing = json!({"host": "h", "user": "u", "password": "p", "database": "d"});
    api.request(PUT, "/v1/peers/nobody", Some(missing))
        .await?
        .expect(404)?;
    scene.assert_holds(&mirror, &pair).await?;

    let spare =
        json!({"name": "spare", "host": "h", "user": "u", "password": "p", "database": "d"});
    api.post("/v1/peers", spare).await?.expect(201)?;
    api.delete("/v1/peers/spare").await?.expect(200)?;
    let audit = api.get("/v1/audit?limit=50").await?.expect(200)?;
    let expected = [
        "create peer source",
        "create peer destination",
        "update peer source",
        "update peer destination",
        "create peer spare",
        "delete peer spare",
    ];
    assert_eq!(told(&audit)?, expected.map(|deed| format!("admin: {deed}")));

    // Roles live as long as the server: leave none behind.
    api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    Ok(())
}

/// By level, by number, and never more than 500 at once.
async fn the_log_is_read_in_parts(api: &Api) -> Result<()> {
    let logs = async |query: &str, status: u16| {
        let path = format!("/v1/mirrors/mirror/logs?{query}");
        api.get(&path).await?.expect(status)
    };
    // Whatever is written between two answers is left out of the comparison.
    let deadline = std::time::Instant::now() + CONVERGE;
    loop {
        let all = logs("limit=500", 200).await?;
        let entries = all["logs"].as_array().context("logs")?;
        let second = logs("limit=1&offset=1", 200).await?;
        let mut of_levels = Vec::new();
        for level in ["debug", "info", "warn", "error"] {
            let of_level = entries.iter().filter(|entry| entry["level"] == level);
            let expected: Vec<&Value> = of_level.collect();
            let found = logs(&format!("level={level}&limit=500"), 200).await?;
            of_levels.push((found["logs"].clone(), json!(expected)));
        }
        if logs("limit=1", 200).await?["total"] != all["total"] {
            assert!(std::time::Instant::now() < deadline, "the log never rests");
            continue;
        }
        assert_eq!(all["total"].as_u64(), Some(entries.len() as u64), "{all}");
        assert_eq!(second["logs"], json!([entries[1]]), "{second}");
        assert_eq!(
            (&second["offset"], &second["limit"], &second["total"]),
            (&json!(1), &json!(1), &all["total"])
        );
        for (found, expected) in &of_levels {
            assert_eq!(found, expected);
        }
        assert_ne!(of_levels[1].0, json!([]), "info");
        break;
    }
    let beyond = logs("offset=1000000", 200).await?;
    assert_eq!(beyond["logs"], json!([]));
    for (wrong, named) in [
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("offset=-1", "offset"),
        ("level=fatal", "level"),
    ] {
        let refused = logs(wrong, 400).await?;
        assert!(error_of(&refused).contains(named), "{refused}");
    }
    Ok(())
}
