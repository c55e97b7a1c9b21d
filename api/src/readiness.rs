//! Whether the catalog and Kafka can be reached, asked no more often than is useful.

use std::time::{Duration, Instant};

use bunny_catalog::Catalog;
use bunny_schemas::kafka::KafkaConfig;
use tokio::sync::Mutex;

/// How long each of the two is waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// Anyone may ask, so an answer is given again for so long instead of asking Kafka each time.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(1);

/// The last answer to `/ready`; the lock lets one question through at a time.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Answer)>>,
}

/// Which of the two answer.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) catalog: bool,
    pub(crate) kafka: bool,
}

impl Readiness {
    /// What answers now, or did so a moment ago.
    pub(crate) async fn answer(&self, catalog: &Catalog, kafka: &KafkaConfig) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((asked, answer)) = last.as_ref()
            && asked.elapsed() < ANSWER_AGE_MAX
        {
            return answer.clone();
        }
        let (catalog, kafka) = tokio::join!(
            tokio::time::timeout(ANSWER_TIME_MAX, catalog.ping()),
            tokio::time::timeout(ANSWER_TIME_MAX, kafka.broker_reachable(ANSWER_TIME_MAX)),
        );
        let answer = Answer {
            catalog: matches!(catalog, Ok(Ok(()))),
            kafka: matches!(kafka, Ok(Ok(_))),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}
