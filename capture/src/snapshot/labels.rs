//! Whether the labels of enums were, while a chunk was copied, those that the snapshot saw.
//!
//! COPY prints a label as it is called at that moment, whatever its snapshot sees. Labels that
//! are renamed between two chunks, or within one, give a table in which one text stands for two
//! values. Nothing keeps others from renaming them, so it is looked at afterwards.

use std::collections::BTreeMap;

use bunny_postgres::Session;
use bunny_postgres::introspect::{self, EnumLook};

use super::trouble::{Cause, Trouble};

/// By type, the enums that a relation's columns are made of.
pub(super) struct Labels(BTreeMap<u32, EnumLook>);

impl Labels {
    /// As the snapshot of the session's transaction sees them.
    pub(super) async fn of_snapshot(session: &Session, relation: u32) -> Result<Labels, Trouble> {
        let mut found = introspect::enums(session, &[relation]).await?;
        Ok(Labels(found.remove(&relation).unwrap_or_default()))
    }

    /// Compares them with those of now. `session` must have ended its transaction. A label that
    /// was added since is in no row of the snapshot.
    pub(super) async fn check_unchanged(
        &self,
        session: &Session,
        relation: u32,
    ) -> Result<(), Trouble> {
        if self.0.is_empty() {
            return Ok(());
        }
        let now = Labels::of_snapshot(session, relation).await?;
        match self.renamed(&now) {
            None => Ok(()),
            Some(renamed) => Err(Cause::Rewritten(renamed).into()),
        }
    }

    /// What was renamed, in words. A type that is gone from the relation, or with it, cannot be
    /// compared. Pure.
    fn renamed(&self, now: &Labels) -> Option<String> {
        for (oid, seen) in &self.0 {
            let name = &seen.type_name;
            let Some(now) = now.0.get(oid) else {
                return Some(format!("a column of type {name} was altered or dropped"));
            };
            let is_other = |(owner, label): &(&u32, &String)| now.labels.get(owner) != Some(label);
            if let Some((_, label)) = seen.labels.iter().find(is_other) {
                return Some(format!("label {label} of type {name} was renamed"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(u32, &str)]) -> Labels {
        let mood = EnumLook {
            type_name: "public.mood".into(),
            labels: labels
                .iter()
                .map(|(oid, label)| (*oid, (*label).to_owned()))
                .collect(),
        };
        Labels([(50, mood)].into())
    }

    #[test]
    fn what_was_renamed_is_said_and_what_was_added_is_not() {
        let seen = labels(&[(1, "a"), (2, "b")]);
        assert_eq!(seen.renamed(&labels(&[(1, "a"), (2, "b"), (3, "c")])), None);
        let exchanged = seen.renamed(&labels(&[(1, "b"), (2, "a")]));
        assert_eq!(
            exchanged.as_deref(),
            Some("label a of type public.mood was renamed")
        );
        assert!(seen.renamed(&Labels(BTreeMap::new())).is_some());
    }
}
