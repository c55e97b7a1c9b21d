-- Resync by swap.

ALTER TABLE bunny.mirror_tables ADD COLUMN beside boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN bunny.mirror_tables.beside IS
    'The sync that is asked for is loaded beside the table, which keeps its rows until they are exchanged.';
