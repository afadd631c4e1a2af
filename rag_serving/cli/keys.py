"""The commands that create, list and revoke API keys."""

from pathlib import Path

import click

from rag_serving.errors import SettingsError


@click.group()
def keys() -> None:
    """Create, list and revoke the keys of the service, in the file that RAG_HTTP_KEYS names."""


@keys.command("create")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="Whose answers it shares.")
@click.option("--shards", multiple=True, default=("*/*",), show_default=True, help="Pattern as in oslo/*; repeatable.")
@click.option("--per-minute", default=600, show_default=True, help="Requests that it may make in a minute.")
def create(name: str, tenant: str, shards: tuple[str, ...], per_minute: int) -> None:
    """Make a key for NAME and show it, this once."""
    from rag_serving.http.api_keys import create_key

    key, text = create_key(_key_file(), name, tenant=tenant, shards=shards, requests_per_minute=per_minute)
    click.echo(f"{text}\nthe key {key.id} is not shown again; only its hash is stored", err=False)


@keys.command("list")
def list_keys() -> None:
    """List the keys without their secrets."""
    from rag_serving.http.api_keys import read_keys

    path = _key_file()
    for key in read_keys(path) if path.exists() else ():
        state = "revoked" if key.revoked_at else "valid"
        click.echo(
            f"{key.id}  {state:<8} {key.name:<24} tenant {key.tenant:<16} {key.requests_per_minute:>7} a minute  "
            f"{' '.join(key.shards)}"
        )


@keys.command("revoke")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Refuse the key KEY_ID from now on."""
    from rag_serving.http.api_keys import revoke_key

    key = revoke_key(_key_file(), key_id)
    click.echo(f"{key.id} ({key.name}) is revoked")


def _key_file() -> Path:
    from rag_serving.http.settings import HttpSettings

    path = HttpSettings.from_env().keys
    if path is None:
        raise SettingsError("RAG_HTTP_KEYS is not set; name the file that holds the keys")
    return Path(path)
