//! Types of extensions that are no part of PostgreSQL, where a package brings them.

use super::{ValueCase, case};

/// An extension, and what installs it.
pub struct Package {
    pub extension: &'static str,
    /// Debian's, for the servers of `make test-full`.
    pub package: &'static str,
    /// Where the source has it: no schema that is on the search path of our sessions.
    pub schema: &'static str,
    pub cases: &'static [ValueCase],
}

/// What Debian 12 has no package of, by name: `docs/fidelity.md` says so.
pub const UNTESTED: &[&str] = &["pgvector"];

pub const PACKAGES: &[Package] = &[Package {
    extension: "postgis",
    package: "postgresql-15-postgis-3",
    schema: "gis",
    cases: POSTGIS,
}];

const POSTGIS: &[ValueCase] = &[
    case(
        "geometry",
        &[
            "POINT(1 2)",
            "SRID=4326;POINT(1 2)",
            "POINT EMPTY",
            "POINT Z(1 2 3)",
            "POINT M(1 2 3)",
            "SRID=3857;POINT ZM(0.1 -1e-300 1e300 4)",
            "LINESTRING(0 0,1 1,2 0)",
            "POLYGON((0 0,4 0,4 4,0 4,0 0),(1 1,2 1,2 2,1 2,1 1))",
            "MULTIPOINT((0 0),EMPTY)",
            "MULTIPOLYGON(((0 0,1 0,1 1,0 0)),((5 5,6 5,6 6,5 5)))",
            "GEOMETRYCOLLECTION(POINT(1 2),LINESTRING(0 0,1 1),GEOMETRYCOLLECTION EMPTY)",
            "CIRCULARSTRING(0 0,1 1,2 0)",
            "CURVEPOLYGON(COMPOUNDCURVE(CIRCULARSTRING(0 0,2 0,2 1,2 3,4 3),(4 3,4 5,1 4,0 0)))",
            "TIN(((0 0 0,0 0 1,0 1 0,0 0 0)))",
            "POLYHEDRALSURFACE(((0 0 0,0 0 1,0 1 1,0 1 0,0 0 0)))",
            "=gis.ST_Buffer(gis.ST_MakePoint(1, 1), 2, 4000)",
        ],
    )
    .note("every kind, with and without an SRID, Z and M; out of line; arrays with their `:`"),
    case(
        "geometry(Point,4326)",
        &["SRID=4326;POINT(1 2)", "SRID=4326;POINT(-180 90)"],
    ),
    case(
        "geometry(MultiPolygonZM,3857)",
        &[
            "SRID=3857;MULTIPOLYGON ZM(((0 0 1 2,1 0 1 2,1 1 1 2,0 0 1 2)))",
            "SRID=3857;MULTIPOLYGON ZM EMPTY",
        ],
    ),
    case(
        "geography",
        &[
            "POINT(1 2)",
            "LINESTRING(-179.9 0,179.9 1)",
            "SRID=4267;POINT Z(0.1 -89.999999999 3)",
            "POLYGON((0 0,4 0,4 4,0 4,0 0))",
        ],
    ),
    case(
        "geography(Point,4326)",
        &["POINT(1 2)", "POINT(0.30000000000000004 -1e-300)"],
    ),
    case("box2d", &["BOX(0 0,1 1)", "BOX(-1e300 0.1,0.2 1e300)"]).no_key(),
    case(
        "box3d",
        &["BOX3D(0 0 0,1 1 1)", "BOX3D(-1 0.1 -1e300,0.2 1 0)"],
    )
    .no_key(),
];
