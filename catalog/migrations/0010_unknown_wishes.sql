-- What Kafka or a destination remembers as asked for last, and this catalog does not know: it is older than
-- they are, or another one. The commands they name may never have been in this database.

CREATE TABLE bunny.unknown_wishes (
    command_id      uuid PRIMARY KEY,
    mirror_id       uuid NOT NULL,
    passed_over_by  uuid,
    noted_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE bunny.unknown_wishes IS 'No foreign keys: they outlive the mirror, as commands do.';
COMMENT ON COLUMN bunny.unknown_wishes.passed_over_by IS
    'The command that was asked for in spite of it, and decides everything anew.';
CREATE INDEX unknown_wishes_mirror ON bunny.unknown_wishes (mirror_id);
