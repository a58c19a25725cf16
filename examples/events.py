"""Prints what becomes of each request; the queue keeps events while this is away. Needs: pip install pika

    python3 examples/events.py amqp://guest:guest@127.0.0.1:5672/%2f acme.writes
"""

import json
import sys

import pika

broker, queue = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(broker))
channel = connection.channel()
mine = f"{queue}.events.mine"
channel.queue_declare(mine, durable=True, arguments={"x-queue-type": "quorum"})
channel.queue_bind(mine, f"{queue}.events", routing_key="#")  # or "final", "retry", "dead", "reorged"
seen = set()  # an event comes at least once: keep the ids where your own writes go, in the same transaction

for method, _, body in channel.consume(mine):
    event = json.loads(body)
    if event["id"] not in seen:
        seen.add(event["id"])
        data = event["data"]
        outcome = data["transaction"]["tx_hash"] if "transaction" in data else data["error"]["reason"]
        print(event["time"], event["subject"], method.routing_key, outcome, flush=True)
    channel.basic_ack(method.delivery_tag)
