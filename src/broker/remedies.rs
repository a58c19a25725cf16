//! Remedies for an operator where the broker cannot be used, in one short sentence each.

/// The broker's alarm, in words of this program: AMQP has none for it.
pub(super) const TAKES_NO_MESSAGES: &str = "it takes no messages now: its alarm for memory or disk is on";

pub(super) const NO_AMQP: &str = "the port does not answer in AMQP: if it is the broker's TLS listener (5671), write \
                                  amqps://; else see the broker's log";
pub(super) const SILENT: &str = "something listens there and says nothing: see whether it is the broker's AMQP port, and \
                                 whether the broker is overloaded";
const LOGIN: &str = "correct user and password in broker.uri, or give the user rights on the virtual host with \
                     `rabbitmqctl set_permissions`";
const VHOST: &str = "correct the virtual host in broker.uri, or make it with `rabbitmqctl add_vhost`";
const ADDRESS: &str = "start RabbitMQ, or correct host, port and scheme in broker.uri";
const ALARM: &str = "see which with `rabbitmq-diagnostics alarms`, and make room: until then nothing is published, and \
                     nothing is lost";

/// Returns what to do about a broker that gives this answer.
pub fn remedy_for(detail: &str) -> &'static str {
    let has = |word: &str| detail.contains(word);
    if has(TAKES_NO_MESSAGES) {
        ALARM
    } else if has("ACCESS_REFUSED") {
        LOGIN
    } else if has("NOT_ALLOWED") || has("not found") {
        VHOST
    } else {
        ADDRESS
    }
}
