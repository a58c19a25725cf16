//! Where a PostgreSQL journal is, and how it is reached. The address may hold a password: it is never shown whole.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Config, Connection as Driver, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use crate::journal::postgres::connection::Connection;

/// For one host's answer to a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an idle connection: the time before the first probe, the time between probes, and their number.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(3), 3);
/// Bytes that the other side's host does not acknowledge for this long end the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
const EXPECTED: &str = "expected postgres://user@host:5432/database?sslmode=require";

#[derive(Clone)]
pub struct PostgresAddress {
    config: Config,
    tls: MakeRustlsConnect,
}

impl PostgresAddress {
    /// Reads a `postgres://` URL. `sslmode` is `disable`, `prefer` (if it is missing), `require` or `verify-full`; where
    /// there is TLS, the server's certificate and name are always checked, by the system's authorities and those in
    /// the file `sslrootcert`.
    ///
    /// # Errors
    /// The text says what is wrong, without repeating the address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("is no address: {error}; {EXPECTED}"))?;
        let mut authorities = None;
        let mut pairs = Vec::new();
        for (key, value) in url.query_pairs() {
            match (&*key, &*value) {
                ("sslrootcert", file) => authorities = Some(file.to_owned()),
                // Both check more than is asked for.
                ("sslmode", "verify-ca" | "verify-full") => pairs.push((key.into_owned(), "require".to_owned())),
                _ => pairs.push((key.into_owned(), value.into_owned())),
            }
        }
        // Not as a form: there a space would be a plus sign, which stays one in such an address.
        let encode =
            |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
        let query: Vec<_> = pairs.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
        url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
        let mut config: Config = url.as_str().parse().map_err(|error: tokio_postgres::Error| {
            let detail = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
            format!("is no PostgreSQL address: {detail}; {EXPECTED}")
        })?;
        if config.get_hosts().is_empty() || config.get_user().is_none() {
            return Err(format!("names no host or no user; {EXPECTED}"));
        }
        config.connect_timeout(config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT));
        config.keepalives_idle(KEEPALIVE.0).keepalives_interval(KEEPALIVE.1).keepalives_retries(KEEPALIVE.2);
        config.tcp_user_timeout(UNACKNOWLEDGED);
        // Of several hosts, the one that can be written to.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("chainwriter");
        }
        Ok(Self { config, tls: tls(authorities.as_deref())? })
    }

    /// Connects. Notifications on the channels that the session listens to are given to `hear`.
    pub async fn connect(&self, hear: impl Fn(&str) + Send + 'static) -> Result<Connection, tokio_postgres::Error> {
        let (client, driver) = self.config.connect(self.tls.clone()).await?;
        Ok(Connection::new(client, tokio::spawn(drive(driver, hear))))
    }
}

/// Drives the connection until it ends. Calls on it fail then, with the reason.
async fn drive<S>(mut driver: Driver<Socket, S>, hear: impl Fn(&str))
where
    S: tokio_postgres::tls::TlsStream + Unpin,
{
    while let Some(message) = std::future::poll_fn(|context| driver.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(said)) => hear(said.payload()),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection to the journal's database has ended");
                return;
            }
        }
    }
}

fn tls(authorities: Option<&str>) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut extra = Vec::new();
    if let Some(file) = authorities {
        let unreadable = |error: rustls::pki_types::pem::Error| {
            format!("has an sslrootcert that cannot be read: {file}: {error}; name a file with certificates in PEM")
        };
        for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
            extra.push(certificate.map_err(unreadable)?);
        }
    }
    let unusable = |error: rustls::Error| format!("cannot be used with TLS here: {error}");
    let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider)).map_err(unusable)?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

impl fmt::Display for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use tokio_postgres::config::Host;
        let ports = self.config.get_ports();
        let hosts: Vec<_> = self
            .config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(folder) => format!("{}:{port}", folder.display()),
                }
            })
            .collect();
        let user = self.config.get_user().unwrap_or_default();
        write!(f, "postgres://{user}@{}/{}", hosts.join(","), self.config.get_dbname().unwrap_or(user))?;
        if self.config.get_ssl_mode() == SslMode::Disable { f.write_str(" (without TLS)") } else { Ok(()) }
    }
}

impl fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_its_password_shown_nowhere() {
        let text = "postgres://me:s%40cret@one,two:5433/journal?sslmode=verify-full&options=-csearch_path%3Dacme";
        let address = PostgresAddress::parse(text).unwrap();
        for shown in [format!("{address}"), format!("{address:?}")] {
            assert_eq!(shown, "postgres://me@one:5432,two:5433/journal");
        }
        assert_eq!(address.config.get_password(), Some(&b"s@cret"[..]));
        assert_eq!(address.config.get_options(), Some("-csearch_path=acme"));
        assert_eq!(address.config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn what_is_no_address_is_told_without_its_password() {
        let wrong = [
            ("postgres:", "is no PostgreSQL address"),
            ("postgres://me:s3cret@host:port/db", "is no address"),
            ("postgres://me:s3cret@host/db?sslmode=maybe", "sslmode"),
            ("postgres://me:s3cret@host/db?color=red", "color"),
            ("postgres://me:s3cret@host/db?sslrootcert=/nowhere.pem", "/nowhere.pem"),
            ("postgres://host/db", "no user"),
        ];
        for (text, why) in wrong {
            let fault = PostgresAddress::parse(text).unwrap_err();
            assert!(fault.contains(why) && !fault.contains("s3cret"), "{text}: {fault}");
        }
    }
}
