//! The server: where it listens, and what it does until it is asked to end.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use castra_engine::Castra;
use tokio::net::{TcpListener, UnixListener};

use crate::directory::StateDirectory;
use crate::sandboxes::{SandboxOptions, Sandboxes};
use crate::token::Token;
use crate::{ServeError, body, control, envd, guard};

/// Address to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// Path of a Unix socket, which its user alone can reach.
    Unix(PathBuf),
}

/// Settings of a server.
#[derive(Clone)]
pub struct Options {
    /// Address to listen at.
    pub listen: Listen,
    /// Directory of the sandboxes, for this server alone. Absolute; created if it is missing.
    pub directory: PathBuf,
    /// Settings of its sandboxes.
    pub sandboxes: SandboxOptions,
}

/// A server that listens, from [`Server::bind`].
pub struct Server {
    listener: Listener,
    shared: Shared,
    runtime: tokio::runtime::Runtime,
    /// Held as long as this server runs.
    _directory: StateDirectory,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// State of all requests.
pub(crate) type Shared = Arc<State>;

/// State of a server.
pub(crate) struct State {
    pub(crate) token: Token,
    pub(crate) sandboxes: Arc<Sandboxes>,
    address: Option<SocketAddr>,
}

impl State {
    /// Returns `true` for a host that names this server.
    pub(crate) fn is_own_host(&self, host: &str) -> bool {
        match self.address {
            // A socket has no name, and none of its clients is a browser.
            None => true,
            Some(address) if address.ip().is_loopback() => guard::is_local(host),
            // Its user lets other machines in, by whatever name.
            Some(_) => true,
        }
    }

    /// Returns the domain below which the ports of sandboxes have their names.
    pub(crate) fn domain(&self) -> Option<String> {
        let address = self.address.filter(|address| address.ip().is_loopback())?;
        Some(format!("localhost:{}", address.port()))
    }
}

impl Server {
    /// Takes over the sandboxes of an earlier server in the directory, and listens.
    ///
    /// # Errors
    /// Another server has the directory, it cannot be used, or the address is in use.
    pub fn bind(castra: &Castra, options: Options) -> Result<Self, ServeError> {
        let root = &options.directory;
        let directory = StateDirectory::take(root)?;
        let token = Token::load_or_create(root)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        let listener = runtime.block_on(Listener::bind(&options.listen))?;
        let sandboxes = Sandboxes::open(castra, root, &options.sandboxes)?;
        sandboxes.recover().map_err(|error| directory.failed(error))?;
        let address = listener.address();
        let shared = Arc::new(State { token, sandboxes: Arc::new(sandboxes), address });
        Ok(Self { listener, shared, runtime, _directory: directory })
    }

    /// Returns the TCP address, if it listens at one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.address
    }

    /// Returns the token of its clients.
    pub fn token(&self) -> &str {
        self.shared.token.text()
    }

    /// Serves until `ended` is done. Sandboxes stay as they are.
    ///
    /// # Errors
    /// The address can no longer be listened at.
    pub fn serve(self, ended: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Self { listener, shared, runtime, _directory } = self;
        let router = router(&shared);
        let served = runtime.block_on(async {
            tokio::spawn(Arc::clone(&shared.sandboxes).keep_time());
            let filling = tokio::spawn(Arc::clone(&shared.sandboxes).fill_pool());
            let served = match listener {
                Listener::Tcp(listener) => tokio::select! {
                    served = axum::serve(listener, router).into_future() => served,
                    () = ended => Ok(()),
                },
                Listener::Unix(listener, path) => {
                    let served = tokio::select! {
                        served = axum::serve(listener, router).into_future() => served,
                        () = ended => Ok(()),
                    };
                    let _ = fs::remove_file(path);
                    served
                }
            };
            let sandboxes = Arc::clone(&shared.sandboxes);
            let _ = tokio::task::spawn_blocking(move || sandboxes.close_pool()).await;
            // It removes what it is making.
            let _ = filling.await;
            served
        });
        // What is being done to a VM is done to its end.
        drop(runtime);
        served.map_err(ServeError::Runtime)
    }
}

/// Returns all that the server answers.
fn router(shared: &Shared) -> Router {
    let control = control::router()
        .layer(from_fn_with_state(Arc::clone(shared), guard::check_token))
        .with_state(Arc::clone(shared));
    Router::new()
        .merge(control)
        .merge(envd::router().with_state(Arc::clone(shared)))
        .fallback(envd::port::forward)
        .with_state(Arc::clone(shared))
        .layer(from_fn_with_state(Arc::clone(shared), envd::port::divert))
        .layer(from_fn_with_state(Arc::clone(shared), guard::check_host))
        .layer(from_fn(body::read_rest))
}

impl Listener {
    async fn bind(listen: &Listen) -> Result<Self, ServeError> {
        match listen {
            Listen::Tcp(address) => {
                let failed = |source| ServeError::Listen { address: address.to_string(), source };
                Ok(Self::Tcp(TcpListener::bind(address).await.map_err(failed)?))
            }
            Listen::Unix(path) => {
                let address = path.display().to_string();
                let failed = |source| ServeError::Listen { address: address.clone(), source };
                // A socket that a killed server has left refuses connections.
                if std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                {
                    let _ = fs::remove_file(path);
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}
