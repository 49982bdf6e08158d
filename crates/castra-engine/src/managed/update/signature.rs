//! OpenPGP signatures of publishers: the only place that parses OpenPGP.
//!
//! The parser is a crate of others, and what it reads comes from a server. It gets little (see the
//! limits below), its panics are errors, and of its verdicts only this is used: which key of a
//! file that the user chose has signed this text.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use pgp::composed::{
    CleartextSignedMessage, Deserializable as _, DetachedSignature, SignedPublicKey,
    SignedPublicSubKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails as _, VerifyingKey};

use crate::sanitize::sanitize_text;

/// Longest file of keys, in bytes: the keys of all releases of Fedora take 100 KiB.
pub(super) const MAX_KEY_BYTES: u64 = 1 << 20;
/// Longest detached signature, in bytes: one takes 1 KiB, and several may be in one file.
pub(super) const MAX_SIGNATURE_BYTES: usize = 64 << 10;
/// Longest text with its signature, in bytes.
pub(super) const MAX_SIGNED_BYTES: usize = super::checksums::MAX_BYTES;
/// Most keys of a file, and most signatures of a text. Each pair of them may be tried.
const MAX_KEYS: usize = 64;
const MAX_SIGNATURES: usize = 16;
/// Time by which this machine's clock may be behind the publisher's.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

const ARMOR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// Public keys whose signatures count.
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

/// Reason why a text does not count as signed, or a file not as keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureProblem {
    /// The input is longer than any real one.
    #[error("it is too large")]
    TooLarge,
    /// The input is not OpenPGP, or not what is needed.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// The parser failed in a way that it should not.
    #[error("it cannot be read")]
    Broken,
    /// No key of the file made the signature.
    #[error("it is not signed by a key of the file, but by {}", signers.join(" and "))]
    OtherKey {
        /// IDs of the keys that made it.
        signers: Vec<String>,
    },
    /// The signature is of other text, or damaged.
    #[error("the signature does not fit")]
    Wrong,
    /// The signature uses a hash that can be forged.
    #[error("the signature uses {0}, which is not secure")]
    Weak(String),
    /// The signature or its key was not valid at the time that it names.
    #[error("{0}")]
    Time(&'static str),
}

impl Keyring {
    /// Parses a file of public keys: one or more blocks in ASCII armor.
    ///
    /// # Errors
    /// [`SignatureProblem`].
    pub fn parse(text: &[u8]) -> Result<Self, SignatureProblem> {
        if text.len() as u64 > MAX_KEY_BYTES {
            return Err(SignatureProblem::TooLarge);
        }
        let text = String::from_utf8_lossy(text);
        let blocks = text.match_indices(ARMOR).map(|(start, _)| start).collect::<Vec<_>>();
        let mut keys = Vec::new();
        for (index, start) in blocks.iter().enumerate() {
            let end = blocks.get(index + 1).copied().unwrap_or(text.len());
            let read = || {
                let (found, _) = SignedPublicKey::from_armor_many(text[*start..end].as_bytes())?;
                found.take(MAX_KEYS).collect::<pgp::errors::Result<Vec<_>>>()
            };
            keys.extend(guarded(read)?);
        }
        match keys.len() {
            0 => Err(SignatureProblem::Malformed(format!("there is no `{ARMOR}`"))),
            1..=MAX_KEYS => Ok(Self { keys }),
            _ => Err(SignatureProblem::TooLarge),
        }
    }

    /// Verifies a signature that is in a file of its own, and returns the fingerprint of the key.
    ///
    /// # Errors
    /// [`SignatureProblem`].
    pub fn verify_detached(
        &self,
        text: &[u8],
        signature: &[u8],
    ) -> Result<String, SignatureProblem> {
        if signature.len() > MAX_SIGNATURE_BYTES || text.len() > MAX_SIGNED_BYTES {
            return Err(SignatureProblem::TooLarge);
        }
        let signatures: Vec<DetachedSignature> = guarded(|| {
            let (found, _) = DetachedSignature::from_reader_many(signature)?;
            found.take(MAX_SIGNATURES).collect()
        })?;
        let signatures: Vec<&Signature> = signatures.iter().map(|one| &one.signature).collect();
        self.verify(text, &signatures)
    }

    /// Verifies a text that is signed inside of its file, and returns the signed text alone with
    /// the fingerprint of the key.
    ///
    /// # Errors
    /// [`SignatureProblem`].
    pub fn verify_inline(&self, text: &[u8]) -> Result<(String, String), SignatureProblem> {
        if text.len() > MAX_SIGNED_BYTES {
            return Err(SignatureProblem::TooLarge);
        }
        let text = std::str::from_utf8(text)
            .map_err(|_| SignatureProblem::Malformed("it is not UTF-8".to_owned()))?;
        let (message, _) = guarded(|| CleartextSignedMessage::from_string(text))?;
        let signatures: Vec<&Signature> =
            message.signatures().iter().take(MAX_SIGNATURES).collect();
        let signed = message.signed_text();
        let key = self.verify(signed.as_bytes(), &signatures)?;
        Ok((signed, key))
    }

    /// Returns the fingerprint of the first key that made a valid one of these signatures.
    fn verify(&self, text: &[u8], signatures: &[&Signature]) -> Result<String, SignatureProblem> {
        let mut problem = None;
        for signature in signatures {
            for key in &self.keys {
                let verified = catch_unwind(AssertUnwindSafe(|| by_key(text, signature, key)));
                match verified.unwrap_or(Some(Err(SignatureProblem::Broken))) {
                    Some(Ok(())) => return Ok(format!("{:X}", key.fingerprint())),
                    Some(Err(found)) => problem = Some(found),
                    None => {}
                }
            }
        }
        Err(problem.unwrap_or_else(|| match signatures {
            [] => SignatureProblem::Malformed("there is no signature".to_owned()),
            _ => SignatureProblem::OtherKey { signers: signers(signatures) },
        }))
    }
}

/// Verifies a signature by a key or one of its subkeys; `None` if it is by neither.
fn by_key(
    text: &[u8],
    signature: &Signature,
    key: &SignedPublicKey,
) -> Option<Result<(), SignatureProblem>> {
    if is_by(signature, &key.primary_key) {
        return Some(check(text, signature, key, &key.primary_key));
    }
    let subkey = key.public_subkeys.iter().find(|subkey| is_by(signature, &subkey.key))?;
    Some(match may_sign(key, subkey) {
        true => check(text, signature, key, &subkey.key),
        false => {
            Err(SignatureProblem::Time("the subkey that signed it may not sign, or no longer"))
        }
    })
}

/// Returns `true` if the signature names this key.
fn is_by(signature: &Signature, key: &impl VerifyingKey) -> bool {
    let (fingerprint, id) = (key.fingerprint(), key.legacy_key_id());
    signature.issuer_fingerprint().iter().any(|issuer| **issuer == fingerprint)
        || signature.issuer_key_id().iter().any(|issuer| **issuer == id)
}

/// Returns `true` if the key has bound this subkey to itself for signing, and not revoked it.
fn may_sign(key: &SignedPublicKey, subkey: &SignedPublicSubKey) -> bool {
    let is_binding = |one: &Signature| one.typ() == Some(SignatureType::SubkeyBinding);
    subkey.signatures.iter().all(is_binding)
        && subkey.signatures.iter().any(|one| one.key_flags().sign())
        && subkey.verify_bindings(&key.primary_key).is_ok()
}

fn check(
    text: &[u8],
    signature: &Signature,
    key: &SignedPublicKey,
    signer: &impl VerifyingKey,
) -> Result<(), SignatureProblem> {
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err(SignatureProblem::Wrong);
    }
    match signature.hash_alg() {
        Some(
            HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512,
        ) => {}
        Some(weak) => return Err(SignatureProblem::Weak(weak.to_string())),
        None => return Err(SignatureProblem::Wrong),
    }
    signature.verify(signer, text).map_err(|_| SignatureProblem::Wrong)?;
    check_times(signature, key)
}

/// Checks that the signature was made while its key was valid. An old signature by a key that has
/// expired since stays good: publishers do not sign old releases again.
fn check_times(signature: &Signature, key: &SignedPublicKey) -> Result<(), SignatureProblem> {
    let time = |text| Err(SignatureProblem::Time(text));
    if !key.details.revocation_signatures.is_empty() {
        return time("the key that signed it was revoked");
    }
    let Some(made) = signature.created().map(SystemTime::from) else {
        return time("the signature does not say when it was made");
    };
    let now = SystemTime::now();
    if made > now + CLOCK_SKEW {
        return time("the signature is from the future, by this machine's clock");
    }
    let lifetime = signature.signature_expiration_time().map(Duration::from);
    if lifetime.is_some_and(|lifetime| !lifetime.is_zero() && made + lifetime < now) {
        return time("the signature has expired");
    }
    let created = SystemTime::from(key.created_at());
    let users = key.details.users.iter().flat_map(|user| &user.signatures);
    let own = users.chain(&key.details.direct_signatures).filter(|one| is_by(one, key));
    let newest = own.max_by_key(|one| one.created().map(SystemTime::from));
    let lifetime = newest.and_then(Signature::key_expiration_time).map(Duration::from);
    if lifetime.is_some_and(|lifetime| !lifetime.is_zero() && made > created + lifetime) {
        return time("the signature was made after its key had expired");
    }
    Ok(())
}

fn signers(signatures: &[&Signature]) -> Vec<String> {
    let of_one = |one: &&Signature| {
        let fingerprints = one.issuer_fingerprint().into_iter().map(|one| format!("{one:X}"));
        let ids = one.issuer_key_id().into_iter().map(|one| one.to_string().to_uppercase());
        fingerprints.chain(ids).next().unwrap_or_else(|| "an unnamed key".to_owned())
    };
    signatures.iter().map(of_one).collect()
}

/// Runs the parser, whose panics are errors: it is safe code, so nothing worse happens, and nothing
/// of it is used afterwards.
fn guarded<T>(parse: impl FnOnce() -> pgp::errors::Result<T>) -> Result<T, SignatureProblem> {
    match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(error)) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(SignatureProblem::Malformed(sanitize_text(line)))
        }
        Err(_) => Err(SignatureProblem::Broken),
    }
}
