//! Keys come back with their password alone; damaged and costly files are refused.

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
