CREATE SCHEMA IF NOT EXISTS _bunny;
CREATE TABLE IF NOT EXISTS _bunny.owner (
    mirror_id uuid PRIMARY KEY,
    mirror_name text NOT NULL,
    epoch bigint NOT NULL,
    -- The last command that decided what is copied, as apply began to act on it.
    last_wish uuid
);
CREATE TABLE IF NOT EXISTS _bunny.progress (
    mirror_id uuid PRIMARY KEY,
    generation uuid NOT NULL,
    commit_lsn pg_lsn NOT NULL,
    seq bigint NOT NULL,
    next_offset bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS _bunny.tables (
    mirror_id uuid NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    dest_schema text NOT NULL,
    dest_table text NOT NULL,
    state text NOT NULL,
    request_id uuid,
    attempt int NOT NULL DEFAULT 0,
    generation uuid,
    lsn pg_lsn,
    live_commit_lsn pg_lsn,
    live_seq bigint,
    in_main boolean NOT NULL DEFAULT false,
    restart_offset bigint,
    definition jsonb,
    columns text[],
    chunks_total int,
    rows_total bigint,
    rows_synced bigint NOT NULL DEFAULT 0,
    rows_inserted bigint NOT NULL DEFAULT 0,
    rows_updated bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    error text,
    last_synced_at timestamptz,
    -- Rows of others were there when the sync first began, and are kept (on_existing_rows upsert).
    keeps_rows boolean NOT NULL DEFAULT false,
    retry_id uuid,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mirror_id, source_schema, source_table)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS _bunny.chunks (
    mirror_id uuid NOT NULL,
    request_id uuid NOT NULL,
    attempt int NOT NULL,
    chunk int NOT NULL,
    rows bigint NOT NULL,
    PRIMARY KEY (mirror_id, request_id, attempt, chunk)
);
CREATE TABLE IF NOT EXISTS _bunny.shapes (
    mirror_id uuid NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    request_id uuid,
    attempt int NOT NULL,
    shape jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mirror_id, source_schema, source_table)
);
CREATE TABLE IF NOT EXISTS _bunny.objects (
    mirror_id uuid NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    reason text NOT NULL,
    -- Of a note: it is in the mirror's log.
    is_said boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mirror_id, source_schema, source_table, kind, name)
);
-- What a schema sync did and would not do, until its command tells.
CREATE TABLE IF NOT EXISTS _bunny.schema_syncs (
    mirror_id uuid NOT NULL,
    command_id uuid NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    kind text NOT NULL,
    sentence text NOT NULL,
    PRIMARY KEY (mirror_id, command_id, id)
);
CREATE TABLE IF NOT EXISTS _bunny.retention (
    mirror_id uuid PRIMARY KEY,
    -- In which its offset counts.
    generation uuid NOT NULL,
    -- The change topic is not needed below it, and may be trimmed up to there.
    floor_offset bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- What earlier versions of this file lacked.
ALTER TABLE _bunny.tables ADD COLUMN IF NOT EXISTS keeps_rows boolean NOT NULL DEFAULT false;
ALTER TABLE _bunny.tables ADD COLUMN IF NOT EXISTS retry_id uuid;
ALTER TABLE _bunny.owner ADD COLUMN IF NOT EXISTS last_wish uuid;
