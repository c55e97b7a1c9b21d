-- Pausing by role, outcomes of commands, what server a peer is, who did what.

ALTER TABLE bunny.mirrors
    ADD COLUMN pause_scope      text NOT NULL DEFAULT 'apply' CHECK (pause_scope IN ('apply', 'all')),
    ADD COLUMN capture_version  bigint NOT NULL DEFAULT 0,
    ADD COLUMN apply_version    bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN bunny.mirrors.capture_version IS
    'Rises with each change that capture alone has to act on; its task is started anew for it. Added to version.';
COMMENT ON COLUMN bunny.mirrors.apply_version IS 'The same for apply.';

ALTER TABLE bunny.commands ADD COLUMN outcome text;
COMMENT ON COLUMN bunny.commands.outcome IS 'What came of it, where that is more than its state says.';

ALTER TABLE bunny.peers ADD COLUMN identity text;
COMMENT ON COLUMN bunny.peers.identity IS
    'System identifier of the server and oid of the database, once seen; another one is another peer.';

CREATE TABLE bunny.audit (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username    text NOT NULL,
    action      text NOT NULL,
    subject     text NOT NULL,
    details     jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE bunny.audit IS 'Who changed users and peers; what was asked of mirrors stands in bunny.commands.';

-- A version that is never used again: a token of a deleted user must not open the account of
-- a later user of the same name.
CREATE SEQUENCE bunny.token_versions AS integer START 2;
ALTER TABLE bunny.users ALTER COLUMN token_version SET DEFAULT nextval('bunny.token_versions');
