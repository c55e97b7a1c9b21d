//! Changing the key that seals the catalog's secrets.

use bunny_catalog::{Catalog, Rotated};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Layers};
use crate::exit::Exit;
use crate::roles::{sort_catalog, wait_for};

/// Seals the catalog's secrets with another key, waiting for the database. Running processes
/// go on with the mirrors they have, and need the new key when they start again.
pub(crate) async fn rotate(layers: &Layers, cancel: CancellationToken) -> Result<(), Exit> {
    let location = config::catalog(layers)?;
    let (present, new) = config::rotation(layers)?;
    let catalog = Catalog::open(&location, present).map_err(Exit::setting)?;
    let rotated = wait_for("the catalog", &cancel, || async {
        sort_catalog(catalog.rotate_key(&new).await)
    });
    let Some(Rotated { sealed, before }) = rotated.await? else {
        return Err(stopped());
    };
    let already = if sealed == before { " already" } else { "" };
    println!(
        "{sealed} secrets are sealed with the new key{already}: start every process with it as BUNNY_ENCRYPTION_KEY"
    );
    Ok(())
}

/// Sets a key in place of one that is lost, waiting for the database. The lost one is not needed;
/// if it is at hand after all, nothing is given up.
pub(crate) async fn lose(layers: &Layers, cancel: CancellationToken) -> Result<(), Exit> {
    let location = config::catalog(layers)?;
    let new = config::new_encryption_key(layers)?;
    let present = config::encryption_key(layers)?.unwrap_or_else(|| new.clone());
    let catalog = Catalog::open(&location, present).map_err(Exit::setting)?;
    let lost = wait_for("the catalog", &cancel, || async {
        sort_catalog(catalog.lose_key(&new).await)
    });
    let Some(peers) = lost.await? else {
        return Err(stopped());
    };
    println!(
        "the new key is set: start every process with it as BUNNY_ENCRYPTION_KEY. Everybody has to log in again, unless BUNNY_JWT_SECRET is set"
    );
    match peers[..] {
        [] => println!("No peer's password is lost"),
        _ => println!(
            "These peers need their passwords again, with PUT /v1/peers/{{name}}; then their mirrors go on where they were: {}",
            peers.join(", ")
        ),
    }
    Ok(())
}

fn stopped() -> Exit {
    Exit::failed("stopped before the key was changed")
}
