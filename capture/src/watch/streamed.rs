//! What the stream of this session has met that explains what a look sees.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bunny_postgres::pgoutput::Relation;
use bunny_postgres::{Lsn, TableName};

/// So many TRUNCATEs are remembered; of more, some will not be recognised.
const TRUNCATES_MAX: usize = 10_000;

/// Shared by the stream, which tells, and the watch, which asks once the stream has come to
/// where it looked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streamed {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Relations of which a change was met: the walsender describes each before its first.
    /// A leaf is described besides its root.
    relations: HashSet<u32>,
    /// Those that were described as leaves and are not known otherwise.
    leaves: BTreeMap<u32, Leaf>,
    /// How many descriptions were met.
    descriptions: u64,
    truncates: Vec<Truncate>,
}

#[derive(Debug)]
struct Leaf {
    root: u32,
    name: TableName,
    /// The number of its first description.
    description: u64,
}

/// A TRUNCATE of a mapped table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Truncate {
    relation: u32,
    commit_lsn: Lsn,
    xid: u32,
}

impl Streamed {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A relation was described, right after `before`: the walsender describes a leaf after the
    /// root that its changes are published as.
    pub(crate) fn described(&self, relation: &Relation, before: Option<u32>) {
        let mut inner = self.inner();
        inner.relations.insert(relation.oid);
        inner.descriptions += 1;
        if let Some(root) = before {
            let leaf = Leaf {
                root,
                name: TableName::new(relation.schema.as_str(), relation.name.as_str()),
                description: inner.descriptions,
            };
            // Another description of it is no news of when it came.
            inner.leaves.entry(relation.oid).or_insert(leaf);
        }
    }

    /// How many descriptions have been met until now.
    pub(super) fn descriptions(&self) -> u64 {
        self.inner().descriptions
    }

    /// What was described right after that table, as a leaf of it is, and whether it was among
    /// the first so many descriptions.
    pub(super) fn leaves_of(&self, root: u32, first: u64) -> Vec<(u32, TableName, bool)> {
        let inner = self.inner();
        let of = inner.leaves.iter().filter(|(_, leaf)| leaf.root == root);
        of.map(|(oid, leaf)| (*oid, leaf.name.clone(), leaf.description <= first))
            .collect()
    }

    /// It is known in another way what became of that leaf.
    pub(super) fn forget_leaf(&self, leaf: u32) {
        self.inner().leaves.remove(&leaf);
    }

    /// A table was truncated.
    pub(crate) fn truncated(&self, relation: u32, commit_lsn: Lsn, xid: u32) {
        let mut inner = self.inner();
        if inner.truncates.len() >= TRUNCATES_MAX {
            inner.truncates.clear();
        }
        inner.truncates.push(Truncate {
            relation,
            commit_lsn,
            xid,
        });
    }

    /// Whether a change of that table has been met.
    pub(super) fn has_met(&self, relation: u32) -> bool {
        self.inner().relations.contains(&relation)
    }

    /// The transactions that truncated the table and ended at or after `since`.
    pub(super) fn truncates_of(&self, relation: u32, since: Lsn) -> Vec<u32> {
        let inner = self.inner();
        let of = inner.truncates.iter();
        let of = of.filter(|one| one.relation == relation && one.commit_lsn >= since);
        of.map(|truncate| truncate.xid).collect()
    }

    /// What was committed before `lsn` explains nothing that is seen from now on.
    pub(super) fn forget_before(&self, lsn: Lsn) {
        self.inner().truncates.retain(|t| t.commit_lsn >= lsn);
    }
}
