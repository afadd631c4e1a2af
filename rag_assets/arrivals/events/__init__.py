"""Arrival events from SQS or Kafka. Events name the objects to compare; the source has their state."""
