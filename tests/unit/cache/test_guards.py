"""The guards of the answer cache: which questions agree in their particulars, and what the judge makes of the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from rag_serving.cache.guards import signals
from rag_serving.cache.guards.calibration import Labelled, calibrate, clusters, fit_logistic, folded, upper_bound
from rag_serving.cache.guards.judge import Judge, Pair
from rag_serving.cache.guards.particulars import disagreement, read
from rag_serving.cache.guards.signals import Evidence
from rag_serving.cache.guards.words import singular
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
    ("Can you tell me how I reset my password?", "How do I reset my password?"),
    ("Wann ist der Termin am 12. März 2024?", "Wann ist der Termin am 12.03.2024?"),
    ("¿Cuál es la fecha del 12 de marzo de 2024?", "¿Cuál es la fecha del 2024-03-12?"),
    ("2024年3月12日の会議はどこですか", "2024-03-12の会議はどこですか"),
]
DIFFER = [
    ("What was the budget for 2024?", "What was the budget for 2025?", "numbers"),
    ("Is 1.5 enough?", "Is 15 enough?", "numbers"),
    ("What happened in World War I?", "What happened in World War II?", "numbers"),
    ("What does the 3rd section say?", "What does the 4th section say?", "numbers"),
    ("Is it supported on iPhone 14?", "Is it supported on iPhone 15?", "numbers"),
    ("Is it 10 km away?", "Is it 10 miles away?", "units"),
    ("Do I have 30 days?", "Do I have 30 weeks?", "units"),
    ("Is the limit 500 EUR?", "Is the limit 500 USD?", "units"),
    ("Is the audit on 12 March?", "Is the audit on 12 April?", "dates"),
    ("Is the office open on Monday?", "Is the office open on Tuesday?", "dates"),
    ("What are the Q3 results?", "What are the Q4 results?", "dates"),
    ("Does it start at 3pm?", "Does it start at 3am?", "dates"),
    ("When did the office open?", "When does the office open?", "dates"),
    ("What happened in the 1980s?", "What happened in the 1990s?", "dates"),
    ("What is the state of INC-4711?", "What is the state of INC-4712?", "codes"),
    ("What is new in v2.3?", "What is new in v2.4?", "codes"),
    ("How do I build in C++?", "How do I build in C#?", "codes"),
    ("What is the leave in Oslo?", "What is the leave in Bergen?", "names"),
    ("Who leads the HR team?", "Who leads the IT team?", "names"),
    ("Who may export data?", "Who may not export data?", "negation"),
    ("Is it necessary to sign?", "Is it unnecessary to sign?", "negation"),
    ("Can I travel with approval?", "Can I travel without approval?", "negation"),
    ("Who should report before the audit?", "Who should report after the audit?", "comparison"),
    ("What is the minimum stay?", "What is the maximum stay?", "comparison"),
    ("Is at least 5 fine?", "Is at most 5 fine?", "comparison"),
    ("Do employees get leave?", "Do contractors get leave?", "scope"),
    ("What was decided last year?", "What was decided this year?", "scope"),
    ("How do I enable the alarm?", "How do I disable the alarm?", "scope"),
    ("How do I import users?", "How do I export users?", "scope"),
    ("What is my name?", "What is your name?", "scope"),
    ("When did they move?", "Where did they move?", "kind"),
    ("How many people work here?", "Who works here?", "kind"),
    ("Are there trains from Oslo to Bergen?", "Are there trains from Bergen to Oslo?", "order"),
    ("Who were the last emperors allied with?", "Who were the last emperors allied against?", "order"),
    ("Did Germany beat France?", "Did France beat Germany?", "order"),
    ("Wer darf exportieren?", "Wer darf nicht exportieren?", "negation"),
    ("Wie hoch ist der Betrag im März?", "Wie hoch ist der Betrag im April?", "dates"),
    ("Qui peut exporter les données?", "Qui ne peut pas exporter les données?", "negation"),
    ("¿Se puede pagar con tarjeta?", "¿Se puede pagar sin tarjeta?", "negation"),
    ("Quem pode exportar?", "Quem não pode exportar?", "negation"),
    ("Hvem kan reise?", "Hvem kan ikke reise?", "negation"),
    ("申請できますか", "申請できませんか", "negation"),
    ("会議は3月ですか", "会議は4月ですか", "dates"),
    ("月曜日に開いていますか", "火曜日に開いていますか", "dates"),
]
WORDS = [
    *("how", "when", "is", "the", "not", "office", "Oslo", "12 March", "2024", "3", "km", "VPN", "INC-4711", "before"),
    *("after", "manager", "open", "closed", "いつ", "ない", "C++", "my", "your", "from", "to", "10%", "first", "(DES)"),
]
QUESTIONS = st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join) | st.text(max_size=60)
SURE = 0.99


def judged(asked: str, cached: str, similarity: float = SURE, **more: object) -> str | None:
    """The guard that refuses."""
    return Judge.shipped().judge(Pair(asked, cached, similarity, **more)).guard  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("asked", "cached"), AGREE)
def test_the_same_in_another_notation_agrees(asked: str, cached: str) -> None:
    assert disagreement(read(asked), read(cached)) is None


@pytest.mark.parametrize(("asked", "cached", "guard"), DIFFER)
def test_one_particular_more_or_another_is_refused_by_its_guard(asked: str, cached: str, guard: str) -> None:
    found = disagreement(read(asked), read(cached))
    assert found is not None
    assert found.guard == guard
    # Also where the vectors say that the questions are one.
    assert judged(asked, cached, 0.9999) == guard


@given(QUESTIONS, QUESTIONS)
def test_guards_do_not_depend_on_which_question_came_first(one: str, other: str) -> None:
    forth, back = disagreement(read(one), read(other)), disagreement(read(other), read(one))
    assert (forth and forth.guard) == (back and back.guard)


@given(QUESTIONS)
def test_a_question_agrees_with_itself_and_with_other_white_space(question: str) -> None:
    assert disagreement(read(question), read(question)) is None
    assert disagreement(read(question), read("  " + re.sub(r"\s+", "  ", question) + " ")) is None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["How many of {} are left?", "Is {} km far?"]))
def test_another_number_is_never_served(one: int, other: int, form: str) -> None:
    assume(one != other)
    assert judged(form.format(one), form.format(other), 1.0) == "numbers"


@given(QUESTIONS, QUESTIONS, st.floats(allow_nan=True, allow_infinity=True))
def test_any_text_and_similarity_get_a_verdict(one: str, other: str, similarity: float) -> None:
    verdict = Judge.shipped().judge(Pair(one, other, similarity))
    assert verdict.serve == (verdict.guard is None)
    assert verdict.reason
    assert 0 <= verdict.risk <= 1


def test_scope_words_must_be_named_by_both() -> None:
    scope = frozenset(["Oslo", "human resources"])
    assert judged("what is the leave in oslo", "what is the leave", scope_words=scope) == "scope"
    assert judged("what is the human resources policy", "what is the policy", scope_words=scope) == "scope"
    assert judged("what is the leave in oslo", "What is the leave in Oslo", scope_words=scope) is None


def test_similarity_alone_does_not_serve() -> None:
    assert judged("Which cats are allowed here?", "Which dogs are allowed here?", SURE) == "scope"
    assert judged("Which lamps are allowed here?", "Which chairs are allowed here?", SURE) == "wording"
    steam, exhaust = (
        "What can the exhaust steam do when the " + event + " event is long?" for event in ("steam", "exhaust")
    )
    assert judged(steam, exhaust, SURE) == "wording"
    assert judged("Which lamps are allowed here?", "Are the lamps here allowed to anyone?", 0.7) == "similarity"
    assert judged("How can I book a room?", "How do I book a room?", 0.97) is None
    assert judged("How can I book a room?", "How do I book a room?", float("nan")) == "similarity"


def test_other_passages_refuse_below_the_sure_band_only() -> None:
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


def test_a_verdict_says_why() -> None:
    found = (Evidence("1", "a"),)
    hit = Judge.shipped().judge(Pair("How can I book room 12?", "How do I book room 12?", 0.96, found, found))
    assert hit.serve
    assert hit.reason.startswith("similarity 0.960, same numbers, 1 of 1 passages in common; estimated risk ")
    miss = Judge.shipped().judge(Pair("How can I book room 12?", "How do I book room 13?", 0.96))
    assert miss.reason == "similarity 0.960, but numbers differ: 12 against 13"


def test_a_tighter_bound_serves_less_and_an_unreachable_one_nothing() -> None:
    pair = Pair("How can I book a meeting room?", "How do I book a meeting room?", 0.93)
    risks = [Judge.shipped(max_error=error).highest_risk for error in (0.01, 0.02, 0.05, 0.1)]
    assert all(risk is not None for risk in risks)
    assert risks == sorted(risks, key=float)  # pyright: ignore[reportArgumentType]
    assert Judge.shipped(max_error=0.05).judge(pair).serve
    never = Judge.shipped(max_error=1e-6)
    assert never.highest_risk is None
    assert not never.judge(Pair(pair.asked, pair.asked, 1.0)).serve


def test_japanese_is_compared_by_its_meaningful_runs() -> None:
    assert judged("会議室はどこですか", "会議室はどこでしょうか", SURE) is None
    assert judged("会議室はどこですか", "食堂はどこですか", SURE) == "wording"


@pytest.mark.timeout(60)  # comparing every order of its words would take for ever
def test_a_long_question_is_judged() -> None:
    words = [f"{a}{b}{c}" for a in "bcdfghjk" for b in "aeiou" for c in "lmnprstvwz"]
    long, turned = " ".join(words), " ".join(reversed(words))
    assert judged(long, turned, SURE) == "order"
    assert judged(long, long + " please", SURE) is None


@pytest.mark.parametrize("setting", [{"max_error": 0.0}, {"max_error": 1.5}, {"sure": 0.0}])
def test_a_bound_out_of_range_is_named(setting: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="RAG_CACHE"):
        Judge.shipped(**setting)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"distance": -1.0}},
        {"weights": {"charm": 1.0}},
        {"thresholds": []},
        {"thresholds": [{"max_error": 0.02, "risk": 0.1}, {"max_error": 0.01, "risk": 0.1}]},
        {"intercept": "inf"},
        {"format": 2},
    ],
)
def test_a_malformed_calibration_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    good = {"least_similarity": 0.8, "intercept": -3.0, "weights": {}, "thresholds": [{"max_error": 0.01, "risk": 0.1}]}
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(good))
    assert Judge.from_file(file).highest_risk == 0.1
    file.write_text(json.dumps({**good, **change}))
    with pytest.raises(SettingsError, match="rag-serving calibrate"):
        Judge.from_file(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        Judge.from_file(tmp_path / "missing.json")


# --- signals and calibration ---------------------------------------------------------------------------------------


def test_signals_are_nought_for_one_question() -> None:
    question = read("How do I book a meeting room in Oslo?")
    assert set(signals.wording(question, question, 1.0)) == {0.0}


def test_spelling_mistakes_endings_and_synonyms_are_forgiven() -> None:
    def words(one: str, other: str) -> float:
        return signals.wording(read(one), read(other), 0.9)[signals.NAMES.index("other_words")]

    assert words("cancelled bookings", "cancel the booking") == 0
    assert words("buy a car", "purchase a vehicle") == 0
    assert 0 < words("my accuont", "my account") < 0.5
    assert words("the hypertension ward", "the hypotension ward") >= 1


@pytest.mark.parametrize(
    ("word", "one"), [("policies", "policy"), ("rooms", "room"), ("bus", "bus"), ("class", "class")]
)
def test_plural_endings(word: str, one: str) -> None:
    assert singular(word) == one


@pytest.mark.parametrize(
    ("wrong", "served", "bound"),
    # Of Clopper and Pearson's limit at 95 %, one-sided: 1 - 0.05^(1/n) for none wrong, else the beta quantile.
    [(0, 299, 0.00997), (0, 10, 0.25887), (1, 100, 0.04656), (10, 1000, 0.01689), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_upper_bound(wrong: int, served: int, bound: float) -> None:
    assert upper_bound(wrong, served) == pytest.approx(bound, abs=2e-5)


def test_no_weight_speaks_for_what_is_doubtful() -> None:
    values = [[n / 100, 1 - n / 100] for n in range(100)]
    intercept, weights = fit_logistic(values, [n >= 50 for n in range(100)], [1.0] * 100)
    assert weights[0] > 0
    assert weights[1] == 0
    assert intercept < 0


def test_questions_in_common_join_clusters_and_folds() -> None:
    cluster = clusters([("a", "b"), ("b", "c"), ("d", "e")])
    assert cluster["a"] == cluster["c"] != cluster["d"]
    pairs = [Labelled(Pair(f"{n // 2}", f"other {n // 3}", 0.9), True) for n in range(100)]
    homes: dict[str, int] = {}
    for number, fold in enumerate(folded(pairs)):
        for one in fold:
            assert homes.setdefault(one.pair.asked, number) == number
            assert homes.setdefault(one.pair.cached, number) == number


def examples() -> list[dict[str, object]]:
    """Three hundred pairs that are the same and near, and as many that are neither."""
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


def test_the_command_calibrates_and_its_file_judges(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "calibration.json"
    pairs.write_text("\n".join(json.dumps(line) for line in examples()))
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "at most 1.0% wrong" in result.output
    assert "cosine from 0.95" in result.output
    judge = Judge.from_file(out)
    assert judge.judge(Pair("How do I use the lamplet in hall 7?", "How can I use the lamplet in hall 7?", 0.97)).serve
    assert judge.judge(Pair("Who owns the lamplet?", "Who owns the desklet?", 0.9)).guard == "wording"
    # The same pairs make the same file.
    first = out.read_text()
    CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert out.read_text() == first


def test_too_few_pairs_and_wrong_lines_are_named(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "calibration.json"
    pairs.write_text("\n".join(json.dumps(line) for line in examples()[:20]))
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert isinstance(result.exception, InvalidArgument)
    pairs.write_text('{"asked": "a", "cached": "b", "same": true}\n{"asked": "a"}\n')
    result = CliRunner().invoke(calibrate_command, [str(pairs), "--out", str(out)])
    assert "line 2" in str(result.exception)
    assert not out.exists()
    with pytest.raises(InvalidArgument, match="folds"):
        calibrate([[]])
