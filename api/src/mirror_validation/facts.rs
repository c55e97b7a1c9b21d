//! What the checks look at, and the questions that fetch it. Every question is read-only and the
//! sessions end with the request.

mod questions;

use std::collections::{BTreeMap, BTreeSet};

use bunny_catalog::Peer;
use bunny_postgres::{ServerInfo, Session, TableDefinition, TableName};

use crate::mirrors::request::CreateRequest;
use crate::refusal::{Refusal, Result};

/// The name our sessions show in `pg_stat_activity`.
const APPLICATION_NAME: &str = "bunny api";
/// A table that someone holds locked must not hold a request, nor its session, for long.
const LIMITS: &str = "SET lock_timeout = '10s'; SET statement_timeout = '60s'";

/// A session for questions about a peer.
///
/// # Errors
/// When the peer cannot be reached or refuses the login, or when its password is lost.
pub(crate) async fn open(peer: &Peer) -> bunny_postgres::Result<Session> {
    let options = peer.connect_options();
    let options = options.map_err(|error| bunny_postgres::Error::Invalid(error.to_string()))?;
    let session = Session::connect(&options, APPLICATION_NAME).await?;
    session.batch(LIMITS).await?;
    Ok(session)
}

/// A database, so that two peers that lead to the same one are recognised however they are written.
/// The start time tells apart servers restored from one backup, which share a system identifier.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// As the server itself says.
    Known {
        system_id: String,
        started_at: String,
        database: String,
    },
    /// As the peer says, when its server cannot be asked.
    Unreachable {
        host: String,
        port: u16,
        database: String,
    },
}

/// One server, as one peer's user sees it.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    /// The peer's name.
    pub(crate) peer: String,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) place: Place,
    /// The server's system identifier and the database's oid: the same after a fail-over, a
    /// move or a new name, and of no other database.
    pub(crate) identity: String,
    pub(crate) info: ServerInfo,
    /// CREATE on the database: publications, schemas.
    pub(crate) can_create_in_database: bool,
}

/// A server with what a peer's user may do there, apart from any table.
#[derive(Clone, Debug)]
pub(crate) struct PeerFacts {
    pub(crate) server: ServerFacts,
    /// May create, or write into, the schema `_bunny`.
    pub(crate) may_keep_books: bool,
    /// May set `session_replication_role`.
    pub(crate) may_be_replica: bool,
}

impl PeerFacts {
    /// Asks the server.
    ///
    /// # Errors
    /// When the session breaks or a question is refused.
    pub(crate) async fn gather(session: &Session, peer: &Peer) -> bunny_postgres::Result<Self> {
        questions::peer(session, peer).await
    }
}

/// A relation found under a mapped name.
#[derive(Clone, Debug)]
pub(crate) struct FoundTable {
    /// `pg_class.relkind`.
    pub(crate) relkind: char,
    /// `pg_class.relpersistence`.
    pub(crate) persistence: char,
    /// Lies in a schema of the system, or in `_bunny`.
    pub(crate) system: bool,
    /// The extension it belongs to.
    pub(crate) extension: Option<String>,
    /// The user is a member of the owning role.
    pub(crate) owned: bool,
    pub(crate) may_select: bool,
    /// Row level security applies to the user.
    pub(crate) row_security: bool,
    /// Partitioned tables above it.
    pub(crate) ancestors: Vec<TableName>,
    /// Partitions below it that are foreign tables.
    pub(crate) foreign_leaves: Vec<TableName>,
    /// Of SELECT, INSERT, UPDATE, DELETE, TRUNCATE, those the user lacks.
    pub(crate) missing_privileges: Vec<String>,
    /// Has enabled triggers, those of foreign keys included.
    pub(crate) fires: bool,
    /// Holds at least one row (asked of destinations only).
    pub(crate) has_rows: bool,
    /// The mirror writes it already (known of destinations only).
    pub(crate) is_ours: bool,
    /// Columns whose collation takes different texts for equal.
    pub(crate) nondeterministic_columns: Vec<String>,
    /// Columns of oids in which large objects of the database stand (asked of sources only).
    pub(crate) large_object_columns: Vec<String>,
    /// `None` for what is no table.
    pub(crate) definition: Option<TableDefinition>,
}

/// What is under one mapped name.
#[derive(Clone, Debug)]
pub(crate) struct TableFacts {
    pub(crate) name: TableName,
    pub(crate) found: Option<FoundTable>,
    /// Whether a table of that name could be created (asked where none is found).
    pub(crate) may_create: bool,
}

/// A publication the user names and that exists.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) name: String,
    pub(crate) inserts: bool,
    pub(crate) updates: bool,
    pub(crate) deletes: bool,
    pub(crate) truncates: bool,
    pub(crate) via_root: bool,
    pub(crate) tables: Vec<TableName>,
    /// Tables with a row filter or a column list.
    pub(crate) filtered: Vec<TableName>,
}

/// A replication slot the user names and that exists.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) plugin: Option<String>,
    pub(crate) database: String,
    pub(crate) active: bool,
}

/// The source, its tables in the order of the request.
#[derive(Clone, Debug)]
pub(crate) struct SourceFacts {
    pub(crate) server: ServerFacts,
    pub(crate) tables: Vec<TableFacts>,
    pub(crate) publication: Option<Publication>,
    pub(crate) slot: Option<Slot>,
}

impl SourceFacts {
    /// The server, to be told what the mirror has already.
    pub(crate) fn info_mut(&mut self) -> &mut ServerInfo {
        &mut self.server.info
    }

    /// Asks the source alone.
    ///
    /// # Errors
    /// When the session breaks or a question is refused.
    pub(crate) async fn gather(
        session: &Session,
        peer: &Peer,
        request: &CreateRequest,
    ) -> bunny_postgres::Result<Self> {
        questions::source(session, peer, request).await
    }

    /// The relations that were found.
    pub(crate) fn found(&self) -> impl Iterator<Item = &FoundTable> {
        self.tables.iter().filter_map(|table| table.found.as_ref())
    }
}

/// How an extension stands at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtensionState {
    Installed,
    /// It can be created by the peer's user.
    Creatable,
    /// It is on the server, but only a superuser may create it.
    NotAllowed,
    /// The server does not have it.
    Unavailable,
}

/// The destination, its tables in the order of the request.
#[derive(Clone, Debug)]
pub(crate) struct DestinationFacts {
    pub(crate) server: ServerFacts,
    pub(crate) tables: Vec<TableFacts>,
    /// May create, or write into, the schema `_bunny`.
    pub(crate) may_keep_books: bool,
    /// May set `session_replication_role`.
    pub(crate) may_be_replica: bool,
    /// The extensions that the source's tables use, by name.
    pub(crate) extensions: BTreeMap<String, ExtensionState>,
    /// Types that would have to be created here, in schemas where this user may not.
    pub(crate) closed_types: BTreeSet<TableName>,
    /// Types of source columns that do not exist here, as the source writes them.
    pub(crate) missing_types: BTreeSet<String>,
}

/// Both servers.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) source: SourceFacts,
    pub(crate) destination: DestinationFacts,
}

impl Facts {
    /// Asks both servers.
    ///
    /// # Errors
    /// 422 naming the peer that cannot be reached or asked; of both, if both are away.
    pub(crate) async fn gather(
        request: &CreateRequest,
        source: &Peer,
        destination: &Peer,
    ) -> Result<Self> {
        let (from, to) = tokio::join!(
            connect("source", source),
            connect("destination", destination)
        );
        let (from, to) = match (from, to) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(one), Err(two)) => {
                let both = format!("{}; {}", one.message, two.message);
                return Err(Refusal::unprocessable(both));
            }
            (Err(refusal), Ok(_)) | (Ok(_), Err(refusal)) => return Err(refusal),
        };
        let source = questions::source(&from, source, request)
            .await
            .map_err(|error| failed("source", &source.name, &error))?;
        let destination = questions::destination(&to, destination, request, &source)
            .await
            .map_err(|error| failed("destination", &destination.name, &error))?;
        Ok(Self {
            source,
            destination,
        })
    }
}

/// Which database a peer leads to.
pub(crate) async fn place_of(peer: &Peer) -> Place {
    let asked = match open(peer).await {
        Ok(session) => questions::place(&session, peer).await,
        Err(error) => Err(error),
    };
    asked.unwrap_or_else(|error| {
        tracing::debug!(peer = %peer.name, %error, "a peer cannot say which database it is");
        Place::Unreachable {
            host: peer.host.clone(),
            port: peer.port,
            database: peer.database.clone(),
        }
    })
}

async fn connect(side: &str, peer: &Peer) -> Result<Session> {
    open(peer)
        .await
        .map_err(|error| {
            Refusal::unprocessable(format!(
                "{side} peer '{}' cannot be reached: {error}; check the peer with POST /v1/peers/{0}/test",
                peer.name
            ))
        })
}

fn failed(side: &str, peer: &str, error: &bunny_postgres::Error) -> Refusal {
    Refusal::unprocessable(format!(
        "{side} peer '{peer}' could not be examined: {error}; check the privileges of its user and try again"
    ))
}
