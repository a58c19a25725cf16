//! Where the broker is: one address, or those of several hosts, inline or in a file.

use std::path::PathBuf;

use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret, SecretString};

use crate::broker::BrokerError;

/// Half-open connections show after twice this; below 5 s a busy host gives false alarms.
const HEARTBEAT_SECONDS: u16 = 15;

/// Where to read the broker's addresses, the preferred host first. A file, with an address on each line, is read again at each
/// connect, so that a password can change.
#[derive(Debug, Clone)]
pub enum UriSource {
    Inline(Vec<SecretString>),
    File(PathBuf),
}

impl UriSource {
    /// Returns at least one address. All are of one virtual host.
    pub(super) async fn read(&self) -> Result<Vec<AMQPUri>, BrokerError> {
        let texts = match self {
            Self::Inline(texts) => texts.clone(),
            Self::File(path) => {
                let read = tokio::fs::read_to_string(path).await;
                let text = read.map(SecretString::from).map_err(|error| BrokerError::UriFile {
                    path: path.display().to_string(),
                    detail: error.to_string(),
                })?;
                lines_of(&text)
            }
        };
        parse_all(&texts)
    }
}

/// Returns the lines that are not empty.
fn lines_of(text: &SecretString) -> Vec<SecretString> {
    text.expose_secret().lines().map(str::trim).filter(|line| !line.is_empty()).map(SecretString::from).collect()
}

/// Checks that these are AMQP addresses of one virtual host.
///
/// # Errors
/// [`BrokerError::Uri`], whose text leaves the address out.
pub fn check_uris(texts: &[SecretString]) -> Result<(), BrokerError> {
    parse_all(texts).map(drop)
}

/// Returns whether each of these addresses is `amqps://`.
pub fn are_encrypted(texts: &[SecretString]) -> bool {
    let scheme = |text: &SecretString| parse(text).is_ok_and(|uri| uri.scheme == AMQPScheme::AMQPS);
    texts.iter().all(scheme)
}

/// Checks that this is an AMQP address.
///
/// # Errors
/// [`BrokerError::Uri`], whose text leaves the address out.
pub fn check_uri(text: &SecretString) -> Result<(), BrokerError> {
    parse(text).map(drop)
}

fn parse_all(texts: &[SecretString]) -> Result<Vec<AMQPUri>, BrokerError> {
    let uris = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = uris.first() else {
        return Err(BrokerError::Uri("there is none".to_owned()));
    };
    if uris.iter().any(|uri| uri.vhost != first.vhost) {
        // Another virtual host has other queues.
        return Err(BrokerError::Uri("the addresses name several virtual hosts; all must name the same".to_owned()));
    }
    Ok(uris)
}

/// Parses an AMQP address, and adds a heartbeat if it has none.
fn parse(text: &SecretString) -> Result<AMQPUri, BrokerError> {
    // The parser reads "amqp:/user:password@host/" as a virtual host of that name on this host, and names of virtual
    // hosts are logged.
    if !text.expose_secret().contains("://") {
        return Err(BrokerError::Uri("it has no \"://\"".to_owned()));
    }
    let mut uri: AMQPUri = text.expose_secret().parse().map_err(|error: String| {
        // The parser's message may repeat a part of the address.
        let detail = if error.contains("scheme") { "its scheme is not amqp or amqps" } else { "it cannot be read" };
        BrokerError::Uri(detail.to_owned())
    })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

/// Returns host and port.
pub(super) fn host_and_port(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// Returns host, port and virtual host, which may be shown.
pub(super) fn shown(uri: &AMQPUri) -> String {
    format!("{} (virtual host {})", host_and_port(uri), uri.vhost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(texts: &[&str]) -> Vec<SecretString> {
        texts.iter().map(|text| SecretString::from(*text)).collect()
    }

    #[test]
    fn several_hosts_are_addresses_of_one_virtual_host() {
        for (texts, fault) in [
            (vec!["amqp://a/%2f", "amqps://b:5671/%2f"], None),
            (vec!["amqp://u:secret@a/one"], None),
            (vec![], Some("there is none")),
            (vec!["amqp://a/one", "amqp://u:secret@a/two"], Some("several virtual hosts")),
            (vec!["amqp://a/one", "http://u:secret@b/one"], Some("its scheme is not")),
            (vec!["amqp:/u:secret@b/one"], Some("it has no")),
        ] {
            match (parse_all(&secrets(&texts)), fault) {
                (Ok(uris), None) => assert_eq!(uris.len(), texts.len()),
                (Err(error), Some(fault)) => {
                    let text = error.to_string();
                    assert!(text.contains(fault) && !text.contains("secret"), "{text}");
                }
                (read, _) => panic!("{texts:?}: {read:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_file_holds_an_address_on_each_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "amqp://u:p@a:1/v\r\n\n  amqps://u:p@b:2/v \n").unwrap();
        let uris = UriSource::File(file.path().to_owned()).read().await.unwrap();
        assert_eq!(uris.iter().map(shown).collect::<Vec<_>>(), ["a:1 (virtual host v)", "b:2 (virtual host v)"]);
        assert!(uris.iter().all(|uri| uri.query.heartbeat == Some(HEARTBEAT_SECONDS)));
    }

    #[test]
    fn only_amqps_is_encrypted() {
        assert!(are_encrypted(&secrets(&["amqps://a/v", "amqps://b/v"])));
        assert!(!are_encrypted(&secrets(&["amqps://a/v", "amqp://b/v"])));
    }
}
