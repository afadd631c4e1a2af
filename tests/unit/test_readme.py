"""What the README says of settings and commands, against the code."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from rag_assets.cli.main import main as rag_assets
from rag_assets.settings import PipelineSettings
from rag_serving.cli.main import main as rag_serving
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServiceSettings, ServingSettings

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_settings_table_lists_every_setting_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `(RAG_[A-Z_]+)` \| (?:`([^`]*)`)? ?\|", README, flags=re.MULTILINE))
    expected: dict[str, str] = {}
    for settings in (PipelineSettings, ServingSettings, HttpSettings, ServiceSettings):
        prefix = settings.model_config.get("env_prefix", "")
        for name, field in settings.model_fields.items():
            default = "" if field.default is None else re.sub(r"\.0$", "", str(field.default))
            expected[f"{prefix}{name.upper()}"] = default
    assert listed == expected


def test_every_option_of_backfill_is_in_the_readme() -> None:
    shown = CliRunner().invoke(rag_assets, ["backfill", "--help"]).output
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help", "--verbose"}
    assert not {option for option in options if option not in README}


def test_every_command_of_both_command_lines_is_in_the_readme() -> None:
    assert all(f"rag-assets {name}" in README for name in rag_assets.commands)
    assert all(re.search(rf"rag-serving [a-z|]*{name}", README) for name in rag_serving.commands)
