"""Requests generated from the service's OpenAPI description, valid and invalid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from rag_serving.clients.lake import AsyncRagClient
from rag_serving.http.api_keys import ApiKey, ApiKeyFile
from rag_serving.http.app import create_app
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServingSettings
from tests.fake_llm import stand_in_model
from tests.serving_process import Service, serving

# 400 covers rules that the schema cannot express: a question is not only spaces, a region has valid characters.
_TAKEN = ["2xx", "400", "404"]
_SECRET = "k" * 43
_KEY = ApiKey(
    id="0" * 8,
    name="any",
    sha256=hashlib.sha256(_SECRET.encode()).hexdigest(),
    tenant="default",
    requests_per_minute=1_000_000,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
described = schemathesis.openapi.from_dict(
    create_app(
        lambda: AsyncRagClient(ServingSettings.from_env()),
        HttpSettings.model_validate({"keys": None}),
        open_to_all=True,
    ).openapi(),
    config=SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "auth": {"openapi": {"HTTPBearer": {"bearer": f"rag_{_KEY.id}_{_SECRET}"}}},
            "checks": {"positive_data_acceptance": {"expected-statuses": _TAKEN}},
        }
    ),
)


@pytest.fixture(scope="module")
def service(sample_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "keys.json").write_text(ApiKeyFile(keys=(_KEY,)).model_dump_json())
    with stand_in_model() as model:
        environment = {
            **model.environment,
            "RAG_LAKE_URI": sample_lake,
            "RAG_LLM_MODEL": "openai/stand-in",
            "RAG_HTTP_KEYS": str(folder / "keys.json"),
            "RAG_HTTP_FAILED_KEYS_PER_MINUTE": "1000000",
        }
        with serving(folder, environment) as running:
            yield running


@described.parametrize()
@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_reply_matches_the_openapi_description(case: schemathesis.Case, service: Service) -> None:
    case.call_and_validate(base_url=service.url, timeout=60)
