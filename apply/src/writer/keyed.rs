//! Rows that are found by a key: folded to effects, staged, written set by set.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::drift::{self, Drift};
use super::set::{self, Masks, Staged};
use super::sql::{Op, Sql};
use super::target::{StagingRow, Target};
use super::{Care, Policy};
use crate::copy_in::copy_rows;
use crate::error::{Error, Result};
use crate::event::{Change, Row};
use crate::net_effect::keyed::{self, Rename, Segment};

/// More rows than that are replayed by way of an index.
const INDEXED_ROWS_MIN: usize = 100;
const REPLAY_INDEX: &str = "bunny_replay";

/// Stages what [`write`] will merge, and touches nothing but the staging table, if the changes
/// fold to one set of which that is true: keys are changed one by one.
pub(super) async fn stage_ahead(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
) -> Result<()> {
    if target.key.is_empty() || target.stage_copy.is_none() || is_only_new(changes) {
        return Ok(());
    }
    let segments = keyed::fold(changes, &target.key, target.key_change)
        .map_err(|error| failed(target, error.to_string()))?;
    if let [Segment::Set(effects)] = &segments[..] {
        set::stage_ahead(client, target, effects).await?;
    }
    Ok(())
}

/// Writes the changes as sets.
pub(super) async fn write(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
    care: Care,
    policy: Policy,
) -> Result<()> {
    if let Some(ahead) = target.ahead.take() {
        return set::write_ahead(client, target, ahead, policy).await;
    }
    // At the source no key is there twice, so there is nothing to fold. If it is otherwise the
    // table's own key refuses the rows.
    if set::may_copy(target, care) && is_only_new(changes) {
        let rows = changes.iter().filter_map(|change| inserted(change));
        return set::copy_new(client, target, rows).await;
    }
    let segments = keyed::fold(changes, &target.key, target.key_change)
        .map_err(|error| failed(target, error.to_string()))?;
    for segment in &segments {
        match segment {
            Segment::Set(effects) => set::write(client, target, effects, care, policy).await?,
            Segment::Renames(renames) => write_renames(client, target, renames, policy).await?,
        }
    }
    Ok(())
}

/// Whether the changes are inserts, all of them.
pub(super) fn is_only_new(changes: &[&Change]) -> bool {
    changes.iter().all(|change| inserted(change).is_some())
}

pub(super) fn inserted(change: &Change) -> Option<&Row> {
    match change {
        Change::Insert(row) => Some(row),
        Change::Update { .. } | Change::Delete(_) => None,
    }
}

/// Writes the changes one by one, in source order.
pub(super) async fn replay(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
    policy: Policy,
) -> Result<()> {
    let mut masks = Masks::default();
    let mut staged = Vec::with_capacity(changes.len());
    for (n, change) in (0..).zip(changes) {
        let mut stage = |op, mask, row| staged.push(Staged { n, op, mask, row });
        match change {
            Change::Insert(row) => stage(Op::Insert, 0, row),
            Change::Delete(before) => stage(Op::Delete, 0, before.row()),
            Change::Update {
                before,
                after,
                unchanged,
            } => {
                let mask = masks.number(target, unchanged);
                let new_key = keyed::key_of(after, &target.key);
                let old = before.as_ref().map(|before| before.row());
                match old.filter(|old| keyed::key_of(old, &target.key) != new_key) {
                    Some(old) => {
                        stage(Op::Rename, mask, after);
                        stage(Op::OldKey, 0, old);
                    }
                    None if mask == 0 => stage(Op::Upsert, 0, after),
                    None => stage(Op::Patch, mask, after),
                }
            }
        }
    }
    stage_rows(client, target, &staged).await?;
    // Without it every row would cost a look at all of them.
    let indexed = staged.len() > INDEXED_ROWS_MIN;
    if indexed {
        query(client, target, &target.sql.index_staging(REPLAY_INDEX)).await?;
    }
    replay_staged(client, target, &staged, &masks, policy).await?;
    if indexed {
        query(client, target, &Sql::drop_index(REPLAY_INDEX)).await?;
    }
    adopt_identities(client, target).await
}

async fn replay_staged(
    client: &Client,
    target: &Target,
    staged: &[Staged<'_>],
    masks: &Masks,
    policy: Policy,
) -> Result<()> {
    for row in staged {
        let only = Some(row.n);
        match row.op {
            Op::Delete => {
                let done = query(client, target, &target.sql.delete(only)).await?;
                let deleted = done.first().map_or(0, |done| done.count);
                drift::note(target, Drift::DeleteMissed, u64::from(deleted == 0));
            }
            Op::Insert | Op::Upsert => {
                let both = format!("{}; {}", target.sql.update(only), target.sql.insert(only));
                let done = query(client, target, &both).await?;
                let met = done.first().map_or(0, Done::met);
                match row.op {
                    Op::Insert => drift::note(target, Drift::InsertOverwrote, met),
                    _ => drift::note(target, Drift::UpdateInserted, u64::from(met == 0)),
                }
            }
            Op::Patch => {
                let patch = target.sql.patch(row.mask, masks.get(row.mask), only);
                let met = query(client, target, &patch)
                    .await?
                    .first()
                    .map_or(0, Done::met);
                if met == 0 && policy.has_initial_snapshot {
                    let key = keyed::show(&keyed::key_of(row.row, &target.key));
                    return Err(missing(target, &key));
                }
                if met == 0 {
                    drift::note(target, Drift::UpdateNotOurs, 1);
                }
            }
            Op::Rename => rename(client, target, row, masks, policy).await?,
            Op::OldKey | Op::Replace | Op::DeleteAny | Op::Clear => {}
        }
    }
    Ok(())
}

async fn write_renames(
    client: &Client,
    target: &mut Target,
    renames: &[Rename<'_>],
    policy: Policy,
) -> Result<()> {
    let mut masks = Masks::default();
    let mut staged = Vec::with_capacity(renames.len() * 2);
    for (n, change) in (0..).zip(renames) {
        staged.push(Staged {
            n,
            op: Op::Rename,
            mask: masks.number(target, change.unchanged),
            row: change.after,
        });
        staged.push(Staged {
            n,
            op: Op::OldKey,
            mask: 0,
            row: change.old_key,
        });
    }
    stage_rows(client, target, &staged).await?;
    for row in staged.iter().filter(|row| row.op == Op::Rename) {
        rename(client, target, row, &masks, policy).await?;
    }
    // Of those that became patches.
    adopt_identities(client, target).await
}

async fn rename(
    client: &Client,
    target: &Target,
    row: &Staged<'_>,
    masks: &Masks,
    policy: Policy,
) -> Result<()> {
    let (n, unchanged) = (row.n, masks.get(row.mask));
    let (clear, update) = target.sql.rename(n, unchanged);
    let done = query(client, target, &format!("{clear}; {update}")).await?;
    if done.get(1).is_some_and(|update| update.count > 0) {
        return Ok(());
    }
    if !unchanged.is_empty() {
        if policy.has_initial_snapshot {
            return Err(missing(
                target,
                &keyed::show(&keyed::key_of(row.row, &target.key)),
            ));
        }
        let patch = format!(
            "{}; {}",
            target.sql.rename_to(n, Op::Patch),
            target.sql.patch(row.mask, unchanged, Some(n))
        );
        let done = query(client, target, &patch).await?;
        if done.get(1).map_or(0, Done::met) == 0 {
            drift::note(target, Drift::UpdateNotOurs, 1);
        }
        return Ok(());
    }
    drift::note(target, Drift::UpdateInserted, 1);
    let insert = format!(
        "{}; {}",
        target.sql.rename_to(n, Op::Insert),
        target.sql.insert(Some(n))
    );
    query(client, target, &insert).await?;
    Ok(())
}

/// An UPDATE may not set a GENERATED ALWAYS identity; where the source gave a row another
/// one, the row gets it here.
pub(super) async fn adopt_identities(client: &Client, target: &Target) -> Result<()> {
    if let Some(adopt) = target.sql.adopt_identities() {
        query(client, target, &adopt).await?;
    }
    Ok(())
}

pub(super) fn missing(target: &Target, keys: &str) -> Error {
    failed(
        target,
        format!(
            "an update does not carry the whole row, and destination table {} has no row with key ({keys}): \
             rows are missing there; sync the table again",
            target.destination
        ),
    )
}

fn failed(target: &Target, reason: String) -> Error {
    Error::Table {
        table: target.source.clone(),
        reason,
        restart_offset: None,
    }
}

async fn stage_rows(client: &Client, target: &mut Target, rows: &[Staged<'_>]) -> Result<()> {
    let staged = rows.iter().map(|row| (row.n, row.op, row.mask, row.row));
    stage(client, target, staged).await
}

/// Fills the staging table with these rows only: (n, op, mask, row).
pub(super) async fn stage<'r>(
    client: &Client,
    target: &mut Target,
    rows: impl Iterator<Item = (i64, Op, usize, &'r Row)>,
) -> Result<()> {
    target.ensure_staging(client).await?;
    let doing = format!("staging rows of {}", target.destination);
    if target.staged {
        client
            .batch_execute(&target.sql.clear_staging())
            .await
            .map_err(Error::sql(doing.as_str()))?;
    }
    target.staged = true;
    let Some(inlet) = target.stage_copy.clone() else {
        return Err(Error::Inconsistent(format!(
            "{doing}: there is no staging table"
        )));
    };
    let of: &Target = target;
    let rows = rows.map(|(n, op, mask, row)| StagingRow {
        target: of,
        n,
        op,
        mask,
        row,
    });
    let went = copy_rows(client, inlet, rows, doing).await?;
    target.learn(client, went).await
}

/// What one statement of a simple query gave.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Rows it touched or returned.
    pub(super) count: u64,
    rows: Vec<Vec<Option<String>>>,
}

impl Done {
    pub(super) fn new(count: u64, rows: Vec<Vec<Option<String>>>) -> Done {
        Done { count, rows }
    }

    /// Rows met: those that a statement touched, or what one that only looks has counted.
    pub(super) fn met(&self) -> u64 {
        match self.rows.is_empty() {
            true => self.count,
            false => self.value(0),
        }
    }

    /// What it returned.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().flatten().flatten().map(String::as_str)
    }

    /// A number in the first row; 0 if there is none.
    pub(super) fn value(&self, column: usize) -> u64 {
        let cell = self
            .rows
            .first()
            .and_then(|row| row.get(column))
            .and_then(Option::as_deref);
        cell.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Runs statements in one message and gives what each gave.
pub(super) async fn query(client: &Client, target: &Target, statements: &str) -> Result<Vec<Done>> {
    let messages = client
        .simple_query(statements)
        .await
        .map_err(Error::sql(format!(
            "writing rows of {}",
            target.destination
        )))?;
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.push(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                );
            }
            SimpleQueryMessage::CommandComplete(count) => {
                let rows = std::mem::take(&mut rows);
                all.push(Done { count, rows });
            }
            _ => {}
        }
    }
    Ok(all)
}
