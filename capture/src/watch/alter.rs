//! Tables enter and leave publications, one table after the other.
//!
//! ALTER PUBLICATION takes a lock (SHARE UPDATE EXCLUSIVE) that CREATE INDEX CONCURRENTLY, VACUUM
//! and most kinds of ALTER TABLE hold for as long as they run, and only a table's owner may add it.
//! A table that is locked, or belongs to others, stays as it is until a later look, and nothing else
//! waits for it.

use std::collections::BTreeMap;

use bunny_postgres::{Session, TableName};

use super::membership::{Alteration, Obstacle};
use super::{KeptOut, Pending};
use crate::crash_points::{TABLE_MOVED, crash_point};
use crate::error::Result;
use crate::publication::only;

/// How long the first table that turns out to be locked is waited for, and how long each after
/// it: however many are locked, the others have their turn soon.
const LOCK_TIMEOUT_FIRST: &str = "1s";
const LOCK_TIMEOUT_NEXT: &str = "200ms";

/// Makes the changes that are to be had, and returns the tables that could not be moved. Tables
/// that are `coming`, of which nothing is captured yet, are last. That one of these may not be
/// published concerns nobody else.
pub(super) async fn alter(
    source: &Session,
    changes: &[Alteration],
    coming: &Pending,
) -> Result<KeptOut> {
    let writers_end_first = loses_concurrent_writers(source.server_version_num());
    let mut kept_out = KeptOut::new();
    for ((is_coming, table), changes) in by_table(changes, coming) {
        let timeout = match kept_out.is_empty() {
            true => LOCK_TIMEOUT_FIRST,
            false => LOCK_TIMEOUT_NEXT,
        };
        let mut statements = vec![
            "BEGIN".to_owned(),
            format!("SET LOCAL lock_timeout = '{timeout}'"),
        ];
        if writers_end_first && is_coming && changes.iter().any(|change| change.adds) {
            statements.push(format!(
                "LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE",
                only(table)
            ));
        }
        statements.extend(changes.into_iter().map(Alteration::sql));
        statements.push("COMMIT".to_owned());
        match run(source, &statements).await {
            Ok(()) => crash_point(TABLE_MOVED),
            Err(error) if error.is_lock_timeout() => {
                kept_out.insert(table.clone(), Obstacle::Locked);
            }
            Err(error) if is_coming && error.is_denied() => {
                kept_out.insert(table.clone(), Obstacle::Denied(error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(kept_out)
}

/// What is one transaction, so that a table that changes publication is always in one of them.
fn by_table<'c>(
    changes: &'c [Alteration],
    coming: &Pending,
) -> BTreeMap<(bool, &'c TableName), Vec<&'c Alteration>> {
    let mut tables: BTreeMap<_, Vec<&Alteration>> = BTreeMap::new();
    for change in changes {
        let is_coming = coming.contains(&change.table);
        let of_table = tables.entry((is_coming, &change.table)).or_default();
        of_table.push(change);
    }
    tables
}

async fn run(source: &Session, statements: &[String]) -> Result<()> {
    let altered = source.batch(&statements.join("; ")).await;
    if altered.is_err() {
        // The session goes on being used.
        let _ = source.batch("ROLLBACK").await;
    }
    Ok(altered?)
}

/// Whether changes of a writer that is at work while its table is published can be lost
/// (mended in 14.18, 15.13, 16.9 and 17.5): then writers have to end first.
fn loses_concurrent_writers(server_version_num: i32) -> bool {
    let (major, minor) = (server_version_num / 10_000, server_version_num % 10_000);
    match major {
        14 => minor < 18,
        15 => minor < 13,
        16 => minor < 9,
        17 => minor < 5,
        _ => major < 14,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_lose_concurrent_writers() {
        for (version, loses) in [
            (150_012, true),
            (150_013, false),
            (140_017, true),
            (180_000, false),
        ] {
            assert_eq!(loses_concurrent_writers(version), loses, "{version}");
        }
    }

    #[test]
    fn what_concerns_a_table_stays_together_and_what_is_coming_is_last() {
        let change = |publication: &str, adds: bool, table: &str| Alteration {
            publication: publication.to_owned(),
            adds,
            table: TableName::new("public", table),
        };
        let changes = [
            change("ins", true, "coming"),
            change("all", false, "moved"),
            change("ins", true, "moved"),
            change("all", false, "going"),
        ];
        let coming = Pending::from([TableName::new("public", "coming")]);
        let groups: Vec<(bool, String, Vec<bool>)> = by_table(&changes, &coming)
            .into_iter()
            .map(|((is_coming, table), changes)| {
                let adds = changes.iter().map(|change| change.adds).collect();
                (is_coming, table.name.clone(), adds)
            })
            .collect();
        assert_eq!(
            groups,
            [
                (false, "going".to_owned(), vec![false]),
                (false, "moved".to_owned(), vec![false, true]),
                (true, "coming".to_owned(), vec![true]),
            ]
        );
    }
}
