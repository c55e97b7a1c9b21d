-- How large the change topics are. Kafka does not tell it to its clients, so capture counts.

CREATE TABLE bunny.topic_bytes (
    mirror_id   uuid PRIMARY KEY REFERENCES bunny.mirrors (id) ON DELETE CASCADE,
    generation  uuid NOT NULL,
    samples     jsonb NOT NULL
);
COMMENT ON COLUMN bunny.topic_bytes.samples IS
    'Pairs of an offset and the bytes of all events published before it, rising.';
