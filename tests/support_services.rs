//! The services that other tests stand on do what they promise, shown on the real parts.

mod support;

use std::io::{BufRead, BufReader, ErrorKind};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::contracts;
use support::guard::send_signal;
use support::rpc::hex;
use support::{
    ACCOUNTS, Amqp, Anvil, AnvilConfig, Guard, Mode, Postgres, PostgresConfig, Rabbit, RabbitCluster, RabbitConfig,
    RpcClient, TcpProxy, postgres_is_here, services_are_here, wait_until, with_id,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

fn alive(pid: u32) -> bool {
    // A zombie has nothing left but its entry.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

async fn send_one_wei(rpc: RpcClient, gas_price: u64) -> Result<String, String> {
    let transaction = json!({
        "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1",
        "gas": "0x5208", "gasPrice": hex(gas_price),
    });
    let hash = rpc.call("eth_sendTransaction", json!([transaction])).await?;
    Ok(hash.as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_postgres_server_serves_restarts_with_its_data_and_leaves_nothing_behind() {
    if !postgres_is_here() {
        return;
    }
    let started = Instant::now();
    let mut postgres = Postgres::start(PostgresConfig::default()).await;
    eprintln!("PostgreSQL came up in {:?}", started.elapsed());
    assert_ne!(postgres.new_schema().await, postgres.new_schema().await);
    postgres.run("CREATE TABLE kept (n bigint); INSERT INTO kept VALUES (7)").await;
    let client = postgres.client().await.unwrap();
    postgres.cut_all().await;
    assert!(client.simple_query("SELECT 1").await.is_err());
    for kind in ["graceful", "killed"] {
        if kind == "graceful" {
            postgres.stop().await
        } else {
            postgres.kill().await
        }
        assert!(postgres.client().await.is_err(), "{kind}");
        postgres.start_again().await;
        assert_eq!(postgres.run("SELECT n FROM kept").await, ["7"], "{kind}");
    }
    assert!(String::from_utf8(postgres.dump().await).unwrap().contains("kept"));
    let (pids, folder) = (postgres.pids(), postgres.folder().to_owned());
    assert_eq!(pids.len(), 1);
    drop(postgres);
    assert!(!folder.exists() && !pids.into_iter().any(alive));
}

/// Covers B36, for the broker's part.
#[tokio::test]
async fn a_cluster_keeps_what_it_has_confirmed_when_its_leader_is_killed_frozen_or_parted() {
    if !services_are_here() {
        return;
    }
    let started = Instant::now();
    let mut cluster = RabbitCluster::start(3).await;
    eprintln!("a cluster of RabbitMQ {} came up in {:?}", cluster.nodes[0].version().await.unwrap(), started.elapsed());
    Amqp::connect(&cluster.uris("/")[0]).await.declare_quorum("kept").await;
    let mut published = 0;
    for fault in ["killed", "frozen", "parted"] {
        let leader = cluster.leader("/", "kept").await.unwrap();
        let other = (leader + 1) % 3;
        Amqp::connect(&cluster.uris("/")[leader]).await.publish("kept", with_id("before"), b"").await;
        let began = Instant::now();
        match fault {
            "killed" => cluster.nodes[leader].kill().await,
            "frozen" => cluster.nodes[leader].pause(),
            _ => cluster.isolate(leader),
        }
        let new = async || cluster.nodes[other].eval(&leader_of_kept()).await.unwrap_or_default();
        let old = cluster.nodes[leader].node_name();
        wait_until("another node leads", LONG, async || !new().await.contains(&old)).await;
        Amqp::connect(&cluster.uris("/")[other]).await.publish("kept", with_id("after"), b"").await;
        published += 2;
        eprintln!("{fault}: another node leads after {:?}", began.elapsed());
        match fault {
            "killed" => {}
            "frozen" => cluster.nodes[leader].resume(),
            _ => cluster.heal(leader),
        }
        let began = Instant::now();
        cluster.repair().await.unwrap();
        eprintln!("{fault}: the cluster is whole after {:?}", began.elapsed());
    }
    assert_eq!(Amqp::connect(&cluster.uris("/")[1]).await.take_all("kept").await.len(), published);
}

/// As the node that answers knows it.
fn leader_of_kept() -> String {
    "{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"kept\">>)), amqqueue:get_pid(Q)".to_owned()
}

#[tokio::test]
async fn a_rabbitmq_node_serves_restarts_with_its_data_and_leaves_nothing_behind() {
    if !services_are_here() {
        return;
    }
    let started = Instant::now();
    let mut rabbit = Rabbit::start(RabbitConfig {
        extra_conf: vec!["consumer_timeout = 60000".to_owned()],
        ..RabbitConfig::default()
    })
    .await;
    eprintln!("RabbitMQ came up in {:?}", started.elapsed());
    assert_eq!(rabbit.eval("application:get_env(rabbit, consumer_timeout)").await.as_deref(), Ok("{ok,60000}"));
    assert!(rabbit.eval("error(told)").await.is_err_and(|text| text.contains("told")));
    assert!(rabbit.eval("this is no erlang").await.is_err());

    rabbit.add_vhost("acme/eu").await.unwrap();
    assert!(rabbit.ctl(&["list_vhosts"]).await.unwrap().contains("acme/eu"));
    assert!(rabbit.uri("acme/eu").ends_with("/acme%2Feu"));
    assert!(rabbit.ctl(&["no_such_command"]).await.is_err());

    let declare = |name: &str, kind: &str| {
        format!(
            "rabbit_amqqueue:declare(rabbit_misc:r(<<\"acme/eu\">>, queue, <<\"{name}\">>), true, false, \
             [{{<<\"x-queue-type\">>, longstr, <<\"{kind}\">>}}], none, <<\"guest\">>)"
        )
    };
    for (name, kind) in [("classic", "classic"), ("quorum", "quorum")] {
        rabbit.eval(&declare(name, kind)).await.unwrap();
        let producer = Amqp::connect(&rabbit.uri("acme/eu")).await;
        producer.publish(name, with_id("one"), b"body").await;
    }
    for kind in ["graceful", "killed"] {
        for name in ["classic", "quorum"] {
            wait_until("the message is in its queue", LONG, async || {
                rabbit.queue("acme/eu", name).await.unwrap().is_some_and(|queue| queue.ready == 1)
            })
            .await;
        }
        let restarted = Instant::now();
        match kind {
            "graceful" => rabbit.restart().await,
            _ => rabbit.kill_and_restart().await,
        }
        eprintln!("RabbitMQ restarted ({kind}) in {:?}", restarted.elapsed());
    }
    wait_until("the quorum queue has a leader again", LONG, async || {
        rabbit.list_queues("acme/eu").await.is_ok_and(|queues| queues.len() == 2)
    })
    .await;

    let pids = rabbit.pids();
    assert!(pids.len() >= 3, "the VM, its helpers and epmd: {pids:?}");
    let folder = rabbit.folder().to_owned();
    let dropped = Instant::now();
    drop(rabbit);
    eprintln!("RabbitMQ was gone in {:?}", dropped.elapsed());
    assert!(!pids.iter().any(|pid| alive(*pid)), "left running: {pids:?}");
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_rabbitmq_node_can_be_disturbed_while_it_runs() {
    if !services_are_here() {
        return;
    }
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let greet = async || {
        let mut stream = TcpStream::connect(rabbit.address()).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        let mut frame = [0; 3];
        stream.read_exact(&mut frame).await?;
        Ok::<TcpStream, std::io::Error>(stream)
    };

    rabbit.raise_memory_alarm().await.unwrap();
    assert!(rabbit.eval("rabbit_alarm:get_alarms()").await.unwrap().contains("memory"));
    rabbit.clear_memory_alarm().await.unwrap();
    assert_eq!(rabbit.eval("rabbit_alarm:get_alarms()").await.as_deref(), Ok("[]"));

    let mut open = greet().await.unwrap();
    wait_until("the connection is known", LONG, async || rabbit.connection_count().await == Ok(1)).await;
    rabbit.close_all_connections("a test says so").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LONG, open.read_to_end(&mut rest)).await.unwrap();

    rabbit.stop_app().await.unwrap();
    assert!(greet().await.is_err());
    rabbit.start_app().await.unwrap();
    greet().await.unwrap();
}

#[tokio::test]
async fn anvil_keeps_its_chain_over_a_stop_and_loses_its_pool() {
    if !services_are_here() {
        return;
    }
    let started = Instant::now();
    let mut anvil = Anvil::start(AnvilConfig { chain_id: 4_242, ..AnvilConfig::default() }).await;
    eprintln!("Anvil came up in {:?}", started.elapsed());
    assert_eq!(anvil.call("eth_chainId", json!([])).await.unwrap(), hex(4_242_u64));

    let mined = send_one_wei(anvil.rpc(), 2_000_000_000).await.unwrap();
    wait_until("the receipt is there", LONG, async || anvil.receipt(&mined).await.unwrap().is_object()).await;
    anvil.set_auto_mine(false).await.unwrap();
    let waiting = send_one_wei(anvil.rpc(), 2_000_000_000).await.unwrap();
    assert_eq!(anvil.pool_size().await, Ok((1, 0)));
    assert_eq!(anvil.nonce(ACCOUNTS[0].0, "latest").await, Ok(1));
    assert_eq!(anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(2));

    let restarted = Instant::now();
    anvil.stop().await;
    assert!(anvil.block_number().await.is_err());
    anvil.start_again().await;
    eprintln!("Anvil restarted in {:?}", restarted.elapsed());
    assert_eq!(anvil.block_number().await, Ok(1));
    assert_eq!(anvil.pool_size().await, Ok((0, 0)));
    assert_eq!(anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(1));
    assert!(anvil.receipt(&mined).await.unwrap().is_object());
    assert_eq!(anvil.block_with_transactions(1).await.unwrap()["transactions"][0]["hash"], json!(mined));
    assert_eq!(anvil.call("eth_getTransactionByHash", json!([waiting])).await.unwrap(), Value::Null);

    anvil.mine(3).await.unwrap();
    anvil.kill().await;
    anvil.start_again().await;
    assert_eq!(anvil.block_number().await, Ok(1), "a kill goes back to the last stop");

    let pids = anvil.pids();
    assert!(!pids.is_empty());
    drop(anvil);
    assert!(!pids.iter().any(|pid| alive(*pid)));
}

#[tokio::test]
async fn anvil_can_be_steered_frozen_and_reorganised() {
    if !services_are_here() {
        return;
    }
    let anvil = Anvil::start(AnvilConfig {
        base_fee: Some(7_000_000_000),
        block_time: Some(Duration::from_secs(3_600)),
        ..AnvilConfig::default()
    })
    .await;
    anvil.set_next_base_fee(9_000_000_000).await.unwrap();
    anvil.mine(1).await.unwrap();
    let block = anvil.block_with_transactions(1).await.unwrap();
    assert_eq!(block["baseFeePerGas"], hex(9_000_000_000_u64));

    let hash = send_one_wei(anvil.rpc(), 20_000_000_000).await.unwrap();
    assert_eq!(anvil.pool_size().await, Ok((1, 0)));
    anvil.drop_transaction(&hash).await.unwrap();
    assert_eq!(anvil.pool_size().await, Ok((0, 0)));
    send_one_wei(anvil.rpc(), 20_000_000_000).await.unwrap();
    anvil.drop_all().await.unwrap();
    assert_eq!(anvil.pool_size().await, Ok((0, 0)));

    let hash = send_one_wei(anvil.rpc(), 20_000_000_000).await.unwrap();
    anvil.mine(1).await.unwrap();
    assert!(anvil.receipt(&hash).await.unwrap().is_object());
    let before = anvil.block_with_transactions(2).await.unwrap()["hash"].clone();
    anvil.reorg(1).await.unwrap();
    let after = anvil.block_with_transactions(2).await.unwrap();
    assert_ne!(after["hash"], before);
    assert_eq!(after["transactions"], json!([]));
    assert_eq!(anvil.receipt(&hash).await.unwrap(), Value::Null);

    anvil.set_balance(ACCOUNTS[9].0, 5).await.unwrap();
    assert_eq!(anvil.balance(ACCOUNTS[9].0).await, Ok(5));
    let answers = anvil.batch(vec![("eth_blockNumber", json!([])), ("no_such_method", json!([]))]).await.unwrap();
    assert_eq!(answers[0], Ok(json!("0x2")));
    assert!(answers[1].is_err());

    anvil.pause();
    let frozen = anvil.rpc();
    // The signal takes hold when the kernel gets to it: a call just before may still be answered.
    wait_until("the frozen node answers no more", LONG, async || {
        tokio::time::timeout(SHORT, frozen.block_number()).await.is_err()
    })
    .await;
    anvil.resume();
    assert_eq!(anvil.block_number().await, Ok(2));
}

#[tokio::test]
async fn the_contracts_answer_as_their_names_say() {
    if !services_are_here() {
        return;
    }
    let anvil = Anvil::start(AnvilConfig::default()).await;
    let address = "0x00000000000000000000000000000000000c0de0";
    let word = format!("{:064x}", 5);
    let call = json!([{ "from": ACCOUNTS[0].0, "to": address, "data": format!("0x12345678{word}") }, "latest"]);
    let outcome = async || anvil.call("eth_call", call.clone()).await;
    let custom = format!("{}{:064x}", contracts::NOT_ALLOWED_SELECTOR, 42);
    let panic = format!("0x4e487b71{:064x}", 0x11);
    let reverting = [
        (contracts::ALWAYS_REVERTS, "not today"),
        (contracts::PANICS, panic.as_str()),
        (contracts::REVERTS_CUSTOM, custom.as_str()),
        (contracts::REVERTS_UNLESS_FLAG, "closed"),
    ];
    for (bytecode, expected) in reverting {
        anvil.set_code(address, bytecode).await.unwrap();
        let error = outcome().await.unwrap_err();
        eprintln!("{error}");
        assert!(error.contains(expected), "{error}");
    }
    anvil.set_storage(address, 0, 1).await.unwrap();
    assert_eq!(outcome().await, Ok(json!("0x")));

    anvil.set_code(address, contracts::SINK).await.unwrap();
    assert_eq!(outcome().await, Ok(json!("0x")));

    anvil.set_code(address, contracts::BY_NUMBER).await.unwrap();
    let word = |number: u64| format!("{number:064x}");
    let one = |kind| format!("0x12345678{}{}", word(kind), word(7));
    let many = |kinds: [u64; 3]| {
        let kinds: String = kinds.map(word).concat();
        format!("0x87654321{}{}{}{kinds}{}{kinds}", word(0x40), word(0xc0), word(3), word(3))
    };
    for (open, data, expected) in [
        (0, one(0), None),
        (0, one(1), Some("closed")),
        (1, one(1), None),
        (1, one(2), Some("not today")),
        (0, many([0, 0, 0]), None),
        (0, many([0, 0, 1]), Some("closed")),
        (1, many([1, 0, 1]), None),
        (1, many([1, 0, 2]), Some("not today")),
    ] {
        anvil.set_storage(address, 0, open).await.unwrap();
        let call = json!([{ "from": ACCOUNTS[0].0, "to": address, "data": data }, "latest"]);
        let answer = anvil.call("eth_call", call).await;
        match expected {
            None => assert_eq!(answer, Ok(json!("0x")), "{open} {data}"),
            Some(text) => assert!(answer.clone().unwrap_err().contains(text), "{open} {data} {answer:?}"),
        }
    }

    anvil.set_code(address, contracts::COUNTS_EFFECTS).await.unwrap();
    for _ in 0..2 {
        anvil.call("eth_sendTransaction", json!([call[0]])).await.unwrap();
    }
    wait_until("both took effect", LONG, async || anvil.storage(address, 5).await == Ok(2)).await;
}

#[tokio::test]
async fn the_proxy_fails_http_in_each_of_its_ways() {
    if !services_are_here() {
        return;
    }
    let mut anvil = Anvil::start(AnvilConfig::default()).await;
    let proxy = TcpProxy::start(anvil.address()).await;
    let through = RpcClient::new(proxy.addr());
    assert_eq!(through.block_number().await, Ok(0));

    proxy.set_mode(Mode::Refuse);
    assert!(through.block_number().await.is_err());

    proxy.set_mode(Mode::Swallow);
    assert!(tokio::time::timeout(SHORT, through.mine(1)).await.is_err());
    assert_eq!(anvil.block_number().await, Ok(0), "nothing went through");

    proxy.set_mode(Mode::DropAnswers);
    assert!(tokio::time::timeout(SHORT, through.mine(1)).await.is_err());
    wait_until("the request arrived", LONG, async || anvil.block_number().await == Ok(1)).await;

    proxy.set_mode(Mode::ResetAfterRequest);
    let error = through.mine(1).await.unwrap_err();
    assert!(error.contains("reset"), "{error}");
    assert_eq!(anvil.block_number().await, Ok(2), "the node took it before the cut");

    proxy.set_mode(Mode::Until { bytes: b"eth_gasPrice", then: Box::new(Mode::ResetAfterRequest) });
    assert_eq!(through.block_number().await, Ok(2), "not yet");
    let error = through.call("eth_gasPrice", json!([])).await.unwrap_err();
    assert!(error.contains("reset"), "{error}");

    proxy.set_mode(Mode::Delay(SHORT));
    let asked = Instant::now();
    assert_eq!(through.block_number().await, Ok(2));
    assert!(asked.elapsed() >= SHORT);

    let body = r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"slow down"}}"#;
    proxy.set_mode(Mode::HttpAnswer { status: 429, body: body.to_owned(), retry_after: Some(7) });
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n{").await.unwrap();
        stream.write_all(b"  }").await.unwrap();
        let mut answer = vec![0; 1024];
        let count = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        assert!(answer.contains("Retry-After: 7\r\n") && answer.ends_with(body), "{answer}");
    }
    anvil.stop().await;
    let dead_upstream = through.call("eth_blockNumber", json!([])).await;
    assert!(dead_upstream.is_err_and(|error| error.contains("slow down")));
    proxy.set_mode(Mode::Pass);
    assert!(through.block_number().await.is_err());
    anvil.start_again().await;
    assert_eq!(through.block_number().await, Ok(2));
}

#[tokio::test]
async fn the_proxy_cuts_open_connections_with_a_reset() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"pong");

    proxy.cut_all();
    let error = client.read(&mut bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.read(&mut bytes).await.unwrap_or(0), 0);
    assert_eq!(proxy.accepted(), 1);
}

/// Not a test by itself: what the next test kills. It prints its folder and a guarded process that became a daemon.
#[tokio::test]
#[ignore = "run by the test below"]
async fn helper_that_waits_to_be_killed() {
    let guard = Guard::new("victim");
    let mut child = guard.command("sh").args(["-c", "setsid sleep 1000 & sleep 1000"]).spawn().unwrap();
    wait_until("all three run", LONG, async || guard.pids().len() == 3).await;
    eprintln!("guarded {} {:?}", guard.folder().display(), guard.pids());
    let _ = child.wait().await;
}

#[tokio::test]
async fn what_is_guarded_ends_with_its_process_even_when_that_is_killed() {
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("guarded ")).unwrap();
    let mut words = line.split_whitespace().skip(1);
    let folder = std::path::PathBuf::from(words.next().unwrap());
    let pids: Vec<u32> = words.map(|word| word.trim_matches(['[', ',', ']']).parse().unwrap()).collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| alive(*pid)) && folder.is_dir());

    send_signal(victim.id(), "KILL");
    victim.wait().unwrap();
    wait_until("the guarded processes and the folder are gone", LONG, async || {
        !pids.iter().any(|pid| alive(*pid)) && !folder.exists()
    })
    .await;
}
