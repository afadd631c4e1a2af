"""Names of source objects in URIs, and the links that RAG_SOURCE_LINK makes of them."""

from urllib.parse import quote, unquote


def object_path(source: str, path: str) -> str:
    """Return the path of the source object: that of a document without the name of an attachment, if it is one."""
    _, mark, attachment = source.partition("#")
    return path.removesuffix(f"#{unquote(attachment)}") if mark else path


def source_link(template: str | None, shard: str, path: str, source: str) -> str | None:
    """Return the link to the source object of a document; None without a template, or for an unusual path.

    An attachment links to the object that contains it. A browser would resolve dots in a path, which could then lead
    out of the folder that the template names.
    """
    path = object_path(source, path)
    if template is None or not path or {".", ".."} & set(path.split("/")):
        return None
    region, _, department = shard.partition("/")
    return template.format(
        region=quote(region, safe=""),
        department=quote(department, safe=""),
        shard=quote(shard),
        path=quote(path),
        name=quote(path.rpartition("/")[2], safe=""),
    )
