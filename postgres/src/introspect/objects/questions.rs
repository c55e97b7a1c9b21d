//! The SQL behind [`TableObjects`]. Columns that only newer servers have are read through
//! `to_jsonb(row)`, so one text serves all.

use serde::de::DeserializeOwned;
use tokio_postgres::Client;
use tokio_postgres::types::{Json, ToSql};

use super::{SequenceDefinition, TableObjects};
use crate::{Result, ResultExt, TableName};

/// Comment, storage, identity, and what is never copied.
const TABLE: &str = "
    SELECT jsonb_build_object(
        'comment', obj_description(c.oid, 'pg_class'),
        'options', coalesce(to_jsonb(c.reloptions), '[]'),
        'replica_identity', c.relreplident,
        'replica_identity_index', (
            SELECT ic.relname FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
            WHERE i.indrelid = c.oid AND i.indisreplident AND c.relreplident = 'i'),
        'not_copied', (
            SELECT coalesce(jsonb_agg(what ORDER BY rank, what), '[]') FROM (
                SELECT 1, 'trigger ' || quote_ident(tgname) FROM pg_trigger
                WHERE tgrelid = c.oid AND NOT tgisinternal
                UNION ALL
                SELECT 2, 'policy ' || quote_ident(polname) FROM pg_policy WHERE polrelid = c.oid
                UNION ALL
                SELECT 3, 'row level security' WHERE c.relrowsecurity
                UNION ALL
                SELECT 4, 'rule ' || quote_ident(rulename) FROM pg_rewrite WHERE ev_class = c.oid
                UNION ALL
                SELECT 5, 'extended statistics ' || quote_ident(stxname) FROM pg_statistic_ext
                WHERE stxrelid = c.oid
                UNION ALL
                SELECT 6, 'inheritance from ' || inhparent::regclass::text FROM pg_inherits
                WHERE inhrelid = c.oid AND NOT c.relispartition
                UNION ALL
                SELECT DISTINCT 7, 'grants to ' || CASE grantee WHEN 0 THEN 'PUBLIC'
                                                   ELSE grantee::regrole::text END
                FROM (SELECT (aclexplode(c.relacl)).grantee
                      UNION
                      SELECT (aclexplode(a.attacl)).grantee FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL) granted
                WHERE grantee <> c.relowner
                UNION ALL
                SELECT 8, 'storage parameters of its TOAST table' FROM pg_class toast
                WHERE toast.oid = c.reltoastrelid AND toast.reloptions IS NOT NULL
                UNION ALL
                SELECT 9, 'options of column ' || quote_ident(attname) FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND attoptions IS NOT NULL
                UNION ALL
                SELECT 10, 'statistics target of column ' || quote_ident(attname) FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND attstattarget >= 0 AND NOT attisdropped
                UNION ALL
                SELECT 11, format('%s that only a partition has (%s in all, such as %s)', kind, count(*), min(name))
                FROM (SELECT relid FROM pg_partition_tree(c.oid) WHERE level > 0) part
                CROSS JOIN LATERAL (
                    SELECT 'index', quote_ident(i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
                    WHERE x.indrelid = part.relid AND NOT i.relispartition
                      AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.oid AND contype IN ('p', 'u', 'x'))
                    UNION ALL
                    SELECT CASE contype WHEN 'f' THEN 'foreign key' ELSE 'constraint' END, quote_ident(conname)
                    FROM pg_constraint
                    WHERE conrelid = part.relid AND contype IN ('p', 'u', 'x', 'c', 'f')
                      AND conparentid = 0 AND coninhcount = 0
                    UNION ALL
                    SELECT 'trigger', quote_ident(tgname) FROM pg_trigger
                    WHERE tgrelid = part.relid AND NOT tgisinternal AND tgparentid = 0
                    UNION ALL
                    SELECT 'policy', quote_ident(polname) FROM pg_policy WHERE polrelid = part.relid
                    UNION ALL
                    SELECT 'grant', 'on ' || part.relid::text FROM pg_class p
                    WHERE p.oid = part.relid
                      AND EXISTS (SELECT FROM aclexplode(p.relacl) WHERE grantee <> p.relowner)) found(kind, name)
                GROUP BY kind) all_of_it(rank, what)))
    FROM pg_class c WHERE c.oid = $1";

const COLUMNS: &str = "
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'name', a.attname,
        'storage', CASE WHEN a.attstorage <> t.typstorage THEN
            CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL'
                              WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END,
        'compression', CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END,
        'comment', col_description(a.attrelid, a.attnum),
        'is_virtual', a.attgenerated = 'v',
        'default_sequence', (
            SELECT jsonb_build_object('schema', n.nspname, 'name', s.relname)
            FROM pg_attrdef f
            JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
                AND d.refclassid = 'pg_class'::regclass
            JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
            JOIN pg_namespace n ON n.oid = s.relnamespace
            WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum
                AND pg_get_expr(f.adbin, f.adrelid)
                    = format('nextval(%L::regclass)', s.oid::regclass::text)
            LIMIT 1)
        ) ORDER BY a.attnum), '[]')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";

/// An index's own dependencies name the columns of its expressions and predicate.
const CONSTRAINTS: &str = "
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'name', k.conname,
        'kind', CASE k.contype WHEN 'p' THEN 'primary_key' WHEN 'u' THEN 'unique'
                               WHEN 'x' THEN 'exclusion' ELSE 'check' END,
        'definition', pg_get_constraintdef(k.oid),
        'columns', coalesce((
            SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = k.conrelid AND a.attnum > 0
              AND (a.attnum = ANY (k.conkey)
                   OR a.attnum = ANY (i.indkey::int2[])
                   OR EXISTS (SELECT FROM pg_depend d
                       WHERE (d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
                              OR d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid)
                         AND d.refclassid = 'pg_class'::regclass AND d.refobjid = k.conrelid
                         AND d.refobjsubid = a.attnum))), '[]'),
        'validated', k.convalidated,
        'deferrable', k.condeferrable,
        'index_options', CASE WHEN k.contype IN ('p', 'u')
                              THEN coalesce(to_jsonb(ic.reloptions), '[]') ELSE '[]' END,
        'comment', obj_description(k.oid, 'pg_constraint')) ORDER BY k.conname), '[]')
    FROM pg_constraint k
    LEFT JOIN pg_index i ON i.indexrelid = k.conindid AND k.contype IN ('p', 'u', 'x')
    LEFT JOIN pg_class ic ON ic.oid = i.indexrelid
    WHERE k.conrelid = $1 AND k.contype IN ('p', 'u', 'x', 'c')";

const INDEXES: &str = "
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'name', ic.relname,
        'method', am.amname,
        'unique', i.indisunique,
        'nulls_not_distinct', coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
        'keys', (
            SELECT jsonb_agg(jsonb_build_object(
                'column', a.attname,
                'expression', CASE WHEN k.attnum = 0
                    THEN pg_get_indexdef(i.indexrelid, k.position::int, false) END,
                'opclass', quote_ident(opn.nspname) || '.' || quote_ident(op.opcname),
                'opclass_options', coalesce(to_jsonb(ia.attoptions), '[]'),
                'collation', CASE WHEN k.attnum = 0 OR co.oid <> a.attcollation
                    THEN quote_ident(con.nspname) || '.' || quote_ident(co.collname) END,
                'descending', am.ordered AND i.indoption[k.position - 1] & 1 <> 0,
                'nulls_first', am.ordered AND i.indoption[k.position - 1] & 2 <> 0)
                ORDER BY k.position)
            FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
            LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                AND k.attnum <> 0
            JOIN pg_attribute ia ON ia.attrelid = i.indexrelid AND ia.attnum = k.position
            JOIN pg_opclass op ON op.oid = i.indclass[k.position - 1]
            JOIN pg_namespace opn ON opn.oid = op.opcnamespace
            LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.position - 1]
            LEFT JOIN pg_namespace con ON con.oid = co.collnamespace
            WHERE k.position <= i.indnkeyatts),
        'include', coalesce((
            SELECT jsonb_agg(a.attname ORDER BY k.position)
            FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.position > i.indnkeyatts), '[]'),
        'options', coalesce(to_jsonb(ic.reloptions), '[]'),
        'predicate', pg_get_expr(i.indpred, i.indrelid),
        'columns', coalesce((
            SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum > 0
              AND (a.attnum = ANY (i.indkey::int2[])
                   OR EXISTS (SELECT FROM pg_depend d
                       WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                         AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                         AND d.refobjsubid = a.attnum))), '[]'),
        'valid', i.indisvalid,
        'comment', obj_description(i.indexrelid, 'pg_class')) ORDER BY ic.relname), '[]')
    FROM pg_index i
    JOIN pg_class ic ON ic.oid = i.indexrelid
    JOIN (SELECT oid, amname, pg_indexam_has_property(oid, 'can_order') AS ordered
          FROM pg_am) am ON am.oid = ic.relam
    WHERE i.indrelid = $1
      AND NOT EXISTS (SELECT FROM pg_constraint k
                      WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))";

/// A foreign key to a partitioned table has helpers, which are not constraints of their own.
const FOREIGN_KEYS: &str = "
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'name', k.conname,
        'columns', (SELECT jsonb_agg(a.attname ORDER BY c.position)
            FROM unnest(k.conkey) WITH ORDINALITY c(attnum, position)
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.attnum),
        'references', jsonb_build_object('schema', n.nspname, 'name', r.relname),
        'referenced_columns', (SELECT jsonb_agg(a.attname ORDER BY c.position)
            FROM unnest(k.confkey) WITH ORDINALITY c(attnum, position)
            JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = c.attnum),
        'match_type', k.confmatchtype,
        'on_update', k.confupdtype,
        'on_delete', k.confdeltype,
        'delete_columns', coalesce((SELECT jsonb_agg(a.attname ORDER BY c.position)
            FROM jsonb_array_elements_text(nullif(to_jsonb(k) -> 'confdelsetcols', 'null'))
                WITH ORDINALITY c(attnum, position)
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.attnum::int2), '[]'),
        'deferrable', k.condeferrable,
        'deferred', k.condeferred,
        'validated', k.convalidated,
        'enforced', coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true),
        'period', coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false),
        'comment', obj_description(k.oid, 'pg_constraint')) ORDER BY k.conname), '[]')
    FROM pg_constraint k
    JOIN pg_class r ON r.oid = k.confrelid
    JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE k.conrelid = $1 AND k.contype = 'f' AND k.conparentid = 0";

/// One row a sequence: its definition without its state, and whether that may be read.
const SEQUENCES: &str = "
    SELECT jsonb_build_object(
        'name', jsonb_build_object('schema', n.nspname, 'name', c.relname),
        'role', CASE used.kind WHEN 'i' THEN 'identity' WHEN 'a' THEN 'owned' ELSE 'used' END,
        'column', a.attname,
        'data_type', format_type(s.seqtypid, -1),
        'start', s.seqstart, 'increment', s.seqincrement, 'min', s.seqmin, 'max', s.seqmax,
        'cache', s.seqcache, 'cycle', s.seqcycle,
        'comment', obj_description(c.oid, 'pg_class')),
        has_sequence_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
    FROM (
        SELECT DISTINCT ON (seq) seq, kind, attnum FROM (
            SELECT objid AS seq, deptype::text AS kind, refobjsubid AS attnum FROM pg_depend
            WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
              AND refobjid = $1 AND refobjsubid > 0 AND deptype IN ('a', 'i')
            UNION ALL
            SELECT d.refobjid, 'used', f.adnum
            FROM pg_attrdef f
            JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> f.adrelid
            WHERE f.adrelid = $1) found
        ORDER BY seq, CASE kind WHEN 'i' THEN 1 WHEN 'a' THEN 2 ELSE 3 END, attnum) used
    JOIN pg_class c ON c.oid = used.seq AND c.relkind = 'S'
    JOIN pg_sequence s ON s.seqrelid = c.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = $1 AND a.attnum = used.attnum
    ORDER BY used.attnum, n.nspname, c.relname";

/// Types and extensions. `walk` goes from what the table's columns, defaults, constraints
/// and indexes refer to down to what those types are made of; a type cannot contain
/// itself, so it ends. The deepest come first.
const FOUNDATIONS: &str = "
    WITH RECURSIVE hidden(attnum) AS (
        SELECT attnum FROM pg_attribute WHERE attrelid = $1 AND attname = ANY ($2::text[])
    ), dependers(classid, objid) AS (
        SELECT 'pg_class'::regclass::oid, $1::oid
        UNION SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef
              WHERE adrelid = $1 AND adnum NOT IN (SELECT attnum FROM hidden)
        UNION SELECT 'pg_constraint'::regclass, oid FROM pg_constraint
              WHERE conrelid = $1 AND contype <> 'f'
                AND NOT EXISTS (SELECT FROM hidden WHERE attnum = ANY (conkey))
        UNION SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index i
              WHERE i.indrelid = $1
                AND NOT EXISTS (SELECT FROM hidden h WHERE h.attnum = ANY (i.indkey::int2[]))
                AND NOT EXISTS (SELECT FROM hidden h JOIN pg_depend d
                    ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1
                    AND d.refobjsubid = h.attnum)
    ), direct(classid, objid) AS (
        SELECT d.refclassid, d.refobjid FROM dependers JOIN pg_depend d USING (classid, objid)
        WHERE NOT (d.classid = 'pg_class'::regclass AND d.objid = $1
                   AND d.objsubid IN (SELECT attnum FROM hidden))
    ), walk(oid, depth) AS (
        SELECT oid, 0 FROM (
            SELECT atttypid FROM pg_attribute
            WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
              AND attnum NOT IN (SELECT attnum FROM hidden)
            UNION SELECT objid FROM direct WHERE classid = 'pg_type'::regclass) root(oid)
        UNION
        SELECT inner_type.oid, walk.depth + 1
        FROM walk
        JOIN pg_type t ON t.oid = walk.oid
        CROSS JOIN LATERAL (
            SELECT t.typelem WHERE t.typelem <> 0
            UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL SELECT a.atttypid FROM pg_attribute a
                WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                  AND NOT a.attisdropped
            UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
            UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid
        ) inner_type(oid)
        WHERE t.typnamespace <> 'pg_catalog'::regnamespace OR t.typelem <> 0
    ), used AS (
        SELECT oid, max(depth) AS depth FROM walk GROUP BY oid
    ), below(classid, objid) AS (
        SELECT classid, objid FROM direct
        UNION SELECT 'pg_type'::regclass, oid FROM used
        UNION
        SELECT d.refclassid, d.refobjid FROM used
        JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = used.oid
        UNION
        SELECT d.refclassid, d.refobjid FROM used
        JOIN pg_constraint k ON k.contypid = used.oid AND k.contypid <> 0
        JOIN pg_depend d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
        UNION
        SELECT d.refclassid, d.refobjid FROM used
        JOIN pg_type t ON t.oid = used.oid AND t.typtype = 'c'
        JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = t.typrelid
    )
    SELECT jsonb_build_object(
        'extensions', (
            SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object(
                'name', e.extname, 'schema', n.nspname)), '[]')
            FROM below
            JOIN pg_depend d ON d.classid = below.classid AND d.objid = below.objid
                AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
            JOIN pg_extension e ON e.oid = d.refobjid
            JOIN pg_namespace n ON n.oid = e.extnamespace),
        'collations', (
            -- What 14 keeps as `collcollate` is `colliculocale` in 15 and `colllocale` from 17 on.
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', jsonb_build_object('schema', n.nspname, 'name', c.collname),
                'provider', CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
                'locale', CASE WHEN c.collprovider <> 'c' THEN coalesce(
                    to_jsonb(c)->>'colllocale', to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'collcollate') END,
                'lc_collate', CASE c.collprovider WHEN 'c' THEN c.collcollate END,
                'lc_ctype', CASE c.collprovider WHEN 'c' THEN c.collctype END,
                'deterministic', c.collisdeterministic,
                'rules', to_jsonb(c)->>'collicurules',
                'comment', obj_description(c.oid, 'pg_collation'))
                ORDER BY n.nspname, c.collname), '[]')
            FROM pg_collation c
            JOIN pg_namespace n ON n.oid = c.collnamespace
            WHERE n.nspname <> 'pg_catalog'
              AND EXISTS (SELECT FROM below
                  WHERE below.classid = 'pg_collation'::regclass AND below.objid = c.oid)
              AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_collation'::regclass AND d.objid = c.oid AND d.deptype = 'e')),
        'not_copied', (
            SELECT coalesce(jsonb_agg(what ORDER BY what), '[]') FROM (
                SELECT format('comment on constraint %I of domain %s', k.conname, format_type(k.contypid, NULL))
                FROM used JOIN pg_constraint k ON k.contypid = used.oid AND k.contypid <> 0
                WHERE obj_description(k.oid, 'pg_constraint') IS NOT NULL
                UNION ALL
                SELECT format('comment on attribute %I of type %s', a.attname, format_type(t.oid, NULL))
                FROM used JOIN pg_type t ON t.oid = used.oid AND t.typtype = 'c'
                JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                WHERE col_description(a.attrelid, a.attnum) IS NOT NULL) commented(what)),
        'types', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', jsonb_build_object('schema', n.nspname, 'name', t.typname),
                'comment', obj_description(t.oid, 'pg_type'))
                || CASE t.typtype
                WHEN 'e' THEN jsonb_build_object('shape', 'enum', 'labels', (
                    SELECT coalesce(jsonb_agg(enumlabel ORDER BY enumsortorder), '[]')
                    FROM pg_enum WHERE enumtypid = t.oid), 'oids', (
                    SELECT coalesce(jsonb_agg(oid::int8 ORDER BY enumsortorder), '[]')
                    FROM pg_enum WHERE enumtypid = t.oid))
                WHEN 'd' THEN jsonb_build_object('shape', 'domain',
                    'base_type', format_type(t.typbasetype, t.typtypmod),
                    'collation', (
                        SELECT quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
                        FROM pg_type b, pg_collation c
                        JOIN pg_namespace cn ON cn.oid = c.collnamespace
                        WHERE b.oid = t.typbasetype AND c.oid = t.typcollation
                          AND t.typcollation <> b.typcollation),
                    'not_null', t.typnotnull,
                    'default', pg_get_expr(t.typdefaultbin, 0),
                    'checks', (
                        SELECT coalesce(jsonb_agg(jsonb_build_object(
                            'name', conname, 'definition', pg_get_constraintdef(oid))
                            ORDER BY conname), '[]')
                        FROM pg_constraint WHERE contypid = t.oid AND contype = 'c'))
                WHEN 'c' THEN jsonb_build_object('shape', 'composite', 'attributes', (
                    SELECT coalesce(jsonb_agg(jsonb_build_object(
                        'name', a.attname,
                        'type_name', format_type(a.atttypid, a.atttypmod),
                        'collation', (
                            SELECT quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
                            FROM pg_type b, pg_collation c
                            JOIN pg_namespace cn ON cn.oid = c.collnamespace
                            WHERE b.oid = a.atttypid AND c.oid = a.attcollation
                              AND a.attcollation <> b.typcollation)) ORDER BY a.attnum), '[]')
                    FROM pg_attribute a
                    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
                ELSE (SELECT jsonb_build_object('shape', 'range',
                    'subtype', format_type(r.rngsubtype, -1),
                    'opclass', quote_ident(opn.nspname) || '.' || quote_ident(op.opcname),
                    'collation', (
                        SELECT quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
                        FROM pg_type b, pg_collation c
                        JOIN pg_namespace cn ON cn.oid = c.collnamespace
                        WHERE b.oid = r.rngsubtype AND c.oid = r.rngcollation
                          AND r.rngcollation <> b.typcollation),
                    'subtype_diff', CASE WHEN r.rngsubdiff <> 0 THEN (
                        SELECT quote_ident(fn.nspname) || '.' || quote_ident(f.proname)
                        FROM pg_proc f JOIN pg_namespace fn ON fn.oid = f.pronamespace
                        WHERE f.oid = r.rngsubdiff) END,
                    'canonical', CASE WHEN r.rngcanonical <> 0 THEN (
                        SELECT quote_ident(fn.nspname) || '.' || quote_ident(f.proname)
                        FROM pg_proc f JOIN pg_namespace fn ON fn.oid = f.pronamespace
                        WHERE f.oid = r.rngcanonical) END,
                    'multirange', (SELECT m.typname FROM pg_type m WHERE m.oid = r.rngmultitypid))
                    FROM pg_range r
                    JOIN pg_opclass op ON op.oid = r.rngsubopc
                    JOIN pg_namespace opn ON opn.oid = op.opcnamespace
                    WHERE r.rngtypid = t.oid)
                END ORDER BY used.depth DESC, n.nspname, t.typname), '[]')
            FROM used
            JOIN pg_type t ON t.oid = used.oid
            JOIN pg_namespace n ON n.oid = t.typnamespace
            LEFT JOIN pg_class row_type ON row_type.oid = t.typrelid AND t.typtype = 'c'
            WHERE t.typtype IN ('e', 'd', 'c', 'r')
              AND n.nspname NOT IN ('pg_catalog', 'information_schema')
              AND coalesce(row_type.relkind, 'c') = 'c'
              AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')))";

/// Reads what belongs to the table; nothing at all if no table has that oid. Types and
/// extensions that only the columns `excluded` need are left out.
///
/// A few statements, which see one snapshot only in a transaction that has one. The state
/// of sequences is always that of this moment.
pub async fn table_objects(client: &Client, oid: u32, excluded: &[String]) -> Result<TableObjects> {
    let doing = || format!("reading the objects of the table with oid {oid}");
    let Some(row) = client.query_opt(TABLE, &[&oid]).await.doing(doing())? else {
        return Ok(TableObjects::default());
    };
    let Json(mut objects) = row.try_get::<_, Json<TableObjects>>(0).doing(doing())?;
    let foundations: TableObjects = one(client, FOUNDATIONS, &[&oid, &excluded]).await?;
    objects.extensions = foundations.extensions;
    objects.collations = foundations.collations;
    objects.types = foundations.types;
    objects.not_copied.extend(foundations.not_copied);
    objects.columns = one(client, COLUMNS, &[&oid]).await?;
    objects.constraints = one(client, CONSTRAINTS, &[&oid]).await?;
    objects.indexes = one(client, INDEXES, &[&oid]).await?;
    objects.foreign_keys = one(client, FOREIGN_KEYS, &[&oid]).await?;
    for row in client.query(SEQUENCES, &[&oid]).await.doing(doing())? {
        let Json(sequence) = row.try_get::<_, Json<Bare>>(0).doing(doing())?;
        let mut sequence = sequence.0;
        if row.get(1) {
            (sequence.last_value, sequence.is_called) = state(client, &sequence.name).await?;
        }
        objects.sequences.push(sequence);
    }
    Ok(objects)
}

/// A sequence as [`SEQUENCES`] gives it.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Bare(SequenceDefinition);

async fn one<T: DeserializeOwned>(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<T> {
    let doing = || "reading the objects of a table".to_owned();
    let row = client.query_one(sql, parameters).await.doing(doing())?;
    let value: Json<serde_json::Value> = row.try_get(0).doing(doing())?;
    serde_json::from_value(value.0)
        .map_err(|error| crate::Error::Invalid(format!("{}: {error}", doing())))
}

async fn state(client: &Client, name: &TableName) -> Result<(Option<i64>, bool)> {
    let sql = format!("SELECT last_value, is_called FROM {}", name.quoted());
    let row = client
        .query_one(&sql, &[])
        .await
        .doing(format!("reading sequence {name}"))?;
    Ok((Some(row.get(0)), row.get(1)))
}
