-- Control-plane state. Schema "bunny" exists already: the program makes it
-- before it runs migrations, because their own bookkeeping lives in it.

CREATE TABLE bunny.settings (
    name        text PRIMARY KEY,
    value       bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE bunny.settings IS 'Generated secrets and the key check, sealed with the installation''s key.';

CREATE TABLE bunny.users (
    username       text PRIMARY KEY,
    role           text NOT NULL CHECK (role IN ('admin', 'viewer')),
    password_hash  text NOT NULL,
    token_version  integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE bunny.peers (
    name           text PRIMARY KEY,
    host           text NOT NULL,
    port           integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    username       text NOT NULL,
    password       bytea NOT NULL,
    database       text NOT NULL,
    ssl_mode       text NOT NULL,
    ssl_root_cert  text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN bunny.peers.password IS 'Sealed.';

CREATE TABLE bunny.mirrors (
    id                    uuid PRIMARY KEY,
    name                  text NOT NULL UNIQUE,
    slug                  text NOT NULL UNIQUE,
    source_peer           text NOT NULL REFERENCES bunny.peers (name),
    destination_peer      text NOT NULL REFERENCES bunny.peers (name),
    slot_name             text NOT NULL,
    slot_given            boolean NOT NULL,
    publication_name      text NOT NULL,
    publication_given     boolean NOT NULL,
    publication_ins_name  text NOT NULL,
    config                jsonb NOT NULL,
    generation            uuid NOT NULL,
    generation_ready      boolean NOT NULL DEFAULT false,
    desired               text NOT NULL DEFAULT 'running'
                          CHECK (desired IN ('running', 'paused', 'deleted')),
    keep_topics           boolean NOT NULL DEFAULT false,
    version               bigint NOT NULL DEFAULT 1,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN bunny.mirrors.version IS 'Rises with each change that workers have to act on.';
CREATE INDEX mirrors_source_peer ON bunny.mirrors (source_peer);
CREATE INDEX mirrors_destination_peer ON bunny.mirrors (destination_peer);

CREATE TABLE bunny.mirror_tables (
    mirror_id           uuid NOT NULL REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    position            integer NOT NULL,
    source_schema       text NOT NULL,
    source_table        text NOT NULL,
    destination_schema  text NOT NULL,
    destination_table   text NOT NULL,
    partition_key       text,
    exclude_columns     text[] NOT NULL DEFAULT '{}',
    identity            text,
    request_id          uuid,
    PRIMARY KEY (mirror_id, source_schema, source_table),
    UNIQUE (mirror_id, destination_schema, destination_table)
);

CREATE TABLE bunny.commands (
    id            uuid PRIMARY KEY,
    mirror_id     uuid,
    mirror_name   text NOT NULL,
    kind          text NOT NULL,
    args          jsonb NOT NULL DEFAULT '{}',
    state         text NOT NULL DEFAULT 'pending'
                  CHECK (state IN ('pending', 'running', 'done', 'failed')),
    steps         jsonb NOT NULL DEFAULT '[]',
    error         text,
    requested_by  text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz
);
COMMENT ON COLUMN bunny.commands.mirror_id IS 'No foreign key: commands outlive their mirror.';
CREATE INDEX commands_mirror ON bunny.commands (mirror_id, created_at DESC);
CREATE INDEX commands_mirror_name ON bunny.commands (mirror_name, created_at DESC);

CREATE TABLE bunny.leases (
    mirror_id     uuid NOT NULL REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    role          text NOT NULL CHECK (role IN ('capture', 'apply')),
    holder        text NOT NULL,
    epoch         bigint NOT NULL,
    expires_at    timestamptz NOT NULL,
    heartbeat_at  timestamptz NOT NULL,
    PRIMARY KEY (mirror_id, role)
);
COMMENT ON COLUMN bunny.leases.epoch IS 'Rises with each change of hands.';

CREATE TABLE bunny.workers (
    holder        text NOT NULL,
    role          text NOT NULL,
    expires_at    timestamptz NOT NULL,
    PRIMARY KEY (role, holder)
);
COMMENT ON TABLE bunny.workers IS 'Who shares the mirrors; rows of the dead are swept by the living.';

CREATE TABLE bunny.reports (
    mirror_id    uuid NOT NULL REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    role         text NOT NULL CHECK (role IN ('capture', 'apply')),
    report       jsonb,
    reported_at  timestamptz,
    failure      jsonb,
    PRIMARY KEY (mirror_id, role)
);

CREATE TABLE bunny.logs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror_id   uuid NOT NULL REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    level       text NOT NULL CHECK (level IN ('debug', 'info', 'warn', 'error')),
    message     text NOT NULL,
    details     jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX logs_mirror ON bunny.logs (mirror_id, id DESC);
