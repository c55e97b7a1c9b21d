//! Ids given by a schema registry outside: a stand-in that speaks as much of Confluent's REST API
//! as is used. The real one is in the end-to-end tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bunny_schemas::Error;
use bunny_schemas::debezium::{AvroSchemas, Origin};
use bunny_schemas::registry::{Authority, Credentials, Registry, Server};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{kafka, table, topics};

const FIRST_ID: u32 = 1000;

/// What the stand-in does besides answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// 503 to everything.
    Unwell,
    /// Gives an id and never says so.
    Silent,
    /// 409 to every new schema.
    Strict,
}

struct StandIn {
    /// The header that it lets in.
    authorization: &'static str,
    state: Mutex<(Mood, HashMap<String, u32>)>,
    posted: Notify,
    url: String,
}

type Shared = State<Arc<StandIn>>;

impl StandIn {
    async fn start() -> Arc<StandIn> {
        // bunny:geheim
        StandIn::start_for("Basic YnVubnk6Z2VoZWlt").await
    }

    async fn start_for(authorization: &'static str) -> Arc<StandIn> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("listen");
        let stand_in = Arc::new(StandIn {
            authorization,
            state: Mutex::new((Mood::Well, HashMap::new())),
            posted: Notify::new(),
            url: format!("http://{}/base", listener.local_addr().expect("an address")),
        });
        let app = axum::Router::new()
            .route("/base/subjects/{subject}/versions", post(register))
            .route("/base/schemas/ids/{id}", get(schema))
            .with_state(Arc::clone(&stand_in));
        tokio::spawn(async move { axum::serve(listener, app).await });
        stand_in
    }

    fn state(&self) -> MutexGuard<'_, (Mood, HashMap<String, u32>)> {
        self.state.lock().expect("not poisoned")
    }

    fn set(&self, mood: Mood) {
        self.state().0 = mood;
    }

    /// As a process of its own sees it.
    fn authority(&self) -> Authority {
        self.authority_with("geheim")
    }

    fn authority_with(&self, password: &str) -> Authority {
        self.authority_of(Credentials::Password {
            user: "bunny".into(),
            password: password.into(),
        })
    }

    fn authority_of(&self, credentials: Credentials) -> Authority {
        Authority::Server(Arc::new(
            Server::new(&self.url, &credentials).expect("a good URL"),
        ))
    }
}

async fn register(
    State(stand_in): Shared,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(denied) = denied(&stand_in, &headers) {
        return denied;
    }
    let schema = body["schema"].as_str().expect("a schema").to_owned();
    let (mood, id) = {
        let (mood, ids) = &mut *stand_in.state();
        let next = FIRST_ID + ids.len() as u32;
        match *mood {
            Mood::Unwell => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            Mood::Strict if !ids.contains_key(&schema) => {
                let body = json!({"error_code": 409, "message": "not compatible"});
                return (StatusCode::CONFLICT, Json(body)).into_response();
            }
            mood => (mood, *ids.entry(schema).or_insert(next)),
        }
    };
    stand_in.posted.notify_one();
    if mood == Mood::Silent {
        std::future::pending::<()>().await;
    }
    Json(json!({ "id": id })).into_response()
}

async fn schema(State(stand_in): Shared, headers: HeaderMap, Path(id): Path<u32>) -> Response {
    if let Some(denied) = denied(&stand_in, &headers) {
        return denied;
    }
    let (mood, ids) = &*stand_in.state();
    if *mood == Mood::Unwell {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match ids.iter().find(|(_, known)| **known == id) {
        Some((schema, _)) => Json(json!({ "schema": schema })).into_response(),
        None => {
            let body = json!({"error_code": 40403, "message": "Schema not found"});
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

fn denied(stand_in: &StandIn, headers: &HeaderMap) -> Option<Response> {
    let given = headers.get("authorization").map(|value| value.as_bytes());
    let is_known = given == Some(stand_in.authorization.as_bytes());
    (!is_known).then(|| StatusCode::UNAUTHORIZED.into_response())
}

/// Several processes ask at once; one dies before it has written what it was given; the server
/// goes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn ids_of_a_server_are_recorded_before_they_are_used() {
    const TABLES: usize = 6;
    let (kafka, topics) = (kafka(), topics());
    let server = StandIn::start().await;
    let open = |authority| Registry::open_with(kafka.clone(), &topics, authority);

    server.set(Mood::Silent);
    let dies = open(server.authority()).await.unwrap();
    let first = table(0);
    tokio::select! {
        _ = dies.register_table(&first) => panic!("nothing was answered"),
        () = server.posted.notified() => {}
    }
    server.set(Mood::Well);

    let mut tasks = tokio::task::JoinSet::new();
    for start in 0..3 {
        let registry = open(server.authority()).await.unwrap();
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for step in 0..TABLES {
                let index = (start * 2 + step) % TABLES;
                ids.push((index, registry.register_table(&table(index)).await.unwrap()));
            }
            ids.sort_unstable();
            (registry, ids)
        });
    }
    let ended = tasks.join_all().await;
    let (registry, ids) = &ended[0];
    for (_, others) in &ended {
        assert_eq!(others, ids);
    }

    // Readers need no server, nor does who has asked before.
    server.set(Mood::Unwell);
    let reader = Registry::open(kafka.clone(), &topics).await.unwrap();
    for (index, (value_id, key_id)) in ids {
        let table = table(*index);
        let given = server.state().1[&table.value_avro_json()];
        assert_eq!(given, *value_id);
        assert!(*key_id >= FIRST_ID);
        assert_eq!(
            *reader.schema(*value_id).await.unwrap(),
            *table.value_avro_json()
        );
        assert_eq!(
            registry.register_table(&table).await.unwrap(),
            (*value_id, *key_id)
        );
    }
    assert_eq!(reader.subjects().await.len(), TABLES * 2);

    // A version of which nothing is known waits for it, and so does a process that has not asked.
    let late = table(TABLES);
    for asks in [registry, &open(server.authority()).await.unwrap()] {
        let error = asks.register_table(&late).await.unwrap_err();
        assert!(matches!(error, Error::RegistryAway { .. }), "{error}");
        assert!(error.is_transient());
    }
    server.set(Mood::Strict);
    let error = registry.register_table(&late).await.unwrap_err();
    assert!(matches!(error, Error::RegistryRefused { .. }), "{error}");
    let subject = late.value_subject();
    for said in ["not compatible", &format!("/config/{subject}"), "NONE"] {
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(reader.refresh().await.is_ok() && reader.versions(&subject).await.is_empty());
    server.set(Mood::Well);
    let denied = open(server.authority_with("wrong")).await.unwrap();
    let error = denied.register_table(&late).await.unwrap_err();
    assert!(matches!(error, Error::RegistryRefused { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
    registry.register_table(&late).await.unwrap();
    kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
}

/// A token goes with every request, those that look ids up too, and is told to nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn a_server_is_shown_a_token() {
    let (kafka, topics) = (kafka(), topics());
    let server = StandIn::start_for("Bearer geheim").await;
    let open = |credentials| {
        let authority = server.authority_of(credentials);
        Registry::open_with(kafka.clone(), &topics, authority)
    };
    let token = |text: &str| Credentials::Token(text.into());
    let first = open(token("geheim")).await.unwrap();
    assert_eq!(first.register("a", "\"string\"").await.unwrap(), FIRST_ID);
    // It looks up there what is recorded.
    let second = open(token("geheim")).await.unwrap();
    assert_eq!(
        second.register("b", "\"long\"").await.unwrap(),
        FIRST_ID + 1
    );
    for others in [token("falsch"), Credentials::None] {
        let denied = open(others).await.unwrap();
        let error = denied.register("c", "\"bytes\"").await.unwrap_err();
        assert!(matches!(error, Error::RegistryRefused { .. }), "{error}");
        let said = error.to_string();
        assert!(
            said.contains("_TOKEN") && !said.contains("falsch"),
            "{said}"
        );
    }
    kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
}

fn assert_clash<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.expect_err("a clash");
    assert!(matches!(error, Error::IdsClash(_)), "{error}");
    assert!(!error.is_transient());
}

/// From the topic's own ids to a server's, back, and to a server that knows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn no_id_comes_to_mean_two_things_when_the_authority_changes() {
    let (kafka, topics) = (kafka(), topics());
    let server = StandIn::start().await;
    let open = |authority| Registry::open_with(kafka.clone(), &topics, authority);

    // Ids of our own, which the server does not have and may give to anyone.
    let own = open(Authority::Topic).await.unwrap();
    let first = own.register("a", "\"string\"").await.unwrap();
    let outside = open(server.authority()).await.unwrap();
    assert_clash(outside.register("a", "\"string\"").await);
    assert_clash(outside.register("b", "\"long\"").await);
    // It has them, but as something else; then as what they are.
    server.state().1.insert("\"int\"".into(), first);
    assert_clash(outside.register("b", "\"long\"").await);
    server.state().1.clear();
    server
        .state()
        .1
        .insert("{\"type\": \"string\"}".into(), first);
    assert_eq!(outside.register("a", "\"string\"").await.unwrap(), first);
    let id = outside.register("b", "\"long\"").await.unwrap();
    assert_eq!(id, FIRST_ID + 1);

    // From now on the server's word counts, also for a writer that had the topic to itself.
    assert_clash(own.register("c", "\"bytes\"").await);
    assert_clash(
        open(Authority::Topic)
            .await
            .unwrap()
            .register("b", "\"long\"")
            .await,
    );

    // A server that has lost what it knew.
    let fresh = StandIn::start().await;
    fresh
        .state()
        .1
        .insert("{\"type\": \"string\"}".into(), first);
    fresh.state().1.insert("\"null\"".into(), first + 1);
    let lost = open(fresh.authority()).await.unwrap();
    assert_eq!(lost.register("a", "\"string\"").await.unwrap(), first);
    assert_clash(lost.register("b", "\"long\"").await);
    // What it gave anew meanwhile.
    fresh.state().1.clear();
    fresh.state().1.insert("\"float\"".into(), id);
    fresh.state().1.insert("\"string\"".into(), first);
    let lost = open(fresh.authority()).await.unwrap();
    assert_clash(lost.register("b", "\"long\"").await);

    // Given up for good; then ids of our own are there again.
    let again = open(Authority::TopicAgain).await.unwrap();
    assert_eq!(
        again.register("c", "\"bytes\"").await.unwrap(),
        first.max(id) + 1
    );
    assert_clash(
        open(server.authority())
            .await
            .unwrap()
            .register("d", "\"double\"")
            .await,
    );
    let reader = Registry::open(kafka.clone(), &topics).await.unwrap();
    assert_eq!(&*reader.schema(id).await.unwrap(), "\"long\"");
    kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
}

/// A server gives a text one id, whatever the subject. The schemas of table topics share theirs
/// with nobody, so the topic can say of each id whose it is.
#[tokio::test]
#[ignore = "needs a broker"]
async fn schemas_of_table_topics_have_ids_of_their_own() {
    let (kafka, topics) = (kafka(), topics());
    let server = StandIn::start().await;
    let open = |authority| Registry::open_with(kafka.clone(), &topics, authority);
    let registry = open(server.authority()).await.unwrap();
    let origin = Origin {
        name: topics.table_prefix("m").into(),
        database: "d".into(),
    };
    let mut all = Vec::new();
    let mut subjects = Vec::new();
    for table in [table(0), table(1)] {
        let topic = topics.table("m", &table.schema, &table.table);
        let schemas = AvroSchemas::of(&table, &origin);
        let (value_id, key_id) = registry.register_table(&table).await.unwrap();
        let ids = registry.register_topic(&topic, &schemas).await.unwrap();
        let again = open(server.authority()).await.unwrap();
        assert_eq!(again.register_topic(&topic, &schemas).await.unwrap(), ids);
        assert_eq!(*again.schema(ids.value).await.unwrap(), *schemas.value);
        all.extend([Some(value_id), Some(key_id), Some(ids.value), ids.key]);
        subjects.extend([format!("{topic}-key"), format!("{topic}-value")]);
    }
    let distinct: std::collections::BTreeSet<u32> = all.iter().flatten().copied().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
    let known = registry.subjects().await;
    for subject in subjects {
        assert!(known.contains(&subject), "{subject} of {known:?}");
    }
}
