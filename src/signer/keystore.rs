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
/// The most memory and work that a file may ask for, in blocks of 128 bytes: some 2 GiB, some ten seconds.
const MAX_SCRYPT_BLOCKS: u64 = 1 << 24;
const MAX_PBKDF2_ROUNDS: u32 = 10_000_000;
/// What Geth takes for new files: 256 MiB, about a second.
const NEW: (u8, u32, u32) = (18, 8, 1);

/// Why a file gives no key. Says nothing of the key or of the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// The file is another kind of file.
    #[error("it is no keystore of version {VERSION}: {0}")]
    Malformed(String),
    /// It asks for what no wallet asks for.
    #[error("its {0} asks for more memory or work than a keystore needs; was it made by somebody else?")]
    TooCostly(&'static str),
    #[error("the password is not the one that it was encrypted with, or the file is damaged")]
    WrongPassword,
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(String),
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
    fn key(&self, password: &SecretString) -> Result<Zeroizing<[u8; DERIVED]>, KeystoreError> {
        let malformed = |what: &str| Err(KeystoreError::Malformed(what.to_owned()));
        let password = password.expose_secret().as_bytes();
        let mut key = Zeroizing::new([0; DERIVED]);
        match self {
            Self::Scrypt { dklen, .. } | Self::Pbkdf2 { dklen, .. } if *dklen != DERIVED => {
                return malformed("dklen is not 32");
            }
            Self::Scrypt { n, r, p, salt, .. } => {
                let blocks = n.saturating_mul((*r).into()).saturating_mul((*p).into());
                if blocks > MAX_SCRYPT_BLOCKS {
                    return Err(KeystoreError::TooCostly("scrypt"));
                }
                let is_power = n.is_power_of_two().then(|| u8::try_from(n.trailing_zeros()).ok()).flatten();
                let params = is_power.and_then(|log_n| scrypt::Params::new(log_n, *r, *p).ok());
                match params.map(|params| scrypt::scrypt(password, salt, &params, key.as_mut_slice())) {
                    Some(Ok(())) => {}
                    Some(Err(_)) | None => return malformed("its scrypt parameters are none"),
                }
            }
            Self::Pbkdf2 { c, .. } if *c > MAX_PBKDF2_ROUNDS => return Err(KeystoreError::TooCostly("pbkdf2")),
            Self::Pbkdf2 { prf, .. } if prf != PRF => return malformed("its prf is not hmac-sha256"),
            Self::Pbkdf2 { c, salt, .. } => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, *c, key.as_mut_slice()),
        }
        Ok(key)
    }
}

/// Returns the private key in such a file, as hexadecimal digits. Takes about a second, on purpose.
///
/// # Errors
/// When the file is none, or the password another's.
pub fn decrypt(file: &str, password: &SecretString) -> Result<SecretString, KeystoreError> {
    let keystore: Keystore = serde_json::from_str(file).map_err(|error| KeystoreError::Malformed(error.to_string()))?;
    let Keystore { version, crypto, .. } = keystore;
    if version != VERSION || crypto.cipher != CIPHER {
        let found = format!("its version is {version}, its cipher {}", crypto.cipher);
        return Err(KeystoreError::Malformed(found));
    }
    let derived = crypto.derivation.key(password)?;
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
    let signer = LocalSigner::from_hex(key).map_err(|error| KeystoreError::Malformed(error.to_string()))?;
    let text = key.expose_secret().trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = hex::decode(digits).map_err(|error| KeystoreError::Malformed(error.to_string()))?;
    let mut ciphertext = Zeroizing::new(plain);
    let (salt, iv): ([u8; DERIVED], [u8; 16]) = (random()?, random()?);
    let (log_n, r, p) = NEW;
    let derivation = Derivation::Scrypt { dklen: DERIVED, n: 1 << log_n, r, p, salt: salt.to_vec() };
    let derived = derivation.key(password)?;
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
    let file = serde_json::to_string_pretty(&keystore).map_err(|error| KeystoreError::Malformed(error.to_string()))?;
    Ok((file, address))
}

/// Returns a private key that nobody else has, as hexadecimal digits.
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
    let cipher = Aes128Ctr::new_from_slices(key, iv);
    let mut cipher = cipher.map_err(|_| KeystoreError::Malformed("its iv does not have 16 bytes".to_owned()))?;
    cipher.apply_keystream(data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the Web3 Secret Storage Definition, its two test vectors.
    const PBKDF2: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",
        "kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256","salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},
        "id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;
    const SCRYPT: &str = r#"{"Crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext":"d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c","kdf":"scrypt",
        "kdfparams":{"dklen":32,"n":262144,"r":1,"p":8,"salt":"ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19"},
        "mac":"2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097"},
        "id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;

    fn password() -> SecretString {
        SecretString::from("testpassword")
    }

    #[test]
    fn the_vectors_of_the_definition_give_their_key() {
        for file in [PBKDF2, SCRYPT] {
            let key = decrypt(file, &password()).unwrap();
            assert_eq!(key.expose_secret(), "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d");
        }
    }

    #[test]
    fn what_is_encrypted_comes_back_with_its_password_alone() {
        let key = new_key().unwrap();
        let (file, address) = encrypt(&key, &password()).unwrap();
        assert!(!file.contains(key.expose_secret()));
        let back = decrypt(&file, &password()).unwrap();
        assert_eq!(back.expose_secret(), key.expose_secret());
        assert_eq!(Signer::address(&LocalSigner::from_hex(&back).unwrap()), address);
        let other = SecretString::from("testpassword ");
        assert_eq!(decrypt(&file, &other).unwrap_err(), KeystoreError::WrongPassword);
        assert_ne!(new_key().unwrap().expose_secret(), key.expose_secret());
    }

    #[test]
    fn a_file_that_is_damaged_or_asks_for_too_much_is_refused() {
        let changed = |from: &str, to: &str| {
            assert!(PBKDF2.contains(from) || SCRYPT.contains(from));
            let file = if SCRYPT.contains(from) { SCRYPT } else { PBKDF2 };
            decrypt(&file.replace(from, to), &password()).unwrap_err()
        };
        assert_eq!(changed("\"n\":262144", "\"n\":1073741824"), KeystoreError::TooCostly("scrypt"));
        assert_eq!(changed("\"c\":262144", "\"c\":4000000000"), KeystoreError::TooCostly("pbkdf2"));
        for (from, to) in [
            ("\"version\":3", "\"version\":1"),
            ("aes-128-ctr", "aes-128-cbc"),
            ("\"n\":262144", "\"n\":262143"),
            ("83dbcc02d8ccb40e466191a123791e0e", "83dbcc"),
            ("hmac-sha256", "hmac-md5"),
            ("\"dklen\":32", "\"dklen\":16"),
            ("\"kdf\":\"scrypt\"", "\"kdf\":\"argon2\""),
        ] {
            assert!(matches!(changed(from, to), KeystoreError::Malformed(_)), "{from}: {}", changed(from, to));
        }
        assert_eq!(changed("d172bf74", "d172bf75"), KeystoreError::WrongPassword);
        assert!(matches!(decrypt("0xac09", &password()).unwrap_err(), KeystoreError::Malformed(_)));
    }
}
