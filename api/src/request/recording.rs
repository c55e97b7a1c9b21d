//! What readers ask for, noted for the OpenAPI document.

use std::sync::{Arc, Mutex, PoisonError};

/// One field or parameter, as its reader asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    /// It is required unless this other one is there.
    pub(crate) unless: Option<&'static str>,
    pub(crate) kind: AskedKind,
}

/// What a reader takes.
#[derive(Clone, Debug)]
pub(crate) enum AskedKind {
    Text,
    Secret,
    Boolean,
    /// A whole number between the two, both included.
    Integer {
        least: i128,
        most: i128,
    },
    /// One of these words.
    Choice(Vec<String>),
    Texts,
    /// One object, read as noted.
    Object(Recording),
    /// A list of objects, each read as noted.
    Objects(Recording),
}

impl AskedKind {
    pub(super) fn choice<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        Self::Choice(words.map(str::to_owned).collect())
    }
}

/// Notes in the order in which they were asked for; shared by a recorder and who looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Recording {
    /// The first note of a name counts: a reader of words or secrets asks for a text on its way.
    pub(super) fn note(&self, name: &'static str, required: bool, kind: AskedKind) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|known| known.name == name) {
            let note = Asked {
                name,
                required,
                unless: None,
                kind,
            };
            asked.push(note);
        }
    }

    /// What is noted of `name` is required unless `other` is there.
    pub(super) fn unless(&self, name: &'static str, other: &'static str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(note) = asked.iter_mut().find(|known| known.name == name) {
            note.unless = Some(other);
        }
    }

    /// All notes so far.
    pub(crate) fn taken(&self) -> Vec<Asked> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
