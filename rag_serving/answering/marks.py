"""Marks in `Answer.degraded`."""

MODEL_UNAVAILABLE = "model_unavailable"
"""The configured language models failed."""

ANSWER_CUT = "answer_cut_at_most_tokens"
"""The answer was cut at RAG_LLM_MAX_TOKENS."""

INVENTED_CITATIONS = "invented_citations"
"""The model cited sources that it was not given; followed by ``:`` and their number."""
