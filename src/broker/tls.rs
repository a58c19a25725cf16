//! TLS to the broker: certificates from files, read again for each connection, and what to do where they do not hold.

use std::fs;
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, PeerIncompatible, RootCertStore,
};
use rustls_platform_verifier::Verifier;

/// For each step of the question why a connection has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// The files of `[broker]` for TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Certificates (PEM) of the authorities to trust, and no others; without it, those of the system.
    pub authorities: Option<PathBuf>,
    pub identity: Option<Identity>,
}

/// A client certificate with those that vouch for it, and its key (PEM).
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A file that cannot be used: its key in `[broker]`, and why.
#[derive(Debug, thiserror::Error)]
#[error("broker.{key}: {problem}")]
pub struct TlsFault {
    pub key: &'static str,
    pub problem: String,
}

impl TlsFiles {
    pub fn are_set(&self) -> bool {
        self.authorities.is_some() || self.identity.is_some()
    }

    /// Reads the files anew, so that a renewed certificate counts from the next connection on.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn client_config(&self) -> Result<ClientConfig, TlsFault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |key| move |error: Error| TlsFault { key, problem: format!("cannot be used: {error}") };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable("uri"))?;
        let builder = match &self.authorities {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("ca_file", path)? {
                    roots.add(certificate).map_err(unusable("ca_file"))?;
                }
                builder.with_root_certificates(roots)
            }
            None => {
                let verifier = Verifier::new(provider).map_err(unusable("uri"))?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let Some(Identity { certificate, key }) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("certificate_file", certificate)?;
        let text = zeroize::Zeroizing::new(read("certificate_key_file", key)?);
        let secret = PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsFault {
            key: "certificate_key_file",
            problem: format!("{} holds no private key in PEM without a password", key.display()),
        })?;
        builder.with_client_auth_cert(chain, secret).map_err(|error| TlsFault {
            key: "certificate_file",
            problem: format!("{} or its key cannot be used: {error}", certificate.display()),
        })
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
    fs::read(path).map_err(|error| TlsFault { key, problem: format!("{} cannot be read: {error}", path.display()) })
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let text = read(key, path)?;
    let fault = |problem: &str| TlsFault { key, problem: format!("{} {problem}", path.display()) };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|_| fault("is not PEM"))?;
    if found.is_empty() { Err(fault("holds no certificate in PEM")) } else { Ok(found) }
}

/// Returns the broker's reason to end a connection that failed without one: where it refuses a certificate, its answer may be
/// lost behind what was sent meanwhile. So it is asked once more, and is sent nothing after the handshake.
pub(super) async fn lost_reason(host: String, port: u16, config: Arc<ClientConfig>) -> Option<io::Error> {
    let asked = tokio::task::spawn_blocking(move || {
        let name = ServerName::try_from(host.clone()).ok()?;
        let mut connection = ClientConnection::new(config, name).ok()?;
        let address = (host.as_str(), port).to_socket_addrs().ok()?.next()?;
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        rustls::Stream::new(&mut connection, &mut socket).read(&mut [0]).err()
    });
    asked.await.ok().flatten().filter(|error| error.get_ref().is_some_and(|inner| inner.is::<Error>()))
}

/// Returns whether the other side ended the connection.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// Returns what to do about a failed connection over TLS, as far as the error shows it.
pub(super) fn remedy(error: &io::Error, shows_certificate: bool) -> Option<&'static str> {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return remedy_of(error, shows_certificate);
    }
    is_end(error).then_some(if shows_certificate {
        "see the broker's log: it ended the connection without a reason"
    } else {
        "see the broker's log; if it demands a client certificate, set broker.certificate_file and broker.certificate_key_file"
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add kinds; the error's own text stands before these"
)]
fn remedy_of(error: &Error, shows_certificate: bool) -> Option<&'static str> {
    Some(match error {
        Error::InvalidCertificate(problem) => of_certificate(problem),
        Error::AlertReceived(alert) => return of_alert(*alert, shows_certificate),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon | PeerIncompatible::NoKxGroupsInCommon) => {
            "the broker offers only ciphers that are not safe: remove ssl_options.ciphers from rabbitmq.conf"
        }
        Error::PeerIncompatible(_) => OLD_VERSIONS,
        Error::InvalidMessage(_) => {
            "the port does not answer in TLS: name the port of the broker's TLS listener (5671 unless configured), or write \
             amqp:// where there is none"
        }
        _ => return None,
    })
}

const OLD_VERSIONS: &str = "the broker offers no version of TLS that is safe: let it offer 1.2 or 1.3 (ssl_options.versions.1 = \
                            tlsv1.3, ssl_options.versions.2 = tlsv1.2)";

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add kinds; the error's own text stands before these"
)]
fn of_certificate(problem: &CertificateError) -> &'static str {
    match problem {
        CertificateError::UnknownIssuer => {
            "no trusted authority has signed the broker's certificate: name the file with the authority's certificate (PEM) in \
             broker.ca_file"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the broker's certificate is for another host: use a name that it lists in the broker's address, or give the broker a \
             certificate for this name (subjectAltName)"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the broker's certificate has expired: renew the file in its ssl_options.certfile, or correct this host's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the broker's certificate is not valid yet: correct this host's clock"
        }
        _ => {
            "give the broker a certificate for a server that an authority has signed, and name that authority in broker.ca_file"
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add kinds; the error's own text stands before these"
)]
fn of_alert(alert: AlertDescription, shows_certificate: bool) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => OLD_VERSIONS,
        AlertDescription::CertificateRequired
        | AlertDescription::HandshakeFailure
        | AlertDescription::BadCertificate
        | AlertDescription::NoCertificate
            if !shows_certificate =>
        {
            "the broker demands a client certificate: set broker.certificate_file and broker.certificate_key_file"
        }
        AlertDescription::CertificateExpired => {
            "the broker says that a certificate has expired: renew the file in broker.certificate_file; it is read again at the \
             next connect"
        }
        AlertDescription::CertificateRevoked => {
            "this certificate was revoked: put another one into broker.certificate_file"
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError
        | AlertDescription::HandshakeFailure => {
            "the broker does not accept this client certificate: one of the authorities in its ssl_options.cacertfile must have \
             signed it, for the use by clients"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_stands_in_the_way_has_a_remedy() {
        let certificate = |problem| Error::InvalidCertificate(problem);
        for (error, shows, words) in [
            (certificate(CertificateError::UnknownIssuer), false, "broker.ca_file"),
            (certificate(CertificateError::NotValidForName), false, "for another host"),
            (certificate(CertificateError::Expired), false, "ssl_options.certfile"),
            (certificate(CertificateError::NotValidYet), false, "clock"),
            (certificate(CertificateError::BadEncoding), false, "that an authority has signed"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), false, "set broker.certificate_file"),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), false, "set broker.certificate_file"),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), true, "does not accept this client"),
            (Error::AlertReceived(AlertDescription::UnknownCA), true, "ssl_options.cacertfile"),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                true,
                "renew the file in broker.certificate_file",
            ),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), true, "1.2 or 1.3"),
            (Error::AlertReceived(AlertDescription::InsufficientSecurity), true, "1.2 or 1.3"),
            (Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13), false, "1.2 or 1.3"),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), false, "ciphers"),
            (Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), false, "does not answer in TLS"),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            let found = remedy(&error, shows).unwrap_or_default();
            assert!(found.contains(words), "{error}: {found}");
        }
        let closed = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(remedy(&closed, false).is_some_and(|text| text.contains("set broker.certificate_file")));
        assert!(remedy(&closed, true).is_some_and(|text| !text.contains("set broker.certificate_file")));
        assert_eq!(remedy(&io::Error::from(io::ErrorKind::ConnectionRefused), false), None, "TLS has no part in it");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (empty, cut) = (path("empty.pem", ""), path("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA"));
        let junk = path("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let missing = folder.path().join("missing.pem");
        let trusting = |file: &Path| TlsFiles { authorities: Some(file.to_owned()), identity: None };
        for (file, problem) in [
            (&empty, "holds no certificate"),
            (&cut, "is not PEM"),
            (&junk, "cannot be used"),
            (&missing, "missing.pem cannot be read"),
        ] {
            let fault = trusting(file).client_config().unwrap_err();
            assert!(fault.key == "ca_file" && fault.problem.contains(problem), "{fault}");
        }
        let identity = Identity { certificate: junk, key: empty };
        let fault = TlsFiles { authorities: None, identity: Some(identity) }.client_config().unwrap_err();
        assert!(fault.key == "certificate_key_file" && fault.problem.contains("no private key"), "{fault}");
    }
}
