//! A destination table for events whose table no sync has brought: all that is known of
//! it is in the events' schema.

use bunny_postgres::{ColumnDefinition, ReplicaIdentity, TableDefinition, TableKind, TableName};
use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::event::TableVersion;
use crate::table_sync::destination_table::{self, Wanted};

/// Creates the table unless something of that name is there.
pub(super) async fn if_missing(
    client: &Client,
    version: &TableVersion,
    destination: &TableName,
) -> Result<()> {
    let found = client
        .query_one(
            "SELECT to_regclass($1) IS NOT NULL",
            &[&destination.quoted()],
        )
        .await
        .map_err(Error::sql(format!("looking for {destination}")))?;
    if found.get(0) {
        return Ok(());
    }
    let definition = definition(version);
    let columns: Vec<String> = version
        .columns
        .iter()
        .map(|column| column.name.clone())
        .collect();
    let wanted = Wanted {
        definition: &definition,
        destination,
        excluded: &[],
        columns: &columns,
        may_create: true,
        may_extend: false,
        keeps_rows: false,
        former: None,
    };
    destination_table::ensure(client, wanted).await?;
    tracing::info!(table = %version.source, %destination, "created the destination table from the first event");
    Ok(())
}

fn definition(version: &TableVersion) -> TableDefinition {
    let columns = version.columns.iter().map(|column| ColumnDefinition {
        name: column.name.clone(),
        attnum: column.attnum,
        type_oid: column.type_oid,
        type_name: column.type_name.clone(),
        typmod: column.typmod,
        type_schema: type_schema(&column.type_name),
        not_null: column.not_null,
        default: None,
        identity: None,
        generated: None,
        collation: column
            .facts
            .as_ref()
            .and_then(|facts| facts.collation.clone()),
    });
    let key: Vec<String> = version
        .columns
        .iter()
        .filter(|column| column.key)
        .map(|column| column.name.clone())
        .collect();
    TableDefinition {
        oid: 0,
        name: version.source.clone(),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns: columns.collect(),
        primary_key: key.clone(),
        primary_key_name: None,
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: key,
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: None,
    }
}

/// `format_type` qualifies what is not in pg_catalog.
fn type_schema(type_name: &str) -> String {
    match type_name.parse::<TableName>() {
        Ok(qualified) if type_name.contains('.') => qualified.schema,
        _ => "pg_catalog".to_owned(),
    }
}
