//! The broker: reachable, its objects as they must be, rights, and what AMQP does not show.

use std::time::Duration;

use crate::broker::{self, BrokerError, Inspection, ObjectFault, QueueDepths, QueueRole, TopologyMode};
use crate::cli::doctor::finding::Finding;
use crate::cli::spell;
use crate::config::Settings;
use crate::model::text::counted;

const AREA: &str = "broker";

pub(super) async fn examine(settings: &Settings) -> Vec<Finding> {
    let inspection = match broker::inspect(&settings.broker).await {
        Ok(inspection) => inspection,
        Err(error) => return vec![unreachable(&error)],
    };
    let mut findings = topology(&inspection, settings.broker.topology_mode);
    findings.push(rights(&inspection));
    findings.push(consumer_timeout(settings.settle.max_hold, settings.broker.consumer_timeout));
    findings.push(unseen_over_amqp(&inspection.vhost, settings.queue()));
    findings.extend(dead_letters(settings).await);
    findings
}

fn unreachable(error: &BrokerError) -> Finding {
    if let BrokerError::Access { broker, detail, remedy } = error {
        return Finding::fail(AREA, format!("cannot connect at {broker}: {detail}")).remedy(*remedy);
    }
    let text = error.to_string();
    let remedy = broker::remedy_for(&text);
    Finding::fail(AREA, text).remedy(remedy)
}

fn topology(inspection: &Inspection, mode: TopologyMode) -> Vec<Finding> {
    let Inspection { vhost, faults, unseen, .. } = inspection;
    let connected = format!("connected to virtual host {vhost}");
    let is_made = |fault: &&ObjectFault| mode == TopologyMode::Declare && fault.is_to_be_made;
    let (made, faults): (Vec<_>, Vec<_>) = faults.iter().partition(is_made);
    if !faults.is_empty() {
        return faults.into_iter().map(|fault| Finding::fail(AREA, fault.text.trim_start_matches("- "))).collect();
    }
    if unseen.is_empty() && made.is_empty() {
        return vec![Finding::ok(AREA, format!("{connected}, its topology is as it must be"))];
    }
    if unseen.is_empty() {
        let missing = counted(made.len() as u64, "object");
        let what = format!("{connected}; {missing} missing: a worker makes queues and exchanges at its first start");
        return vec![Finding::ok(AREA, what).remedy("`chainwriter topology print` lists them")];
    }
    if mode == TopologyMode::Declare {
        let what =
            format!("the user may not configure {}, which broker.topology = \"declare\" does", unseen.join(", "));
        return vec![Finding::fail(AREA, what).remedy(format!(
            "give it the right: `rabbitmqctl set_permissions -p {vhost} USER CONFIGURE WRITE READ`; or have an operator run \
             `chainwriter topology apply`, and set broker.topology = \"verify\""
        ))];
    }
    vec![
        Finding::ok(AREA, format!("{connected}, all queues and exchanges are there")),
        Finding::notice(AREA, format!("this user may not see the settings of {}", unseen.join(", ")))
            .remedy("run this as a user with the right to configure them: that compares type and arguments"),
    ]
}

fn rights(inspection: &Inspection) -> Finding {
    let Inspection { vhost, lacking, .. } = inspection;
    if lacking.is_empty() {
        return Finding::ok(
            AREA,
            "the user may read the work queue and the journal's marker, and publish retries, dead letters and events",
        );
    }
    Finding::fail(AREA, format!("the user may not {}", lacking.join(", not "))).remedy(format!(
        "give it the rights: `rabbitmqctl set_permissions -p {vhost} USER CONFIGURE WRITE READ`, each a pattern of names"
    ))
}

/// Reports the `consumer_timeout` that is needed: the broker takes back what is held for longer, and checks once a minute.
fn consumer_timeout(max_hold: Duration, configured: Duration) -> Finding {
    let least = max_hold.saturating_mul(2);
    let what = format!(
        "broker.max_hold = {} needs a consumer_timeout of {} or more at the broker; broker.consumer_timeout says {}, and AMQP does not show it",
        spell(max_hold),
        spell(least),
        spell(configured)
    );
    let look = "see it with `rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'` (milliseconds)";
    if least > configured {
        let set = format!(
            "set consumer_timeout = {} in rabbitmq.conf and broker.consumer_timeout here, or lower broker.max_hold",
            least.as_millis()
        );
        return Finding::warn(AREA, what).remedy(format!("{look}; {set}"));
    }
    Finding::notice(AREA, what).remedy(format!("{look}; broker.consumer_timeout must not be below it"))
}

fn unseen_over_amqp(vhost: &str, queue: &str) -> Finding {
    Finding::notice(AREA, "AMQP does not show queues' policies (a delivery-limit of a few makes dead letters of what a stopped worker gave back), nor bindings").remedy(
        format!(
            "see them with `rabbitmqctl list_queues -p {vhost} name type policy effective_policy_definition arguments` and \
             `rabbitmqctl list_bindings -p {vhost}`; a binding that is in [[bind]] no more stays until `rabbitmqadmin -V {vhost} \
             delete binding source=EXCHANGE destination_type=queue destination={queue} properties_key=KEY`"
        ),
    )
}

async fn dead_letters(settings: &Settings) -> Option<Finding> {
    let queues = QueueDepths::connect(&settings.broker).await.ok()?;
    let depths = queues.depths().await;
    queues.close().await;
    let dead = depths.ok()?.into_iter().find(|depth| depth.role == QueueRole::Dead)?;
    (dead.ready > 0).then(|| {
        Finding::notice(AREA, format!("{} in {}", counted(dead.ready.into(), "dead letter"), dead.queue))
            .remedy("read them with `chainwriter dead list`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;

    #[test]
    fn what_a_worker_will_make_is_no_fault_before_its_first_start() {
        let fault = |text: &str, is_to_be_made| ObjectFault { text: text.to_owned(), is_to_be_made };
        let inspection = |faults: &[&ObjectFault], unseen: &[&str]| Inspection {
            vhost: "/".to_owned(),
            faults: faults.iter().map(|fault| (*fault).clone()).collect(),
            unseen: unseen.iter().map(|name| (*name).to_owned()).collect(),
            lacking: Vec::new(),
        };
        let missing = &fault("- queue q: NOT_FOUND - no queue", true);
        let other = &fault("- queue r: PRECONDITION_FAILED - inequivalent arg", false);
        let producers = &fault("- exchange p of [[bind]]: NOT_FOUND - no exchange", false);
        type Case<'c> = (&'c [&'c ObjectFault], &'c [&'c str], TopologyMode, Level, usize);
        let cases: [Case<'_>; 6] = [
            (&[missing, producers], &[], TopologyMode::Declare, Level::Fail, 1),
            (&[missing, missing], &[], TopologyMode::Declare, Level::Ok, 1),
            (&[missing, missing], &[], TopologyMode::Verify, Level::Fail, 2),
            (&[missing, other], &[], TopologyMode::Declare, Level::Fail, 1),
            (&[missing], &["queue s"], TopologyMode::Declare, Level::Fail, 1),
            (&[], &[], TopologyMode::Declare, Level::Ok, 1),
        ];
        for (faults, unseen, mode, level, count) in cases {
            let findings = topology(&inspection(faults, unseen), mode);
            assert!(findings.len() == count && findings.iter().all(|finding| finding.level == level), "{findings:?}");
        }
    }

    #[test]
    fn a_hold_beyond_half_of_the_timeout_is_a_warning_with_the_sum() {
        let (hour, half) = (Duration::from_secs(3600), Duration::from_secs(1800));
        assert_eq!(consumer_timeout(half / 2, half).level, Level::Note);
        assert_eq!(consumer_timeout(hour, 2 * hour).level, Level::Note);
        let long = consumer_timeout(hour, half);
        assert_eq!(long.level, Level::Warn);
        assert!(long.to_string().contains("consumer_timeout of 2h or more"), "{long}");
        assert!(long.to_string().contains("consumer_timeout = 7200000"), "{long}");
    }
}
