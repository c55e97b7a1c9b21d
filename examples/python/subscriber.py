#!/usr/bin/env python3
"""Keeps copies of tables in SQLite current from BunnyDB's topics, and nothing else.

    pip install -r requirements.txt
    ./subscriber.py --brokers localhost:9092 --registry http://localhost:8112/registry \\
        --registry-user admin --topics bunny.shop --table public.users --state users.sqlite

The password of the registry is taken from REGISTRY_PASSWORD. The rules it follows are those of
docs/events.md. It may be killed at any moment: rows and offsets stand in the same SQLite
transactions, so that the next start goes on behind the last one that was committed.
"""

import argparse
import json
import os
import re
import signal
import sys
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from store import NeedsCopy, Store, native, stored

# So many events at most between two commits, if the source's transactions allow it.
BATCH_EVENTS = 1000
# How often a copy is looked for that is not there yet.
LOOK_SECONDS = 2
ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def unsigned(number):
    """An LSN has 64 bits without a sign; Avro's long has one."""
    return number & 0xFFFF_FFFF_FFFF_FFFF


def copy_cell(cell):
    """A column of a line of COPY text."""
    if cell == rb"\N":
        return None
    return re.sub(rb"\\(.)", lambda found: ESCAPES.get(found[1], found[1]), cell, flags=re.S).decode()


class Refused(Exception):
    """Nothing that a traceback would explain."""


class Subscriber:
    def __init__(self, options):
        registry = {"url": options.registry}
        if options.registry_user:
            password = os.environ.get("REGISTRY_PASSWORD", "")
            registry["basic.auth.user.info"] = f"{options.registry_user}:{password}"
        self.brokers = options.brokers
        self.changes = options.topics + ".changes"
        self.snapshot = options.topics + ".snapshot"
        self.registry = SchemaRegistryClient(registry)
        self.deserialize = AvroDeserializer(self.registry)
        self.schemas = {}
        self.store = Store(options.state)
        for table in options.table:
            self.store.add(table)
        # In memory what the store says, for the question asked of every event.
        self.tables = self.store.tables()
        self.stopping = False

    # --- reading --------------------------------------------------------------------------------

    def consumer(self, starts):
        """Reads (topic, partition, offset)s, committed messages only."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": "bunny-example-subscriber",  # demanded; no offset is kept there
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",  # what was trimmed is never skipped in silence
                "enable.partition.eof": True,
                "fetch.queue.backoff.ms": 5,
            }
        )
        consumer.assign([TopicPartition(topic, partition, offset) for topic, partition, offset in starts])
        return consumer

    def first_offsets(self, topic):
        return {partition: first for partition, (first, _) in self.watermarks(topic).items()}

    def watermarks(self, topic):
        """The first and the next offset of each partition."""
        consumer = self.consumer([])
        try:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            if not partitions:
                raise Refused(f"there is no topic {topic}: is --topics right, as in bunny.shop?")
            return {p: consumer.get_watermark_offsets(TopicPartition(topic, p)) for p in partitions}
        finally:
            consumer.close()

    def read_to_end(self, topic, starts):
        consumer = self.consumer([(topic, partition, offset) for partition, offset in starts.items()])
        unread = set(starts)
        try:
            while unread:
                message = consumer.poll(1)
                if message is None:
                    continue
                if message.error() is None:
                    yield message
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                else:
                    raise KafkaException(message.error())
        finally:
            consumer.close()

    def schema(self, message):
        """Id and parsed schema of a message; its properties tell true names and Postgres types."""
        schema_id = int.from_bytes(message.value()[1:5], "big")
        if schema_id not in self.schemas:
            self.schemas[schema_id] = json.loads(self.registry.get_schema(schema_id).schema_str)
        return schema_id, self.schemas[schema_id]

    def decode(self, message):
        return self.deserialize(message.value(), SerializationContext(message.topic(), MessageField.VALUE))

    # --- the copy a table starts from -----------------------------------------------------------

    def newest_copy(self, table):
        """The newest finished sync that is retained and later than what the table waits for."""
        _, generation, after = self.tables[table]
        first, first_change = self.first_offsets(self.snapshot), self.first_offsets(self.changes)[0]
        started, finished, attempts = {}, {}, {}
        for message in self.read_to_end(self.snapshot, {0: first[0]}):
            kind = self.schema(message)[1]["name"]
            if kind not in ("TableSyncStarted", "TableSyncFinished"):
                continue
            record = self.decode(message)
            if f"{record['schema']}.{record['table']}" != table:
                continue
            sync = (str(record["request_id"]), record["attempt"])
            attempts[sync[0]] = max(sync[1], attempts.get(sync[0], 0))
            (started if kind == "TableSyncStarted" else finished)[sync] = record
        found = None
        for sync, record in started.items():  # in the order of the topic
            usable = (
                sync in finished
                and attempts[sync[0]] == sync[1]
                and generation in (None, str(record["generation"]))
                and unsigned(record["lsn"]) > after
                and record["changes_offset"] >= first_change
                and all(start >= first[p] for p, start in enumerate(record["start_offsets"]))
            )
            found = (sync, record, finished[sync]) if usable else found
        return found

    def load(self, table):
        """Loads a table in one transaction. False: there is no copy that could be loaded."""
        copy = self.newest_copy(table)
        if copy is None:
            return False
        sync, started, finished = copy
        definition = json.loads(started["definition"])
        described = {column["name"]: column for column in definition["columns"]}
        columns = [(described[name]["attnum"], name, described[name]["type_oid"]) for name in started["columns"]]
        self.store.begin()
        self.store.create(table, columns, [name for name in definition["identity_key"] if name in started["columns"]])
        parts, ends, rows = {}, {}, 0
        for message in self.read_to_end(self.snapshot, dict(enumerate(started["start_offsets"]))):
            if self.schema(message)[1]["name"] != "SnapshotChunk":
                continue
            part = self.decode(message)
            chunk = part["chunk"]
            if (str(part["request_id"]), part["attempt"]) != sync or part["part"] in parts.get(chunk, {}):
                continue
            lines = part["data"].split(b"\n")[:-1]
            self.store.insert_many(table, len(columns), (self.copy_row(columns, line) for line in lines))
            parts.setdefault(chunk, {})[part["part"]] = len(lines)
            rows += len(lines)
            if part["last"]:
                ends[chunk] = (part["part"], part["chunk_rows"])
        whole = len(ends) == finished["chunks"] and rows == finished["rows"]
        for chunk, (last, chunk_rows) in ends.items():
            whole &= sorted(parts[chunk]) == list(range(last + 1)) and sum(parts[chunk].values()) == chunk_rows
        if not whole:
            self.store.rollback()
            raise RuntimeError(f"the copy {sync} of {table} is not complete in the topic")
        lsn = unsigned(started["lsn"])
        self.store.loaded(table, columns, str(started["generation"]), lsn, started["changes_offset"])
        self.store.commit()
        self.tables = self.store.tables()
        print(f"{table}: loaded {rows} rows as of {lsn:X}", file=sys.stderr, flush=True)
        return True

    @staticmethod
    def copy_row(columns, line):
        cells = line.split(b"\t") if columns else []
        return [stored(native(oid, copy_cell(cell))) for (_, _, oid), cell in zip(columns, cells)]

    # --- changes --------------------------------------------------------------------------------

    def waiting(self):
        """The tables that wait for a copy."""
        return {table for table, (offset, _, _) in self.tables.items() if offset is None}

    def run(self, stop_at_end):
        told = set()
        self.forget_what_is_gone()
        while not self.stopping:
            missing = {table for table in self.waiting() if not self.load(table)}
            for table in sorted(missing - told):
                print(f"{table}: waits for a copy in {self.snapshot}", file=sys.stderr, flush=True)
            told = missing
            starts = [offset for offset, _, _ in self.tables.values() if offset is not None]
            if starts:
                self.follow(min(starts), stop_at_end)
            elif not stop_at_end:
                time.sleep(LOOK_SECONDS)
            # What is not missing began to wait meanwhile: its copy has not been looked for.
            if stop_at_end and self.waiting() <= missing and not self.stopping:
                if missing:
                    raise Refused(
                        f"{self.snapshot} has no copy that {', '.join(sorted(missing))} could begin with:"
                        " is that a table of the mirror? POST .../checkpoint makes a new copy"
                    )
                return

    def forget_what_is_gone(self):
        """Offsets that the topic has not, or no more, are no place to go on from: it was trimmed,
        or is another topic of that name. The newest copy is."""
        first, end = self.watermarks(self.changes)[0]
        gone = [table for table, (offset, _, _) in self.tables.items() if offset is not None and not first <= offset <= end]
        for table in gone:
            print(f"{table}: begins anew, its place in {self.changes} is gone", file=sys.stderr, flush=True)
            self.store.void(table, None, -1)
        self.store.commit()
        self.tables = self.store.tables()

    def follow(self, start, stop_at_end):
        """Applies changes until told to stop, or until a copy of some table should be looked for."""
        consumer = self.consumer([(self.changes, 0, start)])
        self.open = None  # commit_lsn of the source transaction whose last event has not come
        events, position, looked = 0, start, time.monotonic()
        try:
            while not self.stopping:
                message = consumer.poll(0 if events else 0.2)
                at_end = message is not None and message.error() is not None
                if at_end and message.error().code() == KafkaError._AUTO_OFFSET_RESET:
                    self.store.rollback()
                    self.forget_what_is_gone()
                    return
                if at_end and message.error().code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(message.error())
                if message is not None and not at_end:
                    self.apply(message)
                    events, position = events + 1, message.offset() + 1
                # Only whole source transactions become visible.
                if self.open is None and (message is None or at_end or events >= BATCH_EVENTS):
                    self.store.commit(position)
                    self.tables = self.store.tables()
                    events = 0
                    if at_end and stop_at_end:
                        return
                    if self.waiting() and not stop_at_end and time.monotonic() - looked > LOOK_SECONDS:
                        return
                elif message is None:
                    events = 0  # The rest of a transaction comes later: wait for it.
        finally:
            self.store.rollback()
            self.tables = self.store.tables()
            consumer.close()

    def apply(self, message):
        schema_id, schema = self.schema(message)
        event = self.decode(message)
        if schema["name"] == "GenerationStarted":
            self.new_generation(str(event["generation"]), message.offset())
            return
        source = event["source"]
        commit_lsn = unsigned(source["commit_lsn"])
        if self.open is None:
            self.store.savepoint()
            self.open = commit_lsn
        if schema["name"] == "TableGap":
            self.wait_for_copy(event["source"], message.offset(), commit_lsn, event["reason"])
        elif event["op"] == "t":
            for name in event["truncate"]["tables"]:
                table = f"{name['schema']}.{name['table']}"
                if self.concerns(table, source, message.offset()):
                    self.store.truncate(table)
        else:
            table = f"{source['schema']}.{source['table']}"
            if self.concerns(table, source, message.offset()):
                try:
                    self.change(table, schema_id, schema, event)
                except NeedsCopy as reason:
                    self.wait_for_copy(source, message.offset(), self.tables[table][2], reason)
        if source["last"]:
            self.store.release()
            self.open = None

    def concerns(self, table, source, offset):
        """Whether this event is after what the table holds already."""
        next_offset, generation, lsn = self.tables.get(table, (None, None, 0))
        if next_offset is None or offset < next_offset:
            return False
        if generation != str(source["generation"]):
            # It began unseen, in a topic that is another one than it was.
            print(f"{table}: waits for a copy of another generation", file=sys.stderr, flush=True)
            self.store.void(table, str(source["generation"]), -1)
            self.tables = self.store.tables()
            return False
        return unsigned(source["commit_lsn"]) >= lsn

    def change(self, table, schema_id, schema, event):
        fields = self.row_fields(schema)
        self.store.follow_schema(table, schema_id, fields)
        names = {field["name"]: field["column"] for field in fields}
        before, after = event["before"], event["after"]
        # What Postgres did not send is null on the wire and keeps its value.
        sent = {names[n]: value for n, value in (after or {}).items() if names[n] not in event["unchanged"]}
        if event["op"] == "c":
            self.store.insert(table, sent)
            return
        whole = event["before_kind"] == "row"
        old = after if before is None else before
        match = {field["column"]: old[field["name"]] for field in fields if whole or field["key"]}
        if event["op"] == "u":
            self.store.update(table, match, sent)
        else:
            self.store.delete(table, match)

    @staticmethod
    def row_fields(schema):
        """The fields of Row, which is spelled out where it is first used."""
        before = next(field for field in schema["fields"] if field["name"] == "before")
        return before["type"][1]["fields"]

    def wait_for_copy(self, source, offset, after_lsn, reason):
        table = f"{source['schema']}.{source['table']}"
        if not self.concerns(table, source, offset):
            return
        print(f"{table}: waits for a newer copy: {reason}", file=sys.stderr, flush=True)
        self.store.void(table, str(source["generation"]), after_lsn)
        self.tables = self.store.tables()

    def new_generation(self, generation, offset):
        """What the history before it has left open is void, and so is every table built from it."""
        if self.open is not None:
            self.store.undo()
            self.open = None
        for table, (next_offset, own, _) in self.store.tables().items():
            if next_offset is not None and next_offset <= offset and own != generation:
                self.store.void(table, generation, -1)
        self.tables = self.store.tables()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--registry", required=True, help="URL of a Confluent-compatible schema registry")
    parser.add_argument("--registry-user")
    parser.add_argument("--topics", required=True, help="the topics' names up to the last dot: <prefix>.<slug>")
    parser.add_argument("--table", required=True, action="append", help="schema.table at the source; may be repeated")
    parser.add_argument("--state", required=True, help="SQLite file")
    parser.add_argument("--stop-at-end", action="store_true", help="stop when everything that is there is applied")
    options = parser.parse_args()
    subscriber = Subscriber(options)

    def stop(*_):
        subscriber.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        subscriber.run(options.stop_at_end)
    except (Refused, KafkaException, SchemaRegistryError) as error:
        sys.exit(f"subscriber: {error}")


if __name__ == "__main__":
    main()
