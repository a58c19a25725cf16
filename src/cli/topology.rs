//! `chainwriter topology print|apply|permissions`

use clap::Subcommand;
use serde_json::json;

use crate::broker::{self, Role, TopologyMode, Use};
use crate::cli::{check_reason, complain, exit, operator, say};
use crate::config::Settings;
use crate::journal::JournalError;
use crate::model::{Act, Order};
use crate::policy::replies::Allowed;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the queues, exchanges and bindings as definitions that `rabbitmqctl import_definitions` takes.
    Print {
        /// The virtual host to name in them.
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Make what is missing; report what is other than it must be.
    Apply {
        /// Why; stands in `log`.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Print the least rights of each user as commands of `rabbitmqctl`: of the worker, of operators, of the one who runs `topology
    /// apply`, and of producers.
    Permissions {
        /// The virtual host to name in them.
        #[arg(long, default_value = "/")]
        vhost: String,
        /// Only those of this user's kind.
        #[arg(long, value_parser = role)]
        role: Option<Role>,
        /// The user's name; without it, the organisation and the kind: acme-worker.
        #[arg(long, requires = "role", value_name = "NAME")]
        user: Option<String>,
        /// Print definitions that `rabbitmqctl import_definitions` takes.
        #[arg(long)]
        json: bool,
    },
}

fn role(word: &str) -> Result<Role, String> {
    let words = || Role::ALL.map(Role::word).join(", ");
    Role::ALL.into_iter().find(|role| role.word() == word).ok_or_else(|| format!("expected one of {}", words()))
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let broker = &settings.broker;
    match command {
        Command::Print { vhost } => say(serde_json::to_string_pretty(&broker.topology.definitions(&vhost))?),
        Command::Apply { reason } => {
            check_reason(&reason)?;
            let vhost = broker::check(broker, TopologyMode::Declare).await?;
            say(format_args!("the topology of {} is in place on virtual host {vhost}", broker.topology.names.work));
            note(settings, &vhost, reason).await;
        }
        Command::Permissions { vhost, role, user, json } => {
            let roles = Role::ALL.into_iter().filter(|one| role.is_none_or(|only| only == *one));
            let users: Vec<_> = roles.map(|role| User::new(role, user.as_deref(), settings)).collect();
            if json {
                let permissions: Vec<_> = users.iter().map(|user| user.definition(&vhost)).collect();
                say(serde_json::to_string_pretty(&json!({ "permissions": permissions }))?);
            } else {
                users.iter().for_each(|user| say(user.command(&vhost)));
            }
        }
    }
    Ok(exit::OK)
}

/// Notes it in the log of operators. Before the first start there is no journal yet, and the user who makes the broker's
/// objects may have no right to it: the topology is in place all the same.
async fn note(settings: &Settings, vhost: &str, reason: String) {
    let detail = format!("{} on virtual host {vhost}", settings.broker.topology.names.work);
    let noted = async {
        let journal = settings.journal.address.open_existing().await?;
        let noted = journal.note(Act::ApplyTopology, Order::new(operator(), reason), detail).await;
        journal.close().await;
        noted
    };
    match noted.await {
        Ok(()) | Err(JournalError::Missing { .. }) => {}
        Err(error) => complain(format_args!("this is not in `chainwriter log`: {error}")),
    }
}

struct User {
    name: String,
    purpose: &'static str,
    /// To configure, to write, to read.
    patterns: [String; 3],
}

impl User {
    fn new(role: Role, name: Option<&str>, settings: &Settings) -> Self {
        let with = Use {
            mode: settings.broker.topology_mode,
            replies: settings.replies.allowed != Allowed::None,
            replays: !settings.dead.rules.is_empty(),
        };
        let purpose = match role {
            Role::Worker if with.mode == TopologyMode::Declare => {
                "runs the worker, which makes its objects itself; with broker.topology = \"verify\" it needs less"
            }
            Role::Worker => "runs the worker",
            Role::Operator => "runs status, dead, publish and adopt",
            Role::Topology => "runs topology apply",
            Role::Producer => "publishes messages; give it also what its own queue for replies needs",
        };
        let name = name.map_or_else(|| format!("{}-{}", settings.worker.organisation, role.word()), str::to_owned);
        Self { name, purpose, patterns: settings.broker.topology.rights(role, with).patterns() }
    }

    fn command(&self, vhost: &str) -> String {
        let quoted: Vec<_> =
            [vhost, &self.name].into_iter().chain(self.patterns.iter().map(String::as_str)).map(quoted).collect();
        format!("# {}: {}\nrabbitmqctl set_permissions -p {}", self.name, self.purpose, quoted.join(" "))
    }

    fn definition(&self, vhost: &str) -> serde_json::Value {
        let [configure, write, read] = &self.patterns;
        json!({ "user": self.name, "vhost": vhost, "configure": configure, "write": write, "read": read })
    }
}

/// Returns the text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_with;

    #[test]
    fn a_command_is_safe_to_paste_whatever_the_names_are() {
        let settings = load_with("broker.topology = \"verify\"\nrequest.reply_to = \"off\"").unwrap();
        let user = User::new(Role::Worker, None, &settings);
        let command = user.command("it's; rm -rf /");
        let (comment, line) = command.split_once('\n').unwrap();
        assert_eq!(comment, "# acme-worker: runs the worker");
        assert_eq!(
            line,
            "rabbitmqctl set_permissions -p 'it'\\''s; rm -rf /' 'acme-worker' '^$' '^(q\\.retry|q\\.dead|q\\.events)$' '^(q|q\\.journal)$'"
        );
        assert_eq!(user.definition("/")["read"], r"^(q|q\.journal)$");
    }

    #[test]
    fn what_the_configuration_says_of_replies_and_rules_counts() {
        let rights = |lines: &str| User::new(Role::Worker, Some("w"), &load_with(lines).unwrap()).patterns;
        let plain = rights("broker.topology = \"verify\"\nrequest.reply_to = \"off\"");
        assert!(!plain[1].contains("default"));
        assert!(rights("broker.topology = \"verify\"")[1].contains(r"amq\.default"));
        assert_ne!(rights("request.reply_to = \"off\"")[0], "^$", "it declares its objects");
    }
}
