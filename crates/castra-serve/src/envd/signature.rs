//! Signatures of addresses of files, by which others may read or write one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::sandboxes::now_ms;
use crate::token::is_same;

/// Query of a request for a file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FileQuery {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    /// End of the signature's time, in seconds since the Unix epoch.
    pub(super) signature_expiration: Option<i64>,
}

/// Operation that a signature permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

impl FileQuery {
    /// Returns `true` if the query has a signature that was made with this token and still counts.
    pub(super) fn is_signed(&self, operation: Operation, token: &str) -> bool {
        let Some(signature) = &self.signature else { return false };
        let operation = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        let path = self.path.as_deref().unwrap_or_default();
        let user = self.username.as_deref().unwrap_or_default();
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = self.signature_expiration {
            if expiration.saturating_mul(1000) < now_ms() {
                return false;
            }
            text.push_str(&format!(":{expiration}"));
        }
        let expected = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        is_same(signature.as_bytes(), expected.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signatures were made by the Python SDK.
    #[test]
    fn a_signature_is_for_one_file_one_operation_and_its_time() {
        let query = |signature: &str, expiration| FileQuery {
            path: Some("/a/b".into()),
            username: None,
            signature: Some(signature.into()),
            signature_expiration: expiration,
        };
        let signed = query("v1_235EEhz3GJMdLt87W1JEQUEkJCTHU//9vTQd4jHBm6E", None);
        assert!(signed.is_signed(Operation::Read, "token"));
        assert!(!signed.is_signed(Operation::Write, "token"));
        assert!(!signed.is_signed(Operation::Read, "other"));
        assert!(
            !FileQuery { path: Some("/a".into()), ..signed }.is_signed(Operation::Read, "token")
        );
        let late = query("v1_LH6C+ARkmTLNkr1uj6j50RmYhfNXtc3KUDA1drzQ+cE", Some(1000));
        assert!(!late.is_signed(Operation::Read, "token"));
        assert!(!FileQuery::default().is_signed(Operation::Read, "token"));
    }
}
