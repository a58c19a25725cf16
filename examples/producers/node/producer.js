// Sends one request to chainwriter and waits for its outcome.
//
//   node producer.js amqp://guest:guest@127.0.0.1:5672/%2f acme.writes order-1 '{"amount":5}'
//
// Exit codes: 0 the write is final; 1 it is a dead letter; 2 it cannot be sent; 75 the outcome is not known yet: run this
// again with the same id and the same body.

import { setTimeout as sleep } from "node:timers/promises";
import amqp from "amqplib";

// Outlives each connection, so no outcome is lost with one. One for each service.
const REPLIES = "orders.outcomes";
const CONFIRM_TIMEOUT = 5_000; // milliseconds
const OUTCOME_TIMEOUT = 600_000;
const PAUSE = 1_000;

const FINAL = 0;
const DEAD = 1;
const CANNOT_BE_SENT = 2;
const UNKNOWN = 75;

class Unroutable extends Error {}

async function main(broker, queue, id, body) {
  const deadline = Date.now() + OUTCOME_TIMEOUT;
  let confirmed = false;
  while (Date.now() < deadline) {
    let connection;
    try {
      connection = await connect(broker);
      const channel = await within(CONFIRM_TIMEOUT, connection.createConfirmChannel());
      channel.on("error", () => {}); // what waits on the channel is rejected as well
      const durable = { durable: true, arguments: { "x-queue-type": "quorum" } };
      await within(CONFIRM_TIMEOUT, channel.assertQueue(REPLIES, durable));
      if (!confirmed) {
        await publish(channel, queue, id, body);
        confirmed = true;
      }
      const code = await outcome(connection, channel, id, deadline - Date.now());
      // The broker answers this after the last ack, which the end of the connection could overtake.
      await within(CONFIRM_TIMEOUT, channel.close()).catch(() => {});
      return code;
    } catch (error) {
      if (error instanceof Unroutable) {
        console.log(`${id}: there is no queue ${queue}`);
        return CANNOT_BE_SENT;
      }
      // The broker may have the message or not. Sent again with the same id and body, it is written once.
      console.log(`${id}: ${confirmed ? "lost the connection" : "no confirm, sending it again"} (${error.message})`);
      await sleep(PAUSE);
    } finally {
      // Not awaited: a connection that answers nothing ends by its heartbeat.
      connection?.close().catch(() => {});
    }
  }
  return UNKNOWN;
}

async function connect(broker) {
  const url = new URL(broker);
  url.searchParams.set("heartbeat", "10");
  const connection = await amqp.connect(url.href, { timeout: CONFIRM_TIMEOUT });
  connection.on("error", () => {}); // "close" follows, and what waits on a channel is rejected
  return connection;
}

// Resolves once the broker has the message on its disks.
async function publish(channel, queue, id, body) {
  let returned = false;
  channel.on("return", () => {
    returned = true; // comes before the confirm
  });
  channel.publish("", queue, Buffer.from(body), {
    messageId: id, // the same for each copy of this request, another for each new one
    type: "order", // routes go by it
    contentType: "application/json",
    persistent: true,
    mandatory: true,
    replyTo: REPLIES,
    correlationId: id,
  });
  await within(CONFIRM_TIMEOUT, channel.waitForConfirms());
  if (returned) throw new Unroutable();
}

function outcome(connection, channel, id, timeout) {
  const seen = new Set(); // an event comes at least once; a service keeps the ids where it keeps its orders
  return new Promise((resolve, reject) => {
    setTimeout(resolve, timeout, UNKNOWN).unref();
    connection.on("close", () => reject(new Error("connection closed")));
    channel.on("close", () => reject(new Error("channel closed")));
    const consume = channel.consume(REPLIES, (message) => {
      if (message === null) return reject(new Error(`${REPLIES} was deleted`));
      const event = JSON.parse(message.content);
      const code = seen.has(event.id) ? undefined : handle(event);
      seen.add(event.id);
      channel.ack(message);
      if (code !== undefined && event.subject === id) resolve(code);
    });
    consume.catch(reject);
  });
}

// Prints the event, where a service stores it. Returns the exit code if it is the last one.
function handle({ type, subject, data }) {
  const kind = type.split(".")[3]; // io.chainwriter.request.final.v1
  switch (kind) {
    case "final":
      console.log(`${subject}: final in block ${data.transaction.block_number}, ${data.transaction.tx_hash}`);
      return FINAL;
    case "dead":
      console.log(`${subject}: dead, ${data.error.class}.${data.error.reason}: ${data.error.detail}`);
      return DEAD;
    default:
      console.log(`${subject}: ${kind}`); // "retry": chainwriter tries again by itself
      return undefined;
  }
}

function within(milliseconds, promise) {
  const timer = new AbortController();
  const late = sleep(milliseconds, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`no answer within ${milliseconds} ms`);
  });
  promise.catch(() => {}); // it may fail after the timeout, when nothing waits for it any more
  return Promise.race([promise, late]).finally(() => {
    late.catch(() => {});
    timer.abort();
  });
}

const [broker, queue, id, body] = process.argv.slice(2);
if (body === undefined) {
  console.error("usage: node producer.js BROKER QUEUE ID BODY");
  process.exit(CANNOT_BE_SENT);
}
const code = await main(broker, queue, id, body);
// Gives the close some time.
setTimeout(() => process.exit(code), 1_000).unref();
process.exitCode = code;
