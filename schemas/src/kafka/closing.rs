//! Kafka clients close off the runtime's threads.

use std::ops::Deref;

/// Drops what it holds on a thread that may block: closing a client waits for its threads,
/// and for a broker, and its last holder may be any task.
pub struct Closing<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Closing<T> {
    /// Holds `held` until this is dropped.
    pub fn new(held: T) -> Closing<T> {
        Closing(Some(held))
    }
}

impl<T: Send + 'static> Deref for Closing<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(held) => held,
            None => unreachable!("only drop takes it out"),
        }
    }
}

impl<T: Send + 'static> Drop for Closing<T> {
    fn drop(&mut self) {
        let held = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(held)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    struct Tells(mpsc::Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[tokio::test]
    async fn closes_on_another_thread() {
        let (sender, dropped_on) = mpsc::channel();
        drop(Closing::new(Tells(sender)));
        let thread = dropped_on
            .recv_timeout(Duration::from_secs(10))
            .expect("dropped");
        assert_ne!(thread, thread::current().id());
    }

    #[test]
    fn closes_in_place_without_a_runtime() {
        let (sender, dropped_on) = mpsc::channel();
        drop(Closing::new(Tells(sender)));
        assert_eq!(dropped_on.try_recv(), Ok(thread::current().id()));
    }
}
