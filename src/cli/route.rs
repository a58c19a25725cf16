//! `chainwriter route`: which route a message would take, and what it would ask for. Nothing is sent.

use std::io::Read;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::cli::envelope::Envelope;
use crate::cli::{exit, open_input, print};
use crate::config::Settings;
use crate::model::cause::cut;
use crate::model::{Address, BodyHash, GasRule, Message, Properties, Timestamp, Write};
use crate::policy::admission::{Candidate, admit, sheltered};
use crate::policy::body::Body;
use crate::policy::routes::{Calldata, route_of};

/// Bytes of calldata that are shown, as text.
const SHOWN_BYTES: usize = 200;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The message's body; "-" is standard input.
    file: String,
    #[command(flatten)]
    envelope: Envelope,
    /// The AMQP property content_type.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The AMQP property content_encoding.
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// Its message_id; the hash of its body if not given.
    #[arg(long)]
    id: Option<String>,
    /// Print it as one JSON document.
    #[arg(long)]
    json: bool,
}

/// The request or the dead letter that the message would be.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// `None`: no route is for it.
    route: Option<String>,
    request_id: Option<String>,
    to: Option<Address>,
    /// Wei, as a decimal text.
    value: Option<String>,
    gas: Option<String>,
    /// Most wei for one unit of gas, where the route says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fee: Option<String>,
    /// With names, where the route knows them.
    call: Option<String>,
    calldata: Option<String>,
    /// `class.reason` of the dead letter that it would be.
    refused: Option<String>,
    detail: Option<String>,
    /// Points at which the producer may have meant something else.
    notes: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let message = message(arguments, settings)?;
    let rules = &settings.admission;
    let route = route_of(&rules.routes, &message);
    let now = Timestamp::now();
    let (id, write) = match sheltered(|| admit(rules, &message)).map(|candidate| candidate.at(now)) {
        Ok(Candidate { id, write, .. }) => (Some(id), write),
        Err(refusal) => (refusal.id, Err(refusal.cause)),
    };
    let mut outcome = Outcome {
        route: route.map(|route| route.name.clone()),
        request_id: id.map(|id| id.to_string()),
        notes: route.map(|route| route.notes(&Body::new(&message, rules.max_body_bytes))).unwrap_or_default(),
        ..Outcome::default()
    };
    match write {
        Ok(Write { to, value, gas, data, max_fee }) => {
            let data = data.unwrap_or_else(|| message.body.clone());
            outcome.to = Some(to);
            outcome.value = Some(value.0.to_string());
            outcome.gas = Some(match gas {
                GasRule::Fixed(gas) => gas.to_string(),
                GasRule::Estimate { margin } => format!("the estimate and {margin} %"),
            });
            outcome.max_fee = max_fee.map(|most| most.0.to_string());
            outcome.call = route.and_then(|route| match &route.calldata {
                Calldata::Call(call) => call.decode(&data),
                Calldata::Body | Calldata::HexBody | Calldata::Carried | Calldata::Record(_) => None,
            });
            outcome.calldata = Some(format!("0x{}", hex::encode(&data)));
        }
        Err(cause) => {
            outcome.refused = Some(cause.routing_key());
            outcome.detail = Some(cause.detail);
        }
    }
    print(arguments.json, &outcome, || outcome.text())?;
    Ok(if outcome.refused.is_none() { exit::OK } else { exit::ANOTHER })
}

fn message(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Message> {
    let mut body = Vec::new();
    let read = open_input(&arguments.file)?.read_to_end(&mut body);
    read.with_context(|| format!("cannot read {}", arguments.file))?;
    let id = arguments.id.clone().unwrap_or_else(|| BodyHash::of(&body).to_string());
    let envelope = &arguments.envelope;
    Ok(Message {
        body: body.into(),
        properties: Properties {
            message_id: Some(id),
            kind: envelope.kind.clone(),
            content_type: arguments.content_type.clone(),
            content_encoding: arguments.content_encoding.clone(),
            ..Properties::default()
        },
        headers: envelope.headers()?,
        origin: envelope.origin(settings.queue()),
    }
    .believed())
}

impl Outcome {
    fn text(&self) -> String {
        let route = self.route.as_deref().unwrap_or("none is for it");
        let mut lines = vec![format!("route      {route}")];
        let mut line = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                lines.push(format!("{name:<10} {value}"));
            }
        };
        line("id", &self.request_id);
        line("to", &self.to.map(|to| to.to_string()));
        line("value", &self.value.as_ref().map(|value| format!("{value} wei")));
        line("gas", &self.gas);
        line("max_fee", &self.max_fee.as_ref().map(|most| format!("{most} wei for a unit of gas")));
        line("call", &self.call);
        line("calldata", &self.calldata.clone().map(|data| cut(data, SHOWN_BYTES)));
        line("refused", &self.refused);
        line("because", &self.detail);
        self.notes.iter().for_each(|note| line("note", &Some(note.clone())));
        lines.join("\n")
    }
}
