//! Settings of a [`Castra`].

use std::sync::Arc;

use super::Castra;
use crate::cancel::Cancel;
use crate::context::{Environment, RuntimeContext};
use crate::error::Result;
use crate::report::{Event, Reporter, Silent};

/// Settings of a [`Castra`], from [`Castra::builder`].
#[must_use]
pub struct Builder {
    environment: Option<Environment>,
    reporter: Arc<dyn Reporter>,
    cancel: Cancel,
    is_offline: bool,
    mirrors: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            environment: None,
            reporter: Arc::new(Silent),
            cancel: Cancel::new(),
            is_offline: false,
            mirrors: Vec::new(),
        }
    }
}

impl Builder {
    /// Sets the environment, instead of this process's own. Castra reads its variables from it and
    /// QEMU's `PATH`.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Sets the receiver of events.
    pub fn reporter(mut self, reporter: impl Reporter + 'static) -> Self {
        self.reporter = Arc::new(reporter);
        self
    }

    /// Sets a function that receives events. It is called from several threads at once and must
    /// not block for long.
    pub fn on_event(self, receive: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.reporter(Receiver(receive))
    }

    /// Sets the flag that cancels operations.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Never uses the network.
    pub fn offline(mut self) -> Self {
        self.is_offline = true;
        self
    }

    /// Adds a base URL that is asked for each download before the download's own URL.
    pub fn mirror(mut self, url: impl Into<String>) -> Self {
        self.mirrors.push(url.into());
        self
    }

    /// Returns the instance.
    ///
    /// # Errors
    /// Fails if no directory can be found for the cache: `HOME` is unset.
    pub fn build(self) -> Result<Castra> {
        let environment = self.environment.unwrap_or_else(Environment::of_process);
        let mut context = RuntimeContext::new(environment, self.reporter, self.cancel)?;
        context.offline |= self.is_offline;
        context.mirrors.extend(self.mirrors);
        Ok(Castra { context })
    }
}

struct Receiver<F>(F);

impl<F: Fn(&Event) + Send + Sync> Reporter for Receiver<F> {
    fn report(&self, event: &Event) {
        self.0(event);
    }
}
