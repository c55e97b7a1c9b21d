//! The schema `_bunny` at the destination: who owns a mirror there, how far it is
//! applied, and in which state each table is. It is the truth about these (the catalog
//! only caches it), because it commits together with the rows.
//!
//! Every destination transaction begins with [`fence`]. The functions take whatever can
//! run statements, a session or a transaction; those that must share the caller's
//! transaction say so.

mod chunks;
mod install;
mod objects;
mod overview;
mod owner;
mod prepared;
mod progress;
mod schema_syncs;
mod tables;

use bunny_postgres::Lsn;
use tokio_postgres::GenericClient;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::error::{Error, Result};

pub use chunks::{forget_chunks, loaded_chunks, record_chunk};
pub use install::{install, is_installed};
pub use objects::{
    MissingObject, forget_missing_object, forget_missing_objects, missing_objects, notes,
    notes_are_said, put_missing_object, put_notes,
};
pub use overview::{Overview, overview};
pub use owner::{Epoch, fence, last_wish, set_last_wish, take_over};
pub use prepared::{Counts, Prepared};
pub use progress::{Progress, progress, set_progress};
pub use schema_syncs::{
    Entry, done, entries, forget_schema_syncs, held, hold, is_done, put_entries, set_definition,
};
pub use tables::{
    State, TableState, keeps_rows, leave_main, park_table, put_table, quarantine_table,
    remove_table, set_keeps_rows, set_state, table, tables, unpark_table,
};

/// Every table of `_bunny` that holds rows of a mirror, the owner's last.
const TABLES_OF_A_MIRROR: [&str; 8] = [
    "chunks",
    "objects",
    "shapes",
    "schema_syncs",
    "tables",
    "progress",
    "retention",
    "owner",
];

/// Removes every trace of a mirror from `_bunny`, the owner row last; destination
/// tables are never touched.
pub async fn forget_mirror<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<()> {
    for table in TABLES_OF_A_MIRROR {
        client
            .execute(
                &format!("DELETE FROM _bunny.{table} WHERE mirror_id = $1"),
                &[&mirror_id],
            )
            .await
            .map_err(Error::sql(format!(
                "removing the mirror from _bunny.{table}"
            )))?;
    }
    Ok(())
}

/// The statements that do by hand, for all these ids, what [`forget_mirror`] does for one. Pure.
pub fn forgetting_by_hand(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    let ids = ids.join(", ");
    TABLES_OF_A_MIRROR
        .map(|table| format!("DELETE FROM _bunny.{table} WHERE mirror_id IN ({ids});"))
        .join(" ")
}

fn lsn_to(lsn: Lsn) -> PgLsn {
    PgLsn::from(lsn.0)
}

fn lsn_from(lsn: PgLsn) -> Lsn {
    Lsn(u64::from(lsn))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_that_is_made_for_a_mirror_is_forgotten_with_it() {
        let made: BTreeSet<&str> = include_str!("install.sql")
            .lines()
            .filter_map(|line| line.strip_prefix("CREATE TABLE IF NOT EXISTS _bunny."))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        assert_eq!(made, BTreeSet::from(TABLES_OF_A_MIRROR));
        let by_hand = forgetting_by_hand(&[Uuid::from_u128(1), Uuid::from_u128(2)]);
        for table in made {
            assert!(by_hand.contains(&format!("DELETE FROM _bunny.{table} WHERE ")));
        }
        assert_eq!(
            by_hand
                .matches("00000000-0000-0000-0000-000000000002")
                .count(),
            8
        );
    }
}
