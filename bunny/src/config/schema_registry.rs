//! The settings of a schema registry outside.

use std::sync::Arc;

use bunny_schemas::registry::{Authority, Credentials, Server};
use secrecy::SecretString;

use super::layers::{Found, Layers, Problem};
use super::settings::{
    SCHEMA_REGISTRY_PASSWORD, SCHEMA_REGISTRY_TOKEN, SCHEMA_REGISTRY_URL, SCHEMA_REGISTRY_USER,
};

/// In place of the URL: the ids are Bunny's own again.
const BUILT_IN: &str = "built-in";

/// Who chooses schema ids.
pub(super) fn schema_ids(layers: &Layers) -> Result<Authority, Problem> {
    let credentials = credentials(layers)?;
    let url = layers.text(&SCHEMA_REGISTRY_URL);
    match (url, credentials) {
        (Some(url), credentials) if url.text != BUILT_IN => {
            let credentials = credentials.map_or(Credentials::None, |(credentials, _)| credentials);
            let server = Server::new(&url.text, &credentials)
                .map_err(|error| url.wrong(error.to_string()))?;
            Ok(Authority::Server(Arc::new(server)))
        }
        (_, Some((_, place))) => Err(Problem::new(format!(
            "{place} is of use only with the URL of a schema registry, BUNNY_SCHEMA_REGISTRY_URL"
        ))),
        (Some(_), None) => Ok(Authority::TopicAgain),
        (None, None) => Ok(Authority::Topic),
    }
}

/// With the place where they were given.
fn credentials(layers: &Layers) -> Result<Option<(Credentials, String)>, Problem> {
    let user = layers.text(&SCHEMA_REGISTRY_USER);
    let password = layers.text(&SCHEMA_REGISTRY_PASSWORD);
    let token = layers.text(&SCHEMA_REGISTRY_TOKEN);
    let secret = |found: Found| SecretString::from(found.text);
    match (user, password, token) {
        (None, None, None) => Ok(None),
        (None, None, Some(token)) => {
            let place = token.place.clone();
            Ok(Some((Credentials::Token(secret(token)), place)))
        }
        (Some(user), Some(_), None) if user.text.contains(':') => {
            Err(user.wrong("must not contain a colon, which ends a user name in HTTP".into()))
        }
        (Some(user), Some(password), None) => {
            let place = user.place.clone();
            let credentials = Credentials::Password {
                user: user.text,
                password: secret(password),
            };
            Ok(Some((credentials, place)))
        }
        (Some(given), None, None) | (None, Some(given), None) => {
            Err(given.wrong("goes with a user and a password, of which one is missing".into()))
        }
        (Some(given), _, Some(token)) | (_, Some(given), Some(token)) => {
            Err(Problem::new(format!(
                "{} and {} both say who asks the schema registry: leave one out",
                token.place, given.place
            )))
        }
    }
}
