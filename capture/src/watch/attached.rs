//! Whether a partition that is new to a table brought rows along, which no event carries.
//!
//! The number of a transaction says when it began to write, not when it ended: a row of a later
//! number may have been there before the partition was attached, since who attaches it takes a
//! number and then waits for those who hold the table. So a number proves nothing but which
//! transaction it was.

use bunny_postgres::Session;
use bunny_postgres::introspect::{HeldLook, TableLook};

use super::untracked::{failed, has_rows, low};
use crate::error::Result;

/// The links from the partition up to the mapped table, each with what speaks for it:
///
/// * `is_born`: created by CREATE TABLE … PARTITION OF, and never attached. Both ATTACH and DETACH
///   touch every column that is inherited, so a column that is still as the command that created
///   the table made it, together with `tableoid`, was inherited from the beginning.
/// * `is_old`: made by a transaction that had ended before the horizon. What stands below it
///   now and did not then has come into a tree that was the mapped table's.
///
/// A row that has an `xmax` may show another command than its own (`cmin`).
const LINKS: &str = "
    WITH RECURSIVE link AS (
        SELECT inhrelid, inhparent, xmin AS by, cmin AS command FROM pg_inherits WHERE inhrelid = $1
        UNION ALL
        SELECT i.inhrelid, i.inhparent, i.xmin, i.cmin
        FROM link JOIN pg_inherits i ON i.inhrelid = link.inhparent AND link.inhparent <> $2
    ), judged AS (
        SELECT link.*, made.xmin AS made_by,
               EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = link.inhrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount > 0
                         AND a.xmin = made.xmin AND a.cmin = made.cmin AND a.xmax::text = '0') AS is_born,
               link.inhrelid <> $1 AND age(link.by) > age($3::text::xid)
                   AND pg_snapshot_xmin(pg_current_snapshot())::text::int8 - $4 < 2000000000 AS is_old
        FROM link
        JOIN pg_attribute made ON made.attrelid = link.inhrelid AND made.attname = 'tableoid'
    )";

/// No row can have been in the partition before it was one.
const NONE_CAN_BE: &str = "SELECT coalesce(bool_and(is_born OR is_old), false) FROM judged";

/// Any row may have been, except of the transaction that created and attached it, which nobody
/// else saw before: what that wrote by a later command.
const MAY_BE: &str = "
    , own AS (
        SELECT by, command::text::int8 AS command,
               by = made_by AND (SELECT coalesce(bool_and(is_born OR is_old), true) FROM judged WHERE inhrelid <> $1) AS is_alone
        FROM judged WHERE inhrelid = $1
    )
    SELECT EXISTS (SELECT FROM ONLY {table} row_
                   WHERE NOT (is_alone AND row_.xmin = by AND row_.cmin::text::int8 > command AND row_.xmax::text = '0'))
    FROM own";

/// Whether rows may have been in `leaf` before it became a partition of `table`, as which it was
/// not known at `horizon`.
///
/// # Errors
/// The source cannot be asked, or not now: somebody has the partition locked.
pub(super) async fn may_have_brought_rows(
    source: &Session,
    table: &TableLook,
    leaf: &HeldLook,
    horizon: i64,
) -> Result<bool> {
    let low = low(horizon);
    let born = source
        .query_one(
            &format!("{LINKS} {NONE_CAN_BE}"),
            &[&leaf.oid, &table.oid, &low, &horizon],
        )
        .await
        .map_err(failed)?;
    if born.get(0) {
        return Ok(false);
    }
    let question = format!("{LINKS} {MAY_BE}");
    let params = [&leaf.oid as _, &table.oid as _, &low as _, &horizon as _];
    Ok(has_rows(source, &question, leaf, &params).await? != Some(false))
}
