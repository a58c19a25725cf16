//! `chainwriter verify`: proves from the chain alone, without the journal, that a record is there.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use crate::chain::follow::record_search::{Record, Search, find};
use crate::chain::{BlockTag, Chain, NodeClient};
use crate::cli::recover::final_height;
use crate::cli::{exit, node_client, print, progress_bar, say};
use crate::config::Settings;
use crate::model::{Address, BlockHash, BlockNumber, ContentHash, RecordId, RequestId, Timestamp, TxHash};
use crate::policy::records::{self, Kept};
use crate::policy::routes::Calldata;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A request's id; or a file, whose content is searched for in all records.
    #[arg(value_name = "ID|FILE")]
    what: String,
    /// With an id: the record's content must be this file's.
    #[arg(long, value_name = "FILE", conflicts_with = "content")]
    file: Option<PathBuf>,
    /// With an id: the record's content must have this hash (keccak-256).
    #[arg(long, value_name = "HASH")]
    content: Option<ContentHash>,
    /// The contract; those of all routes with mode = "record" if not given.
    #[arg(long, value_name = "ADDRESS")]
    contract: Option<Address>,
    /// Search from this block on.
    #[arg(long, value_name = "BLOCK", default_value_t = 0)]
    from_block: u64,
    /// Print the proof as one JSON document.
    #[arg(long)]
    json: bool,
}

struct Wanted {
    id: Option<RecordId>,
    content: Option<ContentHash>,
}

/// A record as the chain has it.
#[derive(Debug, Serialize)]
struct Proof {
    contract: Address,
    record_id: RecordId,
    content: ContentHash,
    /// The log has the content, too.
    has_body: bool,
    writer: Address,
    tx_hash: TxHash,
    block_number: BlockNumber,
    block_hash: BlockHash,
    /// RFC 3339.
    block_time: String,
    /// By `chain.finality`.
    is_final: bool,
    /// The content is the one that was asked for; nothing where none was.
    is_content: Option<bool>,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let wanted = wanted(&arguments)?;
    let chain = node_client(&settings)?;
    let contracts = match arguments.contract {
        Some(contract) => vec![contract],
        None => contracts_of(&settings),
    };
    if contracts.is_empty() {
        bail!("no route has mode = \"record\"; name the contract with --contract");
    }
    let head = chain.header(BlockTag::Latest).await?.context("the node has no block")?.number;
    let range = (BlockNumber(arguments.from_block), head);
    for contract in contracts {
        if let Some(record) = search(&chain, contract, &wanted, range).await? {
            let proof = prove(&settings, &chain, contract, record, wanted.content).await?;
            print(arguments.json, &proof, || proof.text(&arguments.what))?;
            return Ok(proof.code());
        }
    }
    say(format_args!("{}: no record in blocks {} to {head}", arguments.what, arguments.from_block));
    Ok(exit::NOT_FOUND)
}

fn wanted(arguments: &Arguments) -> anyhow::Result<Wanted> {
    let hash_of = |file: &Path| -> anyhow::Result<ContentHash> {
        let content = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        Ok(records::content_hash(&content))
    };
    let asked = arguments.file.as_deref().map(hash_of).transpose()?.or(arguments.content);
    let file = Path::new(&arguments.what);
    if asked.is_none() && file.is_file() {
        return Ok(Wanted { id: None, content: Some(hash_of(file)?) });
    }
    let id = RequestId::new(&arguments.what).context("this is neither a file nor a request id")?;
    Ok(Wanted { id: Some(records::record_id(&id)), content: asked })
}

fn contracts_of(settings: &Settings) -> Vec<Address> {
    let is_record = |calldata: &Calldata| matches!(calldata, Calldata::Record(_));
    let routes = settings.admission.routes.iter().filter(|route| is_record(&route.calldata));
    let mut contracts: Vec<_> = routes.filter_map(|route| route.to).collect();
    contracts.sort_unstable();
    contracts.dedup();
    contracts
}

async fn search(
    chain: &NodeClient,
    contract: Address,
    wanted: &Wanted,
    (from, to): (BlockNumber, BlockNumber),
) -> anyhow::Result<Option<Record>> {
    let search = Search { contract, id: wanted.id, from, to, calls: u32::MAX };
    let progress = progress_bar(to.0.saturating_sub(from.0) + 1, format!("{contract}: blocks"));
    let is_wanted =
        |record: &Record| wanted.id.is_some() || wanted.content.is_some_and(|content| content == record.logged.content);
    let searched = |down_to: BlockNumber| progress.set_position(to.0.saturating_sub(down_to.0) + 1);
    let found = find(chain, search, is_wanted, searched).await?;
    progress.finish_and_clear();
    Ok(found)
}

async fn prove(
    settings: &Settings,
    chain: &NodeClient,
    contract: Address,
    Record { logged, inclusion }: Record,
    content: Option<ContentHash>,
) -> anyhow::Result<Proof> {
    let number = inclusion.block_number;
    let block = chain.header(BlockTag::Number(number)).await?.filter(|block| block.hash == inclusion.block_hash);
    let block = block.with_context(|| format!("the chain has another block {number} now; try again"))?;
    let height = final_height(chain, settings.lane.finality).await.unwrap_or(BlockNumber(0));
    Ok(Proof {
        contract,
        record_id: logged.id,
        content: logged.content,
        has_body: logged.kept == Kept::Body,
        writer: logged.writer,
        tx_hash: inclusion.tx_hash,
        block_number: number,
        block_hash: inclusion.block_hash,
        block_time: Timestamp(i64::try_from(block.timestamp.saturating_mul(1000)).unwrap_or(i64::MAX)).to_string(),
        is_final: number <= height,
        is_content: content.map(|content| content == logged.content),
    })
}

impl Proof {
    fn text(&self, what: &str) -> String {
        let Self { contract, record_id, content, writer, tx_hash, block_number, block_hash, block_time, .. } = self;
        let verdict = match (self.is_content, self.is_final) {
            (Some(false), _) => "recorded with another content",
            (_, true) => "recorded, and final",
            (_, false) => "recorded, and not final yet",
        };
        let body = if self.has_body { ", which is in the log" } else { "" };
        format!(
            "{what}: {verdict}\n  record     {record_id} in {contract}\n  content    {content}{body}\n  \
             writer     {writer}\n  block      {block_number} {block_hash} of {block_time}\n  tx         {tx_hash}\n"
        )
    }

    fn code(&self) -> u8 {
        match (self.is_content, self.is_final) {
            (Some(false), _) => exit::ANOTHER,
            (_, true) => exit::OK,
            (_, false) => exit::STILL_OPEN,
        }
    }
}
