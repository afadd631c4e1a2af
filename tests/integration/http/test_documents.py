"""Published documents over HTTP: their text, their originals and their links, from folders and from S3."""

from __future__ import annotations

import gzip
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from rag_serving.clients.lake import AsyncRagClient
from rag_serving.http.api_keys import create_key
from rag_serving.http.app import create_app
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServingSettings
from tests.servers.roots import BucketRoot
from tests.shard_harness import Bench, on_folders

NAME = 'le"ase Ø #1 100%.md'
TEXT = "# Lease\n\nThe rent of the harbour office is 620 kroner.\n"
MAIL = (
    b"From: kim@example.org\r\nTo: bo@example.org\r\nSubject: Harbour prices\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nSee the prices.\r\n'
    b'--b\r\nContent-Type: text/plain; name="prices.txt"\r\n'
    b'Content-Disposition: attachment; filename="prices.txt"\r\n\r\nThe mooring costs 45 kroner a night.\r\n--b--\r\n'
)


@dataclass(frozen=True)
class Caller:
    """A caller with a key for the shard of the bench."""

    http: TestClient
    shard: str

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers=headers)

    def search(self, question: str) -> list[dict[str, Any]]:
        reply = self.http.post("/v1/search", json={"question": question, "mode": "text"})
        assert reply.status_code == 200, reply.text
        return reply.json()["hits"]

    def address(self, question: str) -> str:
        """Return the address of the document with the best passage."""
        return f"/v1/documents/{quote(self.shard)}/{self.search(question)[0]['doc_id']}"


@contextmanager
def served(
    bench: Bench, tmp_path: Path, shards: str | None = None, *, http: dict[str, Any] | None = None, **more: Any
) -> Generator[Caller]:
    settings = ServingSettings.model_validate({"lake_uri": bench.lake, "source_uri": bench.source.uri, **more})
    keys = tmp_path / "keys.json"
    key = create_key(keys, "one", shards=[shards or bench.shard])[1]
    http_settings = HttpSettings.model_validate({"keys": str(keys), **(http or {})})
    with TestClient(create_app(lambda: AsyncRagClient(settings), http_settings)) as client:
        client.headers["authorization"] = f"Bearer {key}"
        yield Caller(client, bench.shard)


def kind_and_message(reply: Any) -> tuple[int, str, str]:
    return reply.status_code, reply.json()["error"]["type"], reply.json()["error"]["message"]


def test_the_text_of_a_document_is_read_in_parts_in_its_order(bench: Bench, tmp_path: Path) -> None:
    sections = [f"# Section {number}\n\n{f'Rule {number} of the harbour. ' * 30}" for number in range(8)]
    bench.put("rules.md", "\n\n".join(sections))
    bench.run()
    with served(bench, tmp_path) as caller:
        address = caller.address("Rule 5 of the harbour")
        whole = caller.get(address).json()
        first = caller.get(f"{address}?count=3").json()
        second = caller.get(f"{address}?first={first['next']}&count=3").json()
        assert caller.get(f"{address}?first={whole['total']}").status_code == 404
    assert (whole["title"], whole["path"], whole["type"]) == ("Section 0", "rules.md", "text/markdown")
    assert (whole["shard"], whole["source"]) == (bench.shard, f"{bench.shard}/rules.md")
    assert (whole["next"], whole["pages"], len(whole["passages"])) == (None, None, whole["total"])
    assert first["passages"] + second["passages"] == whole["passages"][:6]
    starts = [passage["start"] for passage in whole["passages"]]
    assert starts == sorted(starts)
    assert [passage["heading_path"] for passage in whole["passages"]][-1] == ["Section 7"]


def test_a_document_is_read_from_the_published_version(bench: Bench, tmp_path: Path) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path, catalog_refresh=0.0) as caller:
        address = caller.address("rent of the harbour office")
        bench.put("lease.md", TEXT.replace("620", "700"))
        assert "620 kroner" in caller.get(address).text
        bench.run()
        assert "700 kroner" in caller.get(address).text
        bench.delete("lease.md")
        bench.put("other.md", "Another document.")
        bench.run()
        assert kind_and_message(caller.get(address))[:2] == (404, "UnknownDocument")


def test_a_key_of_another_shard_sees_neither_the_document_nor_its_original(bench: Bench, tmp_path: Path) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path) as caller:
        address = caller.address("rent of the harbour office")
        shard, _, doc_id = address.rpartition("/")
        absent = [
            f"{shard}/{'0' * 32}",
            f"{shard}/{doc_id.upper()}",
            f"{shard}/{doc_id}%27%20OR%20true",
            f"{shard}/%27%20OR%20%27%27%3D%27",
            f"/v1/documents/Lisbon/nothing/{doc_id}",
            f"/v1/documents/Lisbon/..%2e/{doc_id}",
        ]
        messages = {kind_and_message(caller.get(f"{path}{end}")) for path in absent for end in ("", "/source")}
        del caller.http.headers["authorization"]
        assert [caller.get(f"{address}{end}").status_code for end in ("", "/source")] == [401, 401]
    with served(bench, tmp_path, "Lisbon/other") as caller:
        messages |= {kind_and_message(caller.get(f"{address}{end}")) for end in ("", "/source")}
    ((status, kind, _),) = messages
    assert (status, kind) == (404, "UnknownDocument")


def test_an_original_is_sent_as_it_is_stored_whole_and_in_ranges(bench: Bench, tmp_path: Path) -> None:
    bench.put(NAME, TEXT)
    bench.run()
    with served(bench, tmp_path) as caller:
        address = f"{caller.address('rent of the harbour office')}/source"
        whole = caller.get(address)
        part = caller.get(address, range="bytes=2-6")
        resumed = caller.get(address, range="bytes=9-", **{"if-range": whole.headers["etag"]})
    assert (whole.status_code, whole.text) == (200, TEXT)
    assert whole.headers["content-length"] == str(len(TEXT))
    assert whole.headers["content-type"] == "text/plain"
    assert whole.headers["content-disposition"].endswith(f"filename*=UTF-8''{quote(NAME)}")
    assert "x-source-changed" not in whole.headers
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "Lease", f"bytes 2-6/{len(TEXT)}")
    assert resumed.text == TEXT[9:]


def test_a_large_original_is_sent_in_pieces(bench: Bench, tmp_path: Path) -> None:
    data = b"The rent of the harbour office is 620 kroner.\n" + b"Nothing new.\n" * 400_000
    bench.put("log.txt", data)
    bench.run()
    with served(bench, tmp_path) as caller:
        reply = caller.get(f"{caller.address('rent of the harbour office')}/source")
    assert (reply.headers["content-length"], reply.content) == (str(len(data)), data)


def test_an_original_that_changed_is_marked_and_one_that_was_deleted_is_gone(bench: Bench, tmp_path: Path) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path) as caller:
        address = caller.address("rent of the harbour office")
        bench.put("lease.md", "Something else.")
        changed = caller.get(f"{address}/source")
        bench.delete("lease.md")
        gone = caller.get(f"{address}/source")
        assert caller.get(address).status_code == 200
    assert (changed.text, changed.headers["x-source-changed"]) == ("Something else.", "true")
    assert kind_and_message(gone)[:2] == (404, "SourceGone")


def test_html_is_saved_and_cannot_run(bench: Bench, tmp_path: Path) -> None:
    bench.put("page.html", "<h1>Rent</h1><p>The rent of the harbour office.</p><script>alert(1)</script>")
    bench.run()
    with served(bench, tmp_path) as caller:
        headers = caller.get(f"{caller.address('rent of the harbour office')}/source").headers
    assert headers["content-disposition"].startswith('attachment; filename="page.html"')
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_original_of_an_attachment_is_the_message(bench: Bench, tmp_path: Path) -> None:
    bench.put("mail.eml", MAIL)
    bench.run()
    with served(bench, tmp_path, source_link="https://intranet.example/{path}") as caller:
        (hit, *_) = caller.search("mooring kroner a night")
        original = caller.get(f"{caller.address('mooring kroner a night')}/source")
    assert (hit["path"], hit["link"]) == ("mail.eml#prices.txt", "https://intranet.example/mail.eml")
    assert original.content == MAIL
    assert original.headers["content-disposition"].startswith('attachment; filename="mail.eml"')


@pytest.mark.parametrize("bench", ["s3"], indirect=True)
def test_an_object_that_is_stored_compressed_is_sent_with_its_encoding(bench: Bench, tmp_path: Path) -> None:
    root = bench.source
    assert isinstance(root, BucketRoot)
    key, data = f"{root.prefix}/{bench.shard}/lease.md", gzip.compress(TEXT.encode())
    root.client.put_object(Bucket=root.bucket, Key=key, Body=data, ContentEncoding="gzip")
    bench.run()
    with served(bench, tmp_path) as caller:
        reply = caller.get(f"{caller.address('rent of the harbour office')}/source")
    assert (reply.headers["content-encoding"], reply.headers["content-length"]) == ("gzip", str(len(data)))
    assert reply.text == TEXT


def test_without_the_setting_callers_read_that_originals_are_not_available_and_the_log_names_it(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path, source_uri=None) as caller:
        reply = caller.get(f"{caller.address('rent of the harbour office')}/source")
    assert kind_and_message(reply) == (404, "SourceNotOffered", "originals are not available here")
    assert "RAG_SOURCE_URI is not set" in caplog.text


def test_the_source_of_another_lake_is_not_opened(bench: Bench, tmp_path: Path) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path, source_uri=f"{bench.source.uri}-2") as caller:
        reply = caller.get(f"{caller.address('rent of the harbour office')}/source")
    assert kind_and_message(reply)[:2] == (404, "SourceNotOffered")


def test_no_reply_contains_a_path_of_the_server_or_the_name_of_a_bucket(bench: Bench, tmp_path: Path) -> None:
    bench.put("lease.md", TEXT)
    bench.put("copy.md", TEXT)
    bench.run()
    question = {"question": "What is the rent of the harbour office?"}
    chat = {"model": "rag-shards", "messages": [{"role": "user", "content": question["question"]}]}
    with served(bench, tmp_path) as caller:
        address = caller.address("rent of the harbour office")
        post = caller.http.post
        replies = [
            post("/v1/search", json=question),
            post("/v1/search/documents", json=question),
            *(post("/v1/ask", json={**question, "stream": stream}) for stream in (False, True, False, True)),
            *(post("/v1/chat/completions", json={**chat, "stream": stream}) for stream in (False, True)),
            caller.get(address),
            caller.get("/v1/shards"),
            caller.get("/readyz"),
        ]
        bench.delete("lease.md")
        bench.delete("copy.md")
        replies.append(caller.get(f"{address}/source"))
    search, documents, miss, stream, hit, _, chatted, *_ = replies
    assert [reply.status_code for reply in replies] == [200] * 11 + [404]
    root = bench.source.uri.removeprefix("s3://").partition("/incoming")[0]
    for reply in replies:
        for secret in ("file:", "s3:", "incoming", root, str(tmp_path)):
            assert secret not in reply.text
            assert secret not in str(reply.headers)
    (first, *_) = search.json()["hits"]
    names = {f"{bench.shard}/lease.md", f"{bench.shard}/copy.md"}
    assert {first["source"], *first["also_in"]} == names
    assert documents.json()["documents"][0]["source"] in names
    assert (miss.json()["cache"], hit.json()["cache"]) == ("miss", "exact")
    (citation,) = hit.json()["citations"]
    assert citation == miss.json()["citations"][0]
    assert citation["link"].startswith(f"http://testserver/documents/{bench.shard}/")
    assert json.loads(stream.text.split("data: ")[1].split("\n\n")[0])["sources"][0]["source"] in names
    annotation = chatted.json()["choices"][0]["message"]["annotations"][0]
    assert annotation["url_citation"]["url"] == citation["link"]


@on_folders
def test_links_use_the_template_of_the_setting(bench: Bench, tmp_path: Path) -> None:
    bench.put(NAME, TEXT)
    bench.run()
    question = {"question": "What is the rent of the harbour office?"}
    link = f"https://intranet.example/docs/{bench.shard}/{quote(NAME)}"
    with served(bench, tmp_path, source_link="https://intranet.example/docs/{region}/{department}/{path}") as caller:
        (document,) = caller.http.post("/v1/search/documents", json=question).json()["documents"]
        answer = caller.http.post("/v1/ask", json=question).json()
        found = caller.get(caller.address("rent of the harbour office")).json()
    assert (
        document["link"] == document["passages"][0]["link"] == answer["citations"][0]["link"] == found["link"] == link
    )


@on_folders
@pytest.mark.parametrize(
    ("host", "public", "beginning"),
    [
        ("rag.example:8000", None, "http://rag.example:8000/documents/"),
        ("[::1]:8000", None, "http://[::1]:8000/documents/"),
        ("evil.example/?", None, "/documents/"),
        ('a"onclick="x', None, "/documents/"),
        ("internal:8000", "https://rag.example/", "https://rag.example/documents/"),
    ],
)
def test_links_begin_with_the_public_address_else_with_a_valid_host_header(
    bench: Bench, tmp_path: Path, host: str, public: str | None, beginning: str
) -> None:
    bench.put("lease.md", TEXT)
    bench.run()
    with served(bench, tmp_path, http={"public_url": public}) as caller:
        caller.http.headers["host"] = host
        (hit, *_) = caller.search("rent of the harbour office")
    assert hit["link"].startswith(beginning)
