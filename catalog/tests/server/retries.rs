//! What a `retry` starts anew.

use std::future::Future;
use std::pin::Pin;

use bunny_catalog::{Report, TableReport};

use super::supervision::worker;
use super::*;

/// Counts the starts of a task that reports until it is told to stop.
fn reporting<R>(
    starts: Arc<AtomicU32>,
    report: impl Fn(u32) -> R + Send + Sync + 'static,
) -> impl Fn(Mirror, MirrorContext) -> Pin<Box<dyn Future<Output = Outcome> + Send>>
where
    R: Report + 'static,
{
    move |_, context| {
        let report = report(starts.fetch_add(1, Ordering::Relaxed) + 1);
        Box::pin(async move {
            let reports = async {
                loop {
                    context.reporter.report(&report);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = context.cancel.cancelled() => Ok(Finished::Idle),
                () = reports => unreachable!(),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn a_retry_starts_only_what_is_in_trouble_anew() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let [captures, applies] = [0; 2].map(|_| Arc::new(AtomicU32::new(0)));
    // The table is set aside until apply has started anew.
    let apply = |start: u32| ApplyReport {
        tables: vec![TableReport::new(
            TableName::new("public", "t"),
            if start == 1 { "ERRORED" } else { "LIVE" },
        )],
        ..ApplyReport::default()
    };
    let of_capture = reporting(captures.clone(), |_| CaptureReport::default());
    let of_apply = reporting(applies.clone(), apply);
    let workers = [
        worker(catalog.clone(), Role::Capture, "one", of_capture),
        worker(catalog.clone(), Role::Apply, "two", of_apply),
    ];
    let shows = |state: &'static str| {
        let catalog = catalog.clone();
        move || {
            let catalog = catalog.clone();
            async move {
                let reports = catalog.reports(id).await.unwrap();
                let apply = reports.apply.report.unwrap_or_default();
                let is_shown = apply
                    .tables
                    .first()
                    .is_some_and(|table| table.state == state);
                is_shown && reports.capture.report.is_some()
            }
        }
    };
    let starts = || {
        (
            captures.load(Ordering::Relaxed),
            applies.load(Ordering::Relaxed),
        )
    };

    eventually("a table is set aside", shows("ERRORED")).await;
    let retry = catalog.request_retry("m", None, "admin").await.unwrap();
    eventually("it is back", shows("LIVE")).await;
    eventually("the retry ends", || async {
        let command = catalog.get_command(retry).await.unwrap();
        command.state == CommandState::Done && command.steps == ["apply started again"]
    })
    .await;
    assert_eq!(starts(), (1, 2), "capture runs on");

    // With nothing in trouble it ends at once, and says so.
    let retry = catalog.request_retry("m", None, "admin").await.unwrap();
    let command = catalog.get_command(retry).await.unwrap();
    assert_eq!(
        (command.state, command.steps.len()),
        (CommandState::Done, 0)
    );
    let outcome = command.outcome.unwrap_or_default();
    assert!(outcome.contains("nothing has failed"), "{outcome}");
    assert_eq!(starts(), (1, 2));

    for (stop, running) in workers {
        stop.cancel();
        running.await.unwrap();
    }
    database.drop().await;
}
