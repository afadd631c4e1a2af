"""The guards of the semantic cache: which questions agree in their details, and how the judge decides the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.guards.pairs import clusters
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.guards.calibration import Labelled, calibrate, upper_bound
from rag_serving.cache.guards.judge import WORDING_BONUS, Judge, Pair
from rag_serving.cache.guards.question import read
from rag_serving.cache.guards.rules import disagreement, wording
from rag_serving.cache.guards.tokens import singular
from rag_serving.cli.calibrate import calibrate_command
from rag_serving.errors import InvalidArgument, SettingsError

AGREE = [
    ("When is the report for 12 March 2024 due?", "when is the report for 2024-03-12 due"),
    ("Who signed on March 12, 2024?", "Who signed on the 12th of March 2024?"),
    ("What changed in 12.03.2024?", "What changed in 12 March 2024?"),
    ("Is two days notice enough?", "Is 2 days notice enough?"),
    ("Is it 1,000 km?", "Is it 1000 kilometres?"),
    ("Is 10% enough?", "Is 10 percent enough?"),
    ("Can a 14-year-old girl join?", "Can a 14 year old girl join?"),
    ("Do we have 3 million users?", "Do we have 3,000,000 users?"),
    ("Is $500 the limit?", "Is 500 dollars the limit?"),
    ("Does the call start at 3pm?", "Does the call start at 15:00?"),
    ("What are the third quarter results?", "What are the Q3 results?"),
    ("What does the 3rd section say?", "What does the third section say?"),
    ("Are twenty-one days enough?", "Are 21 days enough?"),
    ("Is one day of leave carried over?", "Is 1 day of leave carried over?"),
    ("How do I set up the VPN?", "how do i set up the virtual private network"),
    ("What is the leave in Oslo?", "what is the leave in oslo?"),
    ("What is Oslo's leave?", "What is the leave in Oslo?"),
    ("How do I get access to GitLab?", "How do I get access to Git Lab?"),
    ("Is diethylstilbestrol (DES) used?", "Is diethylstilbestrol used?"),
    ("What May I claim?", "what may i claim?"),
    ("Who leads the IT team?", "who leads the it team"),
    # contractions, the generic "you", politeness
    ("Why can't I log in?", "Why cannot I log in?"),
    ("What's the leave?", "What is the leave?"),
    ("How do you book a room?", "How does one book a room?"),
    ("How do I book a room?", "How do we book a room?"),
    ("Hi, could you please tell me how I reset my password? Thanks!", "How do I reset my password?"),
    # keywords, compounds, typing mistakes, synonyms
    ("travel per diem japan", "What is the travel per-diem in Japan?"),
    ("How do I log in?", "How do I login?"),
    ("How do I sign-up for it?", "How do I signup for it?"),
    ("How many days of leave do I get per year?", "How many days of annual leave are there?"),
    ("Is there a limit for claims?", "Do we have a limit for claims?"),
    ("What is the vaccation allowance?", "What is the vacation entitlement?"),
    ("When do I get my salary?", "When do I get my pay?"),
    ("How do I cancel the bookings?", "How can a booking be cancelled?"),
    # the same words in another order
    ("Does the company pay for broadband?", "Is broadband paid for by the company?"),
    ("When are invoices of small suppliers paid?", "When are small suppliers' invoices paid?"),
    ("What is the fare from Oslo to Bergen?", "What is the fare to Bergen from Oslo?"),
    # other languages: politeness, articles and pronouns
    ("Wann ist der Termin am 12. März 2024, bitte?", "wann ist der Termin am 12. März 2024"),
    ("会議室はどこですか", "会議室はどこですか?"),
]
DIFFER = [
    ("What was the budget for 2024?", "What was the budget for 2025?", "numbers"),
    ("Is 1.5 enough?", "Is 15 enough?", "numbers"),
    ("Is it 10² metres?", "Is it 102 metres?", "codes"),
    ("Is <5 fine?", "Is >5 fine?", "numbers"),
    ("Is ±5 fine?", "Is 5 fine?", "numbers"),
    ("What happened in World War I?", "What happened in World War II?", "names"),
    ("What does the 3rd section say?", "What does the 4th section say?", "wording"),
    ("Is it supported on iPhone 14?", "Is it supported on iPhone 15?", "numbers"),
    ("Who owns account 12345678901234567?", "Who owns account 12345678901234568?", "numbers"),
    ("Is it 10 km away?", "Is it 10 miles away?", "wording"),
    ("Do I have 30 days?", "Do I have 30 weeks?", "wording"),
    ("Is 5 mW safe?", "Is 5 MW safe?", "units"),
    ("Is 5mb the limit?", "Is 5MB the limit?", "units"),
    ("What is the CO limit?", "What is the Co limit?", "units"),
    ("What is the per-diem for the US?", "What is the per-diem for us in May?", "dates"),
    ("What is the allowance in the US?", "What is the allowance for us?", "units"),
    ("Is the audit on 12 March?", "Is the audit on 12 April?", "dates"),
    ("Is the office open on Monday?", "Is the office open on Tuesday?", "dates"),
    ("What are the Q3 results?", "What are the Q4 results?", "dates"),
    ("Does it start at 3pm?", "Does it start at 3am?", "dates"),
    ("What is the state of INC-4711?", "What is the state of INC-4712?", "codes"),
    ("What is new in v2.3?", "What is new in v2.4?", "codes"),
    ("How do I build in C++?", "How do I build in C#?", "codes"),
    ("What is the leave in Oslo?", "What is the leave in Bergen?", "names"),
    ("Who leads the HR team?", "Who leads the IT team?", "names"),
    ("Who may export data?", "Who may not export data?", "negation"),
    ("Is it necessary to sign?", "Is it unnecessary to sign?", "negation"),
    ("Can I travel with approval?", "Can I travel without approval?", "negation"),
    ("Who should report before the audit?", "Who should report after the audit?", "wording"),
    ("What is the minimum stay?", "What is the maximum stay?", "wording"),
    ("Is at least 5 fine?", "Is at most 5 fine?", "wording"),
    ("Do employees get leave?", "Do contractors get leave?", "wording"),
    ("What was decided last year?", "What was decided this year?", "wording"),
    ("How do I enable the alarm?", "How do I disable the alarm?", "wording"),
    ("What is the contact number?", "What is the contract number?", "wording"),
    ("What is my name?", "What is your name?", "wording"),
    ("When did they move the desk?", "Where did they move the desk?", "kind"),
    ("Must I submit receipts?", "May I submit receipts?", "kind"),
    ("Who replaces the clerk?", "Who does the clerk replace?", "kind"),
    ("Are there trains from Oslo to Bergen?", "Are there trains from Bergen to Oslo?", "order"),
    ("How do I convert NOK to EUR?", "How do I convert EUR to NOK?", "order"),
    ("Is plan A better than plan B?", "Is plan B better than plan A?", "order"),
    ("Does Anna report to Bo?", "Does Bo report to Anna?", "order"),
    ("Is the token for the server?", "Is the server for the token?", "order"),
    ("What does the company give the employee?", "What does the employee give the company?", "order"),
    ("Is the landlord paid by the tenant?", "Does the landlord pay the tenant?", "order"),
    ("What do I owe you for lunch?", "What do you owe me for lunch?", "order"),
    ("Who were the last emperors allied with?", "Who were the last emperors allied by?", "order"),
    ("Wer darf exportieren?", "Wer darf nicht exportieren?", "language"),
    ("Wie hoch ist der Betrag im März?", "Wie hoch ist der Betrag im April?", "language"),
    ("Qui peut exporter les données?", "Qui ne peut pas exporter les données?", "language"),
    ("¿Se puede pagar con tarjeta?", "¿Se puede pagar sin tarjeta?", "language"),
    ("申請できますか", "申請できませんか", "language"),
    ("会議は3月ですか", "会議は4月ですか", "language"),
    ("Was ist der per diem in Japan?", "What is the per diem in Japan?", "language"),
]
WORDS = [
    *("how", "when", "is", "the", "not", "office", "Oslo", "12 March", "2024", "3", "km", "VPN", "INC-4711", "before"),
    *("after", "manager", "open", "closed", "いつ", "ない", "C++", "my", "your", "from", "to", "10%", "first", "(DES)"),
]
QUESTIONS = st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join) | st.text(max_size=60)
SURE = 0.99


def judged(asked: str, cached: str, similarity: float = SURE, **more: object) -> str | None:
    """Return the guard that refuses the pair, None if it is served."""
    return Judge.shipped().judge(Pair(asked, cached, similarity, **more)).guard  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("asked", "cached"), AGREE)
def test_the_same_question_in_another_notation_agrees(asked: str, cached: str) -> None:
    assert disagreement(read(asked), read(cached)) is None


@pytest.mark.parametrize(("asked", "cached", "guard"), DIFFER)
def test_a_different_detail_is_refused_by_its_guard(asked: str, cached: str, guard: str) -> None:
    found = disagreement(read(asked), read(cached))
    assert found is not None
    assert found.guard == guard
    # At any similarity.
    assert judged(asked, cached, 0.9999) == guard


@given(QUESTIONS, QUESTIONS)
def test_guards_are_symmetric(one: str, other: str) -> None:
    forth, back = disagreement(read(one), read(other)), disagreement(read(other), read(one))
    assert (forth and forth.guard) == (back and back.guard)


@given(QUESTIONS)
def test_a_question_agrees_with_itself_whatever_its_whitespace(question: str) -> None:
    assert disagreement(read(question), read(question)) is None
    assert disagreement(read(question), read("  " + re.sub(r"\s+", "  ", question) + " ")) is None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["How many of {} are left?", "Is {} km far?"]))
def test_a_question_with_a_different_number_is_never_served(one: int, other: int, form: str) -> None:
    assume(one != other)
    assert judged(form.format(one), form.format(other), 1.0) == "numbers"


@given(QUESTIONS, QUESTIONS, st.floats(allow_nan=True, allow_infinity=True))
def test_every_text_and_similarity_gets_a_verdict(one: str, other: str, similarity: float) -> None:
    verdict = Judge.shipped().judge(Pair(one, other, similarity))
    assert verdict.serve == (verdict.guard is None)
    assert verdict.reason
    assert 0 <= verdict.risk <= 1


def test_a_400_digit_number_is_compared_exactly() -> None:
    assert judged("Is it " + "9" * 400 + "?", "Is it " + "9" * 399 + "8?") == "numbers"


def test_scope_words_must_occur_in_both_questions() -> None:
    scope = frozenset(["Oslo", "human resources"])
    assert judged("what is the leave in oslo", "what is the leave", scope_words=scope) == "scope"
    assert judged("what is the human resources policy", "what is the policy", scope_words=scope) == "scope"
    assert judged("what is the leave in oslo", "What is the leave in Oslo", scope_words=scope) is None


def test_high_similarity_alone_never_makes_a_semantic_hit() -> None:
    assert judged("Which cats are allowed here?", "Which dogs are allowed here?", SURE) == "wording"
    assert judged("Which lamps are allowed here?", "Which chairs are allowed here?", SURE) == "wording"
    steam, exhaust = (
        "What can the exhaust steam do when the " + event + " event is long?" for event in ("steam", "exhaust")
    )
    assert judged(steam, exhaust, SURE) == "wording"
    assert judged("Which lamps are allowed here?", "Are the lamps here allowed to anyone?", 0.7) == "similarity"
    assert judged("How can I book a room?", "How do I book a room?", 0.97) is None
    assert judged("How can I book a room?", "How do I book a room?", float("nan")) == "similarity"


def test_different_passages_refuse_a_paraphrase_only_below_the_sure_similarity() -> None:
    def passages(*names: str, cited: str = "") -> tuple[Evidence, ...]:
        return tuple(Evidence(name, name, 0.5, name == cited) for name in names)

    def guard(similarity: float, asked: tuple[Evidence, ...], cached: tuple[Evidence, ...]) -> str | None:
        one, other = "How can I book a room?", "How do I book a room?"
        return judged(one, other, similarity, asked_evidence=asked, cached_evidence=cached)

    assert guard(0.96, passages("a", "b"), passages("b", "a", cited="a")) is None
    assert guard(0.96, passages("a", "b"), passages("c", "b", cited="c")) == "evidence"
    assert guard(0.96, passages("a", "b"), passages("c", "b")) == "evidence"
    assert guard(SURE, passages("a", "b"), passages("c", "d", cited="c")) is None
    assert guard(0.96, (), ()) is None


def test_a_verdict_gives_a_reason() -> None:
    found = (Evidence("1", "a"),)
    hit = Judge.shipped().judge(Pair("How can I book room 12?", "How do I book room 12?", 0.96, found, found))
    assert hit.serve
    assert hit.reason.startswith(
        "similarity 0.960, same numbers and wording, 1 of 1 passages in common; estimated risk "
    )
    miss = Judge.shipped().judge(Pair("How can I book room 12?", "How do I book room 13?", 0.96))
    assert miss.reason == "similarity 0.960, but numbers differ: 12 against 13"


def test_a_tighter_error_bound_serves_less_and_an_impossible_one_nothing() -> None:
    pair = Pair("How can I book a meeting room?", "How do I book a meeting room?", 0.93)
    thresholds = [Judge.shipped(max_error=error).threshold for error in (0.01, 0.02, 0.05, 0.1)]
    assert all(threshold is not None for threshold in thresholds)
    assert thresholds == sorted(thresholds, key=float, reverse=True)  # pyright: ignore[reportArgumentType]
    assert Judge.shipped(max_error=0.05).judge(pair).serve
    never = Judge.shipped(max_error=1e-6)
    assert never.threshold is None
    assert not never.judge(Pair(pair.asked, pair.asked, 1.0)).serve


@pytest.mark.timeout(60)  # comparing every word order would never finish
def test_a_long_question_is_judged() -> None:
    words = [f"q{a}{b}{c}" for a in "bcdfghjk" for b in "aeiou" for c in "lmnprstvwz"]
    long, turned = "How is " + " ".join(words), "How is " + " ".join(reversed(words))
    assert judged(long, turned, SURE) == "order"
    assert judged(long, long + " please", SURE) is None


@pytest.mark.parametrize("setting", [{"max_error": 0.0}, {"max_error": 1.5}, {"sure": 0.0}])
def test_a_setting_out_of_range_is_rejected(setting: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="RAG_CACHE"):
        Judge.shipped(**setting)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"distance": 1.0}},
        {"thresholds": []},
        {"thresholds": [{"max_error": 0.02, "score": 0.9}, {"max_error": 0.01, "score": 0.9}]},
        {"thresholds": [{"max_error": 0.01, "score": 0.9}, {"max_error": 0.02, "score": 0.95}]},
        {"least_similarity": "inf"},
        {"format": 2},
        {"format": None},
    ],
)
def test_a_malformed_calibration_is_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    good = {"format": 3, "least_similarity": 0.8, "thresholds": [{"max_error": 0.01, "score": 0.9}]}
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(good))
    assert Judge.from_file(file).threshold == 0.9
    file.write_text(json.dumps({**good, **change}))
    with pytest.raises(SettingsError, match="rag-serving calibrate"):
        Judge.from_file(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        Judge.from_file(tmp_path / "missing.json")


def test_a_calibration_in_the_old_format_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    former = {"format": 2, "least_similarity": 0.8, "thresholds": [{"max_error": 0.01, "similarity": 0.9}]}
    file.write_text(json.dumps(former))
    with pytest.raises(SettingsError, match=r"format.*rag-serving calibrate"):
        Judge.from_file(file)


# --- wording and calibration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("How do I book a room?", "How can I book a room?", "same"),
        ("booking room", "How do I book a room?", "same"),
        ("cancelled bookings", "cancel the booking", "same"),
        ("How do I use my accuont?", "How do I use my account?", "same"),
        ("How long is the notice?", "What is the notice?", "similar"),
        ("Which form do I need?", "Which form may I use?", "similar"),
        ("How many days of leave are there?", "How many days of leave are left?", "more words"),
    ],
)
def test_the_wording_is_the_same_similar_or_has_more_words(one: str, other: str, expected: str) -> None:
    assert wording(read(one), read(other)) == expected
    assert wording(read(other), read(one)) == expected


def test_the_same_wording_and_the_same_passages_need_a_lower_cosine() -> None:
    found = (Evidence("1", "a"), Evidence("2", "b"))
    judge = Judge.shipped()

    def least(asked: str, **evidence: object) -> float:
        pairs = (Pair(asked, "How do I book the big hall?", cosine / 1000, **evidence) for cosine in range(750, 1000))  # pyright: ignore[reportArgumentType]
        return next((pair.similarity for pair in pairs if judge.judge(pair).serve), 1.0)

    both = {"asked_evidence": found, "cached_evidence": found}
    more = "How do I book the big hall quietly?"
    assert least("book hall big", **both) < least("book hall big") < least(more)
    assert least(more, **both) == least(more)


@pytest.mark.parametrize(
    ("word", "one"), [("policies", "policy"), ("rooms", "room"), ("bus", "bus"), ("class", "class")]
)
def test_plural_endings_are_removed(word: str, one: str) -> None:
    assert singular(word) == one


@pytest.mark.parametrize(
    ("wrong", "served", "bound"),
    # The one-sided Clopper-Pearson limit at 95 %: 1 - 0.05^(1/n) if none is wrong, else the beta quantile.
    [(0, 299, 0.00997), (0, 10, 0.25887), (1, 100, 0.04656), (10, 1000, 0.01689), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_the_upper_bound_is_the_clopper_pearson_limit(wrong: int, served: int, bound: float) -> None:
    assert upper_bound(wrong, served) == pytest.approx(bound, abs=2e-5)


def test_pairs_with_a_common_question_share_a_cluster() -> None:
    cluster = clusters([("a", "b"), ("b", "c"), ("d", "e")])
    assert cluster["a"] == cluster["c"] != cluster["d"]


def test_a_threshold_is_the_lowest_similarity_that_keeps_its_error_bound() -> None:
    def pair(number: int, similarity: float, same: bool) -> Labelled:
        return Labelled(Pair(f"How do I use hall {number}?", f"How can I use hall {number}?", similarity), same)

    near = [pair(number, 0.95 + number % 3 / 100, True) for number in range(400)]
    wrong = [pair(number, 0.9, False) for number in range(400, 420)]
    thresholds = {one.max_error: one for one in calibrate(near + wrong, bounds=(0.001, 0.01, 0.1)).thresholds}
    assert thresholds[0.001].score is None  # 0 wrong of 400 only proves an error rate of at most 0.75 %
    assert thresholds[0.01].score == pytest.approx(0.95 + WORDING_BONUS["same"], abs=2e-5)
    assert (thresholds[0.01].served, thresholds[0.01].wrong) == (400, 0)
    assert thresholds[0.1].score == pytest.approx(0.9 + WORDING_BONUS["same"], abs=2e-5)
    assert (thresholds[0.1].served, thresholds[0.1].wrong) == (420, 20)
    assert thresholds[0.1].bound == pytest.approx(upper_bound(20, 420), abs=1e-5)


def examples() -> list[dict[str, object]]:
    """Three hundred pairs of equal meaning and high similarity, and as many with neither."""
    things = [
        f"{a}{b}" for a in ("lamp", "desk", "fork", "tent", "sail", "gate") for b in ("ness", "let", "ery", "ling")
    ]
    lines: list[dict[str, object]] = []
    for n in range(300):
        thing, other = things[n % 24], things[(n + 1) % 24]
        place = f"hall {n}"
        lines.append(
            {"asked": f"How do I use the {thing} in {place}?", "cached": f"How can I use the {thing} in {place}?"}
        )
        lines[-1] |= {"same": True, "similarity": 0.96}
        lines.append({"asked": f"Who owns the {thing} of {place}?", "cached": f"Who owns the {other} of {place}?"})
        lines[-1] |= {"same": False, "similarity": 0.9}
    return lines


def test_the_calibrate_command_writes_a_calibration_that_the_judge_can_use(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "calibration.json"
    pairs.write_text("\n".join(json.dumps(line) for line in examples()))
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "at most 1.0% wrong" in result.output
    assert "score from 1.0" in result.output
    assert "no guards, cosine from 0.960" in result.output
    judge = Judge.from_file(out)
    assert judge.judge(Pair("How do I use the lamplet in hall 7?", "How can I use the lamplet in hall 7?", 0.97)).serve
    assert judge.judge(Pair("Who owns the lamplet?", "Who owns the desklet?", 0.9)).guard == "wording"
    # The same pairs produce the same file.
    first = out.read_text()
    CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert out.read_text() == first


def test_too_few_pairs_and_malformed_lines_are_rejected(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "calibration.json"
    pairs.write_text("\n".join(json.dumps(line) for line in examples()[:20]))
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert isinstance(result.exception, InvalidArgument)
    pairs.write_text('{"asked": "a", "cached": "b", "same": true}\n{"asked": "a"}\n')
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert "line 2" in str(result.exception)
    assert not out.exists()
    with pytest.raises(InvalidArgument, match="pairs"):
        calibrate([])
