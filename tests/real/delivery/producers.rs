//! The programs in `examples/producers/`, as a producer runs them: against a worker, with confirms that get lost.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;

use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::guard::find_on_path;
use crate::support::{AnvilConfig, Guard, Mode, TcpProxy, Worker, WorkerHome};

/// A body that the contract refuses: its first byte is 0x21.
const REFUSED: &str = "!";

/// The programs, by language.
#[derive(Clone, Copy)]
enum Producer {
    Python,
    Node,
    Java,
    Go,
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    printed: String,
    /// What libraries complain of.
    #[allow(dead_code, reason = "shown when an assertion fails")]
    errors: String,
}

impl Producer {
    /// Returns the folder's name, the interpreter or compiler, and the file that pins the libraries.
    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Python => ("python", "python3", "requirements.txt"),
            Self::Node => ("node", "node", "package-lock.json"),
            Self::Java => ("java", "javac", "pom.xml"),
            Self::Go => ("go", "go", "go.sum"),
        }
    }

    fn sources(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/producers").join(self.parts().0)
    }

    fn libraries(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/producers").join(self.parts().0)
    }

    /// Returns what is missing here, if anything.
    fn missing(self) -> Option<String> {
        let (_, program, pins) = self.parts();
        if find_on_path(program).is_none() {
            return Some(format!("{program} is not on PATH"));
        }
        let brought = std::fs::read(self.libraries().join("brought")).ok();
        let wanted = std::fs::read(self.sources().join(pins)).unwrap();
        let missing = "its libraries are missing; run scripts/setup.sh producers, which needs a network";
        (brought != Some(wanted)).then(|| missing.to_owned())
    }

    /// Returns whether the program can run. If not, the reason goes past the capture of tests' output.
    fn is_here(self) -> bool {
        let missing = self.missing();
        if let Some(missing) = &missing {
            let _ = writeln!(std::io::stderr(), "skipped: examples/producers/{}: {missing}", self.parts().0);
        }
        missing.is_none()
    }

    /// Makes the program ready to run.
    async fn built(self) -> Program {
        let guard = Guard::new("producer");
        let (sources, libraries) = (self.sources(), self.libraries());
        let words: Vec<OsString> = match self {
            Self::Python => {
                let mut path = OsString::from("PYTHONPATH=");
                path.push(libraries);
                vec!["env".into(), path, "python3".into(), "-B".into(), sources.join("producer.py").into()]
            }
            Self::Node => {
                // Node looks for libraries beside the program.
                let copy = guard.folder().join("producer.mjs");
                std::fs::copy(sources.join("producer.js"), &copy).unwrap();
                let modules = libraries.join("node_modules");
                std::os::unix::fs::symlink(modules, guard.folder().join("node_modules")).unwrap();
                vec!["node".into(), copy.into()]
            }
            Self::Java => {
                let path = format!("{}:{}/*", guard.folder().display(), libraries.display());
                let mut compiler = guard.command("javac");
                compiler.args(["-Xlint:all", "-Werror", "-cp", &path, "-d"]).arg(guard.folder());
                compiler.arg(sources.join("src/main/java/Producer.java"));
                assert!(compiler.status().await.unwrap().success());
                vec!["java".into(), "-cp".into(), path.into(), "Producer".into()]
            }
            Self::Go => {
                let program = guard.folder().join("producer");
                let mut compiler = guard.command("go");
                compiler.env("GOMODCACHE", libraries.join("mod")).env("GOCACHE", libraries.join("cache"));
                compiler.env("GOPROXY", "off").env("GOFLAGS", "-mod=readonly").current_dir(&sources);
                assert!(compiler.args(["build", "-o"]).arg(&program).arg(".").status().await.unwrap().success());
                vec![program.into()]
            }
        };
        Program { guard, words }
    }
}

/// A program that can run, in a folder of its own.
struct Program {
    guard: Guard,
    words: Vec<OsString>,
}

impl Program {
    /// Begins to send one request.
    fn start(&self, broker: &str, queue: &str, id: &str, body: &str) -> Child {
        let mut command = self.guard.command(&self.words[0]);
        command.args(&self.words[1..]).args([broker, queue, id, body]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    /// Sends one request and waits for the program's end.
    async fn send(&self, broker: &str, queue: &str, id: &str, body: &str) -> Ended {
        let child = self.start(broker, queue, id, body);
        let output = tokio::time::timeout(LONG, child.wait_with_output()).await.expect("it ends").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), printed: text(output.stdout), errors: text(output.stderr) }
    }
}

/// A write that succeeds, one that is given up, and two whose confirm is lost.
async fn writes_once_and_reports_the_end(producer: Producer) {
    if !producer.is_here() {
        return;
    }
    let chain = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(chain).await else { return };
    let reverts_on_21 = REVERTS_ON_FF.replace("60ff14", "602114");
    stage.anvil.set_code(CONTRACT, &reverts_on_21).await.unwrap();
    let route = format!("name = \"orders\"\ntype = \"order\"\nto = {CONTRACT:?}");
    let retry = "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"";
    let home = WorkerHome::new(&stage.config().with("route", route).with("retry", retry));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    let (program, broker) = (producer.built().await, stage.rabbit.uri(&stage.vhost));
    sends_what_it_must(&stage, &program, &broker).await;

    let good = program.send(&broker, QUEUE, "good", r#"{"order":"good"}"#).await;
    assert_eq!(good.code, Some(0), "{good:?}");
    let status = stage.status(&home, "good").await;
    let hash = status["transactions"][0]["final_hash"].as_str().unwrap();
    let last = good.printed.lines().last().unwrap();
    assert!(last.starts_with("good: final in block ") && last.ends_with(hash), "{good:?}");

    let bad = program.send(&broker, QUEUE, "bad", REFUSED).await;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.printed.ends_with("bad: retry\nbad: dead, rejected.reverted: not today\n"), "{bad:?}");
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), "bad");

    sends_again_what_has_no_confirm(&stage, &program, &worker).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let wanted = ["good", "reset", "silent"].map(|id| calldata(format!(r#"{{"order":"{id}"}}"#).as_bytes()));
    assert_eq!(written, wanted, "each once");
    assert_eq!(stage.amqp.take_all("orders.outcomes").await.len(), 0, "the programs have acked their events");
}

/// What a message says, and that it is mandatory.
async fn sends_what_it_must(stage: &Stage, program: &Program, broker: &str) {
    stage.amqp.declare("plain").await;
    let waiting = program.start(broker, "plain", "order-1", "{}");
    let message = stage.amqp.wait_for("plain", LONG).await;
    drop(waiting);
    let properties = &message.properties;
    let texts = [properties.kind(), properties.reply_to(), properties.correlation_id(), properties.content_type()];
    let texts = texts.map(|text| text.as_ref().map(ToString::to_string).unwrap_or_default());
    assert_eq!(texts, ["order", "orders.outcomes", "order-1", "application/json"]);
    assert_eq!((message.id(), message.body.as_slice()), ("order-1".to_owned(), b"{}".as_slice()));
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");

    let nowhere = program.send(broker, "acme.rights", "nowhere", "{}").await;
    assert_eq!(nowhere.code, Some(2), "{nowhere:?}");
    assert!(nowhere.printed.ends_with("nowhere: there is no queue acme.rights\n"), "{nowhere:?}");
}

/// A confirm that is lost with the connection, and one that is lost in a connection that stays, without any further answer.
async fn sends_again_what_has_no_confirm(stage: &Stage, program: &Program, worker: &Worker) {
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let through = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    for (id, body, lost) in [
        ("reset", r#"{"order":"reset"}"#, Mode::ResetAfterRequest),
        ("silent", r#"{"order":"silent"}"#, Mode::DropAnswers),
    ] {
        let connection = proxy.accepted();
        proxy.set_mode_of(connection, Mode::Until { bytes: body.as_bytes(), then: Box::new(lost) });
        let ended = program.send(&through, QUEUE, id, body).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(proxy.accepted() - connection >= 2, "it connected again: {ended:?}");
        assert!(ended.printed.starts_with(&format!("{id}: no confirm, sending it again (")), "{ended:?}");
        assert!(ended.printed.contains(&format!("\n{id}: final in block ")), "{ended:?}");
        let (log, field) = (worker.log(), format!("request.id={id} "));
        let arrivals = log.lines().filter(|line| line.contains(&field) && line.contains("verdict=")).count();
        assert!(arrivals >= 2, "the broker had both copies, and the worker {arrivals}");
    }
}

#[tokio::test]
async fn the_python_producer_writes_once_and_reports_the_end() {
    writes_once_and_reports_the_end(Producer::Python).await;
}

#[tokio::test]
async fn the_node_producer_writes_once_and_reports_the_end() {
    writes_once_and_reports_the_end(Producer::Node).await;
}

#[tokio::test]
async fn the_java_producer_writes_once_and_reports_the_end() {
    writes_once_and_reports_the_end(Producer::Java).await;
}

#[tokio::test]
async fn the_go_producer_writes_once_and_reports_the_end() {
    writes_once_and_reports_the_end(Producer::Go).await;
}
