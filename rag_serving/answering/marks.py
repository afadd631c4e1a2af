"""Marks of degraded answers, as they appear in `Answer.degraded`."""

MODEL_UNAVAILABLE = "model_unavailable"
"""In `Answer.degraded` when a model is configured and gave no answer."""

ANSWER_CUT = "answer_cut_at_most_tokens"
"""In `Answer.degraded` when the model had more to say than RAG_LLM_MAX_TOKENS."""

INVENTED_CITATIONS = "invented_citations"
"""In `Answer.degraded`, with their number, when the model cited sources that it was not given."""
