//! Types of extensions that packages bring: run where both servers have the extension, else said to be skipped.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use serde_json::json;

use super::value_tables::{SCHEMA, ValueTables};
use super::values::packages::{PACKAGES, Package};
use super::{assert_avro_types, assert_same, change, mappings};
use crate::scene::Scene;

/// A table with all that PostGIS brings to one beside types.
const PLACES: &str = "
    CREATE TABLE public.places (
        id int PRIMARY KEY,
        spot gis.geometry(Point, 4326) NOT NULL DEFAULT 'SRID=4326;POINT(0 0)' CHECK (gis.ST_X(spot) < 1000),
        area gis.geometry CHECK (gis.ST_IsValid(area)),
        way gis.geography(LineString, 4326),
        far float8 GENERATED ALWAYS AS (gis.ST_Distance(spot, 'SRID=4326;POINT(3 4)'::gis.geometry)) STORED,
        EXCLUDE USING gist (area WITH OPERATOR(gis.&&))
    );
    CREATE INDEX by_spot ON public.places USING gist (spot);
    CREATE INDEX by_spot_nd ON public.places USING gist (spot gis.gist_geometry_ops_nd);
    CREATE INDEX by_spot_sp ON public.places USING spgist (spot);
    CREATE INDEX by_spot_brin ON public.places USING brin (spot);
    CREATE INDEX by_way ON public.places USING gist (way);
    CREATE INDEX by_projected ON public.places USING gist (gis.ST_Transform(spot, 3857)) WHERE area IS NOT NULL;
    INSERT INTO public.places SELECT g, gis.ST_SetSRID(gis.ST_MakePoint(g % 180, g % 90), 4326), gis.ST_MakeEnvelope(g, 0, g + 0.5, 1),
        'LINESTRING(0 0, 1 1)' FROM generate_series(1, 200) g;";

const PLACES_CHANGES: &str = "
    UPDATE public.places SET spot = 'SRID=4326;POINT(7.1 8.2)', way = NULL WHERE id < 20;
    INSERT INTO public.places (id, area) VALUES (1000, 'POLYGON((900 0,901 0,901 1,900 0))');
    DELETE FROM public.places WHERE id BETWEEN 30 AND 40;
    ALTER TABLE public.places ADD shape gis.geometry(Polygon, 3857);
    UPDATE public.places SET shape = gis.ST_MakeEnvelope(0, 0, 1, id, 3857) WHERE id % 3 = 0;";

async fn has(session: &Session, extension: &str) -> Result<bool> {
    let sql = format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{extension}'");
    Ok(session.number(&sql).await? > 0)
}

/// Every index and constraint of a table, as the server prints it.
async fn objects(session: &Session, table: &str) -> Result<String> {
    session
        .text(&format!(
            "SELECT string_agg(d, E'\n' ORDER BY d) FROM (
                 SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = '{table}'::regclass
                 UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '{table}'::regclass
             ) all_of(d)"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_a_packaged_extension_arrives_exactly_as_it_was() -> Result<()> {
    let scene = Scene::new("fidelity_packaged").await?;
    let (source, destination) = (
        scene.stage.source.connect().await?,
        scene.stage.destination.connect().await?,
    );
    for package in PACKAGES {
        let extension = package.extension;
        if has(&source, extension).await? && has(&destination, extension).await? {
            arrives(&scene, &source, &destination, package)
                .await
                .context(extension)?;
        } else {
            println!(
                "skipped: {extension}, which package {} brings",
                package.package
            );
        }
    }
    Ok(())
}

async fn arrives(
    scene: &Scene,
    source: &Session,
    destination: &Session,
    package: &'static Package,
) -> Result<()> {
    let (extension, schema) = (package.extension, package.schema);
    source
        .run(&format!(
            "CREATE SCHEMA {schema}; CREATE EXTENSION {extension} SCHEMA {schema}; CREATE SCHEMA {SCHEMA}"
        ))
        .await?;
    for session in [source, destination] {
        session
            .run(&format!("SET search_path = public, {schema}"))
            .await?;
    }
    let cases: Vec<ValueTables> = package.cases.iter().map(ValueTables::new).collect();
    for case in &cases {
        source
            .run(&case.create())
            .await
            .with_context(|| format!("creating {}", case.case.type_name))?;
    }
    source.run(PLACES).await?;
    let mut named: Vec<(&str, Vec<TablePair>)> = cases
        .iter()
        .map(|case| (case.case.type_name, case.pairs()))
        .collect();
    named.push(("places", TablePair::all(&["public.places"])));
    let pairs: Vec<TablePair> = named.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
    // The destination has neither the extension nor its schema.
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, extension, mappings(&pairs), json!({}))
        .await?;
    mirror.wait_running().await?;
    let check = async |when: &str| -> Result<()> {
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
        assert_same(&scene.stage, source, destination, &named, &[])
            .await
            .context(when.to_owned())?;
        let (here, there) = (
            objects(source, "public.places").await?,
            objects(destination, "public.places").await?,
        );
        ensure!(
            here == there,
            "{when}: {here}\nat the destination:\n{there}"
        );
        Ok(())
    };
    check("after the snapshot").await?;
    change(source, &cases).await?;
    source.run(PLACES_CHANGES).await?;
    check("after the changes").await?;
    let summary = scene.stage.assert_topics_hold(&mirror, &pairs).await?;
    assert_avro_types(&summary, &cases)?;
    tables_of_the_extension_are_its_own(scene, source, destination).await
}

/// What an extension brings is not offered, not taken, and at the destination as its own CREATE EXTENSION made it.
async fn tables_of_the_extension_are_its_own(
    scene: &Scene,
    source: &Session,
    destination: &Session,
) -> Result<()> {
    let count = "SELECT count(*) FROM gis.spatial_ref_sys";
    ensure!(destination.number(count).await? == source.number(count).await?);
    let answer = scene
        .api
        .get("/v1/mirrors/postgis/available-tables")
        .await?
        .expect(200)?;
    let mut offered = answer.as_array().into_iter().flatten();
    let offered = offered.find(|table| table["table_name"] == "spatial_ref_sys");
    let offered = offered.context("the table is not listed")?;
    ensure!(
        offered["available"] == false
            && offered["reasons"]
                .to_string()
                .contains("belongs to extension"),
        "{offered}"
    );
    Ok(())
}
