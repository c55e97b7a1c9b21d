//! A catalog that is of yesterday or gone, and destinations that were attached to a capture: what
//! they replay afterwards is what the topics hold, once. The load's journal has no key, so whatever
//! were applied twice would be seen.

use anyhow::{Result, ensure};
use bunny_tests::backup;
use bunny_tests::content::TablePair;
use bunny_tests::load;
use bunny_tests::stage::CONVERGE;
use serde_json::{Value, json};

use crate::fan_out::{Attached, FanOut, ended, fan_out, is_gone, mappings};

const ADOPT: &str = "/v1/mirrors/second/adopt";
/// What only a table that was not rebuilt would still have, and not yet have.
const SPOIL: &str =
    "INSERT INTO journal SELECT 0, -g, 'not of the source', now() FROM generate_series(1, 3) g;
    DELETE FROM journal WHERE ctid IN (SELECT ctid FROM journal WHERE n > 0 LIMIT 5)";
const SPOILT: &str = "SELECT count(*) FROM journal WHERE n < 0";

impl FanOut {
    /// Every process dies, the catalog becomes another one, and all are started again.
    async fn with_another_catalog(
        &mut self,
        attached: &mut Attached,
        another: impl AsyncFnOnce(&FanOut) -> Result<()>,
    ) -> Result<()> {
        for process in [&mut self.capture, &mut self.apply, &mut self.api_process] {
            process.kill9();
        }
        another(self).await?;
        for process in [&mut self.capture, &mut self.apply, &mut self.api_process] {
            process.restart()?;
        }
        self.api = self.stage.api().await?;
        self.owner = self.stage.mirror(&self.api, &self.owner.name);
        attached.mirror = self.stage.mirror(&self.api, &attached.mirror.name);
        Ok(())
    }

    /// Replays all tables of the attached mirror, some of them spoilt, while changes come.
    async fn replays(&mut self, attached: &Attached, strategy: &str) -> Result<()> {
        let there = attached.destination.connect().await?;
        there.run(SPOIL).await?;
        let path = format!("/v1/mirrors/{}/replay", attached.mirror.name);
        let accepted = self.ask(&path, json!({ "strategy": strategy })).await?;
        self.advance(20).await;
        ended(self, &attached.mirror.name, &accepted).await?;
        ensure!(there.number(SPOILT).await? == 0, "nothing was rebuilt");
        self.settle(&[attached]).await
    }

    /// Attaches the mirror anew, over the rows that it has left.
    async fn attaches_anew(&self, former: Attached) -> Result<Attached> {
        let options = json!({"on_existing_rows": "truncate"});
        let (name, destination) = (former.mirror.name.clone(), former.destination);
        let attached = self
            .attach_to(&name, destination, load::pairs(), options)
            .await?;
        attached.mirror.wait_running().await?;
        Ok(attached)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_mirror_is_replayed_under_a_catalog_of_yesterday() -> Result<()> {
    let mut fan = fan_out("attached_yesterday").await?;
    let mut second = fan.attach("second", load::pairs(), json!({})).await?;
    second.mirror.wait_running().await?;
    let file = std::env::temp_dir().join(format!("{}.dump", fan.stage.name));
    backup::dump(&fan.stage.catalog, &file).await?;
    fan.advance(40).await;
    let restore = async |fan: &FanOut| backup::restore(&fan.stage.catalog, &file).await;

    // Nothing was asked for since: all go on.
    fan.with_another_catalog(&mut second, restore).await?;
    for mirror in [&fan.owner, &second.mirror] {
        mirror.wait_running().await?;
    }
    for strategy in ["truncate", "swap"] {
        fan.replays(&second, strategy).await?;
    }

    // The replays are forgotten, and the owner has another copy of a table than it knows of.
    let resync = "/v1/mirrors/mirror/resync/public.documents";
    let accepted = fan.ask(resync, json!({})).await?;
    ended(&fan, "mirror", &accepted).await?;
    fan.with_another_catalog(&mut second, restore).await?;
    let needs_word = |mirror: &Value, _: &Value| {
        let said = mirror["error_message"].as_str().unwrap_or_default();
        mirror["status"] == "FAILED" && said.contains("adopt")
    };
    fan.owner.wait_until("FAILED", CONVERGE, needs_word).await?;
    let accepted = fan.ask("/v1/mirrors/mirror/adopt", json!({})).await?;
    ended(&fan, "mirror", &accepted).await?;
    fan.owner.wait_running().await?;
    let failed = |mirror: &Value, _: &Value| mirror["status"] == "FAILED";
    second.mirror.wait_until("FAILED", CONVERGE, failed).await?;
    let refused = fan.api.post(ADOPT, json!({})).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let refused = fan.api.post("/v1/mirrors/second/replay", json!({})).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);

    fan.api.delete("/v1/mirrors/second").await?.expect(202)?;
    is_gone(&fan.api, "second").await?;
    let second = fan.attaches_anew(second).await?;
    for strategy in ["truncate", "swap"] {
        fan.replays(&second, strategy).await?;
    }
    std::fs::remove_file(file)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_mirror_is_replayed_under_a_catalog_made_anew() -> Result<()> {
    let mut fan = fan_out("attached_lost").await?;
    let mut second = fan.attach("second", load::pairs(), json!({})).await?;
    second.mirror.wait_running().await?;
    fan.replays(&second, "truncate").await?;
    let lose = async |fan: &FanOut| {
        backup::lose(&fan.stage.catalog).await?;
        fan.advance(30).await;
        fan.stage.migrate()
    };
    fan.with_another_catalog(&mut second, lose).await?;
    fan.stage.create_peers(&fan.api).await?;
    let at = &second.destination;
    let peer = json!({
        "name": "second", "host": at.host, "port": at.port, "user": at.user,
        "password": at.password, "database": at.database, "ssl_mode": "disable",
    });
    fan.api.post("/v1/peers", peer).await?.expect(201)?;

    let adopted = json!({"adopt": true, "snapshot_num_rows_per_partition": 700});
    let pairs = TablePair::all(&load::TABLES);
    let stage = &fan.stage;
    fan.owner = stage
        .create_mapped_mirror(&fan.api, "mirror", mappings(&pairs), adopted)
        .await?;
    fan.owner.wait_running().await?;
    let second = fan.attaches_anew(second).await?;
    for strategy in ["swap", "truncate"] {
        fan.replays(&second, strategy).await?;
    }
    Ok(())
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_and_empty_kafka_is_filled_for_every_destination() -> Result<()> {
    use bunny_tests::services::{Server, Services};

    let (services, _alone) = Services::outage().await?;
    let mut fan = crate::fan_out::fan_out_on(services.clone(), "attached_kafka").await?;
    let two = TablePair::all(&["public.documents", "public.journal"]);
    let second = fan.attach("second", two, json!({})).await?;
    second.mirror.wait_running().await?;
    // Ids are given in another order by the next Kafka.
    let change =
        "ALTER TABLE accounts ADD COLUMN note text; ALTER TABLE documents ADD COLUMN note text";
    load::run_beside(&fan.source, change).await?;
    // Columns come with the first row that is changed.
    fan.advance(60).await;
    fan.settle(&[&second]).await?;
    services.stop(Server::Kafka).await?;
    services.lose_kafka().await?;
    services.start_again(Server::Kafka).await?;
    fan.advance(30).await;
    // Of the attached one it is said whose log it is, by capture or by its own apply.
    for (mirror, word) in [
        (&fan.owner, "resync the mirror"),
        (&second.mirror, "of mirror \"mirror\""),
    ] {
        let failed = |mirror: &Value, _: &Value| {
            let said = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "FAILED" && said.contains(word)
        };
        mirror.wait_until("FAILED", CONVERGE, failed).await?;
    }

    // What helps the owner helps both.
    let accepted = fan.ask("/v1/mirrors/mirror/resync", json!({})).await?;
    ended(&fan, "mirror", &accepted).await?;
    for mirror in [&fan.owner, &second.mirror] {
        mirror.wait_running().await?;
    }
    fan.advance(20).await;
    fan.settle(&[&second]).await?;
    // And it is one log again that the attached one can be rebuilt from.
    fan.replays(&second, "truncate").await
}
