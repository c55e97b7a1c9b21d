//! What the registry outside was found to say of the ids that the topic holds.
//!
//! Events carry ids, and whoever reads them with a registry takes its word for what they mean.
//! So before a registry's ids are used, those that the topic has already are looked up there.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::server::Server;
use super::state::{GivenBy, Registered};
use crate::control::canonical_form;
use crate::{Error, Result};

/// How many ids are looked up at a time.
const LOOKUPS_MAX: usize = 8;

/// Per id that was looked up: whether the registry has it.
#[derive(Debug, Default)]
pub(super) struct Confirmed(HashMap<u32, bool>);

impl Confirmed {
    /// Looks up those of `recorded` that have not been before.
    ///
    /// # Errors
    /// [`Error::IdsClash`] when an id means something else there, or is one of ours that the
    /// registry may still give to someone else.
    pub(super) async fn look_up(
        &mut self,
        server: &Server,
        topic: &str,
        recorded: Vec<Registered>,
    ) -> Result<()> {
        let unknown = recorded
            .into_iter()
            .filter(|record| !self.0.contains_key(&record.id));
        let found: Vec<(u32, bool)> = stream::iter(unknown)
            .map(|record| look_up(server, topic, record))
            .buffer_unordered(LOOKUPS_MAX)
            .try_collect()
            .await?;
        self.0.extend(found);
        Ok(())
    }

    /// Remembers ids that registry and topic agree on.
    pub(super) fn good(&mut self, ids: &[u32]) {
        self.0.extend(ids.iter().map(|id| (*id, true)));
    }

    /// Whether they agree on all of these.
    pub(super) fn are_good(&self, ids: &[u32]) -> bool {
        ids.iter().all(|id| self.0.get(id) == Some(&true))
    }

    /// Whether the registry was found to have lost an id.
    pub(super) fn is_lost(&self, id: u32) -> bool {
        self.0.get(&id) == Some(&false)
    }
}

async fn look_up(server: &Server, topic: &str, record: Registered) -> Result<(u32, bool)> {
    let there = server.schema(record.id).await?;
    judge(server.url(), topic, &record, there.as_deref())
}

/// Whether the id is there, once it is sure that it cannot mean two things.
fn judge(url: &str, topic: &str, record: &Registered, there: Option<&str>) -> Result<(u32, bool)> {
    let Registered { id, subject, .. } = record;
    let clash = |what: &str| {
        Err(Error::IdsClash(format!(
            "schema id {id} in {topic} is {subject}, and in the schema registry {url} it {what}: events written before would be misread there. Use the registry that gave these ids, or bring them into this one with their schemas, or make the mirrors anew under another BUNNY_TOPIC_PREFIX"
        )))
    };
    match (there, record.given_by) {
        (Some(there), _) if is_same(&record.schema, there) => Ok((*id, true)),
        (Some(_), _) => clash("is another schema"),
        (None, GivenBy::Topic) => clash("is none yet, so that it may become another schema"),
        (None, GivenBy::Server) => {
            tracing::warn!(topic, id, %subject, url, "the schema registry has lost a schema");
            Ok((*id, false))
        }
    }
}

/// Whether bytes written with one read the same with the other. Registries may write a
/// schema's text anew.
fn is_same(ours: &Arc<str>, theirs: &str) -> bool {
    if **ours == *theirs {
        return true;
    }
    match (canonical_form(ours), canonical_form(theirs)) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(given_by: GivenBy) -> Registered {
        Registered {
            id: 7,
            subject: "a.B".into(),
            version: 1,
            schema: r#"{"type":"record","name":"B","namespace":"a","fields":[]}"#.into(),
            given_by,
        }
    }

    #[test]
    fn an_id_must_not_mean_two_things() {
        let of = |given_by, there| judge("http://r", "t", &record(given_by), there);
        let rewritten = r#"{ "name": "a.B", "type": "record", "fields": [] }"#;
        let other = r#"{"type":"record","name":"C","namespace":"a","fields":[]}"#;
        for given_by in [GivenBy::Topic, GivenBy::Server] {
            assert_eq!(of(given_by, Some(rewritten)).unwrap(), (7, true));
            for there in [other, "syntax = \"proto3\";"] {
                let error = of(given_by, Some(there)).unwrap_err();
                assert!(matches!(error, Error::IdsClash(_)), "{error}");
            }
        }
        assert_eq!(of(GivenBy::Server, None).unwrap(), (7, false));
        assert!(of(GivenBy::Topic, None).is_err());
    }
}
