//! What a test asks of its RabbitMQ node while it runs: virtual hosts, queues, alarms, cut connections.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::rabbit::{COOKIE, MEMORY_LIMIT, Rabbit, erl_call_program, server_program};

const CALL_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCount {
    pub name: String,
    pub ready: u64,
    pub unacked: u64,
}

impl Rabbit {
    /// Runs `rabbitmqctl`: half a second each, so prefer [`Self::eval`] in loops. Err holds what it printed.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let program = server_program().ok_or("RabbitMQ is missing")?.with_file_name("rabbitmqctl");
        let output = self.command(program).arg("--quiet").args(arguments).output();
        let output = tokio::time::timeout(CALL_LIMIT, output).await.map_err(|_| "rabbitmqctl hangs")?;
        let output = output.map_err(|error| format!("rabbitmqctl: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}\n{}", text(&output.stdout), text(&output.stderr)))
        }
    }

    /// Evaluates an Erlang expression (without the full stop) on the node, some milliseconds; the value as Erlang
    /// writes it.
    pub async fn eval(&self, expression: &str) -> Result<String, String> {
        self.run_erlang(&format!("io:format(\"~0tp\", [begin {expression} end])")).await
    }

    /// Runs an expression on the node and returns what it prints, by `erl_call`: the node's distribution protocol
    /// without the start of an Erlang VM. It reports neither errors nor exceptions, hence the words around.
    async fn run_erlang(&self, expression: &str) -> Result<String, String> {
        // Two of them at once get in each other's way: the node refuses one of the connections.
        const TRIES: u32 = 20;
        let mut answer = self.run_erlang_once(expression).await;
        for _ in 1..TRIES {
            match &answer {
                Err(text) if text.contains("failed to connect") || text.contains("Broken pipe") => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    answer = self.run_erlang_once(expression).await;
                }
                _ => break,
            }
        }
        answer
    }

    async fn run_erlang_once(&self, expression: &str) -> Result<String, String> {
        let program = erl_call_program().ok_or("erl_call (part of Erlang) is not on PATH")?;
        let code = format!(
            "try {expression}, io:format(\"~nok\") catch ItsClass:ItsReason -> io:format(\"~n~0tp\", [{{ItsClass, ItsReason}}]) end.\n"
        );
        let mut command = self.command(program);
        command.args(["-address", &format!("127.0.0.1:{}", self.distribution_port()), "-c", COOKIE, "-r"]);
        command.args(["-fetch_stdout", "-no_result_term", "-e"]).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("erl_call: {error}"))?;
        let mut input = child.stdin.take().ok_or("erl_call takes no input")?;
        // One that could not connect is gone before it has read; what it printed says why.
        let _ = input.write_all(code.as_bytes()).await;
        drop(input);
        let output = tokio::time::timeout(CALL_LIMIT, child.wait_with_output()).await.map_err(|_| "erl_call hangs")?;
        let output = output.map_err(|error| format!("erl_call: {error}"))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        match printed.rsplit_once('\n') {
            Some((value, "ok")) => Ok(value.to_owned()),
            Some((_, exception)) => Err(exception.to_owned()),
            None => Err(format!("not evaluated: {expression}\n{}", String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    /// Makes a virtual host on which guest may do everything.
    pub async fn add_vhost(&self, name: &str) -> Result<(), String> {
        let vhost = erlang_binary(name);
        let all = "<<\".*\">>";
        self.eval(&format!(
            "ok = rabbit_vhost:add({vhost}, <<\"guest\">>), rabbit_auth_backend_internal:set_permissions(\
             <<\"guest\">>, {vhost}, {all}, {all}, {all}, <<\"guest\">>)"
        ))
        .await
        .map(drop)
    }

    /// Makes a user; without a password only a certificate lets it in.
    pub async fn add_user(&self, name: &str, password: Option<&str>) -> Result<(), String> {
        self.ctl(&["add_user", name, password.unwrap_or("unused")]).await?;
        if password.is_none() {
            self.ctl(&["clear_password", name]).await?;
        }
        Ok(())
    }

    /// Opens one more listener for TLS, with these options of Erlang's, and returns its port.
    pub async fn listen_tls(&self, options: &str) -> Result<u16, String> {
        let port = super::ports::free_port();
        self.eval(&format!(
            "rabbit_networking:ensure_ssl(), ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}, inet}}, {options}, 2)"
        ))
        .await?;
        Ok(port)
    }

    /// Stops the broker, not the VM: connections are closed with 320 and the port refuses.
    pub async fn stop_app(&self) -> Result<(), String> {
        self.ctl(&["stop_app"]).await.map(drop)
    }

    pub async fn start_app(&self) -> Result<(), String> {
        self.ctl(&["start_app"]).await.map(drop)
    }

    /// Blocks every connection that publishes; returns when the alarm is set.
    pub async fn raise_memory_alarm(&self) -> Result<(), String> {
        self.set_memory_limit("0.00001", true).await
    }

    pub async fn clear_memory_alarm(&self) -> Result<(), String> {
        self.set_memory_limit(&format!("{{absolute, \"{MEMORY_LIMIT}\"}}"), false).await
    }

    /// Raises the alarm for disk space.
    pub async fn raise_disk_alarm(&self) -> Result<(), String> {
        self.set_limit("rabbit_disk_monitor:set_disk_free_limit(\"1000000GB\")", true).await
    }

    pub async fn clear_disk_alarm(&self) -> Result<(), String> {
        self.set_limit("rabbit_disk_monitor:set_disk_free_limit(\"50MB\")", false).await
    }

    async fn set_memory_limit(&self, limit: &str, alarm: bool) -> Result<(), String> {
        self.set_limit(&format!("vm_memory_monitor:set_vm_memory_high_watermark({limit})"), alarm).await
    }

    async fn set_limit(&self, setting: &str, alarm: bool) -> Result<(), String> {
        self.eval(&format!("ok = {setting}")).await?;
        let started = std::time::Instant::now();
        while (self.eval("rabbit_alarm:get_alarms()").await? != "[]") != alarm {
            if started.elapsed() > CALL_LIMIT {
                return Err("the alarm did not change".to_owned());
            }
        }
        Ok(())
    }

    /// Every queue of a virtual host with its messages as they are now, by name. (What `rabbitmqctl list_queues`
    /// says of a quorum queue is older: the queue reports from time to time.)
    pub async fn list_queues(&self, vhost: &str) -> Result<Vec<QueueCount>, String> {
        let printed = self
            .run_erlang(&format!(
                "Counts = fun(S) -> {{rabbit_fifo:query_messages_ready(S), rabbit_fifo:query_messages_checked_out(S)}} end,
                [begin
                    {{resource, _, queue, Name}} = amqqueue:get_name(Q),
                    {{Ready, Unacked}} = case amqqueue:get_type(Q) of
                        rabbit_quorum_queue ->
                            {{ok, {{_, Both}}, _}} = ra:leader_query(amqqueue:get_pid(Q), Counts), Both;
                        _ ->
                            [{{_, R}}, {{_, U}}] = rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]),
                            {{R, U}}
                    end,
                    io:format(\"~s\t~b\t~b~n\", [Name, Ready, Unacked])
                end || Q <- rabbit_amqqueue:list({})]",
                erlang_binary(vhost)
            ))
            .await?;
        let mut queues: Vec<QueueCount> = printed.lines().filter_map(queue_count).collect();
        queues.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(queues)
    }

    /// One queue's messages; None where there is no such queue.
    pub async fn queue(&self, vhost: &str, name: &str) -> Result<Option<QueueCount>, String> {
        Ok(self.list_queues(vhost).await?.into_iter().find(|queue| queue.name == name))
    }

    /// Closes every AMQP connection with 320 CONNECTION_FORCED and `reason`.
    pub async fn close_all_connections(&self, reason: &str) -> Result<(), String> {
        let reason = erlang_binary(reason);
        let close = "[rabbit_networking:close_connection(Pid, Reason) || Pid <- rabbit_networking:connections()]";
        self.eval(&format!("Reason = {reason}, {close}")).await.map(drop)
    }

    /// Returns the version of the broker, such as 3.10.8.
    pub async fn version(&self) -> Result<String, String> {
        Ok(self.eval("rabbit_misc:version()").await?.trim_matches('"').to_owned())
    }

    pub async fn connection_count(&self) -> Result<u64, String> {
        let count = self.eval("length(rabbit_networking:connections())").await?;
        count.parse().map_err(|_| format!("no number of connections: {count}"))
    }
}

/// A text as an Erlang binary, byte by byte, so that nothing in it needs escaping.
pub(super) fn erlang_binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}

fn queue_count(line: &str) -> Option<QueueCount> {
    let mut fields = line.split('\t');
    Some(QueueCount {
        name: fields.next()?.to_owned(),
        ready: fields.next()?.parse().ok()?,
        unacked: fields.next()?.parse().ok()?,
    })
}
