//! Rows without a key: copies are added and taken away, matched by the whole row.

use tokio_postgres::Client;

use super::drift::{self, Drift};
use super::keyed::{copy_rows, query, stage};
use super::sql::Op;
use super::target::Target;
use crate::error::{Error, Result};
use crate::event::Change;
use crate::net_effect::multiset;

pub(super) async fn write(client: &Client, target: &mut Target, changes: &[&Change]) -> Result<()> {
    if changes
        .iter()
        .all(|change| matches!(change, Change::Insert(_)))
    {
        let rows = changes.iter().filter_map(|change| match change {
            Change::Insert(row) => Some(row),
            _ => None,
        });
        return copy_rows(client, target, rows).await;
    }
    let nets = multiset::fold(changes).map_err(|error| Error::Table {
        table: target.source.clone(),
        reason: error.to_string(),
        restart_offset: None,
    })?;
    let staged = nets.iter().map(|&(row, copies)| {
        let op = if copies > 0 { Op::Insert } else { Op::Delete };
        (copies.abs(), op, 0, row)
    });
    stage(client, target, staged).await?;
    let wanted: i64 = nets.iter().map(|(_, copies)| (-copies).max(0)).sum();
    if wanted > 0 {
        let done = query(client, target, &target.sql.delete_copies()).await?;
        let deleted = done.first().map_or(0, |done| done.count);
        drift::note(
            target,
            Drift::DeleteMissed,
            (wanted as u64).saturating_sub(deleted),
        );
    }
    if nets.iter().any(|(_, copies)| *copies > 0) {
        query(client, target, &target.sql.insert_copies()).await?;
    }
    Ok(())
}
