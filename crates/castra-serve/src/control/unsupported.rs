//! Refusals of what this server does not do, by name.

use super::ApiError;

pub(super) async fn network() -> ApiError {
    ApiError::unsupported("changing a sandbox's network: it is chosen when the sandbox is made")
}

pub(super) async fn logs() -> ApiError {
    ApiError::unsupported("logs of sandboxes")
}

pub(super) async fn metrics_of_all() -> ApiError {
    ApiError::unsupported("metrics of several sandboxes in one request")
}

pub(super) async fn builds() -> ApiError {
    ApiError::unsupported(
        "building templates: describe an image with `provision` steps in castra.toml, and name it \
        as the template",
    )
}

pub(super) async fn tags() -> ApiError {
    ApiError::unsupported("tags of templates")
}

pub(super) async fn method() -> ApiError {
    ApiError::unsupported("this method at this address")
}

pub(super) async fn volumes() -> ApiError {
    ApiError::unsupported("volumes")
}

pub(super) async fn secrets() -> ApiError {
    ApiError::unsupported("stored secrets")
}
