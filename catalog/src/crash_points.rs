//! The named points at which a test may end the process, as `kill -9` would; see the module of
//! the same name in `capture`.

/// A role has been started for what is wanted; the commands that wait for that do not say so yet.
pub const ROLE_STARTED: &str = "catalog::role_started";

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
