//! What the registry topic says, in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tail::Record;
use crate::{Error, Result};

/// Ids, both ways.
#[derive(Debug, Default)]
pub(super) struct State {
    by_id: BTreeMap<u32, Registered>,
    /// Per subject: versions in order.
    subjects: BTreeMap<Arc<str>, Subject>,
    /// Offset from which the topic has not been read.
    pub(super) next_offset: i64,
    /// Offset and time of the topic's first record: no other topic of that name has the same.
    pub(super) first: Option<(i64, Option<i64>)>,
}

#[derive(Debug, Default)]
struct Subject {
    /// Version and id.
    versions: BTreeMap<u32, u32>,
    /// The first id of each schema.
    ids: HashMap<Arc<str>, u32>,
}

/// One record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) id: u32,
    pub(super) subject: Arc<str>,
    pub(super) version: u32,
    pub(super) schema: Arc<str>,
    pub(super) given_by: GivenBy,
}

/// Who chose an id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum GivenBy {
    /// An allocator of this topic: one more than the highest.
    #[default]
    Topic,
    /// A schema registry outside.
    Server,
}

impl GivenBy {
    fn is_topic(&self) -> bool {
        *self == GivenBy::Topic
    }
}

/// The record's value as JSON.
#[derive(Serialize, Deserialize)]
struct Payload<'a> {
    subject: Arc<str>,
    version: u32,
    #[serde(borrow)]
    schema: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "GivenBy::is_topic")]
    given_by: GivenBy,
}

impl Registered {
    /// Key of the record: the id in decimal.
    pub(super) fn key(&self) -> String {
        self.id.to_string()
    }

    /// Value of the record.
    pub(super) fn value(&self) -> Result<String> {
        let payload = Payload {
            subject: Arc::clone(&self.subject),
            version: self.version,
            schema: (&*self.schema).into(),
            given_by: self.given_by,
        };
        serde_json::to_string(&payload)
            .map_err(|error| Error::Invalid(format!("write schema {}: {error}", self.id)))
    }
}

/// Reads a record of the topic.
pub(super) fn parse(topic: &str, record: &Record<'_>) -> Result<Registered> {
    let corrupt =
        |what: String| Error::Corrupt(format!("{topic} at offset {}: {what}", record.offset));
    let id = record
        .key
        .and_then(|key| std::str::from_utf8(key).ok())
        .and_then(|key| key.parse().ok())
        .ok_or_else(|| corrupt("a key that is no id".to_owned()))?;
    let payload: Payload<'_> = serde_json::from_slice(record.value.unwrap_or_default())
        .map_err(|error| corrupt(error.to_string()))?;
    Ok(Registered {
        id,
        subject: payload.subject,
        version: payload.version,
        schema: payload.schema.into(),
        given_by: payload.given_by,
    })
}

impl State {
    /// Whether a topic that begins with `first` is not the one that was read. An empty one says
    /// nothing: a broker that is only just back may answer with less than it has.
    pub(super) fn is_of_another(&self, first: Option<(i64, Option<i64>)>) -> bool {
        matches!((self.first, first), (Some(known), Some(found)) if known != found)
    }

    /// Adds a record; the same record again changes nothing. An id with two
    /// meanings is [`Error::Corrupt`]: events written with it cannot be read.
    pub(super) fn insert(&mut self, record: Registered) -> Result<()> {
        if let Some(known) = self.by_id.get(&record.id) {
            if *known == record {
                return Ok(());
            }
            return Err(Error::Corrupt(format!(
                "schema id {} is given to {} and to {}",
                record.id, known.subject, record.subject
            )));
        }
        let subject = self
            .subjects
            .entry(Arc::clone(&record.subject))
            .or_default();
        subject.versions.insert(record.version, record.id);
        subject
            .ids
            .entry(Arc::clone(&record.schema))
            .or_insert(record.id);
        self.by_id.insert(record.id, record);
        Ok(())
    }

    /// Ids of all `(subject, schema)`; `None` when one has none.
    pub(super) fn ids(&self, wanted: &[(String, String)]) -> Option<Vec<u32>> {
        wanted
            .iter()
            .map(|(subject, schema)| self.id(subject, schema))
            .collect()
    }

    /// The first id of a schema under a subject.
    pub(super) fn id(&self, subject: &str, schema: &str) -> Option<u32> {
        self.subjects.get(subject)?.ids.get(schema).copied()
    }

    /// Records that would give ids to those of `wanted` that have none, each once. In a topic
    /// without any they count up from `first_id`.
    pub(super) fn missing(
        &self,
        wanted: &[(String, String)],
        first_id: u32,
    ) -> Result<Vec<Registered>> {
        let mut missing: Vec<Registered> = Vec::new();
        let last_id = self.by_id.keys().next_back().copied();
        let mut last_id = last_id.unwrap_or(first_id.saturating_sub(1));
        for (subject, schema) in wanted {
            if is_planned(&missing, subject, schema) || self.id(subject, schema).is_some() {
                continue;
            }
            last_id = last_id
                .checked_add(1)
                .ok_or_else(|| Error::Invalid("all schema ids are in use".to_owned()))?;
            missing.push(Registered {
                id: last_id,
                subject: subject.as_str().into(),
                version: self.next_version(&missing, subject),
                schema: schema.as_str().into(),
                given_by: GivenBy::Topic,
            });
        }
        Ok(missing)
    }

    /// Records of those of `wanted` that have none, with the `ids` that a server gave to all of
    /// them. [`Error::IdsClash`] when one of them contradicts what is recorded.
    pub(super) fn missing_given(
        &self,
        wanted: &[(String, String)],
        ids: &[u32],
    ) -> Result<Vec<Registered>> {
        let mut missing: Vec<Registered> = Vec::new();
        for ((subject, schema), &id) in wanted.iter().zip(ids) {
            let known = self.id(subject, schema);
            if known == Some(id) || is_planned(&missing, subject, schema) {
                continue;
            }
            let planned = missing.iter().find(|record| record.id == id);
            let holder = self.by_id.get(&id).or(planned);
            let why = match (known, holder) {
                (None, None) => {
                    missing.push(Registered {
                        id,
                        subject: subject.as_str().into(),
                        version: self.next_version(&missing, subject),
                        schema: schema.as_str().into(),
                        given_by: GivenBy::Server,
                    });
                    continue;
                }
                (Some(known), _) => format!("events carry it as {known}"),
                (None, Some(holder)) => format!(
                    "events with that id are version {} of {}",
                    holder.version, holder.subject
                ),
            };
            return Err(Error::IdsClash(format!(
                "the schema registry gives id {id} to a schema of {subject}, but {why}: it is not the registry that gave the ids before, or it has lost what it knew. Restore it, or make the mirrors anew under another BUNNY_TOPIC_PREFIX"
            )));
        }
        Ok(missing)
    }

    fn next_version(&self, planned: &[Registered], subject: &str) -> u32 {
        let known = self
            .subjects
            .get(subject)
            .and_then(|subject| subject.versions.keys().next_back().copied())
            .unwrap_or(0);
        let planned = planned.iter().filter(|record| *record.subject == *subject);
        known + planned.count() as u32 + 1
    }

    /// Whether an id is one of a server's.
    pub(super) fn has_ids_of_a_server(&self) -> bool {
        self.by_id
            .values()
            .any(|record| record.given_by == GivenBy::Server)
    }

    /// All there is, by id.
    pub(super) fn records(&self) -> Vec<Registered> {
        self.by_id.values().cloned().collect()
    }

    pub(super) fn schema(&self, id: u32) -> Option<Arc<str>> {
        self.by_id.get(&id).map(|record| Arc::clone(&record.schema))
    }

    pub(super) fn subject_version(&self, id: u32) -> Option<(Arc<str>, u32)> {
        let record = self.by_id.get(&id)?;
        Some((Arc::clone(&record.subject), record.version))
    }

    pub(super) fn subjects(&self) -> Vec<String> {
        self.subjects.keys().map(|name| name.to_string()).collect()
    }

    pub(super) fn versions(&self, subject: &str) -> Vec<(u32, u32, Arc<str>)> {
        let Some(subject) = self.subjects.get(subject) else {
            return Vec::new();
        };
        subject
            .versions
            .iter()
            .filter_map(|(version, id)| Some((*version, *id, self.schema(*id)?)))
            .collect()
    }
}

fn is_planned(planned: &[Registered], subject: &str, schema: &str) -> bool {
    planned
        .iter()
        .any(|record| *record.subject == *subject && *record.schema == *schema)
}
