//! Clients that questions about topics are asked through, kept between the questions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::BaseConsumer;

use super::Closing;
use crate::Result;

/// What all clones of a configuration ask through. A client is threads and connections, and a
/// mirror's lag alone is a question a second: each with a client of its own would cost more than
/// the answer.
#[derive(Default)]
pub(super) struct KeptClients {
    pub(super) reader: Kept<BaseConsumer>,
    pub(super) admin: Kept<AdminClient<DefaultClientContext>>,
}

/// One client, made when it is first needed.
pub(super) struct Kept<T: Send + 'static>(Mutex<Option<Arc<Closing<T>>>>);

impl<T: Send + 'static> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept(Mutex::default())
    }
}

impl<T: Send + 'static> Kept<T> {
    /// The client, if there is one.
    pub(super) fn present(&self) -> Option<Arc<Closing<T>>> {
        self.lock().clone()
    }

    /// The client, which `make` makes if there is none.
    pub(super) fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<Closing<T>>> {
        let mut kept = self.lock();
        if let Some(client) = &*kept {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Closing::new(make()?));
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Lets go of a client that gave no answer: what it knows of the cluster may be old, and the
    /// next one looks for itself.
    pub(super) fn forget(&self, client: &Arc<Closing<T>>) {
        let mut kept = self.lock();
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, client)) {
            *kept = None;
        }
    }

    /// Lets go of the client, whoever has it.
    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Closing<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_client_is_made_once_and_again_after_it_failed() {
        let kept: Kept<u32> = Kept::default();
        let no_client = |()| Err(Error::Invalid("no client".to_owned()));
        assert!(kept.get(|| no_client(())).is_err());
        assert!(kept.present().is_none());
        let first = kept.get(|| Ok(1)).unwrap();
        let same = kept.get(|| Ok(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        assert!(Arc::ptr_eq(&first, &kept.present().unwrap()));
        kept.forget(&first);
        let second = kept.get(|| Ok(3)).unwrap();
        assert_eq!(**second, 3);
        // Whoever failed with the first one later does not take the second away.
        kept.forget(&first);
        assert!(Arc::ptr_eq(&second, &kept.get(|| Ok(4)).unwrap()));
        kept.clear();
        assert!(kept.present().is_none());
    }
}
