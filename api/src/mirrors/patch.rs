//! `PATCH /v1/mirrors/{name}`: options changed while the mirror runs.

use std::sync::Arc;

use axum::extract::State;
use bunny_catalog::MirrorChange;

use super::accepted;
use super::request::{APPLY_MODES, ON_TABLE_ERROR, RESYNC_STRATEGIES};
use super::shown::Command;
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

/// `PATCH /v1/mirrors/{name}`: 202 and the command to watch.
pub(crate) async fn patch(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let change = read_patch(fields)?;
    let command_id = api
        .catalog
        .request_update(&name, &change, &caller.username)
        .await?;
    Ok(accepted(
        format!("Mirror '{name}' is being changed"),
        command_id,
    ))
}

pub(crate) fn read_patch(mut fields: Fields) -> Result<MirrorChange> {
    let any = 0..=u32::MAX;
    let change = MirrorChange {
        max_batch_size: fields.small_if_given("max_batch_size", any.clone()),
        idle_timeout_seconds: fields.small_if_given("idle_timeout_seconds", any.clone()),
        apply_mode: fields.choice("apply_mode", &APPLY_MODES),
        snapshot_num_rows_per_partition: fields
            .integer("snapshot_num_rows_per_partition", 0..=u64::MAX),
        snapshot_max_parallel_workers: fields
            .small_if_given("snapshot_max_parallel_workers", any.clone()),
        snapshot_num_tables_in_parallel: fields
            .small_if_given("snapshot_num_tables_in_parallel", any.clone()),
        resync_strategy: fields.choice("resync_strategy", &RESYNC_STRATEGIES),
        on_table_error: fields.choice("on_table_error", &ON_TABLE_ERROR),
        topic_retention_hours: fields.small_if_given("topic_retention_hours", any.clone()),
        topic_max_bytes: match fields.takes_null("topic_max_bytes") {
            true => Some(None),
            false => fields.integer("topic_max_bytes", 0..=u64::MAX).map(Some),
        },
        checkpoint_interval_hours: match fields.takes_null("checkpoint_interval_hours") {
            true => Some(None),
            false => fields
                .small_if_given("checkpoint_interval_hours", any)
                .map(Some),
        },
    };
    fields.finish()?;
    if change == MirrorChange::default() {
        return Err(Refusal::bad_request(
            "nothing to change was named; give at least one option, as {\"max_batch_size\": 5000}",
        ));
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn changed(body: &str) -> Result<MirrorChange> {
        read_patch(Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn null_takes_an_option_away_where_it_may_be_absent() {
        let change = changed(
            r#"{"topic_max_bytes": null, "max_batch_size": null, "resync_strategy": "swap"}"#,
        )
        .unwrap();
        assert_eq!(change.topic_max_bytes, Some(None));
        assert_eq!(change.max_batch_size, None);
        assert!(change.resync_strategy.is_some());
    }

    #[test]
    fn what_cannot_change_and_an_empty_change_are_refused() {
        let refusal = changed(r#"{"do_initial_snapshot": false}"#).unwrap_err();
        assert!(
            refusal
                .message
                .contains("do_initial_snapshot: is not a known field")
        );
        assert_eq!(changed("{}").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
