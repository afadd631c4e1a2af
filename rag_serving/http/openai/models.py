"""Names of models: which shards each one answers from, and whether it lists its sources in the text."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rag_serving.errors import UnknownModel, UnknownScope
from rag_serving.lake.shards import same_name
from rag_serving.results import ShardInfo

_ALL = "rag-shards"
_SOURCES = ":sources"
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Model:
    """A model: all shards that a key allows, or those of one region, or one of them."""

    id: str
    region: str | None = None
    department: str | None = None
    lists_sources: bool = False

    def narrow(
        self, regions: list[str] | None, departments: list[str] | None
    ) -> tuple[list[str] | None, list[str] | None]:
        """Return the regions and departments of a request that are in this model's scope; raises `UnknownScope`."""
        return _common(self.region, regions), _common(self.department, departments)


def models_of(shards: Iterable[ShardInfo]) -> list[Model]:
    """Return the models of these shards: of all, of each region, of each shard, then the same that list sources."""
    models = {_ALL: Model(_ALL)}
    for shard in shards:
        of_region = f"{_ALL}/{shard.region}"
        of_shard = f"{_ALL}/{shard.shard}"
        models[of_region] = Model(of_region, shard.region)
        models[of_shard] = Model(of_shard, shard.region, shard.department)
    plain = [models[name] for name in sorted(models)]
    return plain + [replace(model, id=model.id + _SOURCES, lists_sources=True) for model in plain]


def model_named(name: str, models: Sequence[Model]) -> Model:
    """Return the model with this name, or else the first with this name in another case; raises `UnknownModel`."""
    for normal in (_composed, _caseless):
        wanted = normal(name)
        for model in models:
            if normal(model.id) == wanted:
                return model
    raise UnknownModel(f"there is no model {name[:_SHOWN_CHARACTERS]!r} for this key; GET /v1/models lists the models")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(_composed(name).casefold())


def _common(own: str | None, asked: list[str] | None) -> list[str] | None:
    if own is None:
        return asked
    if asked is None or any(same_name(own, name) for name in asked):
        return [own]
    raise UnknownScope(f"the regions and departments of the request are outside the model's {own[:64]!r}")
