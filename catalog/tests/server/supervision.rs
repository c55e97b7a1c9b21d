//! Leases, and the supervisor that shares mirrors among processes.

use super::*;

#[tokio::test]
#[ignore = "needs a server"]
async fn a_lease_changes_hands_only_when_it_has_run_out() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let ttl = Duration::from_millis(600);
    let take = |holder| catalog.acquire_lease(id, Role::Apply, holder, ttl);
    let one = take("one").await.unwrap().unwrap();
    assert!(take("two").await.unwrap().is_none());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(catalog.renew_lease(&one, ttl).await.unwrap());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(take("two").await.unwrap().is_none());
    tokio::time::sleep(Duration::from_millis(400)).await;
    let two = take("two").await.unwrap().unwrap();
    assert!(two.epoch > one.epoch);
    assert!(!catalog.renew_lease(&one, ttl).await.unwrap());
    catalog.release_lease(&one).await.unwrap();
    assert!(take("three").await.unwrap().is_none());
    catalog.release_lease(&two).await.unwrap();
    assert!(take("three").await.unwrap().is_some());
    database.drop().await;
}

/// What the tasks of a test did.
#[derive(Clone, Default)]
struct Watch {
    running: Arc<Mutex<HashMap<String, Vec<String>>>>,
    starts: Arc<AtomicU32>,
}

impl Watch {
    fn holders_of(&self, mirror: &str) -> Vec<String> {
        let running = self.running.lock().unwrap();
        running.get(mirror).cloned().unwrap_or_default()
    }
}

/// Leaves the list when its task ends, however it ends.
struct Presence(Watch, String, String);

impl Presence {
    fn new(watch: &Watch, mirror: &str, holder: &str) -> Presence {
        let mut running = watch.running.lock().unwrap();
        running
            .entry(mirror.into())
            .or_default()
            .push(holder.into());
        watch.starts.fetch_add(1, Ordering::Relaxed);
        drop(running);
        Presence(watch.clone(), mirror.into(), holder.into())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().unwrap();
        if let Some(holders) = running.get_mut(&self.1) {
            holders.retain(|holder| *holder != self.2);
        }
    }
}

pub(super) fn worker<F, Fut>(
    catalog: Catalog,
    role: Role,
    holder: &'static str,
    run: F,
) -> (CancellationToken, JoinHandle<()>)
where
    F: Fn(Mirror, MirrorContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let cancel = CancellationToken::new();
    let options = SuperviseOptions {
        lease_ttl: TTL,
        poll: Duration::from_millis(200),
    };
    let running = supervise(catalog, role, holder.into(), options, cancel.clone(), run);
    (cancel, tokio::spawn(running))
}

fn follower(
    catalog: Catalog,
    holder: &'static str,
    watch: &Watch,
) -> (CancellationToken, JoinHandle<()>) {
    let watch = watch.clone();
    worker(catalog, Role::Capture, holder, move |mirror, context| {
        let watch = watch.clone();
        async move {
            let _here = Presence::new(&watch, &mirror.name, holder);
            context.reporter.report(&CaptureReport {
                phase: format!("held by {holder}"),
                ..CaptureReport::default()
            });
            context.cancel.cancelled().await;
            Ok(Finished::Idle)
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn workers_share_mirrors_and_take_over_from_the_dead() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let watch = Watch::default();
    let (_, dying) = follower(catalog.clone(), "dying", &watch);
    let (stop, surviving) = follower(catalog.clone(), "surviving", &watch);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let names = ["m1", "m2", "m3", "m4"];
    for name in names {
        catalog.create_mirror(&mirror(name, name)).await.unwrap();
    }
    let all_held = || async { names.iter().all(|name| watch.holders_of(name).len() == 1) };
    eventually("every mirror has one task", all_held).await;
    let of = |holder: &str| {
        let held = |name: &&&str| watch.holders_of(name).contains(&holder.to_owned());
        names.iter().filter(held).count()
    };
    assert_eq!((of("dying"), of("surviving")), (2, 2));

    // As by kill -9: nothing is given back.
    dying.abort();
    let _ = dying.await;
    let killed_at = Instant::now();
    let survivor_has_all = || async { of("surviving") == 4 };
    eventually("the survivor has all", survivor_has_all).await;
    let taken_after = killed_at.elapsed();
    assert!(taken_after > TTL / 2, "{taken_after:?}");
    assert!(taken_after < TTL * 4, "{taken_after:?}");

    // Given back at once.
    stop.cancel();
    surviving.await.unwrap();
    let (stop, next) = follower(catalog.clone(), "next", &watch);
    let asked_at = Instant::now();
    eventually("the next has all", || async { of("next") == 4 }).await;
    assert!(asked_at.elapsed() < TTL, "{:?}", asked_at.elapsed());
    stop.cancel();
    next.await.unwrap();
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn tasks_go_on_while_the_catalog_is_away() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let watch = Watch::default();
    let (stop, running) = follower(catalog.clone(), "one", &watch);
    eventually("it runs", || async { watch.holders_of("m").len() == 1 }).await;
    eventually("it reports", || async {
        catalog.reports(id).await.unwrap().capture.report.is_some()
    })
    .await;
    database.cut_off().await;
    tokio::time::sleep(TTL * 3).await;
    assert_eq!(watch.holders_of("m"), ["one"]);
    database.back().await;
    let heard_of_since = |since| {
        let catalog = catalog.clone();
        async move {
            let reports = catalog.reports(id).await;
            reports.is_ok_and(|reports| reports.capture.heartbeat_at > Some(since))
        }
    };
    let since = chrono::Utc::now();
    eventually("it is heard of again", || heard_of_since(since)).await;
    assert_eq!(watch.starts.load(Ordering::Relaxed), 1);
    stop.cancel();
    running.await.unwrap();
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn tasks_start_anew_when_the_catalog_is_one_of_before() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let watch = Watch::default();
    let (stop, running) = follower(catalog.clone(), "one", &watch);
    let started = |times| {
        let watch = watch.clone();
        async move { watch.starts.load(Ordering::Relaxed) == times && !watch.holders_of("m").is_empty() }
    };
    eventually("it runs", || started(1)).await;
    // What comes before its first renewal, the worker takes as it is.
    for _ in 0..2 {
        let heard_at = chrono::Utc::now();
        let is_renewed = || async {
            let reports = catalog.reports(id).await;
            reports.is_ok_and(|reports| reports.capture.heartbeat_at > Some(heard_at))
        };
        eventually("its lease is renewed", is_renewed).await;
    }
    assert_eq!(watch.starts.load(Ordering::Relaxed), 1);
    // As a backup of a moment ago would have it: mirror, version, holder and epoch are the same.
    sqlx::query("UPDATE bunny.leases SET renewal = gen_random_uuid()")
        .execute(&mut database.connect().await)
        .await
        .unwrap();
    eventually("it starts anew", || started(2)).await;
    stop.cancel();
    running.await.unwrap();
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn failures_are_shown_retried_held_and_forgotten() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let watch = Watch::default();
    let starts = watch.starts.clone();
    let (stop, running) = worker(catalog.clone(), Role::Apply, "one", move |_, context| {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        async move {
            match start {
                0 => panic!("a defect"),
                1 => Err(TaskFailure::transient("the destination is away")),
                2 => {
                    context.reporter.report(&ApplyReport {
                        phase: "following changes".into(),
                        offset: 7,
                        ..ApplyReport::default()
                    });
                    Err(TaskFailure::fatal("a person must act"))
                }
                _ => {
                    context.reporter.report(&ApplyReport::default());
                    context.reporter.recovered();
                    context.cancel.cancelled().await;
                    Ok(Finished::Idle)
                }
            }
        }
    });
    let failure = || async { catalog.reports(id).await.unwrap().apply.failure };
    let shows = |count, fatal, text: &'static str| {
        let failure = &failure;
        move || async move {
            failure().await.is_some_and(|failure| {
                (failure.count, failure.fatal) == (count, fatal) && failure.message.contains(text)
            })
        }
    };
    eventually("the panic shows", shows(1, false, "a defect")).await;
    eventually("the second shows", shows(2, false, "away")).await;
    eventually("the third shows", shows(3, true, "a person")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(watch.starts.load(Ordering::Relaxed), 3);
    let mirror = catalog.get_mirror("m").await.unwrap();
    let reports = catalog.reports(id).await.unwrap();
    let view = derive(&mirror, &reports, &[], reports.read_at);
    assert_eq!((view.status, view.health), (Status::Failed, Health::Down));

    let command = catalog.request_retry("m", None, "admin").await.unwrap();
    eventually("it has recovered", || async { failure().await.is_none() }).await;
    eventually("the retry is told of it", || async {
        let after = catalog.get_command(command).await.unwrap();
        after.steps == ["apply started again"]
    })
    .await;
    assert_eq!(watch.starts.load(Ordering::Relaxed), 4);
    let (entries, _) = catalog
        .list_logs(
            id,
            &LogQuery {
                limit: 50,
                ..LogQuery::default()
            },
        )
        .await
        .unwrap();
    let mut entries = entries.iter();
    let entry = entries
        .find(|entry| entry.message == "a person must act")
        .expect("an entry");
    let place = &entry.details["last_report"];
    assert_eq!(
        (&place["phase"], &place["lsn"], &place["offset"]),
        (&"following changes".into(), &"0/0".into(), &7.into())
    );
    stop.cancel();
    running.await.unwrap();
    database.drop().await;
}

/// Whoever writes its part second must see the first's.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn a_retry_ends_when_both_roles_start_at_the_same_moment() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let command = catalog.request_retry("m", None, "admin").await.unwrap();
    let url = server_url();
    let (server, _) = url.rsplit_once('/').unwrap();
    let url = format!("{server}/{}", database.name);
    let mut other = PgConnection::connect(&url).await.unwrap();
    // Outside the transaction: within one, the activity of others stays as it was seen first.
    let mut watching = PgConnection::connect(&url).await.unwrap();
    other
        .execute("BEGIN; SELECT FROM bunny.commands WHERE kind = 'retry' FOR UPDATE")
        .await
        .unwrap();

    let idle = |_mirror: Mirror, context: MirrorContext| async move {
        context.cancel.cancelled().await;
        Ok(Finished::Idle)
    };
    let (stop_capture, capture) = worker(catalog.clone(), Role::Capture, "one", idle);
    let (stop_apply, apply) = worker(catalog.clone(), Role::Apply, "two", idle);
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let deadline = Instant::now() + Duration::from_secs(15);
    while sqlx::query_scalar::<_, i64>(waiting)
        .fetch_one(&mut watching)
        .await
        .unwrap()
        < 2
    {
        assert!(Instant::now() < deadline, "both roles start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.execute("COMMIT").await.unwrap();
    other.close().await.unwrap();
    watching.close().await.unwrap();
    eventually("the retry ends", || async {
        let command = catalog.get_command(command).await.unwrap();
        command.state == CommandState::Done && command.steps.len() == 2
    })
    .await;
    for (stop, running) in [(stop_capture, capture), (stop_apply, apply)] {
        stop.cancel();
        running.await.unwrap();
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server"]
async fn a_deleted_mirror_goes_when_both_sides_are_gone() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    let take_down = |_mirror: Mirror, context: MirrorContext| async move {
        if context.latest().desired != bunny_catalog::Desired::Deleted {
            context.cancel.cancelled().await;
            return Ok(Finished::Idle);
        }
        Ok(Finished::Deleted)
    };
    let (stop_capture, capture) = worker(catalog.clone(), Role::Capture, "one", take_down);
    let (stop_apply, apply) = worker(catalog.clone(), Role::Apply, "two", take_down);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let command = catalog
        .request_delete("m", false, false, "admin")
        .await
        .unwrap();
    eventually("it is gone", || async {
        catalog.get_mirror_by_id(id).await.unwrap().is_none()
    })
    .await;
    let command = catalog.get_command(command).await.unwrap();
    assert_eq!(command.state, CommandState::Done);
    assert_eq!(command.steps.len(), 2);
    stop_capture.cancel();
    stop_apply.cancel();
    capture.await.unwrap();
    apply.await.unwrap();
    database.drop().await;
}
