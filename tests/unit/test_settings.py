"""Settings: defaults, variables, and errors that name the variable but not its value."""

from __future__ import annotations

import difflib
import itertools
import os

import pytest

from rag_assets.settings import PipelineSettings
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import SettingsError
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import SIMILAR, Environment, ServingSettings

PASSWORD = "correct-horse"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_a_lake_in_a_folder_no_redis_and_no_model() -> None:
    settings = ServingSettings.from_env()
    assert settings.lake_uri == "./lake"
    assert settings.redis_url is None
    assert settings.llm_model is None
    assert settings.cache_similarity == 0.98
    assert settings.cache_ttl == 86_400
    assert settings.cache_prefix == "rag"


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "lake_uri": "s3://bucket/lake",
        "source_uri": "s3://bucket/incoming",
        "source_link": "https://intranet.example/docs/{shard}/{path}",
        "cores": 3,
        "redis_url": f"redis://:{PASSWORD}@cache:6379/0",
        "llm_model": "openai/gpt",
        "llm_fallbacks": "openai/other, ollama/third",
        "llm_timeout": 1.5,
        "llm_retries": 0,
        "llm_max_tokens": 99,
        "llm_context_tokens": 1_000,
        "llm_keep_links": True,
        "finish_abandoned": True,
        "llm_concurrency": 2,
        "queue_limit": 5,
        "ask_deadline": 9.0,
        "hosted_embedders": "acme/embed, other/embed",
        "min_evidence": 0.2,
        "catalog_refresh": 0.0,
        "search_concurrency": 3,
        "wide_shards": 9,
        "search_cache_bytes": 2**27,
        "rerank_model": "cohere/rerank-v3.5",
        "cache_ttl": 60,
        "cache_refusal_ttl": 6,
        "cache_mode": "shadow",
        "cache_similarity": 0.9,
        "cache_max_error": 0.02,
        "cache_calibration": "own.json",
        "cache_entries": 70,
        "cache_timeout": 0.5,
        "cache_copy_seconds": 0.5,
        "cache_memory_entries": 7,
        "cache_prefix": "team-a",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RAG_{name.upper()}", str(value))
    settings = ServingSettings.from_env()
    assert settings.redis_url is not None
    read = {**settings.model_dump(), "redis_url": settings.redis_url.get_secret_value()}
    assert read == values
    assert set(values) == set(ServingSettings.model_fields)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_REDIS_URL", "")
    monkeypatch.setenv("RAG_CACHE_TTL", "")
    settings = ServingSettings.from_env()
    assert settings.redis_url is None
    assert settings.cache_ttl == 86_400


def test_variables_are_read_on_every_call_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_CACHE_TTL", "5")
    assert ServingSettings.from_env().cache_ttl == 5
    monkeypatch.setenv("RAG_CACHE_TTL", "6")
    assert ServingSettings.from_env().cache_ttl == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAG_LAKE_URI", "   "),
        ("RAG_LLM_MODEL", "   "),
        ("RAG_LLM_TIMEOUT", "banana"),
        ("RAG_LLM_TIMEOUT", "-17"),
        ("RAG_LLM_TIMEOUT", "nan"),
        ("RAG_LLM_RETRIES", "-17"),
        ("RAG_LLM_RETRIES", "1.75"),
        ("RAG_LLM_MAX_TOKENS", "banana"),
        ("RAG_CATALOG_REFRESH", "banana"),
        ("RAG_CATALOG_REFRESH", "nan"),
        ("RAG_SEARCH_CONCURRENCY", "-17"),
        ("RAG_CACHE_TTL", "banana"),
        ("RAG_CACHE_TTL", "-17"),
        ("RAG_CACHE_SIMILARITY", "17.5"),
        ("RAG_CACHE_SIMILARITY", "nan"),
        ("RAG_CACHE_TIMEOUT", "-17"),
        ("RAG_CACHE_MEMORY_ENTRIES", "-17"),
        ("RAG_CACHE_PREFIX", "Banana{}"),
        ("RAG_CACHE_PREFIX", "banana:banana"),
    ],
)
def test_the_error_for_a_malformed_variable_names_it_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        ServingSettings.from_env()
    assert not value.strip() or value not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_one_error_names_all_malformed_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_CACHE_TTL", "banana")
    monkeypatch.setenv("RAG_LLM_TIMEOUT", "banana")
    with pytest.raises(SettingsError, match=r"RAG_LLM_TIMEOUT.*RAG_CACHE_TTL"):
        ServingSettings.from_env()


@pytest.mark.parametrize(
    ("settings", "name", "value", "message"),
    [
        (ServingSettings, "RAG_CACHE_TTL", "banana", "RAG_CACHE_TTL: must be a whole number ("),
        (ServingSettings, "RAG_CACHE_TTL", "1.5", "RAG_CACHE_TTL: must be a whole number ("),
        (ServingSettings, "RAG_LLM_TIMEOUT", "banana", "RAG_LLM_TIMEOUT: must be a number ("),
        (HttpSettings, "RAG_HTTP_LLM_PROCESS", "banana", "RAG_HTTP_LLM_PROCESS: must be true or false ("),
        (HttpSettings, "RAG_HTTP_SOURCES_FOOTER", "banana", "RAG_HTTP_SOURCES_FOOTER: must be true or false ("),
        (HttpSettings, "RAG_HTTP_TRUSTED_PROXIES", "banana", "RAG_HTTP_TRUSTED_PROXIES: expected addresses or"),
        (HttpSettings, "RAG_HTTP_PAGE_ACCENT", "red", "RAG_HTTP_PAGE_ACCENT: "),
        (HttpSettings, "RAG_HTTP_PUBLIC_URL", "rag.example", "RAG_HTTP_PUBLIC_URL: expected a URL without a path"),
        (HttpSettings, "RAG_HTTP_PUBLIC_URL", "https://a.example/b", "RAG_HTTP_PUBLIC_URL: expected a URL without a"),
        *(
            (ServingSettings, "RAG_SOURCE_LINK", value, f"RAG_SOURCE_LINK: expected {message}")
            for value, message in [
                ("javascript:alert(1)", "a URL that begins with https:// and a host, or http://"),
                ("file:///srv/{path}", "a URL that begins with https:// and a host, or http://"),
                ("https://{region}.example/{path}", "a URL that begins with https:// and a host, or http://"),
                ("https://a.example/{key}", "no other placeholders than {region}, {department}, {path}"),
                ("https://a.example/{path.__class__}", "no other placeholders than"),
                ("https://a.example/{path!r}", "no other placeholders than"),
                ("https://a.example/{}", "no other placeholders than"),
                ("https://a.example/{path", "a URL in which braces enclose a placeholder"),
            ]
        ),
        (ServingSettings, "RAG_CACHE_MODE", "banana", "RAG_CACHE_MODE: must be 'on', 'shadow' or 'off' ("),
    ],
)
def test_an_error_says_in_plain_words_what_a_setting_must_be(
    monkeypatch: pytest.MonkeyPatch, settings: type[Environment], name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        settings.from_env()
    assert str(caught.value).startswith(f"invalid environment variable: {message}")


def test_an_error_describes_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_CACHE_TTL", "-1")
    with pytest.raises(SettingsError, match=r"lifetime of a cached answer in seconds"):
        ServingSettings.from_env()


def test_a_misspelled_variable_is_reported_once_with_the_setting_it_resembles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAG_CACHE_TLL", "5")
    monkeypatch.setenv("RAG_OF_ANOTHER_PROGRAM", "5")
    ServingSettings.from_env()
    ServingSettings.from_env()
    assert caplog.messages == ["RAG_CACHE_TLL is not a setting and has no effect; did you mean RAG_CACHE_TTL?"]


def test_no_setting_of_one_class_looks_like_a_misspelling_of_another_class() -> None:
    classes = {HttpSettings, *Environment.subclasses()}
    for settings, other in itertools.permutations(classes, 2):
        names = {settings.variable(field) for field in settings.model_fields}
        for name in {other.variable(field) for field in other.model_fields} - names:
            assert not difflib.get_close_matches(name, names, cutoff=SIMILAR), name


def test_a_malformed_redis_url_fails_on_creating_a_client_without_showing_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAG_REDIS_URL", f"redis://:{PASSWORD}@cache:banana/0")
    for client in (AsyncRagClient, RagClient):
        with pytest.raises(SettingsError, match="RAG_REDIS_URL") as caught:
            client.from_env()
        assert PASSWORD not in str(caught.value)
        assert "banana" not in str(caught.value)


def test_the_redis_password_does_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_REDIS_URL", f"redis://:{PASSWORD}@cache:6379/0")
    settings = ServingSettings.from_env()
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in settings.model_dump_json()


def test_the_kafka_password_does_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_KAFKA_CONFIG", f'{{"sasl.password": "{PASSWORD}"}}')
    settings = PipelineSettings.from_env()
    assert settings.kafka_config is not None
    assert PASSWORD in settings.kafka_config.get_secret_value()
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in settings.model_dump_json()


def test_arrivals_default_to_the_listing_and_an_unknown_feed_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert PipelineSettings.from_env().arrivals == "listing"
    monkeypatch.setenv("RAG_ARRIVALS", "pigeons")
    with pytest.raises(SettingsError, match=r"RAG_ARRIVALS: .*'listing', 'sqs' or 'kafka'"):
        PipelineSettings.from_env()


@pytest.mark.parametrize("uri", ["gs://bucket/lake", "http://bucket", "s3://"])
def test_an_unsupported_lake_uri_is_a_settings_error(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("RAG_LAKE_URI", uri)
    with pytest.raises(SettingsError):
        RagClient.from_env()


def test_the_languages_of_scanned_text_are_named_as_tesseract_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_OCR", "true")
    monkeypatch.setenv("RAG_OCR_LANGUAGES", "eng+script/Latin")
    settings = PipelineSettings.from_env()
    assert (settings.ocr, settings.ocr_languages) == (True, "eng+script/Latin")
    monkeypatch.setenv("RAG_OCR_LANGUAGES", "--tessdata-dir /")
    with pytest.raises(SettingsError, match="RAG_OCR_LANGUAGES"):
        PipelineSettings.from_env()
