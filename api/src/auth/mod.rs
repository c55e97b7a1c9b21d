//! Who may do what: tokens, passwords, and the guard that stands before every route.
//!
//! The permission of each route stands in one table, [`crate::router::routes`]; the guard enforces it
//! before a handler or a body reader runs.

pub(crate) mod guard;
pub(crate) mod handlers;
pub(crate) mod passwords;
mod throttle;
pub(crate) mod token;

use bunny_catalog::UserRole;

/// Who a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone, without a token.
    Open,
    /// Every user.
    Any,
    /// Users with the role admin.
    Admin,
    /// Every user, by token or by basic auth, refused in the schema registry's own error format.
    Registry,
}

/// The user a request comes from; the guard puts it into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) username: String,
    pub(crate) role: UserRole,
}
