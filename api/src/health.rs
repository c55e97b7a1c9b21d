//! Whether the process answers (`/health`) and whether it can do its work (`/ready`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::service::Api;

/// How long each of the two is waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// Anyone may ask, so an answer is given again for so long instead of asking Kafka each time.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(1);

/// The last answer to `/ready`; the lock lets one question through at a time.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Answer)>>,
}

#[derive(Clone)]
struct Answer {
    catalog: bool,
    kafka: bool,
}

pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

pub(crate) async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let mut last = api.readiness.last.lock().await;
    let answer = match last.as_ref() {
        Some((asked, answer)) if asked.elapsed() < ANSWER_AGE_MAX => answer.clone(),
        _ => {
            let answer = ask(&api).await;
            *last = Some((Instant::now(), answer.clone()));
            answer
        }
    };
    drop(last);
    describe(&answer)
}

async fn ask(api: &Api) -> Answer {
    let (catalog, kafka) = tokio::join!(
        tokio::time::timeout(ANSWER_TIME_MAX, api.catalog.ping()),
        tokio::time::timeout(ANSWER_TIME_MAX, api.kafka.broker_reachable(ANSWER_TIME_MAX)),
    );
    Answer {
        catalog: matches!(catalog, Ok(Ok(()))),
        kafka: matches!(kafka, Ok(Ok(_))),
    }
}

fn describe(answer: &Answer) -> (StatusCode, Json<Value>) {
    let word = |reachable: bool| if reachable { "ok" } else { "unreachable" };
    let mut body = json!({
        "status": "ready",
        "catalog": word(answer.catalog),
        "kafka": word(answer.kafka),
    });
    let away: Vec<&str> = [
        (answer.catalog, "the catalog database"),
        (answer.kafka, "Kafka"),
    ]
    .into_iter()
    .filter_map(|(reachable, what)| (!reachable).then_some(what))
    .collect();
    if away.is_empty() {
        return (StatusCode::OK, Json(body));
    }
    body["status"] = json!("not ready");
    body["error"] = json!(format!(
        "{} cannot be reached; check that it runs and that its settings are right",
        away.join(" and ")
    ));
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_away_is_named() {
        let (status, Json(body)) = describe(&Answer {
            catalog: true,
            kafka: false,
        });
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["catalog"], "ok");
        assert!(body["error"].as_str().unwrap().starts_with("Kafka cannot"));
        let (status, Json(body)) = describe(&Answer {
            catalog: true,
            kafka: true,
        });
        assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("ready")));
    }
}
