"""Materialised tables and how far they are, in one SQLite file, so that both commit together."""

import json
import math
import sqlite3
import struct

# Types that travel typed, by pg_type.oid (docs/events.md, "Rows"); all others are text.
BOOL, BYTEA, INT8, INT2, INT4, FLOAT4, FLOAT8 = 16, 17, 20, 21, 23, 700, 701


class NeedsCopy(Exception):
    """The log alone cannot bring the table on: a newer copy (resync, checkpoint) is needed."""


def quote(name):
    return '"' + name.replace('"', '""') + '"'


def native(oid, text):
    """A value of COPY text in the form in which the events carry it."""
    if text is None:
        return None
    if oid == BOOL:
        return text == "t"
    if oid in (INT2, INT4, INT8):
        return int(text)
    if oid == FLOAT4:
        return struct.unpack("f", struct.pack("f", float(text)))[0]
    if oid == FLOAT8:
        return float(text)
    if oid == BYTEA:
        return bytes.fromhex(text[2:])
    return text


def stored(value):
    """SQLite has no boolean, and would turn NaN into NULL: written as Postgres does instead."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class Store:
    def __init__(self, path):
        # Transactions are ours: nothing commits by itself.
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        # next_offset is NULL while a table waits for a copy later than (generation, lsn).
        self.db.execute(
            """CREATE TABLE IF NOT EXISTS _tables (
                   name TEXT PRIMARY KEY, next_offset INTEGER, generation TEXT, lsn INTEGER NOT NULL,
                   columns TEXT NOT NULL, schema_id INTEGER)"""
        )

    # --- transactions ---------------------------------------------------------------------------

    def begin(self):
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")

    def commit(self, next_offset=None):
        """Rows and offset become durable together; a crash before it undoes both."""
        if not self.db.in_transaction:
            return
        if next_offset is not None:
            # A table that was copied later may be further already.
            self.db.execute("UPDATE _tables SET next_offset = max(next_offset, ?)", (next_offset,))
        self.db.execute("COMMIT")

    def rollback(self):
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def savepoint(self):
        self.begin()
        self.db.execute("SAVEPOINT source_transaction")

    def release(self):
        self.db.execute("RELEASE source_transaction")

    def undo(self):
        self.db.execute("ROLLBACK TO source_transaction")
        self.release()

    # --- what is known of a table ---------------------------------------------------------------

    def tables(self):
        """name -> (next_offset, generation, lsn)"""
        rows = self.db.execute("SELECT name, next_offset, generation, lsn FROM _tables")
        return {name: (offset, generation, lsn) for name, offset, generation, lsn in rows}

    def add(self, table):
        self.db.execute("INSERT OR IGNORE INTO _tables VALUES (?, NULL, NULL, -1, '[]', NULL)", (table,))

    def columns(self, table):
        """(attnum, name, oid) in order."""
        row = self.db.execute("SELECT columns FROM _tables WHERE name = ?", (table,)).fetchone()
        return [tuple(column) for column in json.loads(row[0])]

    def void(self, table, generation, lsn):
        """The table waits for a copy of this generation later than this LSN."""
        self.begin()
        self.db.execute(f"DROP TABLE IF EXISTS {quote(table)}")
        self.db.execute(
            "UPDATE _tables SET next_offset = NULL, generation = ?, lsn = ?, schema_id = NULL WHERE name = ?",
            (generation, lsn, table),
        )

    # --- rows -----------------------------------------------------------------------------------

    def create(self, table, columns, key):
        self.db.execute(f"DROP TABLE IF EXISTS {quote(table)}")
        # Columns without a type keep every value as it is given.
        names = ", ".join(quote(name) for _, name, _ in columns)
        self.db.execute(f"CREATE TABLE {quote(table)} ({names})")
        if key:
            index, keys = quote(table + " key"), ", ".join(quote(name) for name in key)
            # Not unique: a change applied twice shall show, and keys may swap within a transaction.
            self.db.execute(f"CREATE INDEX {index} ON {quote(table)} ({keys})")

    def loaded(self, table, columns, generation, lsn, next_offset):
        self.db.execute(
            "UPDATE _tables SET next_offset = ?, generation = ?, lsn = ?, columns = ?, schema_id = NULL WHERE name = ?",
            (next_offset, generation, lsn, json.dumps(columns), table),
        )

    def insert(self, table, row):
        names, marks = ", ".join(map(quote, row)), ", ".join("?" for _ in row)
        values = [stored(value) for value in row.values()]
        self.db.execute(f"INSERT INTO {quote(table)} ({names}) VALUES ({marks})", values)

    def insert_many(self, table, count, rows):
        marks = ", ".join("?" for _ in range(count))
        self.db.executemany(f"INSERT INTO {quote(table)} VALUES ({marks})", rows)

    def find(self, table, match):
        """One row that holds these values: without a key, one of several equal ones."""
        where = " AND ".join(f"{quote(name)} IS ?" for name in match)
        values = [stored(value) for value in match.values()]
        found = self.db.execute(f"SELECT rowid FROM {quote(table)} WHERE {where} LIMIT 1", values).fetchone()
        if found is None:
            raise RuntimeError(f"{table} has no row {match}: state and log do not belong together")
        return found[0]

    def update(self, table, match, row):
        sets = ", ".join(f"{quote(name)} = ?" for name in row)
        values = [stored(value) for value in row.values()]
        self.db.execute(f"UPDATE {quote(table)} SET {sets} WHERE rowid = ?", (*values, self.find(table, match)))

    def delete(self, table, match):
        self.db.execute(f"DELETE FROM {quote(table)} WHERE rowid = ?", (self.find(table, match),))

    def truncate(self, table):
        self.db.execute(f"DELETE FROM {quote(table)}")

    # --- schema changes -------------------------------------------------------------------------

    def follow_schema(self, table, schema_id, fields):
        """Brings the table to the version of the next event. `attnum` survives a rename."""
        known_id = self.db.execute("SELECT schema_id FROM _tables WHERE name = ?", (table,)).fetchone()[0]
        if known_id == schema_id:
            return
        known = self.columns(table)
        by_attnum = {attnum: (name, oid) for attnum, name, oid in known}
        new = [(field["attnum"], field["column"], field["pg_type_oid"]) for field in fields]
        if any(attnum == 0 for attnum, _, _ in new):
            raise NeedsCopy("a column could not be recognised at the source")
        try:
            self.alter(table, known, new, by_attnum, fields)
        except sqlite3.OperationalError as error:
            # Names that were exchanged, a key that lost a column: rare, and a copy cures it.
            raise NeedsCopy(error) from error
        self.db.execute(
            "UPDATE _tables SET columns = ?, schema_id = ? WHERE name = ?", (json.dumps(new), schema_id, table)
        )

    def alter(self, table, known, new, by_attnum, fields):
        for attnum, name, _ in known:
            if attnum not in {column[0] for column in new}:
                self.db.execute(f"ALTER TABLE {quote(table)} DROP COLUMN {quote(name)}")
        for (attnum, name, oid), field in zip(new, fields):
            if attnum not in by_attnum:
                self.add_column(table, name, oid, field.get("facts", {}))
                continue
            old_name, old_oid = by_attnum[attnum]
            if old_oid != oid:
                raise NeedsCopy(f"the type of {name} changed")
            if old_name != name:
                self.db.execute(f"ALTER TABLE {quote(table)} RENAME COLUMN {quote(old_name)} TO {quote(name)}")

    def add_column(self, table, name, oid, facts):
        held = facts.get("old_rows", "unknown")
        if held != "null" and not isinstance(held, dict):
            raise NeedsCopy(f"what rows hold in the new column {name} is not in the log")
        self.db.execute(f"ALTER TABLE {quote(table)} ADD COLUMN {quote(name)}")
        if isinstance(held, dict):
            self.db.execute(f"UPDATE {quote(table)} SET {quote(name)} = ?", (stored(native(oid, held["value"])),))
