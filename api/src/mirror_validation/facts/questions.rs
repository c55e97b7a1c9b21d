//! The SQL behind the facts.

use std::collections::{BTreeMap, BTreeSet};

use bunny_catalog::Peer;
use bunny_postgres::{Result, ResultExt, Session, TableName, introspect, quote_ident};

use super::super::numeric_scale;
use super::{
    DestinationFacts, ExtensionState, FoundTable, PeerFacts, Place, Publication, ServerFacts, Slot,
    SourceFacts, TableFacts,
};
use crate::mirrors::request::CreateRequest;

/// `GRANT … ON PARAMETER` came with 15.
const PARAMETER_PRIVILEGES_SINCE: i32 = 150_000;
/// Row filters and column lists of publications came with 15.
const PUBLICATION_FILTERS_SINCE: i32 = 150_000;

/// Rows in which large objects are looked for: enough to know a column that is used for them.
const LARGE_OBJECT_ROWS: u32 = 1000;

pub(super) async fn source(
    session: &Session,
    peer: &Peer,
    request: &CreateRequest,
) -> Result<SourceFacts> {
    let server = server(session, peer).await?;
    let has_large_objects = has_large_objects(session).await?;
    let mut tables = Vec::with_capacity(request.tables.len());
    for mapping in &request.tables {
        let mut found = find(session, &mapping.source).await?;
        if let Some(table) = &mut found
            && table.may_select
            && has_large_objects
        {
            table.large_object_columns = large_object_columns(session, table).await?;
        }
        if let Some(definition) = found.as_mut().and_then(|found| found.definition.as_mut()) {
            let excluded = &mapping.exclude_columns;
            let objects = introspect::table_objects(session, definition.oid, excluded).await?;
            definition.objects = Some(objects);
        }
        tables.push(TableFacts {
            name: mapping.source.clone(),
            found,
            may_create: false,
        });
    }
    let publication = match &request.publication_name {
        Some(name) => publication(session, name, server.info.version_num).await?,
        None => None,
    };
    let slot = match &request.replication_slot_name {
        Some(name) => slot(session, name).await?,
        None => None,
    };
    Ok(SourceFacts {
        server,
        tables,
        publication,
        slot,
    })
}

pub(super) async fn destination(
    session: &Session,
    peer: &Peer,
    request: &CreateRequest,
    source: &SourceFacts,
) -> Result<DestinationFacts> {
    let PeerFacts {
        server,
        may_keep_books,
        may_be_replica,
    } = self::peer(session, peer).await?;
    let mut tables = Vec::with_capacity(request.tables.len());
    for mapping in &request.tables {
        let name = &mapping.destination;
        let mut found = find(session, name).await?;
        let mut may_create = false;
        match &mut found {
            Some(table) if table.definition.is_some() && table.may_select => {
                table.has_rows = has_rows(session, name).await?;
            }
            Some(_) => {}
            None => may_create = may_create_in(session, &name.schema).await?,
        }
        tables.push(TableFacts {
            name: name.clone(),
            found,
            may_create,
        });
    }
    let types: BTreeSet<String> = source
        .found()
        .filter_map(|found| found.definition.as_ref())
        .flat_map(|definition| &definition.columns)
        .filter(|column| numeric_scale::is_known(&column.type_name, &server.info))
        .map(|column| column.type_name.clone())
        .collect();
    let needed: BTreeSet<&str> = source
        .found()
        .filter_map(|found| found.definition.as_ref()?.objects.as_ref())
        .flat_map(|objects| &objects.extensions)
        .map(|extension| extension.name.as_str())
        .collect();
    let own_types: Vec<&TableName> = source
        .found()
        .filter_map(|found| found.definition.as_ref()?.objects.as_ref())
        .flat_map(|objects| &objects.types)
        .map(|definition| &definition.name)
        .collect();
    Ok(DestinationFacts {
        may_keep_books,
        may_be_replica,
        closed_types: closed_types(session, &own_types).await?,
        extensions: extensions(session, needed).await?,
        missing_types: missing_types(session, types).await?,
        server,
        tables,
    })
}

pub(super) async fn peer(session: &Session, peer: &Peer) -> Result<PeerFacts> {
    let server = server(session, peer).await?;
    Ok(PeerFacts {
        may_keep_books: may_create_in(session, "_bunny").await?,
        may_be_replica: may_be_replica(session, &server).await?,
        server,
    })
}

pub(super) async fn place(session: &Session, peer: &Peer) -> Result<Place> {
    Ok(server(session, peer).await?.place)
}

async fn server(session: &Session, peer: &Peer) -> Result<ServerFacts> {
    let info = introspect::server_info(session).await?;
    let row = session
        .query_one(
            "SELECT current_database()::text,
                    has_database_privilege(current_database(), 'CREATE'),
                    pg_postmaster_start_time()::text,
                    (SELECT oid::text FROM pg_database WHERE datname = current_database())",
            &[],
        )
        .await
        .doing("asking for the database's name and privileges")?;
    let database: String = row.get(0);
    let place = Place::Known {
        system_id: info.system_id.clone(),
        started_at: row.get(2),
        database: database.clone(),
    };
    let database_oid: String = row.get(3);
    Ok(ServerFacts {
        identity: format!("{}/{database_oid}", info.system_id),
        peer: peer.name.clone(),
        user: peer.user.clone(),
        database,
        place,
        info,
        can_create_in_database: row.get(1),
    })
}

async fn find(session: &Session, name: &TableName) -> Result<Option<FoundTable>> {
    const SQL: &str = r"
        SELECT c.relkind::text, c.relpersistence::text,
               n.nspname IN ('information_schema', '_bunny') OR n.nspname LIKE 'pg\_%',
               pg_has_role(c.relowner, 'USAGE'),
               has_schema_privilege(n.oid, 'USAGE'),
               ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p
                     WHERE NOT has_table_privilege(c.oid, p)),
               c.relkind IN ('r', 'p') AND row_security_active(c.oid),
               ARRAY(SELECT an.nspname::text FROM pg_partition_ancestors(c.oid) a
                     JOIN pg_class ac ON ac.oid = a.relid JOIN pg_namespace an ON an.oid = ac.relnamespace
                     WHERE a.relid <> c.oid ORDER BY ac.oid),
               ARRAY(SELECT ac.relname::text FROM pg_partition_ancestors(c.oid) a
                     JOIN pg_class ac ON ac.oid = a.relid
                     WHERE a.relid <> c.oid ORDER BY ac.oid),
               EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')),
               (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'),
               ARRAY(SELECT fn.nspname::text FROM pg_partition_tree(c.oid) t
                     JOIN pg_class fc ON fc.oid = t.relid AND fc.relkind = 'f'
                     JOIN pg_namespace fn ON fn.oid = fc.relnamespace ORDER BY fc.oid),
               ARRAY(SELECT fc.relname::text FROM pg_partition_tree(c.oid) t
                     JOIN pg_class fc ON fc.oid = t.relid AND fc.relkind = 'f' ORDER BY fc.oid),
               ARRAY(SELECT a.attname::text FROM pg_attribute a JOIN pg_collation co ON co.oid = a.attcollation
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT co.collisdeterministic ORDER BY a.attnum)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = $2";
    let row = session
        .query_opt(SQL, &[&name.schema, &name.name])
        .await
        .doing(format!("looking up {name}"))?;
    let Some(row) = row else { return Ok(None) };
    let relkind = first_char(row.get(0));
    let usage: bool = row.get(4);
    let mut missing_privileges: Vec<String> = row.get(5);
    let may_select = usage && !missing_privileges.iter().any(|name| name == "SELECT");
    if !usage && missing_privileges.is_empty() {
        missing_privileges.push("SELECT".to_owned());
    }
    let tables = |schemas: usize, names: usize| -> Vec<TableName> {
        let schemas: Vec<String> = row.get(schemas);
        let names: Vec<String> = row.get(names);
        let tables = schemas.into_iter().zip(names);
        tables
            .map(|(schema, name)| TableName { schema, name })
            .collect()
    };
    let definition = if matches!(relkind, 'r' | 'p') {
        introspect::table_definition(session, name).await?
    } else {
        None
    };
    Ok(Some(FoundTable {
        relkind,
        persistence: first_char(row.get(1)),
        system: row.get(2),
        extension: row.get(10),
        owned: row.get(3),
        may_select,
        row_security: row.get(6),
        ancestors: tables(7, 8),
        foreign_leaves: tables(11, 12),
        missing_privileges,
        fires: row.get(9),
        has_rows: false,
        is_ours: false,
        nondeterministic_columns: row.get(13),
        large_object_columns: Vec::new(),
        definition,
    }))
}

fn first_char(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}

async fn has_large_objects(session: &Session) -> Result<bool> {
    let row = session
        .query_one("SELECT EXISTS (SELECT FROM pg_largeobject_metadata)", &[])
        .await
        .doing("looking for large objects")?;
    Ok(row.get(0))
}

/// The columns of a table that hold an oid: of the type itself, of domains over it, of arrays of these.
/// An array is told by its type's own having none.
const OID_COLUMNS: &str = "
    WITH RECURSIVE held AS (
        SELECT attnum, attname::text AS name, atttypid AS type, false AS is_array
        FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT attnum, name, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END, is_array OR typtype <> 'd'
        FROM held JOIN pg_type t ON t.oid = held.type
        WHERE typtype = 'd' OR (typelem <> 0 AND typarray = 0))
    SELECT name, is_array FROM held WHERE type = 'oid'::regtype ORDER BY attnum";

/// The table's columns that hold oids, among whose first rows a large object's number stands.
async fn large_object_columns(session: &Session, table: &FoundTable) -> Result<Vec<String>> {
    let mut columns = Vec::new();
    let Some(definition) = &table.definition else {
        return Ok(columns);
    };
    let looking = || format!("looking for large objects in {}", definition.name);
    let held = session.query(OID_COLUMNS, &[&definition.oid]).await;
    for column in held.doing(looking())? {
        let (name, is_array): (String, bool) = (column.get(0), column.get(1));
        let quoted = quote_ident(&name);
        let (numbers, is_meant) = match is_array {
            true => ("unnest(held::text::oid[])", format!("{quoted} IS NOT NULL")),
            false => ("held::oid", format!("{quoted} <> 0")),
        };
        // So many rows, whatever their arrays hold.
        let sql = format!(
            "SELECT EXISTS (
                 SELECT FROM (SELECT {numbers} AS number FROM (
                     SELECT {quoted} AS held FROM {} WHERE {is_meant} LIMIT {LARGE_OBJECT_ROWS}) few) numbers
                 JOIN pg_largeobject_metadata m ON m.oid = numbers.number)",
            definition.name.quoted(),
        );
        let row = session.query_one(&sql, &[]).await.doing(looking())?;
        if row.get(0) {
            columns.push(name);
        }
    }
    Ok(columns)
}

async fn has_rows(session: &Session, name: &TableName) -> Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT FROM {})", name.quoted());
    let row = session
        .query_one(&sql, &[])
        .await
        .doing(format!("looking for rows in {name}"))?;
    Ok(row.get(0))
}

/// CREATE on the schema or, where there is none, on the database.
async fn may_create_in(session: &Session, schema: &str) -> Result<bool> {
    let row = session
        .query_one(
            "SELECT coalesce(
                 (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1),
                 has_database_privilege(current_database(), 'CREATE'))",
            &[&schema],
        )
        .await
        .doing(format!("asking for CREATE in schema {schema}"))?;
    Ok(row.get(0))
}

async fn may_be_replica(session: &Session, server: &ServerFacts) -> Result<bool> {
    if server.info.is_superuser {
        return Ok(true);
    }
    if server.info.version_num < PARAMETER_PRIVILEGES_SINCE {
        return Ok(false);
    }
    let row = session
        .query_one(
            "SELECT has_parameter_privilege('session_replication_role', 'SET')",
            &[],
        )
        .await
        .doing("asking for the right to set session_replication_role")?;
    Ok(row.get(0))
}

/// Whether extensions are there, or could be created by this user.
async fn extensions(
    session: &Session,
    names: BTreeSet<&str>,
) -> Result<BTreeMap<String, ExtensionState>> {
    const SQL: &str = "
        SELECT needed.name,
               EXISTS (SELECT FROM pg_extension WHERE extname = needed.name),
               v.name IS NOT NULL,
               coalesce(NOT v.superuser OR r.rolsuper
                   OR v.trusted AND has_database_privilege(current_database(), 'CREATE'), false)
        FROM unnest($1::text[]) needed(name)
        LEFT JOIN pg_available_extensions a ON a.name = needed.name
        LEFT JOIN pg_available_extension_versions v
            ON v.name = a.name AND v.version = a.default_version
        JOIN pg_roles r ON r.rolname = current_user";
    let names: Vec<&str> = names.into_iter().collect();
    let rows = session
        .query(SQL, &[&names])
        .await
        .doing("asking for the extensions that the tables use")?;
    let states = rows.iter().map(|row| {
        let state = match (row.get(1), row.get(2), row.get(3)) {
            (true, _, _) => ExtensionState::Installed,
            (false, true, true) => ExtensionState::Creatable,
            (false, true, false) => ExtensionState::NotAllowed,
            (false, false, _) => ExtensionState::Unavailable,
        };
        (row.get(0), state)
    });
    Ok(states.collect())
}

/// Which of the types are missing and may not be created by this user.
async fn closed_types(session: &Session, types: &[&TableName]) -> Result<BTreeSet<TableName>> {
    const SQL: &str = "
        SELECT needed.schema, needed.name
        FROM unnest($1::text[], $2::text[]) needed(schema, name)
        LEFT JOIN pg_namespace n ON n.nspname = needed.schema
        WHERE NOT EXISTS (SELECT FROM pg_type WHERE typnamespace = n.oid AND typname = needed.name)
          AND NOT coalesce(has_schema_privilege(n.oid, 'CREATE'),
                           has_database_privilege(current_database(), 'CREATE'))";
    let schemas: Vec<&str> = types.iter().map(|name| name.schema.as_str()).collect();
    let names: Vec<&str> = types.iter().map(|name| name.name.as_str()).collect();
    let rows = session
        .query(SQL, &[&schemas, &names])
        .await
        .doing("asking where types may be created")?;
    let closed = rows
        .iter()
        .map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(closed.collect())
}

async fn missing_types(session: &Session, types: BTreeSet<String>) -> Result<BTreeSet<String>> {
    let types: Vec<String> = types.into_iter().collect();
    let rows = session
        .query(
            "SELECT t FROM unnest($1::text[]) t WHERE to_regtype(t) IS NULL",
            &[&types],
        )
        .await
        .doing("asking for the types of the columns")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn publication(
    session: &Session,
    name: &str,
    version_num: i32,
) -> Result<Option<Publication>> {
    let doing = || format!("looking up publication {name}");
    let row = session
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
             FROM pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await
        .doing(doing())?;
    let Some(row) = row else { return Ok(None) };
    let tables = session
        .query(
            "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1",
            &[&name],
        )
        .await
        .doing(doing())?;
    let filtered = if version_num >= PUBLICATION_FILTERS_SINCE {
        session
            .query(
                "SELECT n.nspname::text, c.relname::text
                 FROM pg_publication_rel r
                 JOIN pg_publication p ON p.oid = r.prpubid
                 JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE p.pubname = $1 AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)",
                &[&name],
            )
            .await
            .doing(doing())?
    } else {
        Vec::new()
    };
    let names = |rows: Vec<tokio_postgres::Row>| -> Vec<TableName> {
        rows.iter()
            .map(|row| TableName {
                schema: row.get(0),
                name: row.get(1),
            })
            .collect()
    };
    Ok(Some(Publication {
        name: name.to_owned(),
        inserts: row.get(0),
        updates: row.get(1),
        deletes: row.get(2),
        truncates: row.get(3),
        via_root: row.get(4),
        tables: names(tables),
        filtered: names(filtered),
    }))
}

async fn slot(session: &Session, name: &str) -> Result<Option<Slot>> {
    let row = session
        .query_opt(
            "SELECT plugin::text, coalesce(database::text, ''), active
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await
        .doing(format!("looking up replication slot {name}"))?;
    Ok(row.map(|row| Slot {
        name: name.to_owned(),
        plugin: row.get(0),
        database: row.get(1),
        active: row.get(2),
    }))
}
