"""The command that writes the configuration of a Dagster instance."""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import click

from rag_assets.options import PROFILES
from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError

LOCATION = "rag_assets"
_WORKSPACE = """\
# What the webserver and the daemon load: dagster-webserver -w workspace.yaml, dagster-daemon run -w workspace.yaml
load_from:
  - python_module:
      module_name: rag_assets.definitions
      location_name: {location}
"""
_SETTINGS = {
    "RAG_SOURCE_URI": "s3://company-docs/incoming",
    "RAG_LAKE_URI": "s3://company-lake/rag",
    "AWS_REGION": "eu-central-1",
}
_PROFILE_SETTINGS: dict[str, dict[str, str]] = {
    "one-machine": {},
    "workers": {
        "RAG_WORKERS": "4",
        "RAG_BROKER_URL": "redis://redis:6379/0",
        "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://dagster:PASSWORD@postgres:5432/dagster",
    },
    "pods": {
        "DAGSTER_HOME": "/opt/dagster",  # in the pods, where the image expects dagster.yaml
        "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://dagster:PASSWORD@postgres:5432/dagster",
        "RAG_IMAGE": "registry.example.com/rag-shards-assets:0.2.0",
        "RAG_NAMESPACE": "rag",
        "RAG_SERVICE_ACCOUNT": "rag-assets",
        "RAG_INSTANCE_CONFIG_MAP": "dagster-instance",
    },
}
_LAUNCHERS = {"local": "one-machine", "celery": "workers", "kubernetes": "pods"}


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="one-machine",
    show_default=True,
    help="Where runs execute: processes of this machine, Celery workers, or Kubernetes pods.",
)
def init(folder: Path, profile: str) -> None:
    """Write dagster.yaml, workspace.yaml and .env.example into DIR.

    DIR is then the DAGSTER_HOME of the daemon, the webserver and the workers. Existing files are kept; a folder
    with another profile is refused. Prints the commands that come next.

    Example: rag-assets init ~/.dagster-rag
    """
    folder = folder.expanduser().absolute()
    try:
        found = _profile_of(folder)
        if found not in (None, profile):
            raise NamedClickError(
                f"{folder} has the profile {found}; to replace it by {profile}, delete dagster.yaml and .env.example "
                "there first"
            )
        kept = write_instance(folder, profile, PipelineSettings.from_env().code_location or LOCATION)
        if profile == "one-machine" and "dagster.yaml" not in kept:
            from rag_assets.runs.instance import create_database

            create_database(folder)
    except OSError as error:
        raise NamedClickError(f"cannot write into {folder}: {error.strerror}") from error
    click.echo(_next_steps(folder, profile))
    if kept:
        click.echo(f"kept as they were: {', '.join(kept)} (delete them to have them written)", err=True)


def _profile_of(folder: Path) -> str | None:
    """Return the profile of the folder's dagster.yaml; None if there is none, or if it has a launcher of its own."""
    path = folder / "dagster.yaml"
    if not path.is_file():
        return None
    text = path.read_text()
    launcher = re.search(r"^\s*module: rag_assets\.runs\.launchers\.(\w+)", text, re.MULTILINE)
    if launcher is not None:
        return _LAUNCHERS.get(launcher[1])
    return None if re.search(r"^run_launcher:", text, re.MULTILINE) else "one-machine"


def _next_steps(folder: Path, profile: str) -> str:
    home = shlex.quote(str(folder))
    steps = [
        f"cp {home}/.env.example {home}/.env   # and edit it",
        f"set -a; . {home}/.env; set +a   # in every shell",
    ]
    if profile == "pods":
        create = "kubectl --namespace $RAG_NAMESPACE create"
        both = f"--from-file={home}/dagster.yaml --from-file={home}/workspace.yaml"
        steps += [
            f"{create} configmap $RAG_INSTANCE_CONFIG_MAP {both}",
            f"{create} secret generic rag-shards --from-env-file={home}/.env",
            "# then run the daemon and the web server in the cluster, see docs/operations/deployment.md",
        ]
    else:
        steps += [
            f"dagster-daemon run -w {home}/workspace.yaml",
            f"dagster-webserver -w {home}/workspace.yaml",
            *(["rag-assets worker   # on every machine"] if profile == "workers" else []),
            "rag-assets backfill --wait",
        ]
    return "\n  ".join([f"{folder} has the profile {profile}. Next:", *steps])


def write_instance(folder: Path, profile: str = "one-machine", location: str = LOCATION) -> list[str]:
    """Write the configuration of an instance, and return the names of files that existed with another content."""
    wanted = {
        "dagster.yaml": files("rag_assets.cli").joinpath("profiles", f"{profile}.yaml").read_text(),
        "workspace.yaml": _WORKSPACE.format(location=location),
        ".env.example": _environment(folder, profile),
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    for name, content in wanted.items():
        path = folder / name
        if not path.exists():
            path.write_text(content)
        elif path.read_text() != content:
            kept.append(name)
    return kept


def _environment(folder: Path, profile: str) -> str:
    variables = {"DAGSTER_HOME": str(folder), **_SETTINGS, **_PROFILE_SETTINGS[profile]}
    lines = "\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return (
        "# Copy it to .env and edit it. Load it in every shell: set -a; . DIR/.env; set +a\n"
        f"# Never commit it: it holds credentials.\n{lines}\n"
    )
