-- What capture reads for a schema sync, until apply has carried it out.

CREATE TABLE bunny.source_definitions (
    command_id  uuid PRIMARY KEY REFERENCES bunny.commands (id) ON DELETE CASCADE,
    generation  uuid NOT NULL,
    lsn         text NOT NULL,
    published_lsn  text NOT NULL,
    published_seq  bigint NOT NULL,
    tables      jsonb NOT NULL
);
COMMENT ON TABLE bunny.source_definitions IS
    'The definitions of a mirror''s source tables as they are at lsn; deleted when their command ends.';
COMMENT ON COLUMN bunny.source_definitions.published_lsn IS
    'Commit LSN, with its seq, of the last event in the change topic when everything before lsn was in it.';
