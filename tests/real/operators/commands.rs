//! The commands that talk to a broker and a node, against real ones.

use std::collections::BTreeSet;

use crate::stage::{BINARY, DEAD, QUEUE, Stage, calldata};
use crate::support::WorkerHome;

/// Each line is a message with its id, on the broker when the command ends; the daemon writes each once.
#[tokio::test]
async fn published_lines_are_messages_with_ids_that_become_writes() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let lines: Vec<String> = (0..150).map(|number| format!("{{\"order\":{{\"id\":\"o-{number}\"}}}}")).collect();
    let input = lines.join("\n") + "\n\n";
    let (code, text) = home.command_with_input(BINARY, &["publish", "--id", "/order/id", "-"], input.as_bytes()).await;
    assert_eq!((code, text.contains("150 published to acme.writes, 0 failed")), (0, true), "{text}");
    assert_eq!(stage.depth(QUEUE).await, (150, 0));
    // Again, and from a file: the same ids.
    let file = home.folder().join("orders.ndjson");
    std::fs::write(&file, &input).unwrap();
    let (code, text) = home.command(BINARY, &["publish", "--id", "/order/id", &file.display().to_string()]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.depth(QUEUE).await, (300, 0));
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = lines.iter().map(|line| calldata(line.as_bytes())).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert_eq!(stage.status(&home, "o-149").await["state"], "final");
}

#[tokio::test]
async fn a_published_file_is_one_message_whose_id_is_its_hash() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let body: Vec<u8> = (0..=255).collect();
    let file = home.folder().join("picture.bin").display().to_string();
    std::fs::write(&file, &body).unwrap();
    let (code, text) = home.command(BINARY, &["publish", "--reply-to", "answers", &file, &file]).await;
    assert_eq!((code, text.contains("2 published")), (0, true), "{text}");
    let messages = stage.amqp.take_all(QUEUE).await;
    let ids: BTreeSet<_> = messages.iter().map(crate::support::Taken::id).collect();
    assert_eq!((messages.len(), ids.len()), (2, 1), "the same content has the same id");
    for message in messages {
        assert_eq!(message.body, body);
        assert_eq!(*message.properties.delivery_mode(), Some(2));
        assert_eq!(message.properties.reply_to().as_ref().map(ToString::to_string).as_deref(), Some("answers"));
    }
}

/// A fault is named with its line. The rest of a stream goes, and the exit code says that not all did; of a file with a fault
/// nothing goes.
#[tokio::test]
async fn lines_without_an_id_and_queues_that_are_not_there_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    let lines = b"{\"id\":\"a\"}\nno json\n{\"name\":\"b\"}\n{\"id\":\"c\"}\n";
    let (code, text) = home.command_with_input(BINARY, &["publish", "--id", "/id", "-"], lines).await;
    assert_eq!(code, 69, "{text}");
    assert!(text.contains("0 published") && text.contains("no queue takes messages"), "{text}");
    stage.topology(&home).await;
    let (code, text) = home.command_with_input(BINARY, &["publish", "--id", "/id", "-"], lines).await;
    assert_eq!(code, 2, "{text}");
    for part in ["line 2: column 2: it is not JSON", "line 3", "2 published to acme.writes, 2 failed"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let ids: Vec<_> = stage.amqp.take_all(QUEUE).await.iter().map(crate::support::Taken::id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&"a".to_owned(), &"c".to_owned()]));
    let file = home.folder().join("orders.ndjson").display().to_string();
    std::fs::write(&file, lines).unwrap();
    for arguments in [["publish", "--id", "/id", &file], ["publish", "--id", "/id", "/nowhere/orders.ndjson"]] {
        let (code, text) = home.command(BINARY, &arguments).await;
        assert_eq!((code, text.contains("orders.ndjson")), (2, true), "{text}");
        assert!(text.contains("nothing was published"), "{text}");
    }
    assert_eq!(stage.depth(QUEUE).await.0, 0);
}

#[tokio::test]
async fn what_the_worker_would_refuse_is_published_only_on_demand() {
    let Some(stage) = Stage::set().await else { return };
    let route = "name = \"eat\"\ntype = \"food\"\nto = \"0x00000000000000000000000000000000000000ea\"";
    let home = WorkerHome::new(&stage.config().with("broker", "max_body = \"64B\"").with("route", route));
    stage.topology(&home).await;
    let file = home.folder().join("a.bin").display().to_string();
    std::fs::write(&file, [7; 65]).unwrap();
    let food = ["publish", "--type", "food", "--header", "tenant=north", &file];
    let (code, text) = home.command(BINARY, &food).await;
    assert!(code == 2 && text.contains("the body has 65 bytes, broker.max_body allows 64"), "{code} {text}");
    std::fs::write(&file, [7; 64]).unwrap();
    let (code, text) = home.command(BINARY, &["publish", &file]).await;
    assert!(code == 2 && text.contains("no route is for"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["publish", "--exchange", "nowhere", "--unchecked", &file]).await;
    assert!(code == 69 && text.contains("nowhere"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["publish", "--header", "tenant", &file]).await;
    assert!(code == 64 && text.contains("NAME=TEXT"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["publish", "--id", "id", &file]).await;
    assert!(code == 64 && text.contains("write --id /id"), "{code} {text}");
    for arguments in [food.as_slice(), &["publish", "--unchecked", &file]] {
        let (code, text) = home.command(BINARY, arguments).await;
        assert_eq!(code, 0, "{text}");
    }
    let messages = stage.amqp.take_all(QUEUE).await;
    let kinds: Vec<_> = messages.iter().map(|message| message.properties.kind().clone().map(String::from)).collect();
    assert_eq!(kinds, [Some("food".to_owned()), None]);
    assert_eq!(messages[0].header("tenant").as_deref(), Some("north"));
}

/// Covers C48, B29: a look before the first start tells all that is missing or other than it must be.
#[tokio::test]
async fn a_check_with_connections_tells_everything_that_is_wrong() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("broker", "topology = \"verify\""));
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert_eq!(code, 69, "{text}");
    for object in ["exchange acme.writes.retry", "exchange acme.writes.events", "queue acme.writes", "topology apply"] {
        assert!(text.contains(object), "{object} is missing in {text}");
    }
    assert!(text.contains("ok    node: chain 31337"), "{text}");
    // One that may make them will.
    let home = WorkerHome::new(&stage.config());
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert!(code == 0 && text.contains("a worker makes queues and exchanges at its first start"), "{code} {text}");
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert_eq!(code, 0, "{text}");
    // A dead-letter queue and a wait queue of another make.
    for queue in [DEAD, "acme.writes.wait.5s"] {
        stage.amqp.delete(queue).await;
        stage.amqp.declare(queue).await;
    }
    for arguments in [["check", "--connect"], ["topology", "apply"]] {
        let (code, text) = home.command(BINARY, &arguments).await;
        assert_eq!(code, 69, "{text}");
        for queue in [DEAD, "acme.writes.wait.5s"] {
            assert!(text.contains(&format!("queue {queue}: PRECONDITION_FAILED")), "{text}");
        }
        assert!(text.contains("move its messages away"), "{text}");
    }
}

#[tokio::test]
async fn a_node_of_another_chain_fails_the_check() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "id = 1"));
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert_eq!((code, text.contains("serves chain 31337, chain.id is 1")), (69, true), "{text}");
}
