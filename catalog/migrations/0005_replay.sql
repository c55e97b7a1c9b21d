-- Tables rebuilt from the topics.

ALTER TABLE bunny.mirror_tables
    ADD COLUMN replay        jsonb,
    ADD COLUMN since_request uuid;
COMMENT ON COLUMN bunny.mirror_tables.replay IS
    'The retained sync that the destination is to load again, under a request of its own; null: it holds the sync of request_id.';
COMMENT ON COLUMN bunny.mirror_tables.since_request IS
    'The first sync asked for since the mapping names this destination table and these columns; earlier ones carry others.';
UPDATE bunny.mirror_tables SET since_request = request_id;

ALTER TABLE bunny.mirror_tables ADD COLUMN checkpoint_id uuid;
COMMENT ON COLUMN bunny.mirror_tables.checkpoint_id IS
    'The last fresh copy asked for that no destination loads: the topics can rebuild the table from it.';
