-- Further destinations of one capture, and what each of them still needs of the log.

ALTER TABLE bunny.mirrors ADD COLUMN source_mirror uuid REFERENCES bunny.mirrors (id);
COMMENT ON COLUMN bunny.mirrors.source_mirror IS
    'The mirror whose topics this one reads; it has no capture, slot, publications or topics of its own.';
CREATE INDEX mirrors_source_mirror ON bunny.mirrors (source_mirror) WHERE source_mirror IS NOT NULL;

CREATE TABLE bunny.log_needs (
    mirror_id     uuid PRIMARY KEY REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    generation    uuid NOT NULL,
    floor_offset  bigint NOT NULL,
    chunks_known  boolean NOT NULL DEFAULT true
);
COMMENT ON COLUMN bunny.log_needs.floor_offset IS
    'Of a mirror with source_mirror: its destination needs nothing of the change topic below it. Of one with topics of its own: up to there they may have been trimmed, which is never above what an attached mirror needs.';
COMMENT ON COLUMN bunny.log_needs.chunks_known IS
    'Whether the copies that the destination is loading are all recorded in the position topic.';
