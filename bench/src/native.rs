//! Native logical replication: what users would pick instead.

use anyhow::Result;
use bunny_tests::database::{Session, Url, quote};

use crate::ground::{Ground, wait_true};

/// A subscription, and the slot of its name.
pub struct Subscription {
    name: String,
    /// The subscriber's database.
    pub destination: Session,
    source: Session,
}

impl Subscription {
    /// Creates it at `ground` for tables that are there, which are copied at once.
    pub async fn create(
        ground: &Ground,
        name: &str,
        publication: &str,
        destination: &Url,
    ) -> Result<Subscription> {
        let source = &ground.stage.source;
        let subscription = Subscription {
            name: name.to_owned(),
            destination: destination.connect().await?,
            source: source.connect().await?,
        };
        let connection = format!(
            "host={} port={} user={} password={} dbname={}",
            source.host, source.port, source.user, source.password, source.database
        );
        subscription
            .destination
            .run(&format!(
                "CREATE SUBSCRIPTION {} CONNECTION '{connection}' PUBLICATION {} {}",
                quote(name),
                quote(publication),
                ground.subscription_options()
            ))
            .await?;
        Ok(subscription)
    }

    /// The slot's name.
    pub fn slot(&self) -> &str {
        &self.name
    }

    /// Waits until every table has been copied and follows the stream.
    pub async fn wait_copied(&self) -> Result<()> {
        wait_true(
            &self.destination,
            "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel",
        )
        .await
    }

    /// Lets the stream go.
    pub async fn enable(&self) -> Result<()> {
        let sql = format!("ALTER SUBSCRIPTION {} ENABLE", quote(&self.name));
        self.destination.run(&sql).await
    }

    /// Stops it, and waits until the slot is free.
    pub async fn disable(&self) -> Result<()> {
        let sql = format!("ALTER SUBSCRIPTION {} DISABLE", quote(&self.name));
        self.destination.run(&sql).await?;
        let free = format!(
            "SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'",
            self.name
        );
        wait_true(&self.source, &free).await
    }

    /// Removes it with its slot.
    pub async fn remove(self) -> Result<()> {
        let sql = format!("DROP SUBSCRIPTION {}", quote(&self.name));
        self.destination.run(&sql).await
    }
}
