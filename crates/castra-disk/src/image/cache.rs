//! Recently used tables and inflated clusters of a qcow2.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Bounded cache; the oldest values leave first.
pub(super) struct Cache<T> {
    limit: usize,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    values: HashMap<u64, Arc<[T]>>,
    order: VecDeque<u64>,
}

impl<T> Cache<T> {
    /// Returns a cache of at most `limit` values, and at least one.
    pub(super) fn new(limit: usize) -> Self {
        let held = Held { values: HashMap::new(), order: VecDeque::new() };
        Self { limit: limit.max(1), held: Mutex::new(held) }
    }

    /// Returns the value of this key, loading it if it is not held.
    pub(super) fn get<E>(
        &self,
        key: u64,
        load: impl FnOnce() -> Result<Vec<T>, E>,
    ) -> Result<Arc<[T]>, E> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = held.values.get(&key) {
            return Ok(Arc::clone(value));
        }
        let value: Arc<[T]> = load()?.into();
        if held.order.len() == self.limit
            && let Some(oldest) = held.order.pop_front()
        {
            held.values.remove(&oldest);
        }
        held.order.push_back(key);
        held.values.insert(key, Arc::clone(&value));
        Ok(value)
    }
}
