//! `ca_file`, `certificate_file` and `certificate_key_file` of a server that is reached by HTTP: a remote signer, an endpoint.

use std::path::Path;

use secrecy::ExposeSecret;

use crate::config::reader::Section;
use crate::config::secrets::{Places, private_file};
use crate::rpc::Tls;

/// A key of the configuration, and its fault.
pub(super) type Fault = (&'static str, String);

/// The keys that this file reads.
pub(super) const KEYS: [&str; 3] = ["ca_file", "certificate_file", "certificate_key_file"];

/// Reads the files. `address` is what the server's URL is called in a fault.
pub(super) fn read(
    section: &mut Section<'_>,
    places: &Places,
    address: &str,
    is_encrypted: bool,
) -> Result<Tls, Fault> {
    let mut tls = Tls::default();
    let mut file = |key: &'static str| {
        let path = section.text(key).map(|file| places.secret(&file));
        path.transpose().map(|path| path.map(|path| (key, path))).map_err(|problem| (key, problem))
    };
    let authorities = file("ca_file")?;
    let (certificate, key) = (file("certificate_file")?, file("certificate_key_file")?);
    if let (Some((key, _)), false) = (authorities.as_ref().or(certificate.as_ref()).or(key.as_ref()), is_encrypted) {
        return Err((key, format!("is set, and {address} is not https://")));
    }
    let lacks = |key, what: &str| Err((key, format!("is not set; name the file with {what}")));
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
    if let Some((key, path)) = authorities {
        let trusted = read(&path).and_then(|pem| tls.trust_only(&pem));
        trusted.map_err(|problem| (key, format!("{}: {problem}", path.display())))?;
    }
    match (certificate, key) {
        (Some((name, path)), Some((key, key_path))) => {
            let secret = private_file(&key_path).map_err(|problem| (key, problem))?;
            let shown = read(&path).and_then(|pem| tls.show(&pem, secret.expose_secret().as_bytes()));
            shown.map_err(|problem| (name, format!("{} or its key: {problem}", path.display())))?;
        }
        (Some(_), None) => lacks("certificate_key_file", "the certificate's key")?,
        (None, Some(_)) => lacks("certificate_file", "the certificate of this key")?,
        (None, None) => {}
    }
    Ok(tls)
}
