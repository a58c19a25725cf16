//! The keys of `[broker]` that say where it is and how the worker shows who it is.

use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;

use crate::broker::{
    Access, Identity, Login, TlsFiles, TokenServer, TokenSource, Tokens, UriSource, are_encrypted, check_uri,
    check_uris,
};
use crate::config::reader::{Section, http_url, texts};
use crate::config::secrets::{Places, private_file};

/// Keys that go with a token server.
const OF_TOKEN_SERVER: [&str; 5] =
    ["token_client_id", "token_client_secret_file", "token_scope", "token_audience", "token_ca_file"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Password,
    Certificate,
    Token,
}

/// Reads where the broker is, and how connections show who they are.
pub(super) fn read(section: &mut Section<'_>, places: &Places) -> (UriSource, Access) {
    let uri = uri(section, places);
    let tls = tls(section, places);
    let way =
        section.choice("auth", &[("password", Way::Password), ("external", Way::Certificate), ("oauth2", Way::Token)]);
    let tokens = tokens(section, places, way);
    let login = match (way, tokens) {
        (Way::Certificate, _) => {
            if tls.identity.is_none() {
                section
                    .fault("auth", "is \"external\", which needs certificate_file and certificate_key_file; set them");
            }
            Login::Certificate
        }
        (Way::Token, Some(source)) => Login::Token(Arc::new(Tokens::new(source))),
        (Way::Token | Way::Password, _) => Login::Password,
    };
    // Of a file the addresses are known only at a connect, which checks the same.
    if let UriSource::Inline(uris) = &uri
        && (tls.are_set() || way == Way::Certificate)
        && check_uris(uris).is_ok()
        && !are_encrypted(uris)
    {
        let key = if uris.len() > 1 { "uris" } else { "uri" };
        section.fault(key, "is amqp://, which is not encrypted, and certificates are set; write amqps://");
    }
    (uri, Access { tls, login })
}

/// Reads `uri_file`, or else `uris`, or else `uri`, which has a default.
fn uri(section: &mut Section<'_>, places: &Places) -> UriSource {
    let one = SecretString::from(section.text("uri").unwrap_or_default());
    let several = section.list("uris");
    if let Some(path) = file(section, places, "uri_file") {
        return UriSource::File(path);
    }
    let Some(value) = several else {
        if let Err(error) = check_uri(&one) {
            section.fault("uri", error);
        }
        return UriSource::Inline(vec![one]);
    };
    // A text with commas is the environment's list.
    let listed = match value.as_str() {
        Some(text) => Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
        None => texts(&value),
    };
    let uris: Vec<_> = listed.unwrap_or_default().into_iter().map(SecretString::from).collect();
    if uris.is_empty() {
        section.fault("uris", "must be a list of texts, such as [\"amqps://user:password@one:5671/vhost\"]");
    } else if let Err(error) = check_uris(&uris) {
        section.fault("uris", error);
    }
    UriSource::Inline(uris)
}

/// Takes a key that names a file.
fn file(section: &mut Section<'_>, places: &Places, key: &'static str) -> Option<PathBuf> {
    let name = section.text(key)?;
    Some(places.secret(&name).unwrap_or_else(|problem| {
        section.fault(key, problem);
        PathBuf::new()
    }))
}

/// Takes a key that names a file which only its owner may read.
pub(super) fn secret(section: &mut Section<'_>, places: &Places, key: &'static str) -> Option<PathBuf> {
    let path = file(section, places, key)?;
    if let Err(problem) = private_file(&path) {
        section.fault(key, problem);
    }
    Some(path)
}

fn tls(section: &mut Section<'_>, places: &Places) -> TlsFiles {
    let authorities = file(section, places, "ca_file");
    let certificate = file(section, places, "certificate_file");
    let key = secret(section, places, "certificate_key_file");
    let mut lacks = |key, what: &str| {
        section.fault(key, format!("is not set; name the file with {what}"));
        None
    };
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (Some(_), None) => lacks("certificate_key_file", "the certificate's key"),
        (None, Some(_)) => lacks("certificate_file", "the certificate of this key"),
        (None, None) => None,
    };
    let files = TlsFiles { authorities, identity };
    // A file that cannot be read shows at the start, and not as a broker out of reach.
    let is_named_already = files.identity.as_ref().is_some_and(|identity| private_file(&identity.key).is_err());
    if files.are_set()
        && let Err(fault) = files.client_config()
        && !(fault.key == "certificate_key_file" && is_named_already)
    {
        section.fault(fault.key, fault.problem);
    }
    files
}

/// Reads where tokens come from. Without `auth = "oauth2"` there are none.
fn tokens(section: &mut Section<'_>, places: &Places, way: Way) -> Option<TokenSource> {
    let token_file = file(section, places, "token_file");
    let url = section.text("token_url");
    section.allow(&OF_TOKEN_SERVER);
    if way != Way::Token {
        let set = if token_file.is_some() { Some("token_file") } else { url.map(|_| "token_url") };
        if let Some(key) = set {
            section.fault(key, "is set, and auth is not \"oauth2\"; set that, or remove this key");
        }
        return None;
    }
    match (token_file, url) {
        (Some(path), None) => Some(TokenSource::File(path)),
        (None, Some(url)) => server(section, places, &url).map(TokenSource::Server),
        (Some(_), Some(_)) => {
            section.fault("token_url", "is set beside token_file; remove one of them");
            None
        }
        (None, None) => {
            section.fault("token_file", "is not set; name a file with a token, or set token_url and its keys");
            None
        }
    }
}

fn server(section: &mut Section<'_>, places: &Places, url: &str) -> Option<TokenServer> {
    let url = http_url(url.trim());
    if url.is_none() {
        section.fault("token_url", "is no http:// or https:// URL");
    }
    let client_id = section.text("token_client_id").filter(|id| !id.is_empty());
    if client_id.is_none() {
        section.fault("token_client_id", "is not set; expected the id of this client at the token server");
    }
    let secret = secret(section, places, "token_client_secret_file");
    if secret.is_none() {
        section.fault("token_client_secret_file", "is not set; name a file with the client's secret");
    }
    let (scope, audience) = (section.text("token_scope"), section.text("token_audience"));
    let authorities = file(section, places, "token_ca_file");
    Some(TokenServer { url: url?, client_id: client_id?, secret: secret?, scope, audience, authorities })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_with;

    fn faults(lines: &str) -> String {
        load_with(lines).map_or_else(|faults| faults.0.join("\n"), |_| String::new())
    }

    /// The names of files that others may not read.
    fn private(names: &[&str]) -> (tempfile::TempDir, Vec<String>) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &&str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "secret").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let paths = names.iter().map(write).collect();
        (folder, paths)
    }

    #[test]
    fn hosts_are_a_list_and_a_file_counts_before_it() {
        let uri = |lines: &str| load_with(lines).unwrap().broker.uri;
        let list = "broker.uris = [\"amqps://u:p@a/v\", \"amqps://u:p@b/v\"]";
        assert!(matches!(uri(list), UriSource::Inline(uris) if uris.len() == 2));
        assert!(
            matches!(uri("broker.uris = \"amqp://u:p@a/v, amqp://u:p@b/v\""), UriSource::Inline(uris) if uris.len() == 2)
        );
        assert!(matches!(uri(&format!("{list}\nbroker.uri_file = \"/f\"")), UriSource::File(_)));
        assert!(matches!(uri(""), UriSource::Inline(uris) if uris.len() == 1));
        for (lines, fault) in [
            ("broker.uris = []", "- broker.uris: must be a list"),
            ("broker.uris = [1]", "- broker.uris: must be a list"),
            ("broker.uris = [\"amqp://u:secret@a/v\", \"amqp://u:secret@b/w\"]", "several virtual hosts"),
            ("broker.uris = [\"http://u:secret@a/v\"]", "- broker.uris: broker.uri is no AMQP address"),
        ] {
            let found = faults(lines);
            assert!(found.contains(fault) && !found.contains("secret"), "{lines}: {found}");
        }
    }

    #[test]
    fn certificates_and_logins_that_do_not_fit_together_are_faults() {
        let (_folder, files) = private(&["key.pem", "secret"]);
        let [key, secret] = [&files[0], &files[1]];
        let server = format!("broker.token_client_id = \"id\"\nbroker.token_client_secret_file = {secret:?}");
        for (lines, fault) in [
            ("broker.ca_file = \"/missing.pem\"".to_owned(), "- broker.ca_file: /missing.pem cannot be read"),
            ("broker.ca_file = \"/missing.pem\"".to_owned(), "- broker.uri: is amqp://, which is not encrypted"),
            (format!("broker.certificate_key_file = {key:?}"), "- broker.certificate_file: is not set"),
            (format!("broker.certificate_file = {key:?}"), "- broker.certificate_key_file: is not set"),
            ("broker.auth = \"external\"".to_owned(), "- broker.auth: is \"external\", which needs certificate_file"),
            ("broker.auth = \"magic\"".to_owned(), "- broker.auth: is \"magic\"; expected"),
            ("broker.auth = \"oauth2\"".to_owned(), "- broker.token_file: is not set"),
            ("broker.token_file = \"/t\"".to_owned(), "- broker.token_file: is set, and auth is not"),
            ("broker.token_url = \"https://i/t\"".to_owned(), "- broker.token_url: is set, and auth is not"),
            (
                format!("broker.auth = \"oauth2\"\nbroker.token_url = \"idp\"\n{server}"),
                "- broker.token_url: is no http",
            ),
            (
                "broker.auth = \"oauth2\"\nbroker.token_url = \"https://i/t\"".to_owned(),
                "- broker.token_client_id: is not set",
            ),
            (
                "broker.auth = \"oauth2\"\nbroker.token_url = \"https://i/t\"".to_owned(),
                "- broker.token_client_secret_file: is not set",
            ),
            (
                format!(
                    "broker.auth = \"oauth2\"\nbroker.token_file = \"/t\"\nbroker.token_url = \"https://i/t\"\n{server}"
                ),
                "remove one of them",
            ),
        ] {
            let found = faults(&lines);
            assert!(found.contains(fault), "{lines}: {found}");
        }
        let good = format!("broker.auth = \"oauth2\"\nbroker.token_url = \"https://i/t\"\n{server}");
        assert!(matches!(load_with(&good).unwrap().broker.access.login, Login::Token(_)));
        assert!(matches!(
            load_with("broker.auth = \"oauth2\"\nbroker.token_file = \"/t\"").unwrap().broker.access.login,
            Login::Token(_)
        ));
    }
}
