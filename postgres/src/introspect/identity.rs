//! Which replica identity is in force, judged as Postgres judges it.

use serde::Deserialize;

use super::ReplicaIdentity;

/// The identity of one table as its catalog rows give it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct RawIdentity {
    /// `pg_class.relreplident`.
    pub(super) kind: char,
    /// Columns of the index it uses, in key order; empty when there is no such index
    /// that is unique, immediate and valid.
    pub(super) key: Vec<String>,
    /// One of them is generated, and so never in the stream.
    pub(super) key_generated: bool,
    /// FULL that does not count: from 18 on a server refuses updates of a published table whose
    /// identity holds generated columns that are not published (PostgreSQL 18, "Generated Column
    /// Replication").
    #[serde(default)]
    pub(super) full_refused: bool,
}

impl RawIdentity {
    fn is_full(&self) -> bool {
        self.kind == 'f' && !self.full_refused
    }

    /// The key, when it can identify a row at the other end.
    fn usable_key(&self) -> Option<&[String]> {
        let usable = !self.key.is_empty() && !self.key_generated;
        usable.then_some(self.key.as_slice())
    }
}

/// The identity in force for a table whose rows live in `leaves` (none for an
/// ordinary table), and its key columns.
///
/// In a partition tree the leaf decides what is logged of an old row, and the root
/// decides how it is labelled and which columns are the key. So every leaf must log
/// what the root promises: the whole row under a FULL root; the root's key, or the
/// whole row, otherwise.
pub(super) fn in_force(
    root: &RawIdentity,
    leaves: &[RawIdentity],
) -> (ReplicaIdentity, Vec<String>) {
    const NOTHING: (ReplicaIdentity, Vec<String>) = (ReplicaIdentity::Nothing, Vec::new());
    if root.is_full() {
        let all_full = leaves.iter().all(RawIdentity::is_full);
        return if all_full {
            (ReplicaIdentity::Full, Vec::new())
        } else {
            NOTHING
        };
    }
    let kind = match root.kind {
        'd' => ReplicaIdentity::Default,
        'i' => ReplicaIdentity::Index,
        _ => return NOTHING,
    };
    let Some(key) = root.usable_key() else {
        // DEFAULT without a primary key is what most key-less tables have; keep the
        // word, there is no key either way.
        return match kind {
            ReplicaIdentity::Default => (kind, Vec::new()),
            _ => NOTHING,
        };
    };
    let leaf_logs_key = |leaf: &RawIdentity| {
        leaf.is_full() || leaf.usable_key().is_some_and(|own| same_set(own, key))
    };
    if leaves.iter().all(leaf_logs_key) {
        (kind, key.to_vec())
    } else {
        NOTHING
    }
}

fn same_set(left: &[String], right: &[String]) -> bool {
    left.len() == right.len() && left.iter().all(|name| right.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: char, key: &[&str]) -> RawIdentity {
        RawIdentity {
            kind,
            key: key.iter().map(|&name| name.to_owned()).collect(),
            key_generated: false,
            full_refused: false,
        }
    }

    fn key(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn an_ordinary_table_speaks_for_itself() {
        use ReplicaIdentity::{Default, Full, Index, Nothing};
        assert_eq!(in_force(&raw('d', &["id"]), &[]), (Default, key(&["id"])));
        assert_eq!(in_force(&raw('d', &[]), &[]), (Default, vec![]));
        assert_eq!(in_force(&raw('f', &[]), &[]), (Full, vec![]));
        assert_eq!(in_force(&raw('n', &[]), &[]), (Nothing, vec![]));
        assert_eq!(
            in_force(&raw('i', &["a", "b"]), &[]),
            (Index, key(&["a", "b"]))
        );
        // The chosen index was dropped: Postgres treats it as NOTHING.
        assert_eq!(in_force(&raw('i', &[]), &[]), (Nothing, vec![]));
    }

    #[test]
    fn a_generated_key_column_is_never_sent() {
        let mut generated = raw('d', &["id"]);
        generated.key_generated = true;
        assert_eq!(in_force(&generated, &[]).1, Vec::<String>::new());
    }

    #[test]
    fn a_full_identity_that_the_server_refuses_is_none() {
        let mut full = raw('f', &[]);
        full.full_refused = true;
        assert_eq!(in_force(&full, &[]), (ReplicaIdentity::Nothing, vec![]));
        let by_id = raw('d', &["id"]);
        assert_eq!(in_force(&by_id, &[full]).0, ReplicaIdentity::Nothing);
    }

    #[test]
    fn leaves_must_log_what_the_root_promises() {
        use ReplicaIdentity::{Default, Full, Nothing};
        let by_id = raw('d', &["id"]);
        let full = raw('f', &[]);
        let nothing = raw('n', &[]);
        let keyless = raw('d', &[]);
        let by_other = raw('i', &["other"]);

        let good = [by_id.clone(), full.clone(), raw('i', &["id"])];
        assert_eq!(in_force(&by_id, &good), (Default, key(&["id"])));
        for bad in [&nothing, &keyless, &by_other] {
            let leaves = [by_id.clone(), bad.clone()];
            assert_eq!(in_force(&by_id, &leaves), (Nothing, vec![]), "{bad:?}");
        }
        assert_eq!(in_force(&full, std::slice::from_ref(&full)), (Full, vec![]));
        assert_eq!(
            in_force(&full, std::slice::from_ref(&by_id)),
            (Nothing, vec![])
        );
        // A root without a key labels the row with none, whatever its leaves log.
        assert_eq!(in_force(&keyless, &[full]), (Default, vec![]));
    }
}
