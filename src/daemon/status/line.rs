//! The line that `systemctl status` shows.

use tokio::sync::watch;

use crate::broker::BrokerState;
use crate::stages::claim::Serving;
use crate::stages::lane::LaneState;

pub fn status_line(broker: &BrokerState, serving: &Serving, lanes: &[watch::Receiver<LaneState>]) -> String {
    use BrokerState as B;
    let broker = match broker {
        B::Connecting(why) => format!("broker away: {why}"),
        B::Consuming => "consuming".to_owned(),
        B::Paused => "connected, deliveries paused".to_owned(),
        B::Blocked(why) => format!("broker takes no messages: {why}"),
    };
    let lanes = lanes.iter().map(|lane| {
        let lane = lane.borrow();
        let throttled = lane.throttled.map_or(String::new(), |throttled| format!(", throttled by {throttled}"));
        let block = lane.head.map_or("no block seen".to_owned(), |head| format!("block {head}"));
        if let Some(hold) = &lane.hold {
            return format!("{}, {} in flight", hold.text(), lane.in_flight);
        }
        match &lane.paused {
            Some((reason, detail)) => format!("paused ({reason}): {detail}"),
            None if !lane.is_owner => "stands by".to_owned(),
            None => format!("{} in flight, {block}{throttled}", lane.in_flight),
        }
    });
    let refused = match serving {
        Serving::Refused(why) => Some(format!("refused: {why}")),
        Serving::Waiting(_) | Serving::Serves => None,
    };
    refused.into_iter().chain([broker]).chain(lanes).collect::<Vec<_>>().join("; ")
}
