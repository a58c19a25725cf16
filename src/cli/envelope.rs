//! Options for the parts of a message besides its body.

use clap::Args;

use crate::cli::{exit, stop};
use crate::model::{HeaderValue, Headers, Origin};

#[derive(Debug, Args)]
pub(super) struct Envelope {
    /// The AMQP property type, by which routes may go.
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// The exchange that it is published to; none: the default one.
    #[arg(long, value_name = "EXCHANGE", default_value = "", hide_default_value = true)]
    exchange: String,
    /// The routing key; the work queue's name if not given.
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,
    /// A header with a text; may be given several times.
    #[arg(long, value_name = "NAME=TEXT")]
    header: Vec<String>,
}

impl Envelope {
    /// # Errors
    /// When one is no `NAME=TEXT`.
    pub(super) fn headers(&self) -> anyhow::Result<Headers> {
        let header = |text: &String| -> anyhow::Result<(String, HeaderValue)> {
            let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                stop(exit::USAGE, format!("--header {text:?} is no NAME=TEXT, such as --header tenant=north"))
            })?;
            Ok((name.to_owned(), value.into()))
        };
        self.header.iter().map(header).collect()
    }

    pub(super) fn origin(&self, queue: &str) -> Origin {
        let routing_key = self.routing_key.clone().unwrap_or_else(|| queue.to_owned());
        Origin { exchange: self.exchange.clone(), routing_key }
    }
}
