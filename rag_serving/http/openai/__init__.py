"""The part of OpenAI's API that clients and chat front ends use: models, chat completions and responses."""
