-- What is asked for of single tables beyond their sync.

ALTER TABLE bunny.mirror_tables ADD COLUMN retry_id uuid;
COMMENT ON COLUMN bunny.mirror_tables.retry_id IS
    'The last request to bring the table back if it is set aside; the destination remembers which one it has carried out.';
