//! Reading what a caller sends: JSON bodies, path names and query parameters, each turned into plain
//! values with every bad field named at once (400).
//!
//! serde stops at the first fault, so bodies are read field by field instead: a handler asks
//! [`Fields`] for what it knows, faults are collected, and [`Fields::finish`] refuses them together
//! with every field nobody asked for. Messages never repeat a value that could be a secret.

mod recording;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use secrecy::SecretString;
use serde_json::{Map, Value};

use crate::refusal::{Refusal, Result};
pub(crate) use recording::{Asked, AskedKind, Recording};

/// Longest body accepted, in bytes: a mirror of ten thousand tables fits.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// Longest text accepted in one field, in characters (a CA bundle fits).
const TEXT_CHARS_MAX: usize = 65_536;

/// The fields of one JSON object, taken one by one.
#[derive(Debug)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// Where this object stands in the body, with a dot at its end; empty for the body itself.
    path: String,
    /// The names asked for, for the message about unknown ones.
    known: Vec<&'static str>,
    problems: Vec<String>,
    /// Where a recorder notes what it is asked for.
    recording: Option<Recording>,
}

impl Fields {
    /// Fields of no body that note what they are asked for.
    pub(crate) fn recorder() -> (Self, Recording) {
        let recording = Recording::default();
        let mut fields = Self::of(Map::new(), String::new());
        fields.recording = Some(recording.clone());
        (fields, recording)
    }

    fn asked(&self, name: &'static str, required: bool, kind: impl FnOnce() -> AskedKind) {
        if let Some(recording) = &self.recording {
            recording.note(name, required, kind());
        }
    }

    /// The fields of a body.
    ///
    /// # Errors
    /// 400 when it is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::of(Map::new(), String::new()));
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(values)) => Ok(Self::of(values, String::new())),
            Ok(other) => Err(Refusal::bad_request(format!(
                "the body is {}; send a JSON object",
                kind(&other)
            ))),
            // serde_json's message holds a position and what was expected, never the input.
            Err(error) => Err(Refusal::bad_request(format!(
                "the body is not valid JSON: {error}"
            ))),
        }
    }

    fn of(values: Map<String, Value>, path: String) -> Self {
        Self {
            values,
            path,
            known: Vec::new(),
            problems: Vec::new(),
            recording: None,
        }
    }

    /// Notes something wrong with a field.
    pub(crate) fn problem(&mut self, name: &str, what: impl AsRef<str>) {
        self.problems
            .push(format!("{}{name}: {}", self.path, what.as_ref()));
    }

    /// Notes a fault that already names its field.
    pub(crate) fn sentence(&mut self, sentence: String) {
        self.problems.push(format!("{}{sentence}", self.path));
    }

    /// A text that must be there and not be empty; `""` stands in after a fault.
    pub(crate) fn required_text(&mut self, name: &'static str) -> String {
        self.asked(name, true, || AskedKind::Text);
        match self.text(name) {
            Some(text) if text.is_empty() => {
                self.problem(name, "must not be empty");
                text
            }
            Some(text) => text,
            None => {
                if !self.faulty(name) {
                    self.problem(name, "is required");
                }
                String::new()
            }
        }
    }

    /// A text that must be there because `other` is not; `""` stands in after a fault.
    pub(crate) fn text_unless(&mut self, name: &'static str, other: &'static str) -> String {
        let text = self.text(name);
        if let Some(recording) = &self.recording {
            recording.unless(name, other);
        }
        match text {
            Some(text) if !text.is_empty() => text,
            Some(_) => {
                self.problem(name, "must not be empty");
                String::new()
            }
            None => {
                if !self.faulty(name) {
                    self.problem(name, format!("is required, unless {other} is given"));
                }
                String::new()
            }
        }
    }

    /// A text, if it is there.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        self.asked(name, false, || AskedKind::Text);
        match self.take(name)? {
            Value::String(text) if text.contains('\0') => {
                self.problem(name, "must not hold a zero character");
                None
            }
            Value::String(text) if text.chars().count() > TEXT_CHARS_MAX => {
                self.problem(name, format!("is longer than {TEXT_CHARS_MAX} characters"));
                None
            }
            Value::String(text) => Some(text),
            other => self.wrong_type(name, "a string", &other),
        }
    }

    /// A secret that must be there (an empty one is allowed: some servers want no password).
    pub(crate) fn required_secret(&mut self, name: &'static str) -> SecretString {
        self.asked(name, true, || AskedKind::Secret);
        match self.text(name) {
            Some(text) => SecretString::from(text),
            None => {
                if !self.faulty(name) {
                    self.problem(name, "is required");
                }
                SecretString::default()
            }
        }
    }

    /// A boolean, or `default`.
    pub(crate) fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.asked(name, false, || AskedKind::Boolean);
        match self.take(name) {
            None => default,
            Some(Value::Bool(value)) => value,
            Some(other) => self
                .wrong_type(name, "true or false", &other)
                .unwrap_or(default),
        }
    }

    /// A whole number within `range`, if it is there.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        self.asked(name, false, || AskedKind::Integer {
            least: (*range.start()).into(),
            most: (*range.end()).into(),
        });
        let value = self.take(name)?;
        let Some(number) = value.as_u64() else {
            return match value {
                Value::Number(number) => {
                    let (low, high) = (range.start(), range.end());
                    self.problem(
                        name,
                        format!("is {number}; give a whole number from {low} to {high}"),
                    );
                    None
                }
                other => self.wrong_type(name, "a whole number", &other),
            };
        };
        if range.contains(&number) {
            return Some(number);
        }
        let (low, high) = (range.start(), range.end());
        self.problem(
            name,
            format!("is {number}; give a whole number from {low} to {high}"),
        );
        None
    }

    /// A `u32` within `range`, or `default`.
    pub(crate) fn small(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        self.small_if_given(name, range).unwrap_or(default)
    }

    /// A `u32` within `range`, if it is there.
    pub(crate) fn small_if_given(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        self.integer(name, wide)
            .and_then(|number| u32::try_from(number).ok())
    }

    /// Whether a field is there and says null, which elsewhere counts as left out. Ask
    /// before its value is taken.
    pub(crate) fn takes_null(&mut self, name: &'static str) -> bool {
        let is_null = self.values.get(name).is_some_and(Value::is_null);
        if is_null {
            self.take(name);
        }
        is_null
    }

    /// Whether a value is given that is not null.
    pub(crate) fn gives(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null())
    }

    /// One of a few words, if it is there.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.asked(name, false, || {
            AskedKind::choice(choices.iter().map(|(word, _)| *word))
        });
        let text = self.text(name)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        self.problem(
            name,
            format!("is {:?}; give {}", shortened(&text), words.join(" or ")),
        );
        None
    }

    /// A list of texts, empty if it is not there.
    pub(crate) fn texts(&mut self, name: &'static str) -> Vec<String> {
        self.asked(name, false, || AskedKind::Texts);
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    match item {
                        Value::String(text) if !text.is_empty() && !text.contains('\0') => {
                            texts.push(text);
                        }
                        Value::String(_) => self.problem(
                            &format!("{name}[{index}]"),
                            "must not be empty or hold a zero character",
                        ),
                        other => self.problem(
                            &format!("{name}[{index}]"),
                            format!("is {}; give a string", kind(&other)),
                        ),
                    }
                }
                texts
            }
            Some(other) => self
                .wrong_type(name, "a list of strings", &other)
                .unwrap_or_default(),
        }
    }

    /// A list of objects; `None` if it is not there, which the caller refuses if `required`. Read each with its own `Fields` and give it
    /// back to [`Fields::absorb`].
    pub(crate) fn objects(&mut self, name: &'static str, required: bool) -> Option<Vec<Fields>> {
        if self.recording.is_some() {
            // One object that notes what it is asked for stands for all.
            let (nested, recording) = Self::recorder();
            self.asked(name, required, || AskedKind::Objects(recording));
            return Some(vec![nested]);
        }
        match self.take(name)? {
            Value::Array(items) => {
                let mut objects = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    let place = format!("{name}[{index}]");
                    match item {
                        Value::Object(values) => {
                            objects.push(Self::of(values, format!("{}{place}.", self.path)));
                        }
                        other => {
                            self.problem(&place, format!("is {}; give an object", kind(&other)))
                        }
                    }
                }
                Some(objects)
            }
            other => self.wrong_type(name, "a list of objects", &other),
        }
    }

    /// An object, such as `example`; `None` if it is not there. Give it back to [`Fields::absorb`].
    pub(crate) fn object(&mut self, name: &'static str, example: &str) -> Option<Fields> {
        if self.recording.is_some() {
            let (nested, recording) = Self::recorder();
            self.asked(name, false, || AskedKind::Object(recording));
            return Some(nested);
        }
        match self.take(name)? {
            Value::Object(values) => Some(Self::of(values, format!("{}{name}.", self.path))),
            other => self.wrong_type(name, &format!("an object as {example}"), &other),
        }
    }

    /// Takes over the faults of a nested object, its unknown fields included.
    pub(crate) fn absorb(&mut self, mut nested: Fields) {
        nested.refuse_unknown();
        self.problems.append(&mut nested.problems);
    }

    /// Refuses the body if anything was wrong with it.
    ///
    /// # Errors
    /// 400 that names every bad and every unknown field.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.refuse_unknown();
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Refusal::bad_request(self.problems.join("; ")))
    }

    fn refuse_unknown(&mut self) {
        let unknown: Vec<String> = self.values.keys().cloned().collect();
        for name in unknown {
            let known = self.known.join(", ");
            let what = if known.is_empty() {
                "is not a known field; this request takes none".to_owned()
            } else {
                format!("is not a known field (known: {known})")
            };
            self.problem(&shortened(&name), what);
        }
        self.values.clear();
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        self.values
            .shift_remove(name)
            .filter(|value| !value.is_null())
    }

    fn wrong_type<T>(&mut self, name: &str, wanted: &str, found: &Value) -> Option<T> {
        self.problem(name, format!("is {}; give {wanted}", kind(found)));
        None
    }

    /// Whether something about a field, or within it, has been noted.
    pub(crate) fn faulty(&self, name: &str) -> bool {
        let start = format!("{}{name}", self.path);
        self.problems.iter().any(|problem| {
            problem
                .strip_prefix(&start)
                .is_some_and(|rest| rest.starts_with([':', '[']))
        })
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shortened(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text.to_owned();
    }
    let head: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{head}…")
}

/// A JSON body, whatever its content type says: tools that forget the header still work.
pub(crate) struct Body(pub(crate) Fields);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let bytes = read_body(request, state).await?;
        Fields::parse(&bytes).map(Self)
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                return Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than {BODY_BYTES_MAX} bytes; send less"),
                );
            }
            Refusal::bad_request("the body could not be read to its end; send it again")
        })
}

/// A JSON body that is one list, `table_mappings`: in an object, or bare.
pub(crate) struct ListBody(pub(crate) Fields);

impl<S: Send + Sync> FromRequest<S> for ListBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let bytes = read_body(request, state).await?;
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        if first != Some(&b'[') {
            return Fields::parse(&bytes).map(Self);
        }
        let object = [br#"{"table_mappings": "#, &bytes[..], b"}"].concat();
        Fields::parse(&object).map(Self)
    }
}

/// The one or two names in a path, decoded.
pub(crate) struct Path<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: serde::de::DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| {
                Refusal::bad_request(format!(
                    "the address holds a part that cannot be read: {}",
                    rejection.body_text()
                ))
            })
    }
}

/// Query parameters, taken one by one like [`Fields`]; a misspelt one is refused rather than ignored,
/// since `?keep_topic=true` would drop what was to be kept.
pub(crate) struct Query {
    values: BTreeMap<String, String>,
    problems: Vec<String>,
    /// Where a recorder notes what it is asked for.
    recording: Option<Recording>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        type Pairs = axum::extract::Query<Vec<(String, String)>>;
        let axum::extract::Query(pairs) = Pairs::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
        let mut values = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, value) in pairs {
            if values.insert(name.clone(), value).is_some() {
                problems.push(format!("{}: is given twice", shortened(&name)));
            }
        }
        Ok(Self {
            values,
            problems,
            recording: None,
        })
    }
}

impl Query {
    /// Parameters of no request that note what they are asked for.
    pub(crate) fn recorder() -> (Self, Recording) {
        let recording = Recording::default();
        let query = Self {
            values: BTreeMap::new(),
            problems: Vec::new(),
            recording: Some(recording.clone()),
        };
        (query, recording)
    }

    fn asked(&self, name: &'static str, kind: impl FnOnce() -> AskedKind) {
        if let Some(recording) = &self.recording {
            recording.note(name, false, kind());
        }
    }

    /// A text, if it is there.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        self.asked(name, || AskedKind::Text);
        let text = self.values.remove(name).filter(|text| !text.is_empty())?;
        if text.contains('\0') {
            let problem = format!("{name}: must not hold a zero character");
            self.problems.push(problem);
            return None;
        }
        Some(text)
    }

    /// `true` or `false`, or `default`.
    pub(crate) fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.asked(name, || AskedKind::Boolean);
        match self.text(name).as_deref() {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.problems.push(format!("{name}: give true or false"));
                default
            }
        }
    }

    /// A whole number within `range`, or `default`.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
        default: i64,
    ) -> i64 {
        self.asked(name, || AskedKind::Integer {
            least: (*range.start()).into(),
            most: (*range.end()).into(),
        });
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.parse::<i64>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.problems
                    .push(format!("{name}: give a whole number from {low} to {high}"));
                default
            }
        }
    }

    /// One of a few words, if it is there.
    pub(crate) fn choice(&mut self, name: &'static str, words: &[&str]) -> Option<String> {
        self.asked(name, || AskedKind::choice(words.iter().copied()));
        let text = self.text(name)?.to_lowercase();
        if words.contains(&text.as_str()) {
            return Some(text);
        }
        self.problems
            .push(format!("{name}: give {}", words.join(" or ")));
        None
    }

    /// Refuses the query if anything was wrong with it.
    ///
    /// # Errors
    /// 400 that names every bad and every unknown parameter.
    pub(crate) fn finish(self) -> Result<()> {
        let Self {
            values,
            mut problems,
            recording: _,
        } = self;
        for name in values.keys() {
            problems.push(format!("{}: is not a known parameter", shortened(name)));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Refusal::bad_request(format!(
            "in the query string: {}",
            problems.join("; ")
        )))
    }
}

#[cfg(test)]
mod tests;
