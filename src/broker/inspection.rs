//! Inspects the broker for a worker: the state of its objects, and the rights that it lacks. Changes nothing there.

use lapin::options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::broker::connection::{BrokerSettings, Connected, broker_detail};
use crate::broker::declare::ObjectFault;
use crate::broker::remedies::TAKES_NO_MESSAGES;
use crate::broker::{BrokerError, TopologyMode};

/// Consumer tag and routing key of a probe, if the broker took it.
const PROBE: &str = "chainwriter.probe";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    pub vhost: String,
    pub faults: Vec<ObjectFault>,
    /// Objects whose arguments cannot be checked without the right to configure them.
    pub unseen: Vec<String>,
    pub lacking: Vec<String>,
}

/// Connects, checks every object of the topology, and tries the rights that a worker needs.
pub async fn inspect(settings: &BrokerSettings) -> Result<Inspection, BrokerError> {
    let connected = settings.connect("doctor").await?;
    let inspected = inspect_over(&connected, settings).await;
    // With an alarm the broker does not answer a connection that has published, as the probes do.
    if connected.is_blocked() {
        return Err(connected.failed("publish", TAKES_NO_MESSAGES.to_owned()));
    }
    connected.close().await;
    inspected
}

async fn inspect_over(connected: &Connected, settings: &BrokerSettings) -> Result<Inspection, BrokerError> {
    let compared = settings.topology.compare(connected, TopologyMode::Verify).await?;
    let names = &settings.topology.names;
    let mut lacking = Vec::new();
    for queue in [&names.work, &names.journal] {
        if !may_consume(connected, queue).await? {
            lacking.push(format!("read queue {queue}"));
        }
    }
    for exchange in [&names.retry, &names.dead, &names.events] {
        if !may_publish(connected, exchange).await? {
            lacking.push(format!("write exchange {exchange}"));
        }
    }
    let vhost = connected.vhost().to_owned();
    Ok(Inspection { vhost, faults: compared.faults, unseen: compared.unseen, lacking })
}

/// Asks for a consumer with the priority "none": RabbitMQ checks the right first, and then refuses the argument. So no
/// message is taken either way.
async fn may_consume(connected: &Connected, queue: &str) -> Result<bool, BrokerError> {
    let channel = connected.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
    let probe = async {
        // A broker that took the argument would hold back all but one.
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        channel.basic_consume(queue.into(), PROBE.into(), BasicConsumeOptions::default(), arguments).await.map(drop)
    };
    is_allowed(connected, &channel, probe).await
}

/// Publishes with the expiration "none": RabbitMQ checks the right first, and then refuses the property. So nothing is
/// published either way.
async fn may_publish(connected: &Connected, exchange: &str) -> Result<bool, BrokerError> {
    let channel = connected.channel().await?;
    let properties = BasicProperties::default().with_expiration("none".into());
    let probe = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.into(), PROBE.into(), options, &[], properties).await?.await.map(drop)
    };
    is_allowed(connected, &channel, probe).await
}

/// Returns whether the user has the right to do this. Other refusals come after the check of the right, or from a missing
/// object, which `faults` reports.
async fn is_allowed(
    connected: &Connected,
    channel: &Channel,
    probe: impl Future<Output = lapin::Result<()>>,
) -> Result<bool, BrokerError> {
    let answer = connected.within("ask for a right", probe).await?;
    // A refusal has closed the channel.
    if channel.status().connected() {
        let _ = connected.close_channel(channel).await;
    }
    Ok(!answer.is_err_and(|error| broker_detail(&error).contains("ACCESS_REFUSED")))
}
