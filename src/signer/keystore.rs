//! Private keys in encrypted files: Web3 Secret Storage, version 3, as Geth, Besu, ethers and Foundry write it.

use aes::cipher::{KeyIvInit, StreamCipher};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use web3::signing::keccak256;
use zeroize::Zeroizing;

use crate::model::Address;
use crate::signer::{LocalSigner, Signer};

type Aes128Ctr = ctr::Ctr128BE<aes::Aes128>;

const VERSION: u8 = 3;
const CIPHER: &str = "aes-128-ctr";
const PRF: &str = "hmac-sha256";
/// Bytes of the derived key: half of it encrypts, the other half goes into the check value.
const DERIVED: usize = 32;
/// Some 2 GiB, some ten seconds.
const MOST: Costs = Costs { scrypt_blocks: 1 << 24, pbkdf2_rounds: 10_000_000 };
/// scrypt's log2(n), r and p of new files, as Geth has them: 256 MiB, about a second.
const NEW: (u8, u32, u32) = (18, 8, 1);

/// Why a file gives no key. Says nothing of the key or of the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    #[error("it is no keystore of version {VERSION}: {0}")]
    Malformed(String),
    #[error("its {0} asks for more memory or work than a keystore needs; was it made by somebody else?")]
    TooCostly(&'static str),
    #[error("the password is not the one that it was encrypted with, or the file is damaged")]
    WrongPassword,
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(String),
}

/// The most memory and work that a file may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Blocks of 128 bytes that scrypt fills and reads.
    pub scrypt_blocks: u64,
    pub pbkdf2_rounds: u32,
}

fn malformed(problem: impl ToString) -> KeystoreError {
    KeystoreError::Malformed(problem.to_string())
}

#[derive(Serialize, Deserialize)]
struct Keystore {
    version: u8,
    #[serde(default)]
    id: String,
    #[serde(default)]
    address: String,
    #[serde(alias = "Crypto")]
    crypto: Crypto,
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    #[serde(with = "hex")]
    ciphertext: Vec<u8>,
    #[serde(flatten)]
    derivation: Derivation,
    #[serde(with = "hex")]
    mac: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    #[serde(with = "hex")]
    iv: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kdf", content = "kdfparams", rename_all = "lowercase")]
enum Derivation {
    Scrypt {
        dklen: usize,
        n: u64,
        r: u32,
        p: u32,
        #[serde(with = "hex")]
        salt: Vec<u8>,
    },
    Pbkdf2 {
        dklen: usize,
        c: u32,
        prf: String,
        #[serde(with = "hex")]
        salt: Vec<u8>,
    },
}

impl Derivation {
    fn key(&self, password: &SecretString, most: Costs) -> Result<Zeroizing<[u8; DERIVED]>, KeystoreError> {
        let password = password.expose_secret().as_bytes();
        let mut key = Zeroizing::new([0; DERIVED]);
        match self {
            Self::Scrypt { dklen, .. } | Self::Pbkdf2 { dklen, .. } if *dklen != DERIVED => {
                return Err(malformed("dklen is not 32"));
            }
            Self::Scrypt { n, r, p, salt, .. } => {
                let blocks = n.saturating_mul((*r).into()).saturating_mul((*p).into());
                if blocks > most.scrypt_blocks {
                    return Err(KeystoreError::TooCostly("scrypt"));
                }
                let is_power = n.is_power_of_two().then(|| u8::try_from(n.trailing_zeros()).ok()).flatten();
                let params = is_power.and_then(|log_n| scrypt::Params::new(log_n, *r, *p).ok());
                match params.map(|params| scrypt::scrypt(password, salt, &params, key.as_mut_slice())) {
                    Some(Ok(())) => {}
                    Some(Err(_)) | None => return Err(malformed("its scrypt parameters are none")),
                }
            }
            Self::Pbkdf2 { c, .. } if *c > most.pbkdf2_rounds => return Err(KeystoreError::TooCostly("pbkdf2")),
            Self::Pbkdf2 { prf, .. } if prf != PRF => return Err(malformed("its prf is not hmac-sha256")),
            Self::Pbkdf2 { c, salt, .. } => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, *c, key.as_mut_slice()),
        }
        Ok(key)
    }
}

/// Returns the private key in such a file, as hexadecimal digits. Takes about a second, on purpose.
///
/// # Errors
/// When the file is no keystore, or the password is wrong.
pub fn decrypt(file: &str, password: &SecretString) -> Result<SecretString, KeystoreError> {
    decrypt_within(file, password, MOST)
}

/// The same for a file that may ask for so much.
///
/// # Errors
/// When the file is no keystore, or the password is wrong.
pub(crate) fn decrypt_within(file: &str, password: &SecretString, most: Costs) -> Result<SecretString, KeystoreError> {
    let keystore: Keystore = serde_json::from_str(file).map_err(malformed)?;
    let Keystore { version, crypto, .. } = keystore;
    if version != VERSION || crypto.cipher != CIPHER {
        return Err(malformed(format!("its version is {version}, its cipher {}", crypto.cipher)));
    }
    let derived = crypto.derivation.key(password, most)?;
    let (encrypting, checking) = derived.split_at(DERIVED / 2);
    if check_value(checking, &crypto.ciphertext).as_slice() != crypto.mac {
        return Err(KeystoreError::WrongPassword);
    }
    let mut key = Zeroizing::new(crypto.ciphertext);
    apply(encrypting, &crypto.cipherparams.iv, &mut key)?;
    Ok(SecretString::from(hex::encode(key.as_slice())))
}

/// Returns a new file with this key.
///
/// # Errors
/// When the text is no private key, or the system gives no random numbers.
pub fn encrypt(key: &SecretString, password: &SecretString) -> Result<(String, Address), KeystoreError> {
    let signer = LocalSigner::from_hex(key).map_err(malformed)?;
    let text = key.expose_secret().trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut ciphertext = Zeroizing::new(hex::decode(digits).map_err(malformed)?);
    let (salt, iv): ([u8; DERIVED], [u8; 16]) = (random()?, random()?);
    let (log_n, r, p) = NEW;
    let derivation = Derivation::Scrypt { dklen: DERIVED, n: 1 << log_n, r, p, salt: salt.to_vec() };
    let derived = derivation.key(password, MOST)?;
    let (encrypting, checking) = derived.split_at(DERIVED / 2);
    apply(encrypting, &iv, &mut ciphertext)?;
    let mac = check_value(checking, &ciphertext).to_vec();
    let (cipherparams, ciphertext) = (CipherParams { iv: iv.to_vec() }, ciphertext.to_vec());
    let crypto = Crypto { cipher: CIPHER.to_owned(), cipherparams, ciphertext, derivation, mac };
    let address = Signer::address(&signer);
    let keystore = Keystore {
        version: VERSION,
        id: uuid::Uuid::now_v7().to_string(),
        address: address.to_string().trim_start_matches("0x").to_owned(),
        crypto,
    };
    let file = serde_json::to_string_pretty(&keystore).map_err(malformed)?;
    Ok((file, address))
}

/// Returns a new random private key, as hexadecimal digits.
pub fn new_key() -> Result<SecretString, KeystoreError> {
    loop {
        let bytes = Zeroizing::new(random::<32>()?);
        let key = SecretString::from(hex::encode(bytes.as_slice()));
        // All but one of 2^128 are on the curve.
        if LocalSigner::from_hex(&key).is_ok() {
            return Ok(key);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], KeystoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| KeystoreError::NoRandomness(error.to_string()))?;
    Ok(bytes)
}

fn check_value(checking: &[u8], ciphertext: &[u8]) -> [u8; 32] {
    keccak256(&[checking, ciphertext].concat())
}

fn apply(key: &[u8], iv: &[u8], data: &mut [u8]) -> Result<(), KeystoreError> {
    let mut cipher = Aes128Ctr::new_from_slices(key, iv).map_err(|_| malformed("its iv does not have 16 bytes"))?;
    cipher.apply_keystream(data);
    Ok(())
}

#[cfg(test)]
mod tests;
