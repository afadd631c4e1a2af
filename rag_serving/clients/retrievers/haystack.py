"""A retriever for Haystack."""

from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret

from rag_serving.clients.retrievers import metadata_of, score_of
from rag_serving.clients.sync import RagClient


@component
class RagShardsRetriever:
    """Returns the passages that a service finds at `url`; `options` are the other arguments of `RagClient.search`.

    A passage's text is the content of a document, the fields of its `Hit` are the `meta`, and the score is the one that
    orders the passages. Raises the errors of `search`. A pipeline with it can be saved: the key stays a reference.
    """

    def __init__(self, url: str, key: Secret | None = None, **options: Any) -> None:
        self._url = url
        self._key = key
        self._options = options
        self._client: RagClient | None = None

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, regions: list[str] | None = None, departments: list[str] | None = None
    ) -> dict[str, list[Document]]:
        """Search for passages; the regions and departments replace those of the options."""
        if self._client is None:
            self._client = RagClient(base_url=self._url, key=None if self._key is None else self._key.resolve_value())
        options = dict(self._options)
        if regions is not None:
            options["regions"] = regions
        if departments is not None:
            options["departments"] = departments
        hits = self._client.search(query, **options)
        return {
            "documents": [
                Document(id=hit.chunk_id, content=hit.text, meta=metadata_of(hit), score=score_of(hit)) for hit in hits
            ]
        }

    def close(self) -> None:
        """Close the connections; the next search opens them again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def to_dict(self) -> dict[str, Any]:
        """Return how a saved pipeline describes this component."""
        key = None if self._key is None else self._key.to_dict()
        return default_to_dict(self, url=self._url, key=key, **self._options)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RagShardsRetriever":
        """Return the component of a saved pipeline."""
        key = data["init_parameters"].get("key")
        data["init_parameters"]["key"] = None if key is None else Secret.from_dict(key)
        return default_from_dict(cls, data)
