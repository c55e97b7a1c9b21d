//! `source_mirror` in POST /v1/mirrors: a further destination of another mirror's capture.
//!
//! What the request leaves to the owner is taken from it, then everything is validated as for any
//! mirror. Of each table a copy is chosen that lies in the owner's topics, or is on its way there;
//! the catalog looks again, under the lock that keeps it from being trimmed.

use bunny_catalog::{Attach, Desired, InitialCopy, Mirror, MirrorTable, NewMirrorTable};
use bunny_schemas::control::SyncState;
use bunny_schemas::retained::{Missing, Retained};

use super::request::CreateRequest;
use crate::mirror_validation::Facts;
use crate::refusal::{Refusal, Result};
use crate::request::Fields;
use crate::state::Api;

/// What the owner's capture goes by, so that it cannot be another for who is attached.
const OF_THE_OWNER: [&str; 10] = [
    "source_peer",
    "replication_slot_name",
    "publication_name",
    "snapshot_num_rows_per_partition",
    "snapshot_num_tables_in_parallel",
    "topic_max_bytes",
    "checkpoint_interval_hours",
    "untracked_changes",
    "table_topics",
    "adopt",
];

/// Where the tables come from at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialLoad {
    /// From copies in the owner's topics.
    Retained,
    /// From copies that the source is asked for.
    Fresh,
}

/// A mirror as it is to be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachRequest {
    /// The owner's name.
    pub(crate) owner: String,
    pub(crate) load: InitialLoad,
    /// `topic_retention_hours` is its own and not the owner's.
    pub(crate) has_own_window: bool,
}

impl AttachRequest {
    /// Reads `source_mirror` and `initial_load`, before the fields that they exclude are read.
    pub(super) fn read(fields: &mut Fields) -> Option<Self> {
        let owner = fields.text("source_mirror");
        let load = fields.choice(
            "initial_load",
            &[
                ("retained", InitialLoad::Retained),
                ("fresh", InitialLoad::Fresh),
            ],
        );
        let Some(owner) = owner else {
            if load.is_some() {
                fields.problem("initial_load", "is for mirrors with a source_mirror");
            }
            return None;
        };
        for name in OF_THE_OWNER {
            if fields.gives(name) {
                fields.problem(
                    name,
                    format!("is that of mirror \"{owner}\", which captures; leave it out"),
                );
            }
        }
        Some(Self {
            owner,
            load: load.unwrap_or(InitialLoad::Retained),
            has_own_window: fields.gives("topic_retention_hours"),
        })
    }

    /// What a request that was read cannot have.
    pub(super) fn check(&self, fields: &mut Fields, copies: bool, tables: &[NewMirrorTable]) {
        if !copies {
            fields.problem(
                "do_initial_snapshot",
                "must be true with source_mirror in this version: the log need not reach back to its beginning",
            );
        }
        if tables.iter().any(|table| table.partition_key.is_some()) {
            fields.problem(
                "table_mappings",
                format!(
                    "partition_key says how the source is read, which mirror \"{}\" decides; leave it out",
                    self.owner
                ),
            );
        }
    }
}

/// Takes from the owner what the request leaves to it, and gives it.
///
/// # Errors
/// 422 for an owner, a table or columns that cannot be had; 409 where that is for now only.
pub(super) async fn complete(api: &Api, request: &mut CreateRequest) -> Result<Option<Mirror>> {
    let Some(attach) = &request.attach else {
        return Ok(None);
    };
    let name = &attach.owner;
    let owner = match api.catalog.get_mirror(name).await {
        Err(bunny_catalog::Error::NotFound { .. }) => {
            return Err(Refusal::unprocessable(format!(
                "source_mirror: there is no mirror '{name}'; create it with POST /v1/mirrors or check the spelling"
            )));
        }
        found => found?,
    };
    if let Some(feeder) = &owner.owner {
        return Err(Refusal::unprocessable(format!(
            "source_mirror: mirror '{name}' is itself fed by mirror '{0}'; name '{0}'",
            feeder.name
        )));
    }
    if owner.desired == Desired::Deleted {
        return Err(Refusal::conflict(format!(
            "source_mirror: mirror '{name}' is being deleted"
        )));
    }
    request.source_peer.clone_from(&owner.source_peer);
    if !attach.has_own_window {
        request.config.topic_retention_hours = owner.config.topic_retention_hours;
    }
    // Tables are then examined as those of a mirror whose publication is there.
    let publication = owner
        .publication_given
        .then(|| owner.publication_name.clone());
    request.publication_name = publication;
    let mut refused = Vec::new();
    for table in &mut request.tables {
        match columns_of(&owner, table) {
            Ok(columns) => table.exclude_columns = columns,
            Err(why) => refused.push(why),
        }
    }
    match refused.is_empty() {
        true => Ok(Some(owner)),
        false => Err(Refusal::unprocessable(refused.join("; "))),
    }
}

/// The columns that the table goes without, which are those of the owner. Pure.
fn columns_of(owner: &Mirror, table: &NewMirrorTable) -> std::result::Result<Vec<String>, String> {
    let (name, source) = (&owner.name, &table.source);
    let Some(mapped) = mapped(owner, table) else {
        return Err(format!(
            "mirror '{name}' does not map {source}; add it there with PUT /v1/mirrors/{name}/tables, or leave it out"
        ));
    };
    let theirs = &mapped.exclude_columns;
    let is_same = theirs
        .iter()
        .all(|column| table.exclude_columns.contains(column))
        && theirs.len() == table.exclude_columns.len();
    if table.exclude_columns.is_empty() || is_same {
        return Ok(theirs.clone());
    }
    Err(format!(
        "exclude_columns of {source} must be those of mirror '{name}' ({}) in this version; leave them out to have the same",
        match theirs.is_empty() {
            true => "none".to_owned(),
            false => theirs.join(", "),
        }
    ))
}

fn mapped<'a>(owner: &'a Mirror, table: &NewMirrorTable) -> Option<&'a MirrorTable> {
    let mut tables = owner.tables.iter();
    tables.find(|mapped| mapped.source == table.source)
}

/// The source's slot and walsender are there already; a copy of its own takes one more of each.
pub(super) fn needs_no_slot(request: &CreateRequest, facts: &mut Facts) {
    let Some(attach) = &request.attach else {
        return;
    };
    let spared = match attach.load {
        InitialLoad::Retained => 2,
        InitialLoad::Fresh => 1,
    };
    let info = facts.source.info_mut();
    info.slots_free += spared;
    info.senders_free += spared;
}

/// How the mirror is attached: for every table what is loaded.
///
/// # Errors
/// 409 with every table of which the topics hold no copy, and what is to be done.
pub(super) async fn chosen(api: &Api, request: &CreateRequest, owner: &Mirror) -> Result<Attach> {
    let load = request.attach.as_ref().map(|attach| attach.load);
    let is_fresh = load == Some(InitialLoad::Fresh);
    let retained = match is_fresh || !owner.generation_ready {
        // Nothing is there yet, or nothing is asked for.
        true => Retained::default(),
        false => Retained::read(&api.kafka, &api.topics, &owner.slug)
            .await
            .map_err(super::replay::unreadable)?,
    };
    let mut copies = Vec::new();
    let mut refused = Vec::new();
    for table in &request.tables {
        let Some(mapped) = mapped(owner, table) else {
            continue;
        };
        let seen = mapped.request_id;
        let found = match is_fresh {
            true => Ok((None, None)),
            false => copy_of(owner, mapped, &retained),
        };
        match found {
            Ok((request_id, changes_offset)) => copies.push(InitialCopy {
                seen,
                request_id,
                changes_offset,
            }),
            Err(why) => refused.push(format!("table {}: {why}", table.source)),
        }
    }
    if refused.is_empty() {
        return Ok(Attach {
            owner: owner.name.clone(),
            generation: owner.generation,
            copies,
        });
    }
    Err(Refusal::conflict(format!(
        "the topics of mirror '{0}' cannot load what was asked for, and nothing was created. {1}. Ask with \"initial_load\": \"fresh\" to have the tables copied from the source, or POST /v1/mirrors/{0}/checkpoint first",
        owner.name,
        refused.join("; ")
    )))
}

/// The copy of a table to be loaded, and where its changes begin, if that is known. Pure.
fn copy_of(
    owner: &Mirror,
    mapped: &MirrorTable,
    retained: &Retained,
) -> std::result::Result<(Option<uuid::Uuid>, Option<i64>), &'static str> {
    let is_finished = |request| {
        let mut syncs = retained.syncs.iter();
        syncs.any(|sync| sync.request_id == request && sync.state == SyncState::Finished)
    };
    if let Some(request) = mapped.request_id.filter(|request| !is_finished(*request)) {
        // It is asked for because what was copied before will not do any more.
        return Ok((Some(request), None));
    }
    let since = mapped.copies_since();
    match retained.newest(&mapped.source, owner.generation, &since, |_| true) {
        Ok(sync) => Ok((Some(sync.request_id), Some(sync.changes_offset))),
        Err(Missing::NoSync) => Err("no copy of it has finished in this history of the mirror"),
        Err(Missing::Trimmed | Missing::OnlyLater(_)) => {
            Err("its copies, or changes since, are not in the topics any more")
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    const BODY: &str = r#"{"name": "second", "source_mirror": "first", "destination_peer": "b",
        "table_mappings": [{"source_table": "public.t", "destination_table": "s.t"}]}"#;

    fn read(body: &str) -> Result<CreateRequest> {
        CreateRequest::read(Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn a_further_destination_is_read() {
        let attach = read(BODY).unwrap().attach.expect("attached");
        assert_eq!(
            (attach.owner.as_str(), attach.load),
            ("first", InitialLoad::Retained)
        );
        let fresh = BODY.replacen(
            '{',
            r#"{"initial_load": "fresh", "topic_retention_hours": 3, "#,
            1,
        );
        let attach = read(&fresh).unwrap().attach.expect("attached");
        assert!(attach.load == InitialLoad::Fresh && attach.has_own_window);
    }

    #[test]
    fn what_the_owner_decides_is_refused_by_name() {
        for name in OF_THE_OWNER {
            let value = match name {
                "untracked_changes" => "\"warn\"",
                name if name.contains("name") || name == "source_peer" => "\"x\"",
                _ => "7",
            };
            let body = BODY.replacen('{', &format!("{{\"{name}\": {value}, "), 1);
            let refusal = read(&body).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(
                refusal.message.contains(&format!("{name}: is that of")),
                "{}",
                refusal.message
            );
        }
        let bare = BODY.replacen('{', r#"{"do_initial_snapshot": false, "#, 1);
        assert!(
            read(&bare)
                .unwrap_err()
                .message
                .contains("do_initial_snapshot")
        );
        let keyed = BODY.replace("\"s.t\"", "\"s.t\", \"partition_key\": \"id\"");
        assert!(read(&keyed).unwrap_err().message.contains("partition_key"));
        let alone = BODY.replace("source_mirror", "source_peer");
        let alone = alone.replacen('{', r#"{"initial_load": "fresh", "#, 1);
        assert!(read(&alone).unwrap_err().message.contains("initial_load"));
    }
}
