"""Build the language model from the settings."""

from rag_serving.answering.generation import LanguageModel
from rag_serving.answering.llm_process import ModelProcess
from rag_serving.requirements import require_module
from rag_serving.settings import ServingSettings


def configured_model(settings: ServingSettings, process: ModelProcess | None = None) -> LanguageModel | None:
    """Return the configured model, or None. With `process`, litellm is called there. Raises `MissingExtra`."""
    if settings.llm_model is None:
        return None
    require_module("litellm", "llm", "RAG_LLM_MODEL")
    named = (settings.llm_fallbacks or "").split(",")
    return LanguageModel(
        settings.llm_model,
        settings.llm_timeout,
        settings.llm_retries,
        settings.llm_max_tokens,
        fallbacks=tuple(name.strip() for name in named if name.strip()),
        context_tokens=settings.llm_context_tokens,
        process=process,
        keep_links=settings.llm_keep_links,
    )
