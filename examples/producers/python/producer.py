"""Sends one request to chainwriter and waits for its outcome.

    python3 producer.py amqp://guest:guest@127.0.0.1:5672/%2f acme.writes order-1 '{"amount":5}'

Exit codes: 0 the write is final; 1 it is a dead letter; 2 it cannot be sent; 75 the outcome is not known yet: run this
again with the same id and the same body.
"""

import concurrent.futures
import json
import sys
import threading
import time

import pika
from pika.exceptions import AMQPError, UnroutableError

# Outlives each connection, so no outcome is lost with one. One for each service.
REPLIES = "orders.outcomes"
CONFIRM_TIMEOUT = 5  # seconds
OUTCOME_TIMEOUT = 600
PAUSE = 1

FINAL, DEAD, CANNOT_BE_SENT, UNKNOWN = 0, 1, 2, 75


def main(broker, queue, request_id, body):
    parameters = pika.URLParameters(broker)
    parameters.heartbeat = 10
    parameters.blocked_connection_timeout = CONFIRM_TIMEOUT
    deadline = time.monotonic() + OUTCOME_TIMEOUT
    confirmed = False
    while time.monotonic() < deadline:
        try:
            connection = pika.BlockingConnection(parameters)
            channel = connection.channel()
            channel.queue_declare(REPLIES, durable=True, arguments={"x-queue-type": "quorum"})
            if not confirmed:
                publish(channel, queue, request_id, body)
                confirmed = True
            code = wait_for_outcome(channel, request_id, deadline)
            connection.close()
            return code
        except UnroutableError:
            print(f"{request_id}: there is no queue {queue}")
            return CANNOT_BE_SENT
        except (AMQPError, OSError, concurrent.futures.TimeoutError) as error:
            # The broker may have the message or not. Sent again with the same id and body, it is written once.
            what = "lost the connection" if confirmed else "no confirm, sending it again"
            print(f"{request_id}: {what} ({error!r})", flush=True)
            time.sleep(PAUSE)
    return UNKNOWN


def publish(channel, queue, request_id, body):
    """Returns once the broker has the message on its disks."""
    properties = pika.BasicProperties(
        message_id=request_id,  # the same for each copy of this request, another for each new one
        type="order",  # routes go by it
        content_type="application/json",
        delivery_mode=pika.DeliveryMode.Persistent,
        reply_to=REPLIES,
        correlation_id=request_id,
    )
    channel.confirm_delivery()
    within(
        CONFIRM_TIMEOUT,
        lambda: channel.basic_publish("", queue, body.encode(), properties, mandatory=True),
    )


def within(seconds, call):
    """Runs a call of pika's that waits without a limit. After a timeout its connection must not be used any more."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def wait_for_outcome(channel, request_id, deadline):
    seen = set()  # an event comes at least once; a service keeps the ids where it keeps its orders
    for method, _, body in channel.consume(REPLIES, inactivity_timeout=1):
        if method is not None:
            event = json.loads(body)
            code = None
            if event["id"] not in seen:
                seen.add(event["id"])
                code = handle(event)
            channel.basic_ack(method.delivery_tag)
            if code is not None and event["subject"] == request_id:
                return code
        if time.monotonic() > deadline:
            return UNKNOWN


def handle(event):
    """Prints the event, where a service stores it. Returns the exit code if it is the last one."""
    kind, data = event["type"].split(".")[3], event["data"]  # io.chainwriter.request.final.v1
    if kind == "final":
        transaction = data["transaction"]
        print(f"{event['subject']}: final in block {transaction['block_number']}, {transaction['tx_hash']}")
        return FINAL
    if kind == "dead":
        error = data["error"]
        print(f"{event['subject']}: dead, {error['class']}.{error['reason']}: {error['detail']}")
        return DEAD
    print(f"{event['subject']}: {kind}", flush=True)  # "retry": chainwriter tries again by itself
    return None


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
