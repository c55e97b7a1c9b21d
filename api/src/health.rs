//! Whether the process answers (`/health`) and whether it can do its work (`/ready`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::readiness::Answer;
use crate::state::Api;

pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

pub(crate) async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let answer = api.readiness.answer(&api.catalog, &api.kafka).await;
    describe(&answer)
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
