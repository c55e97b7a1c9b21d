//! What a mirror cannot carry is refused when it is created, by name, with cause and cure.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::scene::Scene;

/// One thing that is refused.
pub struct Refusal {
    pub name: &'static str,
    /// At the source; the table to be mirrored is `public.t`.
    pub source: &'static str,
    pub destination: &'static str,
    /// What the answer says: the cause, and what to do.
    pub says: &'static [&'static str],
    /// For the table of docs/fidelity.md.
    pub cure: &'static str,
}

const fn refusal(
    name: &'static str,
    source: &'static str,
    says: &'static [&'static str],
    cure: &'static str,
) -> Refusal {
    Refusal {
        name,
        source,
        destination: "",
        says,
        cure,
    }
}

impl Refusal {
    const fn destination(mut self, sql: &'static str) -> Refusal {
        self.destination = sql;
        self
    }
}

pub const REFUSALS: &[Refusal] = &[
    refusal(
        "unlogged tables",
        "CREATE UNLOGGED TABLE t (id int PRIMARY KEY)",
        &["public.t", "is unlogged", "SET LOGGED"],
        "`ALTER TABLE … SET LOGGED`",
    ),
    refusal(
        "unlogged partitions",
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE UNLOGGED TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        &["partition of table public.t", "is unlogged", "SET LOGGED"],
        "as above",
    ),
    refusal(
        "temporary tables",
        "CREATE TEMPORARY TABLE t (id int PRIMARY KEY)",
        &["public.t", "does not exist"],
        "they are no other session's, so they are not found; leave them out",
    ),
    refusal(
        "views",
        "CREATE VIEW t AS SELECT 1 AS id",
        &["public.t", "is a view", "map the tables behind it"],
        "mirror the tables behind it",
    ),
    refusal(
        "materialized views",
        "CREATE MATERIALIZED VIEW t AS SELECT 1 AS id",
        &[
            "public.t",
            "is a materialized view",
            "map the tables behind it",
        ],
        "mirror the tables behind it",
    ),
    refusal(
        "foreign tables",
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing; CREATE FOREIGN TABLE t (id int) SERVER nowhere",
        &["public.t", "is a foreign table", "leave it out"],
        "mirror them from the server they are on",
    ),
    refusal(
        "foreign partitions",
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing; CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); ALTER TABLE t DROP CONSTRAINT t_pkey; CREATE FOREIGN TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20) SERVER nowhere",
        &["partition public.t_2 of table public.t", "is a foreign table", "DETACH PARTITION"],
        "detach it, or mirror the other partitions one by one",
    ),
    refusal(
        "a destination column that is NOT NULL, where the source may have NULL",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        &["column \"v\" of public.t", "is NOT NULL", "DROP NOT NULL"],
        "drop it there, or set it at the source",
    )
    .destination("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)"),
    refusal(
        "a destination key whose collation takes different texts for equal",
        "CREATE TABLE t (id text PRIMARY KEY, v text)",
        &["column \"id\" of public.t", "takes different texts for equal"],
        "give the column the collation that it has at the source",
    )
    .destination("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE t (id text COLLATE loose PRIMARY KEY, v text)"),
    refusal(
        "a narrower destination column",
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(20))",
        &["column \"v\" of public.t", "does not take every value", "exclude_columns"],
        "change its type, or exclude the column",
    )
    .destination("CREATE TABLE t (id int PRIMARY KEY, v varchar(10))"),
    refusal(
        "sequences",
        "CREATE SEQUENCE t",
        &["public.t", "is a sequence"],
        "leave them out",
    ),
    refusal(
        "tables that belong to an extension (`spatial_ref_sys` of PostGIS)",
        "CREATE EXTENSION citext SCHEMA public; CREATE TABLE t (id int PRIMARY KEY); ALTER EXTENSION citext ADD TABLE t",
        &["public.t", "belongs to extension \"citext\"", "leave it out"],
        "leave them out: the extension brings them; rows of your own in them are for you to copy",
    ),
    refusal(
        "large objects in an `oid` column",
        "CREATE TABLE t (id int PRIMARY KEY, photo oid); INSERT INTO t SELECT g, lo_from_bytea(0, 'x') FROM generate_series(1, 3) g; INSERT INTO t VALUES (9, NULL)",
        &[
            "column \"photo\" of public.t",
            "large objects",
            "bytea",
            "exclude_columns",
        ],
        "move them into a `bytea` column, or exclude the column",
    ),
    refusal(
        "large objects in a column of a domain over `oid`, or of `oid[]`",
        "CREATE DOMAIN picture AS oid; CREATE DOMAIN album AS picture[]; CREATE TABLE t (id int PRIMARY KEY, photo picture, photos oid[], all_of_them album);
         INSERT INTO t SELECT g, lo_from_bytea(0, 'x'), ARRAY[[5, lo_from_bytea(0, 'y')]], ARRAY[NULL, lo_from_bytea(0, 'z')]::picture[] FROM generate_series(1, 3) g",
        &[
            "column \"photo\" of public.t names large objects",
            "column \"photos\" of public.t names large objects",
            "column \"all_of_them\" of public.t names large objects",
            "bytea",
            "exclude_columns",
        ],
        "as above",
    ),
    refusal(
        "columns of type `lo`",
        "CREATE EXTENSION lo SCHEMA public; CREATE TABLE t (id int PRIMARY KEY, photo lo)",
        &[
            "column \"photo\" of public.t",
            "large objects",
            "bytea",
            "exclude_columns",
        ],
        "as above",
    )
    .destination("CREATE EXTENSION lo SCHEMA public"),
    refusal(
        "types whose text Postgres does not read back (`pg_node_tree`, `gtsvector`, statistics)",
        "CREATE TABLE t (id int PRIMARY KEY, a pg_node_tree, b pg_ndistinct, c pg_dependencies, d pg_mcv_list, e pg_brin_bloom_summary, \
         f pg_brin_minmax_multi_summary, g gtsvector)",
        &[
            "column \"a\" of public.t has the type pg_node_tree",
            "column \"b\" of public.t has the type pg_ndistinct",
            "column \"c\" of public.t has the type pg_dependencies",
            "column \"d\" of public.t has the type pg_mcv_list",
            "column \"e\" of public.t has the type pg_brin_bloom_summary",
            "column \"f\" of public.t has the type pg_brin_minmax_multi_summary",
            "column \"g\" of public.t has the type gtsvector",
            "exclude_columns",
        ],
        "exclude the column",
    ),
    refusal(
        "a base type that the destination lacks",
        "CREATE TYPE mood;
         CREATE FUNCTION mood_in(cstring) RETURNS mood LANGUAGE internal IMMUTABLE STRICT AS 'textin';
         CREATE FUNCTION mood_out(mood) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
         CREATE TYPE mood (INPUT = mood_in, OUTPUT = mood_out, LIKE = text);
         CREATE TABLE t (id int PRIMARY KEY, m mood)",
        &[
            "has no type public.mood",
            "column \"m\" of public.t",
            "exclude_columns",
        ],
        "create it there, or exclude the column",
    ),
    refusal(
        "a range type with a canonical function that the destination lacks",
        "CREATE TYPE span;
         CREATE FUNCTION canonical(span) RETURNS span LANGUAGE internal IMMUTABLE STRICT AS 'int4range_canonical';
         CREATE TYPE span AS RANGE (subtype = int4, canonical = canonical);
         CREATE TABLE t (id int PRIMARY KEY, s span)",
        &[
            "type public.span",
            "needs its function public.canonical",
            "exclude_columns",
        ],
        "create both there, or exclude the column",
    ),
    refusal(
        "a destination column that cannot be written",
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int)",
        &["column \"b\" of public.t", "is generated"],
        "make it a plain column, or exclude it",
    )
    .destination(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a + 1) STORED)",
    ),
    refusal(
        "a destination table without one of the columns",
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int)",
        &["public.t", "has no column \"b\"", "exclude_columns"],
        "add it, or exclude it",
    )
    .destination("CREATE TABLE t (id int PRIMARY KEY, a int)"),
    refusal(
        "an unlogged destination table",
        "CREATE TABLE t (id int PRIMARY KEY)",
        &["public.t", "is unlogged", "SET LOGGED"],
        "`ALTER TABLE … SET LOGGED`",
    )
    .destination("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_is_refused_by_name() -> Result<()> {
    let scene = Scene::new("fidelity_refusals").await?;
    let destination = scene.stage.destination.connect().await?;
    let mut wrong = Vec::new();
    for refusal in REFUSALS {
        scene.source.run(refusal.source).await?;
        destination.run(refusal.destination).await?;
        let body = json!({
            "name": "refused", "source_peer": "source", "destination_peer": "destination",
            "table_mappings": [{"source_table": "public.t", "destination_table": "public.t"}],
        });
        let answer = scene.api.post("/v1/mirrors", body).await?;
        let error = answer.body["error"].as_str().unwrap_or_default().to_owned();
        if answer.status != 422 || !refusal.says.iter().all(|said| error.contains(said)) {
            wrong.push(format!(
                "{}: {} {}",
                refusal.name, answer.status, answer.body
            ));
        }
        let clean = "DROP TABLE IF EXISTS pg_temp.t; DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP FOREIGN DATA WRAPPER IF EXISTS nothing CASCADE";
        scene.source.run(clean).await?;
        destination.run(clean).await?;
    }
    ensure!(
        wrong.is_empty(),
        "not refused as they should be:\n{}",
        wrong.join("\n")
    );
    Ok(())
}
