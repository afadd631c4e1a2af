"""The commands that create, list and revoke API keys."""

import json
from pathlib import Path
from typing import Any

import click

from rag_serving.errors import SettingsError
from rag_serving.requirements import require_posix


@click.group(short_help="Create, list and revoke API keys.")
def keys() -> None:
    """Create, list and revoke API keys of the service, in the file at RAG_HTTP_KEYS."""
    require_posix()


@keys.command("create", short_help="Create an API key and print it.")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="Keys of one tenant share cached answers.")
@click.option(
    "--shards", multiple=True, default=("*/*",), show_default=True, help="Visible shards, such as oslo/*; repeatable."
)
@click.option(
    "--per-minute",
    type=click.IntRange(1, 1_000_000),
    default=600,
    show_default=True,
    help="Maximum requests per minute.",
)
@click.option(
    "--print",
    "print_only",
    is_flag=True,
    help="Print the key and its entry for a key file as JSON, and change no file.",
)
def create(name: str, tenant: str, shards: tuple[str, ...], per_minute: int, print_only: bool) -> None:
    """Create an API key for NAME and print it (it cannot be shown again).

    Example: rag-serving keys create hr-portal --tenant hr --shards "*/people"
    """
    from rag_serving.http.api_keys import create_key, new_key

    options: dict[str, Any] = {"tenant": tenant, "shards": shards, "requests_per_minute": per_minute}
    if print_only:
        key, text = new_key(name, **options)
        click.echo(json.dumps({"key": text, "entry": key.model_dump(mode="json")}, ensure_ascii=False, indent=1))
        click.echo(
            f"add the entry to a key file to make key {key.id} valid; the key itself cannot be shown again", err=True
        )
        return
    key, text = create_key(_key_file(), name, **options)
    click.echo(text)
    click.echo(f"key {key.id} cannot be shown again: only its hash is stored", err=True)


@keys.command("list", short_help="List the API keys.")
def list_keys() -> None:
    """List the API keys without their secrets.

    Example: rag-serving keys list
    """
    from rag_serving.http.api_keys import read_keys

    path = _key_file()
    stored = read_keys(path)
    if not stored:
        click.echo(f"no keys in {path}; create one with rag-serving keys create", err=True)
    for key in stored:
        state = "revoked" if key.revoked_at else "valid"
        click.echo(
            f"{key.id}  {state:<8} {key.name:<24} tenant {key.tenant:<16} {key.requests_per_minute:>7} a minute  "
            f"{' '.join(key.shards)}"
        )


@keys.command("revoke", short_help="Revoke an API key.")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke the API key with the id KEY_ID. Running services refuse it within a second.

    Example: rag-serving keys revoke 1a2b3c4d
    """
    from rag_serving.http.api_keys import revoke_key

    key = revoke_key(_key_file(), key_id)
    click.echo(f"{key.id} ({key.name}) is revoked")


def _key_file() -> Path:
    from rag_serving.http.settings import HttpSettings

    path = HttpSettings.from_env().keys
    if path is None:
        raise SettingsError("RAG_HTTP_KEYS is not set; set it to the path of the key file")
    return Path(path)
