//! The types and their edges, as rows of a table: what docs/fidelity.md is made from.

mod containers;
mod extensions;
mod numbers;
pub mod packages;
mod servers;
mod texts;
mod times;

/// One type with its edge values.
#[derive(Clone, Copy, Debug)]
pub struct ValueCase {
    /// As SQL writes it.
    pub type_name: &'static str,
    /// Literals as one would write them between quotes; after `=`, an SQL expression.
    /// NULL is always tried, too.
    pub values: &'static [&'static str],
    /// What stands in the event.
    pub avro: &'static str,
    /// It can be a primary key: Postgres has a btree for it.
    pub key: bool,
    /// Arrays of it are tried: NULL elements, empty, of two dimensions, with a lower bound.
    pub arrays: bool,
    /// The first major version that has it, or these values of it.
    pub since: u32,
    /// The extension it comes from.
    pub extension: &'static str,
    /// What its values are compared as, where Postgres has no `=` for the type itself.
    pub compared_as: &'static str,
    /// What has to be there before the table, at both sides.
    pub setup: &'static str,
    /// What else a reader should know.
    pub note: &'static str,
}

const fn case(type_name: &'static str, values: &'static [&'static str]) -> ValueCase {
    ValueCase {
        type_name,
        values,
        avro: "string",
        key: true,
        arrays: true,
        since: 14,
        extension: "",
        compared_as: "",
        setup: "",
        note: "",
    }
}

impl ValueCase {
    const fn avro(mut self, avro: &'static str) -> ValueCase {
        self.avro = avro;
        self
    }

    const fn no_key(mut self) -> ValueCase {
        self.key = false;
        self
    }

    const fn no_arrays(mut self) -> ValueCase {
        self.arrays = false;
        self
    }

    const fn since(mut self, version: u32) -> ValueCase {
        self.since = version;
        self
    }

    const fn extension(mut self, extension: &'static str) -> ValueCase {
        self.extension = extension;
        self
    }

    const fn compared_as(mut self, type_name: &'static str) -> ValueCase {
        self.compared_as = type_name;
        self
    }

    const fn setup(mut self, sql: &'static str) -> ValueCase {
        self.setup = sql;
        self
    }

    const fn note(mut self, note: &'static str) -> ValueCase {
        self.note = note;
        self
    }

    /// A value as an SQL expression.
    pub fn expression(&self, value: &str) -> String {
        match value.strip_prefix('=') {
            Some(expression) => format!("({expression})::{}", self.type_name),
            None => format!("'{}'::{}", value.replace('\'', "''"), self.type_name),
        }
    }
}

/// A heading of the support table, and its types.
pub struct Group {
    pub title: &'static str,
    pub cases: &'static [ValueCase],
}

pub const GROUPS: &[Group] = &[
    Group {
        title: "Numbers",
        cases: numbers::CASES,
    },
    Group {
        title: "Text, bytes, documents",
        cases: texts::CASES,
    },
    Group {
        title: "Dates and times",
        cases: times::CASES,
    },
    Group {
        title: "Geometry, networks, search, and what names things of the server",
        cases: servers::CASES,
    },
    Group {
        title: "Arrays, ranges, and types that users make",
        cases: containers::CASES,
    },
    Group {
        title: "Types of extensions",
        cases: extensions::CASES,
    },
];
