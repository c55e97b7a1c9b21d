//! What is said of each route beside its path: a sentence, and the functions that read its body
//! and query string.

use crate::request::{Fields, Query};
use crate::{auth, mirrors, peers, users};

/// Reads a body; run over a recorder, what it returns is of no use.
pub(super) type Body = fn(Fields);
/// Reads a query string.
pub(super) type QueryReader = fn(Query);

/// One operation in words.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) summary: &'static str,
    pub(super) body: Option<Body>,
    pub(super) query: Option<QueryReader>,
}

impl Operation {
    fn body(mut self, read: Body) -> Self {
        self.body = Some(read);
        self
    }

    fn query(mut self, read: QueryReader) -> Self {
        self.query = Some(read);
        self
    }
}

fn says(summary: &'static str) -> Operation {
    Operation {
        summary,
        body: None,
        query: None,
    }
}

/// What is said of a route; a test refuses those of which nothing is.
pub(super) fn operation(method: &str, path: &str) -> Operation {
    match (method, path) {
        ("GET", "/health") => says("Whether the process answers"),
        ("GET", "/ready") => says("Whether catalog and Kafka can be reached"),
        ("GET", "/openapi.json") => says("This document"),
        ("GET", "/docs") => says("This document as a page"),
        ("POST", "/v1/auth/login") => says("Log in; repeated failures are slowed down")
            .body(|fields| drop(auth::handlers::read_login(fields))),
        ("GET", "/v1/auth/me") => says("Who the token belongs to"),
        ("POST", "/v1/auth/change-password") => {
            says("Change one's own password, which voids all earlier tokens")
                .body(|fields| drop(auth::handlers::read_change_password(fields)))
        }
        ("GET", "/v1/users") => says("List users"),
        ("POST", "/v1/users") => says("Create a user").body(|fields| drop(users::read(fields))),
        ("DELETE", "/v1/users/{username}") => {
            says("Delete a user; nobody deletes themself, the last administrator stays")
        }
        ("GET", "/v1/audit") => says("Who changed users, peers and the key, and failed logins, newest first")
            .query(|query| drop(users::read_page(query))),
        ("GET", "/v1/peers") => says("List peers"),
        ("POST", "/v1/peers") => {
            says("Create a peer").body(|fields| drop(peers::read(fields, None)))
        }
        ("GET", "/v1/peers/{name}") => says("Show a peer, without its password"),
        ("PUT", "/v1/peers/{name}") => {
            says("Describe a peer anew; running mirrors connect anew, another database is refused unless it is a destination with their progress")
                .body(|fields| drop(peers::read(fields, Some(""))))
        }
        ("DELETE", "/v1/peers/{name}") => says("Delete a peer that no mirror uses"),
        ("POST", "/v1/peers/{name}/test") => {
            says("Whether a peer can be reached, and what it is ready for")
        }
        ("GET", "/v1/peers/{name}/tables") => says("List the tables of a peer"),
        ("GET", "/v1/mirrors") => says("List mirrors"),
        ("POST", "/v1/mirrors") => says("Create a mirror, or with dry_run only validate it")
            .body(|fields| drop(mirrors::request::CreateRequest::read(fields))),
        ("GET", "/v1/mirrors/{name}") => says("Show a mirror with its status and tables"),
        ("PATCH", "/v1/mirrors/{name}") => says("Change options while the mirror runs")
            .body(|fields| drop(mirrors::read_patch(fields))),
        ("DELETE", "/v1/mirrors/{name}") => says(
            "Delete a mirror: slot, publications, topics and bookkeeping, never destination data",
        )
        .query(|query| drop(mirrors::read_delete(query))),
        ("GET", "/v1/mirrors/{name}/metrics") => says("Lag and positions of a mirror"),
        ("GET", "/v1/mirrors/{name}/logs") => {
            says("The log of a mirror, newest first").query(|query| drop(mirrors::read_logs(query)))
        }
        ("GET", "/v1/mirrors/{name}/tables") => says("The table mappings of a mirror"),
        ("PUT", "/v1/mirrors/{name}/tables") => {
            says("Replace the table mappings of a mirror; new tables are synced while it runs")
                .body(|fields| drop(mirrors::read_tables(fields)))
        }
        ("GET", "/v1/mirrors/{name}/available-tables") => {
            says("Source tables that are not in the mirror, with why not where they cannot be")
        }
        ("POST", "/v1/mirrors/{name}/retry") => {
            says("Try again what has failed, or only one table")
                .body(|fields| drop(mirrors::read_retry(fields)))
        }
        ("POST", "/v1/mirrors/{name}/pause") => {
            says("Stop applying, or with scope \"all\" capturing too")
                .body(|fields| drop(mirrors::read_pause(fields)))
        }
        ("POST", "/v1/mirrors/{name}/resume") => {
            says("Go on where a pause stopped").body(|fields| drop(fields.finish()))
        }
        ("POST", "/v1/mirrors/{name}/sync-schema") => {
            says("Bring the destination to the source's present schema")
                .body(|fields| drop(mirrors::read_sync_schema(fields)))
        }
        ("POST", "/v1/mirrors/{name}/resync") => says("Copy all tables anew, or only one")
            .body(|fields| drop(mirrors::read_resync(fields))),
        ("POST", "/v1/mirrors/{name}/resync/{table}") => {
            says("Copy one table anew").body(|fields| drop(mirrors::read_resync_table(fields)))
        }
        ("POST", "/v1/mirrors/{name}/adopt") => {
            says("Go on from what log and destination hold, where the catalog is older")
                .body(|fields| drop(fields.finish()))
        }
        ("POST", "/v1/mirrors/{name}/replay") => {
            says("Rebuild tables from retained topics, without their source")
                .body(|fields| drop(mirrors::read_replay(fields)))
        }
        ("POST", "/v1/mirrors/{name}/checkpoint") => {
            says("Publish fresh chunks, so that rebuilding stays possible")
                .body(|fields| drop(mirrors::read_checkpoint(fields)))
        }
        ("GET", "/v1/mirrors/{name}/commands") => {
            says("What was asked of a mirror, newest first; kept after it")
        }
        ("GET", "/v1/mirrors/{name}/commands/{id}") => says("One command, its state and outcome"),
        ("GET", "/registry/schemas/ids/{id}") => says("A schema by its id"),
        ("GET", "/registry/subjects") => says("The subjects"),
        ("GET", "/registry/subjects/{subject}/versions") => says("The versions of a subject"),
        ("GET", "/registry/subjects/{subject}/versions/{version}") => {
            says("A version of a subject, or \"latest\"")
        }
        _ => says(""),
    }
}
