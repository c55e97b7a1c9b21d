//! Mirrors that no catalog knows, and runs of apply for them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bunny_apply::bookkeeping;
use bunny_apply::budget::Memory;
use bunny_apply::context::{MirrorRun, application_name};
use bunny_apply::waits::Waits;
use bunny_catalog::{
    Catalog, Desired, EncryptionKey, Location, Mirror, MirrorConfig, MirrorTable, PauseScope,
    Reporter,
};
use bunny_postgres::{Session, TableName};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::support::destination;

/// From `BUNNY_KAFKA_BROKERS`.
pub fn kafka() -> KafkaConfig {
    let brokers = std::env::var("BUNNY_KAFKA_BROKERS")
        .expect("BUNNY_KAFKA_BROKERS names the broker to test with");
    KafkaConfig::new(brokers)
}

/// A running mirror whose name, and names in Kafka, begin with `name`; no other has them.
pub fn mirror(name: &str, config: MirrorConfig) -> Mirror {
    let id = Uuid::new_v4();
    let slug = format!("{name}_{}", &id.simple().to_string()[..8]);
    let now = std::time::SystemTime::now().into();
    Mirror {
        id,
        name: slug.clone(),
        slug,
        owner: None,
        attached: Vec::new(),
        source_peer: "s".into(),
        destination_peer: "d".into(),
        slot_name: "slot".into(),
        slot_given: false,
        publication_name: "p".into(),
        publication_given: false,
        publication_ins_name: "p_ins".into(),
        config,
        generation: Uuid::new_v4(),
        generation_ready: true,
        desired: Desired::Running,
        pause_scope: PauseScope::Apply,
        keep_topics: false,
        version: 1,
        capture_version: 0,
        apply_version: 0,
        created_at: now,
        updated_at: now,
        tables: Vec::new(),
    }
}

/// A table of it, whose sync has been asked for.
pub fn mapping(source: TableName, destination: TableName) -> MirrorTable {
    MirrorTable {
        source,
        destination,
        partition_key: None,
        exclude_columns: Vec::new(),
        identity: None,
        request_id: Some(Uuid::new_v4()),
        retry_id: None,
        replay: None,
        since_request: None,
        checkpoint_id: None,
        beside: false,
    }
}

/// Takes the destination over, as each start of apply does.
pub async fn take_over(
    mirror: &Mirror,
    kafka: &KafkaConfig,
    topics: &Topics,
    registry: &Registry,
) -> MirrorRun {
    let session = Session::connect(&destination(), "bunny test take-over")
        .await
        .unwrap();
    let epoch = bookkeeping::take_over(&session, mirror).await.unwrap();
    // Never connected to: what is logged goes through the reporter.
    let location = Location::Url("postgres://nobody@127.0.0.1:1/none".to_owned().into());
    MirrorRun {
        mirror: Arc::new(mirror.clone()),
        catalog: Catalog::open(&location, EncryptionKey::generate()).unwrap(),
        reporter: Reporter::discard(),
        kafka: kafka.clone(),
        topics: topics.clone(),
        registry: registry.clone(),
        destination: destination(),
        application_name: application_name(mirror.id, epoch),
        epoch,
        ledger: mirror.id,
        cancel: CancellationToken::new(),
        memory: Memory::of(128 << 20),
        waits: Waits::default(),
    }
}
