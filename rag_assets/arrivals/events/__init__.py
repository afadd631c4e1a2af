"""Arrival events from SQS or Kafka. Events say where to look; the store says what is true."""
