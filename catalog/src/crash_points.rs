//! The named points at which a test may end the process, as `kill -9` would; see the module of
//! the same name in `capture`.

/// A role has been started for what is wanted; the commands that wait for that do not say so yet.
pub const ROLE_STARTED: &str = "catalog::role_started";

/// What is asked for and its command are written, not committed.
pub const WISH_WRITTEN: &str = "catalog::wish_written";
/// They are committed; whoever asked has no answer.
pub const WISH_COMMITTED: &str = "catalog::wish_committed";

/// Ends the process here when a test has armed `name`; nothing otherwise.
pub(crate) fn crash_point(name: &'static str) {
    fail::fail_point!(name, |_| crash(name));
    let _ = name;
}

#[cfg(feature = "failpoints")]
fn crash(name: &str) {
    eprintln!("crash point {name}");
    std::process::abort();
}
