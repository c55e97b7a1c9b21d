//! Secrets at rest: XChaCha20-Poly1305 under the installation's key.
//!
//! A sealed value is `1 | key id (8) | nonce (24) | ciphertext and tag`. The
//! key id says which key sealed it, so that keys can be rotated; the additional
//! data names what the value is and whose, so that a value moved to another
//! row does not open.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Error, Result};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;

/// The key that seals peer passwords and generated secrets. 32 bytes, never
/// stored by this program.
#[derive(Clone)]
pub struct EncryptionKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

impl EncryptionKey {
    /// A new random key.
    pub fn generate() -> EncryptionKey {
        let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
        rand::rng().fill_bytes(key.as_mut());
        EncryptionKey { key }
    }

    /// Reads a key as [`EncryptionKey::to_base64`] prints it.
    pub fn from_base64(text: &str) -> Result<EncryptionKey> {
        let wrong = || {
            Error::Invalid(
                "the encryption key must be 32 bytes in base64, as \"bunny keygen\" prints it"
                    .into(),
            )
        };
        let mut bytes = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| wrong());
        bytes.zeroize();
        Ok(EncryptionKey {
            key: Zeroizing::new(key?),
        })
    }

    /// The key in base64, to be handed to an operator once.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.key.as_ref()))
    }

    /// Seals `secret` as the `what` of `name`.
    pub(crate) fn seal(&self, what: &str, name: &str, secret: &SecretString) -> Result<Vec<u8>> {
        let mut nonce = [0_u8; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let aad = additional_data(what, name);
        let payload = Payload {
            msg: secret.expose_secret().as_bytes(),
            aad: &aad,
        };
        let ciphertext = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|error| Error::internal(format!("sealing the {what} of {name}"), error))?;
        let mut sealed = Vec::with_capacity(HEADER_BYTES + ciphertext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    /// Opens what [`EncryptionKey::seal`] made for the same `what` and `name`.
    pub(crate) fn open(&self, what: &str, name: &str, sealed: &[u8]) -> Result<SecretString> {
        let damaged = || {
            Error::internal(
                format!("opening the {what} of {name}"),
                "the stored value is damaged or belongs elsewhere",
            )
        };
        if sealed.len() < HEADER_BYTES || sealed[0] != VERSION {
            return Err(damaged());
        }
        if sealed[1..=KEY_ID_BYTES] != self.id() {
            return Err(Error::Invalid(format!(
                "the {what} \"{name}\" was sealed with another key than this process was started with: start it again with the BUNNY_ENCRYPTION_KEY that this catalog was set up with, or last rotated to"
            )));
        }
        let nonce = <[u8; NONCE_BYTES]>::try_from(&sealed[1 + KEY_ID_BYTES..HEADER_BYTES])
            .map_err(|_| damaged())?;
        let aad = additional_data(what, name);
        let payload = Payload {
            msg: &sealed[HEADER_BYTES..],
            aad: &aad,
        };
        let plain = self
            .cipher()
            .decrypt(&XNonce::from(nonce), payload)
            .map_err(|_| damaged())?;
        let text = String::from_utf8(plain).map_err(|_| damaged())?;
        Ok(SecretString::from(text))
    }

    /// Whether both are the same key.
    pub(crate) fn is(&self, other: &EncryptionKey) -> bool {
        self.id() == other.id()
    }

    /// Whether this key sealed it.
    pub(crate) fn has_sealed(&self, sealed: &[u8]) -> bool {
        sealed.get(1..=KEY_ID_BYTES) == Some(self.id().as_slice())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.key))
    }

    /// Names the key without telling anything of it.
    fn id(&self) -> [u8; KEY_ID_BYTES] {
        let mut hash = Sha256::new();
        hash.update(b"bunny key id");
        hash.update(self.key.as_ref());
        let digest = hash.finalize();
        let mut id = [0_u8; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        id
    }
}

fn additional_data(what: &str, name: &str) -> Vec<u8> {
    format!("bunny\0{what}\0{name}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[test]
    fn a_key_survives_base64_and_never_shows() {
        let key = EncryptionKey::generate();
        let same = EncryptionKey::from_base64(&key.to_base64()).unwrap();
        let sealed = key.seal("password", "p", &secret("s3cret")).unwrap();
        let opened = same.open("password", "p", &sealed).unwrap();
        assert_eq!(opened.expose_secret(), "s3cret");
        assert_eq!(format!("{key:?}"), "EncryptionKey(..)");
    }

    #[test]
    fn a_wrong_key_text_says_what_is_wanted() {
        for text in ["", "abc", "AAAA", "not base64!"] {
            let error = EncryptionKey::from_base64(text).unwrap_err();
            assert!(error.to_string().contains("32 bytes"), "{error}");
        }
    }

    #[test]
    fn another_key_is_named_as_the_cause() {
        let sealed = EncryptionKey::generate()
            .seal("password", "p", &secret("x"))
            .unwrap();
        let error = EncryptionKey::generate()
            .open("password", "p", &sealed)
            .unwrap_err();
        assert!(
            error.to_string().contains("BUNNY_ENCRYPTION_KEY"),
            "{error}"
        );
    }

    #[test]
    fn a_value_opens_only_where_it_was_sealed_for() {
        let key = EncryptionKey::generate();
        let sealed = key.seal("password", "p", &secret("x")).unwrap();
        assert!(key.open("password", "q", &sealed).is_err());
        assert!(key.open("other", "p", &sealed).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_opens(text in ".{0,40}", at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let key = EncryptionKey::generate();
            let mut sealed = key.seal("password", "p", &secret(&text)).unwrap();
            let opened = key.open("password", "p", &sealed).unwrap();
            prop_assert_eq!(opened.expose_secret(), text.as_str());
            let index = at.index(sealed.len());
            sealed[index] ^= flip;
            prop_assert!(key.open("password", "p", &sealed).is_err());
        }
    }
}
