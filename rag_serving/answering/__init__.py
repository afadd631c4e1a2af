"""From ranked passages to an answer: prompts, language model, citations, extracts."""
