"""The web page in a real browser: by keyboard, on a small screen, with hostile documents."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rag_serving.http.api_keys import create_key
from tests.fake_llm import StandIn
from tests.pipelines import failure_of, run_shard, seed_model, settings_for
from tests.servers import axe_script, chromium
from tests.serving_process import Service, service_environment, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

QUESTION = "How many weeks of parental leave are on full pay?"
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE_NAME = "<img src=x onerror=alert(1)>.md"
HOSTILE = f"""# {html.escape(MARKUP)}

## Ticket {html.escape(MARKUP)}

| Zebra {MARKUP.replace("|", "")} | Stripe |
|---|---|
| `{MARKUP}` | javascript:alert(1) |

""" + "\n\n".join(f"## Stripe {number}\n\nZebra number {number} runs. {'It runs on. ' * 40}" for number in range(230))
PDF = Path(__file__).parents[3] / "examples/corpus/lisbon/engineering/buoy-firmware-release.pdf"
DOCUMENTS = {
    "oslo/people": "# Parental leave\n\nParental leave in Oslo is 46 weeks on full pay.\n",
    "oslo/finance": "# Travel\n\nThe travel per-diem in Oslo is 620 kroner.\n",
    "lisbon/people": "# Parental leave\n\nParental leave in Lisbon is 22 weeks on full pay.\n",
    "nagoya/support": f"# Escalation {html.escape(MARKUP)}\n\nTo escalate a ticket call `{MARKUP}`. {'x' * 200}\n",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def lake(model_lake: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    import dagster as dg

    lake = str(tmp_path_factory.mktemp("lake"))
    seed_model(model_lake, lake)
    settings = settings_for(str(source), lake)
    with dg.DagsterInstance.ephemeral() as instance:
        for shard, text in DOCUMENTS.items():
            (source / shard).mkdir(parents=True)
            (source / shard / "page.md").write_text(text)
        (source / "oslo/people" / HOSTILE_NAME).write_text(HOSTILE)
        shutil.copy(PDF, source / "oslo/people/release.pdf")
        for shard in DOCUMENTS:
            result = run_shard(instance, settings, shard)
            assert result.success, failure_of(result)
    return lake


@pytest.fixture(scope="module")
def everything(keys_file: Path) -> str:
    return create_key(keys_file, "everything", tenant="everything")[1]


@pytest.fixture(scope="module")
def oslo(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", tenant="oslo", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def lisbon(keys_file: Path) -> str:
    return create_key(keys_file, "Lisbon alone", tenant="lisbon", shards=["lisbon/*"])[1]


@pytest.fixture(scope="module")
def service(
    lake: str, source: Path, stand_in: StandIn, keys_file: Path, oslo: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    environment = service_environment(lake, stand_in, keys_file, RAG_SOURCE_URI=str(source))
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        yield running


@pytest.fixture(scope="module")
def browser(
    server_binaries: Path, service: Service
) -> Iterator[Browser]:  # last: its event loop keeps running in this thread
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    with chromium(server_binaries) as running:
        yield running


@pytest.fixture
def page(browser: Browser, service: Service, stand_in: StandIn) -> Iterator[Page]:
    """The page, opened without a key. At the end: no requests to other hosts and no errors in the console."""
    stand_in.words, stand_in.pause, stand_in.faults = ("46 weeks", " [1]."), 0.0, {}
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(service.url)
    expect(page.get_by_role("status")).to_have_text("Enter your access key.")
    yield page
    context.close()
    assert asked
    assert [url for url in asked if not url.startswith((f"{service.url}/", "data:"))] == []
    refused = "the server responded with a status of 401"  # the browser itself logs this
    assert [text for text in errors if refused not in text] == []


def expect(locator: Locator) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def give_key(page: Page, key: str) -> None:
    """Enter a valid key and wait until its field closes."""
    if page.get_by_label("Key (stored in this tab only)").is_hidden():
        page.get_by_text("Access key", exact=True).click()
    page.get_by_label("Key (stored in this tab only)").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Key (stored in this tab only)")).to_be_hidden()


def ask(page: Page, question: str) -> Locator:
    """Ask and wait for the complete answer; returns its turn."""
    turns = page.locator(".turn")
    before = turns.count()
    page.get_by_role("textbox", name="Question").fill(question)
    page.keyboard.press("Enter")
    expect(turns).to_have_count(before + 1)
    expect(turns.last.get_by_role("button", name="Copy the answer")).to_be_visible()
    return turns.last


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{target} cannot be reached with Tab")


def choices(page: Page, label: str) -> list[str]:
    return [text.strip() for text in page.get_by_role("group", name=label).locator("label").all_text_contents()]


def choose(page: Page, *names: str) -> None:
    page.locator("#chosen").click()
    for name in names:
        page.get_by_label(name, exact=True).check()
    page.locator("#chosen").click()


def test_a_question_can_be_asked_and_its_source_opened_by_keyboard_only(
    page: Page, oslo: str, stand_in: StandIn
) -> None:
    stand_in.pause = 1.0  # so that even a busy machine draws each word by itself
    expect(page.get_by_label("Key (stored in this tab only)")).to_be_focused()
    page.keyboard.type(oslo)
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    expect(page.get_by_role("status")).to_be_empty()
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const text = document.querySelector(".turn .text");
            if (text) seen.push([text.textContent.trim(), text.getAttribute("aria-busy")]);
          }).observe(document.getElementById("turns"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    turn = page.locator(".turn")
    expect(page.get_by_role("status")).to_have_text("Answered.")
    expect(turn.locator(".text")).to_have_text("46 weeks [1].")
    assert ["46 weeks", "true"] in page.evaluate("() => seen")
    expect(page.get_by_role("heading", name=QUESTION)).to_be_visible()
    source = turn.locator(".sources li").first
    expect(source.locator("pre")).to_be_hidden()
    citation = page.get_by_role("link", name="Source 1")
    while not citation.evaluate("element => element === document.activeElement"):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(source.locator("pre")).to_be_visible()
    expect(source.locator("pre")).to_contain_text("46 weeks on full pay")
    expect(source.locator("summary")).to_be_focused()
    expect(source).to_contain_text("oslo/people/page.md")


def test_a_follow_up_is_answered_with_the_conversation_before_it(
    page: Page, everything: str, stand_in: StandIn
) -> None:
    stand_in.rewrite = "How many weeks of parental leave are there in Lisbon?"
    give_key(page, everything)
    ask(page, "How many weeks of parental leave are on full pay in Oslo?")
    stand_in.requests.clear()
    ask(page, "And in Lisbon?")
    prompts = json.dumps(stand_in.requests)
    assert "How many weeks of parental leave are on full pay in Oslo?" in prompts
    assert stand_in.rewrite in prompts
    expect(page.locator(".turn")).to_have_count(2)


def test_chats_are_kept_in_the_browser_and_can_be_reopened_and_deleted(page: Page, everything: str) -> None:
    give_key(page, everything)
    ask(page, QUESTION)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "What is the travel per-diem?")
    page.goto(page.url.partition("?")[0])
    expect(page.locator("#corpus")).to_contain_text("documents")
    page.get_by_role("button", name=QUESTION, exact=True).click()
    expect(page.locator(".turn .text")).to_have_text("46 weeks [1].")
    expect(page.locator(".turn .asked")).to_have_text(QUESTION)
    page.get_by_role("button", name=f"Delete “{QUESTION}”").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#chats li")).to_have_count(1)
    page.get_by_role("button", name="Delete all chats").click()
    expect(page.locator("#chats li")).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage)") == []


def test_chats_of_one_key_are_not_shown_with_another(page: Page, everything: str, oslo: str) -> None:
    give_key(page, everything)
    ask(page, QUESTION)
    expect(page.locator("#chats li")).to_have_count(1)
    give_key(page, oslo)
    expect(page.locator("#chats li")).to_have_count(0)
    expect(page.locator(".turn")).to_have_count(0)


def test_the_address_of_a_chat_asks_its_question_in_its_scope(page: Page, everything: str) -> None:
    give_key(page, everything)
    choose(page, "lisbon")
    ask(page, QUESTION)
    page.goto(page.url)
    turn = page.locator(".turn")
    expect(turn.locator(".asked")).to_have_text(QUESTION)
    expect(turn.locator(".origin")).to_contain_text("The same question was answered before")
    expect(page.locator("#chosen")).to_have_text("Only lisbon")


def test_the_empty_page_says_what_can_be_searched(page: Page, everything: str, oslo: str) -> None:
    give_key(page, everything)
    expect(page.locator("#corpus")).to_contain_text("6 documents of 4 departments in 3 regions, as of")
    give_key(page, oslo)
    expect(page.locator("#corpus")).to_contain_text("4 documents of 2 departments in 1 region, as of")


def test_a_repeated_question_shows_that_it_was_answered_before(page: Page, everything: str) -> None:
    give_key(page, everything)
    question = "Which travel per-diem applies in Oslo?"
    expect(ask(page, question).locator(".origin")).to_contain_text("Answered from the documents")
    page.get_by_role("button", name="New chat").click()
    turn = ask(page, question)
    expect(turn.locator(".origin")).to_have_text(re.compile(r"The same question was answered before · \d+ m?s"))
    expect(turn.locator(".text")).to_have_text("46 weeks [1].")
    expect(page.get_by_role("link", name="Source 1")).to_be_visible()


def test_marks_of_an_answer_are_explained_in_words(page: Page, everything: str, stand_in: StandIn) -> None:
    stand_in.words = ("46 weeks.",)
    give_key(page, everything)
    turn = ask(page, "How long is the leave of parents in Oslo?")
    expect(turn.locator(".notes")).to_have_text("The answer names no source, so check it against the passages.")
    turn.get_by_text("Found, but not cited").click()
    expect(turn.locator(".unused li").first).to_be_visible()


def test_markdown_of_an_answer_is_rendered(page: Page, everything: str, stand_in: StandIn) -> None:
    stand_in.words = ("**46** weeks [1]\n\n| office | weeks |\n|---|---:|\n", "| Oslo | 46 |\n\n- one\n- `two [1]`\n")
    give_key(page, everything)
    text = ask(page, "How many weeks of leave, as a table?").locator(".text")
    expect(text.locator("strong")).to_have_text("46")
    expect(text.get_by_role("cell", name="46")).to_have_class("right")
    expect(text.locator("li")).to_have_count(2)
    expect(text.get_by_role("link", name="Source 1")).to_have_count(1)  # not within code


def test_feedback_removes_a_wrong_answer_from_the_cache(page: Page, everything: str) -> None:
    give_key(page, everything)
    turn = ask(page, "What is the travel per-diem?")
    turn.get_by_role("button", name="No", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Thank you")
    page.get_by_role("button", name="New chat").click()
    expect(ask(page, "What is the travel per-diem?").locator(".origin")).to_contain_text("Answered from the documents")


def test_feedback_that_cannot_be_sent_is_reported(page: Page, everything: str) -> None:
    give_key(page, everything)
    turn = ask(page, "How many weeks of parental leave are there in Oslo?")
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('lost')); }")
    turn.get_by_role("button", name="No", exact=True).click()
    expect(page.get_by_role("status")).to_have_text(
        "The service cannot be reached. Your feedback was not sent; try again."
    )


def test_a_question_can_be_tried_again_when_the_service_is_back(page: Page, everything: str) -> None:
    give_key(page, everything)
    page.evaluate("() => { window.real = fetch; window.fetch = () => Promise.reject(new TypeError('lost')); }")
    page.locator("#question").fill(f"{QUESTION} Is it back?")
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_have_text("The service cannot be reached.")
    page.evaluate("() => { window.fetch = window.real; }")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn .text")).to_have_text("46 weeks [1].")
    expect(page.locator(".turn")).to_have_count(1)


def test_the_scope_offers_what_the_key_may_see_and_the_departments_of_the_chosen_regions(
    page: Page, oslo: str, everything: str
) -> None:
    give_key(page, oslo)
    expect(page.get_by_role("status")).to_be_empty()
    page.locator("#chosen").click()
    assert choices(page, "Regions") == ["oslo"]
    assert choices(page, "Departments") == ["finance", "people"]
    page.locator("#chosen").click()
    give_key(page, everything)
    expect(page.locator("#regions label")).to_have_count(3)
    page.locator("#chosen").click()
    assert choices(page, "Regions") == ["lisbon", "nagoya", "oslo"]
    assert choices(page, "Departments") == ["finance", "people", "support"]
    page.get_by_label("lisbon", exact=True).check()
    page.get_by_label("nagoya", exact=True).check()
    assert choices(page, "Departments") == ["people", "support"]
    page.get_by_label("people", exact=True).check()
    expect(page.locator("#chosen")).to_have_text("Only lisbon, nagoya, people")
    places = ask(page, QUESTION).locator(".place")
    assert {text.partition("/page.md")[0] for text in places.all_text_contents()} == {"lisbon/people"}


@pytest.mark.parametrize("asks", [False, True], ids=["entered", "asked with"])
def test_an_invalid_key_opens_the_key_field_and_shows_an_error(page: Page, oslo: str, asks: bool) -> None:
    give_key(page, oslo)
    expect(page.get_by_role("status")).to_be_empty()
    if asks:  # for example, it was revoked in the meantime
        page.evaluate("sessionStorage.setItem('rag-key', 'rag_wrong')")
        page.locator("#question").fill(QUESTION)
    else:
        page.get_by_text("Access key", exact=True).click()
        page.get_by_label("Key (stored in this tab only)").fill("rag_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("This key is not valid.")
    expect(page.get_by_label("Key (stored in this tab only)")).to_be_visible()


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_an_answer_can_be_stopped(page: Page, oslo: str, stand_in: StandIn, by: str) -> None:
    stand_in.faults = {"stand-in": "hangs"}
    give_key(page, oslo)
    page.locator("#question").fill(f"What is the travel per-diem? {by}")
    page.keyboard.press("Enter")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    if by == "button":
        tab_to(page, stop)
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.locator(".problem")).to_have_text("Stopped.")
    expect(stop).to_be_hidden()
    expect(page.locator("#question")).to_be_focused()
    stand_in.faults = {}
    ask(page, QUESTION)


def test_a_new_question_replaces_one_that_is_still_being_answered(
    page: Page, everything: str, stand_in: StandIn
) -> None:
    stand_in.faults = {"stand-in": "hangs"}
    give_key(page, everything)
    page.locator("#question").fill("What is the travel per-diem at home?")
    page.keyboard.press("Enter")
    expect(page.locator(".progress").first).to_contain_text("Waiting for the language model")
    page.locator("#question").fill("Who gets leave?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Who gets leave?")).to_be_visible()
    expect(page.locator(".problem").first).to_have_text("Stopped.")
    expect(page.locator(".progress").last).to_contain_text("Waiting for the language model")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()


def test_markup_from_documents_and_models_is_shown_as_text(page: Page, everything: str, stand_in: StandIn) -> None:
    hostile = (
        f"Call {MARKUP} [1]. ![x](/page/page.css) [run](javascript:alert(1)) <a href='javascript:alert(1)'>go</a>\n\n"
        "<svg onload=\"document.title='owned'\"></svg> [data](data:text/html,x)"
    )
    stand_in.words = (hostile,)
    give_key(page, everything)
    choose(page, "nagoya")
    turn = ask(page, f"Whom does the escalation of a ticket call? {MARKUP}")
    page.get_by_role("link", name="Source 1").click()
    source = turn.locator(".sources").first
    for place in (turn.locator(".text"), turn.locator(".asked"), source.locator("pre"), source.locator("li summary")):
        expect(place.first).to_contain_text(MARKUP)
    expect(page.locator("#chats")).to_contain_text(MARKUP)
    assert page.locator("main img, main script, main svg, main [onload], main [onerror]").count() == 0
    targets = page.locator(".text a:not(.citation)").evaluate_all("links => links.map((link) => link.href)")
    assert [target for target in targets if not target.startswith(("https://", "http://"))] == []
    page.goto(page.url)  # and again from the address and the stored chat
    expect(page.locator(".turn .asked")).to_contain_text(MARKUP)
    assert page.locator("main img, main script, main svg").count() == 0
    assert page.title() == "Ask the documents"


def test_nothing_scrolls_sideways_on_a_small_screen(page: Page, everything: str, stand_in: StandIn) -> None:
    wide = f"| {'t' * 60} | {'u' * 60} |\n|---|---|\n| 1 | 2 |\n\n```\n{'c' * 200}\n```\n"
    stand_in.words = ("y" * 300, f" [1].\n\n{wide}")
    page.set_viewport_size({"width": 360, "height": 640})
    give_key(page, everything)
    choose(page, "nagoya")
    turn = ask(page, f"How does the escalation of a ticket go? {'z' * 300}")
    page.get_by_role("link", name="Source 1").click()
    expect(turn.locator(".sources pre").first).to_contain_text("x" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Chats").click()
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_accessibility_violations(
    page: Page, everything: str, stand_in: StandIn, server_binaries: Path, colours: Any
) -> None:
    stand_in.words = ("46 weeks [1].\n\n| office | weeks |\n|---|---|\n| Oslo | 46 |\n\n```\ncode\n```\n",)
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    page.evaluate(axe_script(server_binaries).read_text())

    def problems() -> list[tuple[str, list[str]]]:
        found = page.evaluate("() => axe.run()")["violations"]
        return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    assert problems() == []
    give_key(page, everything)
    page.locator("#chosen").click()
    assert problems() == []
    ask(page, f"{QUESTION} In {colours}?")
    page.get_by_role("link", name="Source 1").click()
    assert problems() == []


def test_settings_give_the_page_a_name_a_colour_and_examples_and_an_open_service_asks_for_no_key(
    browser: Browser, lake: str, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.words, stand_in.pause, stand_in.faults = ("46 weeks", " [1]."), 0.0, {}
    look = {
        "RAG_HTTP_PAGE_NAME": "Northwind",
        "RAG_HTTP_PAGE_ACCENT": "#7a1fa2",
        "RAG_HTTP_PAGE_EXAMPLES": f"{QUESTION} | Who is on call?",
    }
    environment = {**service_environment(lake, stand_in, tmp_path / "none"), **look, "RAG_HTTP_KEYS": ""}
    with serving(tmp_path, environment, "--open") as service:
        page = browser.new_page()
        page.goto(service.url)
        expect(page.get_by_role("heading", name="Northwind")).to_be_visible()
        expect(page.get_by_text("Access key", exact=True)).to_be_hidden()
        assert (
            page.locator("#ask").evaluate("button => getComputedStyle(button).backgroundColor") == "rgb(122, 31, 162)"
        )
        assert page.locator("#examples button").all_text_contents() == [QUESTION, "Who is on call?"]
        page.get_by_role("button", name=QUESTION).click()
        expect(page.locator(".turn .text")).to_have_text("46 weeks [1].")
        page.close()


def test_the_description_of_the_api_is_shown_without_another_host(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/docs")
    expect(page.get_by_role("heading", name="rag-shards")).to_be_visible()
    page.get_by_role("button", name="POST /v1/ask Answer").click()
    expect(page.get_by_text("The events are sources, delta, citations and done")).to_be_visible()


# The page of a document.


def address_of(service: Service, key: str, question: str, prefix: str) -> str:
    """Return the link of the best passage of a document, below the address of the service."""
    with service.as_client(key) as client:
        body = {"question": question, "mode": "text", "path_prefix": prefix, "k": 1}
        link: str = client.post("/v1/search", json=body).json()["hits"][0]["link"]
    assert link.startswith(f"{service.url}/documents/oslo/people/")
    return link


def test_a_source_opens_its_document_at_the_cited_passage(page: Page, oslo: str) -> None:
    give_key(page, oslo)
    ask(page, QUESTION)
    page.get_by_role("link", name="Source 1").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open the document").first.click()
    document = opened.value
    expect(document.get_by_role("heading", name="Parental leave").first).to_be_visible()
    expect(document.locator("[data-marked]")).to_contain_text("46 weeks on full pay")
    expect(document.locator("[data-marked]")).to_be_focused()
    expect(document.locator("#place")).to_contain_text("oslo/people/page.md")
    expect(document.get_by_role("status")).to_be_empty()


def test_an_address_with_a_text_fragment_after_the_passage_opens_there(page: Page, service: Service, oslo: str) -> None:
    give_key(page, oslo)
    page.goto(f"{address_of(service, oslo, QUESTION, 'page')}#:~:text=Parental,leave")
    expect(page.locator("[data-marked]")).to_contain_text("46 weeks on full pay")
    expect(page.locator("[data-marked]")).to_be_focused()


def test_a_passage_far_down_a_long_document_is_loaded_shown_and_scrolled_to(
    page: Page, service: Service, oslo: str
) -> None:
    give_key(page, oslo)
    page.goto(address_of(service, oslo, "Zebra number 225 runs", "<img"))
    expect(page.locator("[data-marked]").first).to_contain_text("Zebra number 225 runs")
    expect(page.locator("[data-marked]").first).to_be_in_viewport()
    expect(page.get_by_role("heading", name="Stripe 225")).to_be_visible()
    page.goto(page.url.partition("#")[0])
    page.reload()
    expect(page.get_by_role("status")).to_be_empty()
    expect(page.get_by_role("heading", name="Stripe 225")).to_have_count(0)
    tab_to(page, page.get_by_role("button", name="Show more"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Stripe 225")).to_have_count(1)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_markup_in_a_document_is_shown_as_text_on_its_page(page: Page, service: Service, oslo: str) -> None:
    give_key(page, oslo)
    page.goto(address_of(service, oslo, "javascript alert stripe", "<img"))
    expect(page.locator("#text")).to_contain_text("javascript:alert(1)")
    expect(page.locator("#text")).to_contain_text(MARKUP)
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x")
    expect(page.locator("#text h2").first).to_contain_text("<img src=x")
    expect(page.locator("#place")).to_contain_text(HOSTILE_NAME)
    assert page.locator("main img, main script, header img, header script").count() == 0
    assert page.title() != "owned"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_of_a_document_asks_for_the_key_and_shows_nothing_to_a_key_of_another_shard(
    browser: Browser, service: Service, oslo: str, lisbon: str
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address_of(service, oslo, QUESTION, "page"))
    expect(page.get_by_role("status")).to_have_text("Enter your access key.")
    expect(page.get_by_label("Key (stored in this tab only)")).to_be_focused()
    page.keyboard.type(lisbon)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("UnknownDocument")
    expect(page.locator("#text")).to_be_empty()
    give_key(page, oslo)
    expect(page.locator("[data-marked]")).to_contain_text("46 weeks on full pay")
    context.close()


def test_the_original_is_saved_under_its_name(page: Page, service: Service, oslo: str, source: Path) -> None:
    give_key(page, oslo)
    page.goto(address_of(service, oslo, QUESTION, "page"))
    expect(page.locator("[data-marked]")).to_be_focused()
    with page.expect_download() as download:
        page.get_by_role("button", name="Open the original").click()
    assert download.value.suggested_filename == "page.md"
    assert Path(download.value.path()).read_bytes() == (source / "oslo/people/page.md").read_bytes()


def test_a_pdf_opens_at_the_page_of_the_passage(page: Page, service: Service, oslo: str) -> None:
    give_key(page, oslo)
    page.goto(address_of(service, oslo, "image is signed", "release.pdf"))
    expect(page.locator("[data-marked]").first).to_be_focused()
    number = page.locator("[data-marked]").first.get_attribute("data-page")
    assert number == "2"
    expect(page.get_by_text(f"page {number}", exact=True)).to_be_visible()
    page.evaluate("() => { window.open = (url) => { window.opened = url; return window; }; }")
    page.get_by_role("button", name="Open the original").click()
    page.wait_for_function("() => window.opened")
    opened: str = page.evaluate("window.opened")
    assert opened.startswith(f"blob:{service.url}/")
    assert opened.endswith(f"#page={number}")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_violations_on_the_page_of_a_document(
    page: Page, service: Service, oslo: str, server_binaries: Path, colours: Any
) -> None:
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    give_key(page, oslo)
    page.goto(address_of(service, oslo, QUESTION, "page"))
    expect(page.locator("[data-marked]")).to_be_focused()
    page.evaluate(axe_script(server_binaries).read_text())
    found = page.evaluate("() => axe.run()")["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
