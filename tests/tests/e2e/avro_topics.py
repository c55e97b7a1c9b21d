"""Prints the records of a table topic as Confluent's own deserializer reads them, a JSON object a line.

    avro_topics.py BROKERS REGISTRY TOPIC        (the password of admin in REGISTRY_PASSWORD)
"""

import base64
import json
import math
import os
import struct
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext


def plain(value):
    """What JSON has no form for, as text."""
    if isinstance(value, dict):
        return {name: plain(field) for name, field in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def records(brokers, topic):
    """Up to the present end, committed records only."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "bunny-test",  # demanded; no offset is kept there
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        while True:
            message = consumer.poll(1)
            if message is None:
                continue
            if message.error() is None:
                yield message
            elif message.error().code() == KafkaError._PARTITION_EOF:
                return
            else:
                raise KafkaException(message.error())
    finally:
        consumer.close()


def main():
    brokers, registry, topic = sys.argv[1:]
    user = "admin:" + os.environ["REGISTRY_PASSWORD"]
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry, "basic.auth.user.info": user}))

    def read(part, field):
        return plain(deserialize(part, SerializationContext(topic, field)))

    def schema_id(part):
        return None if part is None else struct.unpack(">bI", part[:5])[1]

    for message in records(brokers, topic):
        record = {
            "key": read(message.key(), MessageField.KEY),
            "value": read(message.value(), MessageField.VALUE),
            "headers": {name: json.loads(value) for name, value in message.headers() or []},
            "key_id": schema_id(message.key()),
            "value_id": schema_id(message.value()),
        }
        print(json.dumps(record))


main()
