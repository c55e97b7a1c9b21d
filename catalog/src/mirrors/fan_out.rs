//! Further destinations of one capture.
//!
//! A mirror with an *owner* is *attached*: it reads the owner's topics and has no capture of its
//! own. Its destination, progress, table states, commands and log are its own. What it wants of
//! the source it says by the requests of its mappings, as every mirror does: the owner's capture
//! publishes those that it has not finished.
//!
//! Both need the log. `bunny.log_needs` holds below which offset an attached mirror needs nothing
//! of it, and, for the owner, up to where it may have been trimmed. Both are changed under the lock
//! of the owner's row, so that an attaching mirror and a trimming one always see each other:
//! docs/adr/0036-fan-out.md.

use std::collections::BTreeSet;

use bunny_postgres::TableName;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::store::replace_tables;
use super::{Desired, Mirror, MirrorTable, NewMirrorTable};
use crate::{Catalog, Error, Result};

/// The mirror whose capture feeds an attached one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// By which its topics are named.
    pub slug: String,
    /// It is paused as a whole, so that nothing is captured.
    pub capture_paused: bool,
}

/// A table that an attached mirror maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedTable {
    /// The attached mirror's name.
    pub mirror: String,
    /// The table at the source.
    pub source: TableName,
    /// The sync that it wants.
    pub request_id: Option<Uuid>,
    /// The last request to bring the table back there.
    pub retry_id: Option<Uuid>,
}

/// How a mirror is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The owner's name.
    pub owner: String,
    /// The owner's generation when its topics were looked at.
    pub generation: Uuid,
    /// For each of the new mirror's tables, in their order, what is loaded first.
    pub copies: Vec<InitialCopy>,
}

/// What an attached mirror loads first of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCopy {
    /// The sync that the owner wanted when its topics were looked at.
    pub seen: Option<Uuid>,
    /// The sync that is loaded; none: the source is to be asked for one of its own.
    pub request_id: Option<Uuid>,
    /// From where on the log is needed for it, if it is in the topics already.
    pub changes_offset: Option<i64>,
}

/// Up to where a log may be trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Nobody who is attached needs what is below.
    pub floor: i64,
    /// The copies that attached mirrors are loading are all known to be recorded.
    pub chunks_known: bool,
    /// The attached mirror that needs what could go else.
    pub held_by: Option<String>,
}

impl Mirror {
    /// By which the topics that it reads are named.
    pub fn topics_slug(&self) -> &str {
        self.owner.as_ref().map_or(&self.slug, |owner| &owner.slug)
    }

    /// The names of the mirrors that its capture feeds.
    pub fn attached_mirrors(&self) -> BTreeSet<&str> {
        let attached = self.attached.iter();
        attached.map(|table| table.mirror.as_str()).collect()
    }

    /// What `tables` would take away from mirrors that are attached, a sentence; none: nothing.
    /// Other columns count too, also more of them: who is attached would get them without the
    /// rows that are there already. Pure.
    pub fn taken_from_attached(&self, tables: &[NewMirrorTable]) -> Option<String> {
        let columns = |columns: &[String]| columns.iter().cloned().collect::<BTreeSet<String>>();
        let is_kept = |source: &TableName| {
            let present = self.tables.iter().find(|table| table.source == *source);
            let wanted = tables.iter().find(|table| table.source == *source);
            present.zip(wanted).is_some_and(|(present, wanted)| {
                columns(&present.exclude_columns) == columns(&wanted.exclude_columns)
            })
        };
        let taken = self.attached.iter().filter(|table| !is_kept(&table.source));
        let taken: Vec<String> = taken
            .map(|table| format!("table {} by mirror \"{}\"", table.source, table.mirror))
            .collect();
        (!taken.is_empty()).then(|| {
            format!(
                "mapped by mirrors that are fed by \"{}\", which need each table with the columns it has: {}; delete those mirrors first, then attach them again",
                self.name,
                taken.join(", ")
            )
        })
    }
}

/// What only the mirror that captures can be asked for. Pure.
pub(crate) fn refuse_attached(mirror: &Mirror, what: &str) -> Result<()> {
    match &mirror.owner {
        None => Ok(()),
        Some(owner) => Err(Error::conflict(format!(
            "mirror \"{}\" is fed by mirror \"{}\" and captures nothing itself: {what}",
            mirror.name, owner.name
        ))),
    }
}

impl Catalog {
    /// The owner, its row locked, if the mirror can be attached to it as it was seen.
    pub(super) async fn lock_owner(
        &self,
        connection: &mut PgConnection,
        attach: &Attach,
        tables: &[NewMirrorTable],
    ) -> Result<Mirror> {
        let owner = self.lock_mirror(connection, &attach.owner).await?;
        let name = &owner.name;
        if let Some(feeder) = &owner.owner {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is itself fed by mirror \"{0}\": name \"{0}\" as source_mirror",
                feeder.name
            )));
        }
        if owner.desired == Desired::Deleted {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is being deleted"
            )));
        }
        let is_as_seen = |(table, copy): (&NewMirrorTable, &InitialCopy)| {
            let mut mapped = owner.tables.iter();
            let mapped = mapped.find(|mapped| mapped.source == table.source);
            mapped.is_some_and(|mapped| {
                mapped.request_id == copy.seen && mapped.exclude_columns == table.exclude_columns
            })
        };
        let all_as_seen = tables.len() == attach.copies.len()
            && tables.iter().zip(&attach.copies).all(is_as_seen);
        if owner.generation != attach.generation || !all_as_seen {
            return Err(Error::conflict(format!(
                "what mirror \"{name}\" captures has changed meanwhile; ask again"
            )));
        }
        Ok(owner)
    }

    /// Below which offset an attached mirror has said to need nothing, or up to where that of an
    /// owner may be trimmed; 0 if nothing is said of this generation.
    pub async fn needs_log_from(&self, mirror_id: Uuid, generation: Uuid) -> Result<i64> {
        let floor: Option<i64> = sqlx::query_scalar(
            "SELECT floor_offset FROM bunny.log_needs WHERE mirror_id = $1 AND generation = $2",
        )
        .bind(mirror_id)
        .bind(generation)
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("reading what of the log is needed", error))?;
        Ok(floor.unwrap_or(0))
    }

    /// Below which offset of the log nothing of `mirror` can be rebuilt, as far as is said here: it
    /// may be trimmed at any moment, though it is still there.
    pub async fn log_given_up(&self, mirror: &Mirror) -> Result<i64> {
        let own = self.needs_log_from(mirror.id, mirror.generation).await?;
        let Some(owner) = &mirror.owner else {
            return Ok(own);
        };
        // What is said to be needed here may be more than what is granted there.
        let granted = self.needs_log_from(owner.id, mirror.generation).await?;
        Ok(own.max(granted))
    }

    /// An attached mirror needs nothing below `floor`, and never will: that is stored at its
    /// destination already. Nothing of a generation that is not the owner's is written down.
    pub async fn need_log_from(
        &self,
        mirror_id: Uuid,
        generation: Uuid,
        floor: i64,
        chunks_known: bool,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO bunny.log_needs AS n (mirror_id, generation, floor_offset, chunks_known)
             SELECT m.id, $2, $3, $4 FROM bunny.mirrors m JOIN bunny.mirrors o ON o.id = m.source_mirror
             WHERE m.id = $1 AND o.generation = $2
             ON CONFLICT (mirror_id) DO UPDATE SET generation = excluded.generation,
                 floor_offset = excluded.floor_offset, chunks_known = excluded.chunks_known
             WHERE n IS DISTINCT FROM excluded",
        )
        .bind(mirror_id)
        .bind(generation)
        .bind(floor)
        .bind(chunks_known)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("saying what of the log is needed", error))
    }

    /// Asks whether a mirror's log may be trimmed up to `wanted`; it may up to what is granted,
    /// for ever: whoever attaches later is told so. An attached mirror that has said nothing of
    /// this generation needs everything.
    pub async fn grant_trim(
        &self,
        mirror_id: Uuid,
        generation: Uuid,
        wanted: i64,
    ) -> Result<Granted> {
        let failed = |error| Error::database("asking up to where the log may be trimmed", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let own = sqlx::query(
            "SELECT id FROM bunny.mirrors WHERE id = $1 AND generation = $2 FOR UPDATE",
        )
        .bind(mirror_id)
        .bind(generation)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        if own.is_none() {
            return Ok(Granted {
                floor: 0,
                chunks_known: false,
                held_by: None,
            });
        }
        let row = sqlx::query(
            "SELECT min(CASE WHEN n.generation = $2 THEN n.floor_offset ELSE 0 END) AS floor,
                    coalesce(bool_and(coalesce(n.chunks_known AND n.generation = $2, false)), true) AS known,
                    (array_agg(a.name ORDER BY CASE WHEN n.generation = $2 THEN n.floor_offset ELSE 0 END))[1] AS first
             FROM bunny.mirrors a LEFT JOIN bunny.log_needs n ON n.mirror_id = a.id
             WHERE a.source_mirror = $1 AND a.desired <> 'deleted'",
        )
        .bind(mirror_id)
        .bind(generation)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
        let needed: Option<i64> = row.try_get("floor").map_err(failed)?;
        let holds = needed.is_some_and(|needed| needed < wanted);
        let first: Option<String> = row.try_get("first").map_err(failed)?;
        let granted = Granted {
            floor: needed.map_or(wanted, |needed| needed.min(wanted)),
            chunks_known: row.try_get("known").map_err(failed)?,
            held_by: first.filter(|_| holds),
        };
        write_floor(&mut transaction, mirror_id, generation, granted.floor).await?;
        transaction.commit().await.map_err(failed)?;
        Ok(granted)
    }
}

/// A log that begins has been trimmed by nobody.
pub(crate) async fn nothing_trimmed(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    generation: Uuid,
) -> Result<()> {
    write_floor(connection, mirror_id, generation, 0).await
}

async fn write_floor(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    generation: Uuid,
    floor: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO bunny.log_needs AS n (mirror_id, generation, floor_offset) VALUES ($1, $2, $3)
         ON CONFLICT (mirror_id) DO UPDATE SET generation = excluded.generation,
             floor_offset = CASE WHEN n.generation = excluded.generation
                                 THEN greatest(n.floor_offset, excluded.floor_offset)
                                 ELSE excluded.floor_offset END
         WHERE n.generation <> excluded.generation OR n.floor_offset < excluded.floor_offset",
    )
    .bind(mirror_id)
    .bind(generation)
    .bind(floor)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("writing down what of the log is needed", error))
}

/// Gives the new mirror its tables and holds on to what they need of the owner's log. The owner's
/// row is locked.
pub(super) async fn attach(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    owner: &Mirror,
    attach: &Attach,
    tables: &[NewMirrorTable],
) -> Result<()> {
    let failed = |error| Error::database("attaching a mirror", error);
    let trimmed: Option<i64> = sqlx::query_scalar(
        "SELECT floor_offset FROM bunny.log_needs WHERE mirror_id = $1 AND generation = $2",
    )
    .bind(owner.id)
    .bind(owner.generation)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    // Without it, an apply of an earlier version may be about to trim what is to be loaded.
    let trimmed = trimmed.ok_or_else(|| {
        Error::conflict(format!(
            "it is not known yet up to where the topics of mirror \"{}\" are trimmed: its apply says so within seconds while it runs; ask again then",
            owner.name
        ))
    })?;
    let begins = attach.copies.iter().filter_map(|copy| copy.changes_offset);
    let from = begins.min().unwrap_or(trimmed);
    if from < trimmed {
        return Err(Error::conflict(
            "the copies that were to be loaded are being trimmed from the topics at this moment; ask again, with \"initial_load\": \"fresh\" if they are gone",
        ));
    }
    let mappings: Vec<MirrorTable> = tables
        .iter()
        .zip(&attach.copies)
        .map(|(table, copy)| mapping(owner, table, copy))
        .collect();
    replace_tables(connection, mirror_id, &mappings).await?;
    let from = match attach
        .copies
        .iter()
        .all(|copy| copy.changes_offset.is_some())
    {
        true => from,
        // What comes yet begins further on, but nobody knows where.
        false => trimmed,
    };
    write_floor(connection, mirror_id, owner.generation, from).await?;
    match attach.copies.iter().any(|copy| copy.request_id.is_none()) {
        true => ask_capture(connection, owner.id).await,
        false => Ok(()),
    }
}

fn mapping(owner: &Mirror, table: &NewMirrorTable, copy: &InitialCopy) -> MirrorTable {
    let mut mapped = owner.tables.iter();
    let mapped = mapped.find(|mapped| mapped.source == table.source);
    MirrorTable {
        source: table.source.clone(),
        destination: table.destination.clone(),
        partition_key: table.partition_key.clone(),
        exclude_columns: table.exclude_columns.clone(),
        identity: table.identity.clone(),
        request_id: Some(copy.request_id.unwrap_or_else(Uuid::new_v4)),
        // By it a sync that the source has refused is known to be this one.
        retry_id: mapped.and_then(|mapped| mapped.retry_id),
        replay: None,
        // The columns are the owner's, so its copies are as good as those of one's own.
        since_request: mapped.and_then(|mapped| mapped.since_request),
        checkpoint_id: None,
        beside: false,
    }
}

/// Capture begins anew, for there is something that it is to publish.
pub(crate) async fn ask_capture(connection: &mut PgConnection, owner_id: Uuid) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirrors SET capture_version = capture_version + 1,
             updated_at = clock_timestamp() WHERE id = $1",
    )
    .bind(owner_id)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("waking capture", error))
}

/// Attached mirrors that map the table want the owner's new sync of it too. Gives their ids and
/// names; their workers have to be told. The owner's row is locked.
pub(crate) async fn share_request(
    connection: &mut PgConnection,
    owner_id: Uuid,
    table: &TableName,
    request_id: Uuid,
    may_swap: bool,
) -> Result<Vec<(Uuid, String)>> {
    let failed = |error| Error::database("asking for a table sync", error);
    let rows = sqlx::query(
        "UPDATE bunny.mirror_tables t
         SET request_id = $4, replay = NULL, beside = $5 AND m.config ->> 'resync_strategy' = 'swap'
         FROM bunny.mirrors m
         WHERE m.source_mirror = $1 AND m.desired <> 'deleted' AND t.mirror_id = m.id
           AND t.source_schema = $2 AND t.source_table = $3
         RETURNING m.id, m.name",
    )
    .bind(owner_id)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(request_id)
    .bind(may_swap)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let mut sharing = Vec::new();
    for row in rows {
        let id: Uuid = row.try_get("id").map_err(failed)?;
        sharing.push((id, row.try_get("name").map_err(failed)?));
    }
    Ok(sharing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirrors::tests::mirror;

    fn new(source: &str, exclude_columns: &[&str]) -> NewMirrorTable {
        NewMirrorTable {
            source: TableName::new("public", source),
            destination: TableName::new("elsewhere", "x"),
            partition_key: Some("id".into()),
            exclude_columns: exclude_columns.iter().map(|name| (*name).into()).collect(),
            identity: None,
        }
    }

    #[test]
    fn tables_and_columns_of_attached_mirrors_stay() {
        let mut owner = mirror("owner");
        assert_eq!(owner.taken_from_attached(&[]), None, "nobody is attached");
        owner.attached = vec![AttachedTable {
            mirror: "second".into(),
            source: TableName::new("public", "t"),
            request_id: None,
            retry_id: None,
        }];
        assert_eq!(
            owner.taken_from_attached(&[new("t", &[]), new("u", &[])]),
            None
        );
        for tables in [vec![], vec![new("u", &[])], vec![new("t", &["secret"])]] {
            let why = owner.taken_from_attached(&tables).expect("refused");
            assert!(why.contains("table public.t by mirror \"second\""), "{why}");
        }
    }

    #[test]
    fn topics_are_those_of_the_owner() {
        let mut attached = mirror("second");
        assert_eq!(attached.topics_slug(), "second");
        attached.owner = Some(Owner {
            id: Uuid::from_u128(2),
            name: "Owner".into(),
            slug: "owner".into(),
            capture_paused: false,
        });
        assert_eq!(attached.topics_slug(), "owner");
        let refused = refuse_attached(&attached, "ask there").unwrap_err();
        assert!(refused.to_string().contains("ask there"), "{refused}");
    }
}
