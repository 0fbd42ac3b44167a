"""Prompts that can be used, what a prior with a vocabulary reads in them, and what it answers to others."""

import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.config import MINI, PriorConfig
from segdream_cli.errors import PromptProblem, UsageProblem
from segdream_cli.priors.checkpoint import PRIORS, profile_of
from segdream_cli.priors.profile import Vocabulary
from segdream_cli.priors.prompt import (
    _split,
    clean_prompt,
    describe_prompt,
    find_phrases,
    read_negative,
    read_prompt,
    typing_errors,
)

WORDS = Vocabulary(
    objects=("school bus", "ice cream cone", "car", "dog", "ice"),
    colors=("yellow", "red"),
    attributes=("striped", "wearing a red hat"),
    fillers=("a", "an", "and"),
    excluded=(("red", "striped"), ("yellow", "striped")),
)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"
LIST = "segdream generate --list-words"
PIECES = [
    "a",
    "the",
    "dog",
    "cars",
    "striped",
    "wooden",
    "red",
    "white",
    "GREY",
    "hat",
    "corgi",
    "two",
    "without",
    "and",
    "🚗",
]
READ, REFUSED = "reads", "refuses"
PROMPTS = [
    # prompt, whether it is read, what is read or the prompt of the hint, the beginning of the message
    ("a BLUE CAR.", READ, "a blue car", ""),
    ("the red car", READ, "a red car", ""),
    ("some apples", READ, "an apple", ""),
    ("penguins", READ, "a penguin", ""),
    ("a green dinosaur striped", READ, "a striped green dinosaur", ""),
    ("a grey elephant", READ, "a gray elephant", ""),
    ("teddy-bear", READ, "a teddy bear", ""),
    ("a plane", READ, "an airplane", ""),
    ("a bike", READ, "a bicycle", ""),
    ("kitty", READ, "a cat", ""),
    ("A cute little puppy!", READ, "a dog", ""),
    ("my old TV", READ, "a television", ""),
    ("a cup of coffee", READ, "a mug", ""),
    ("a navy blue couch", READ, "a blue sofa", ""),
    ("wooden chair", READ, "a chair made of wood", ""),
    ("a golden crown", READ, "a crown made of gold", ""),
    ("a snowy cottage", READ, "a house covered in snow", ""),
    ("a polka-dot teapot", READ, "a teapot with white spots", ""),
    ("a car with stripes, in red", READ, "a striped red car", ""),
    ("a cat wearing a hat", READ, "a cat wearing a red hat", ""),
    ("a photo of a dog", READ, "a dog", ""),
    ("please make me a 3D model of an owl", READ, "an owl", ""),
    ("a highly detailed DSLR photo of a castle, 4k, HDR", READ, "a castle", ""),
    ("a pair of headphones", READ, "a headphones", ""),
    ("a red 🚗", READ, "a red car", ""),
    ("a corgi", REFUSED, "a dog", "mini does not know 'corgi' (nearest: dog); it knows 104 kinds of things"),
    ("golden retriever", REFUSED, "a dog", "mini does not know 'golden retriever' (nearest: dog)"),
    ("Batman", REFUSED, "a robot", "mini does not know 'batman' (nearest: robot)"),
    ("an x-wing", REFUSED, "an airplane", "mini does not know 'x wing' (nearest: airplane)"),
    ("an apple pie", REFUSED, "a cake", "mini does not know 'apple pie' (nearest: cake)"),
    ("🦄", REFUSED, "a horse", "mini does not know '🦄' (nearest: horse)"),
    ("ein roter Hund", REFUSED, "a dog", "mini does not know 'ein', 'roter', 'hund' (nearest: dog)"),
    ("собака", REFUSED, None, "mini does not know 'собака'; it knows"),
    ("asdfgh", REFUSED, None, "mini does not know 'asdfgh'; it knows"),
    ("a yelow school bus", REFUSED, "a yellow school bus", "mini does not know 'yelow' (did you mean yellow?)"),
    ("a car made of chocolate", REFUSED, "a car", "mini does not know 'made', 'chocolate'; it knows"),
    ("a castle on a mountain", REFUSED, "a castle", "mini does not know 'on', 'mountain'; it knows"),
    ("a dog without a hat", REFUSED, "a dog", "mini does not know 'without'; it knows"),
    ("a cat with a blue hat", REFUSED, "a cat wearing a red hat", "mini does not know 'with a blue hat' (nearest: we"),
    ("3 apples", REFUSED, "an apple", "mini makes one thing at a time, and '3' asks for several"),
    ("two dogs", REFUSED, "a dog", "mini makes one thing at a time, and 'two' asks for several"),
    ("a red dog and a blue cat", REFUSED, "a red dog", "mini makes one thing at a time, and the prompt names 'dog' an"),
    ("a red and white ball", REFUSED, "a red ball", "mini reads one colour per prompt, and this one names 'red' and"),
    ("a striped dog with a hat", REFUSED, "a striped dog", "mini reads one attribute per prompt, and this one names "),
    ("a white cat with white spots", REFUSED, "a cat with white spots", "mini does not know 'white' together with 'wi"),
    ("something red", REFUSED, None, "mini does not know 'something'; it knows"),
    ("", REFUSED, "a yellow school bus", "the prompt is empty"),
    ("a very long dog " + "and so on " * 100, REFUSED, None, "the prompt has 1,015 characters, but the limit is 1,000"),
]


@pytest.fixture(scope="module")
def mini() -> Vocabulary:
    vocabulary = profile_of(PriorConfig(name=MINI), cuda=False).vocabulary
    assert vocabulary is not None
    return vocabulary


@pytest.mark.parametrize(("prompt", "answer", "text", "says"), PROMPTS, ids=[prompt[:20] for prompt, *_ in PROMPTS])
def test_read_prompt_answers_what_people_type(
    mini: Vocabulary, prompt: str, answer: str, text: str | None, says: str
) -> None:
    if answer == READ:
        reading = read_prompt(prompt, mini)
        assert reading.text == text
        assert (reading.note is None) == (re.sub(r"\W+", " ", prompt.lower()).strip() == text)
        assert reading.note is None or reading.note == f"mini reads {prompt!r} as {text!r}"
        return
    with pytest.raises(PromptProblem) as caught:
        read_prompt(prompt, mini)
    assert caught.value.message.startswith(says)
    assert len(caught.value.message) < 250
    assert (caught.value.prompt, caught.value.instead) == (prompt, text)
    assert text is None or read_prompt(text, mini).note is None


def test_page_of_prompts_lists_the_same_answers(mini: Vocabulary) -> None:
    """The page shows the beginning of each answer as the table above has it."""
    assert len(PROMPTS) == 48
    rows = []
    for prompt, answer, text, _ in PROMPTS:
        typed = f"`{prompt}`" if 0 < len(prompt) < 100 else "(empty)" if not prompt else "(more than 1,000 characters)"
        if answer == READ:
            rows.append(f"| {typed} | reads `{text}` |")
            continue
        with pytest.raises(UsageProblem) as caught:
            read_prompt(prompt, mini)
        message = caught.value.message.partition("; it knows")[0]
        rows.append(f"| {typed} | {message}" + (f"; hint: `{text}` |" if text else " |"))
    found = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(("| `", "| ("))]
    assert found == rows, "\n".join(rows)


def test_every_table_of_the_embedded_prior_is_consistent(mini: Vocabulary) -> None:
    """No text has two meanings or is a phrase of the prior itself, and each synonym is read as its phrase."""
    owners: dict[tuple[str, ...], str] = {tuple(_split(phrase)): phrase for phrase in mini.phrases}
    rows = [("ignored", mini.ignored), *mini.synonyms, *mini.concepts]
    for owner, texts in rows:
        for text in texts:
            words = tuple(_split(text))
            assert words, text
            assert words not in owners, (text, owner, owners[words])
            owners[words] = owner
    assert {phrase for phrase, _ in mini.synonyms} == {*mini.objects, *mini.colors, *mini.attributes}
    for phrase, texts in mini.synonyms:
        for text in texts:
            if phrase in mini.objects:
                assert read_prompt(f"the {text}", mini).phrases[-1] == phrase
            else:
                assert phrase in read_prompt(f"the {text} vase" if " " not in phrase else f"the vase {text}", mini).text


def test_every_concept_is_refused_with_a_prompt_of_its_kind(mini: Vocabulary) -> None:
    for phrase, texts in mini.concepts:
        for text in texts:
            prompt = text if phrase in mini.objects or not phrase else f"a vase {text}"
            with pytest.raises(UsageProblem) as caught:
                read_prompt(prompt, mini)
            assert ("nearest:" in caught.value.message) == (phrase != ""), text
            assert "did you mean" not in caught.value.message
            if phrase:
                assert isinstance(caught.value, PromptProblem)
                assert caught.value.instead is not None
                assert find_phrases(caught.value.instead, mini) == read_prompt(caught.value.instead, mini).phrases
                assert phrase in caught.value.instead


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a blue striped dog", "a blue striped dog"),
        ("a striped blue dog", "a striped blue dog"),
        ("a blue dog striped", "a striped blue dog"),
        ("dog blue", "a blue dog"),
        ("with white spots a dog", "a dog with white spots"),
        ("dog with white spots", "dog with white spots"),
    ],
)
def test_known_phrases_are_read_in_the_order_of_captions(mini: Vocabulary, prompt: str, read: str) -> None:
    assert read_prompt(prompt, mini).text == read
    assert (read_prompt(prompt, mini).note is None) == (prompt == read)


def test_plurals_of_all_kinds_are_read(mini: Vocabulary) -> None:
    irregular = {"snowman": "snowmen", "fish": "fish", "sheep": "sheep", "headphones": "headphones"}
    rules = ((r"(s|x|ch|sh)$", r"\1es"), (r"([^aeiou])y$", r"\1ies"), (r"(mang|potat|tomat)o$", r"\1oes"), (r"$", "s"))
    for kind in mini.objects:
        rule = next((pattern, end) for pattern, end in rules if re.search(pattern, kind))
        plural = irregular.get(kind.split()[-1], re.sub(*rule, kind, count=1))
        assert read_prompt(f"some {plural}", mini).phrases[-1] == kind


def test_table_texts_of_the_embedded_prior_are_plain(mini: Vocabulary) -> None:
    data = json.loads((Path(PRIORS[MINI]) / "segdream.json").read_text(encoding="utf-8"))["vocabulary"]
    for texts in (data["ignored"], *data["synonyms"].values(), *data["concepts"].values()):
        assert texts == ", ".join(dict.fromkeys(texts.lower().split(", ")))


@given(
    st.lists(
        st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=9), max_size=6
    ).map(" ".join)
)
def test_read_prompt_refuses_or_reads_a_caption(text: str) -> None:
    """Any text: the prior reads a caption as it stands, and so it does with the prompt of a hint."""
    vocabulary = profile_of(PriorConfig(name=MINI), cuda=False).vocabulary
    try:
        good = read_prompt(text, vocabulary).text
    except PromptProblem as problem:
        if problem.instead is None:
            return
        good = problem.instead
    assert read_prompt(good, vocabulary).note is None


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a yellow school bus", "a yellow school bus"),
        ("  a yellow school bus\n", "a yellow school bus"),
        ("A Yellow SCHOOL Bus", "a yellow school bus"),
        ("a red, school bus!", "a red school bus"),
        ("A striped school bus.", "a striped school bus"),
        ("a yellow dog wearing a red hat", "a yellow dog wearing a red hat"),
        ("a  yellow school   bus", "a yellow school bus"),
        ("an ice cream cone", "an ice cream cone"),
        ("striped school bus", "striped school bus"),
        ("ice", "ice"),
        ("school bus", "school bus"),
    ],
)
def test_clean_prompt_reads_known_phrases_as_they_stand(prompt: str, read: str) -> None:
    assert clean_prompt(prompt, WORDS) == read
    assert read_prompt(prompt, WORDS).note is None
    assert describe_prompt(prompt, WORDS) == {"prompt": prompt}
    assert clean_prompt(prompt, None) == prompt.strip()


@pytest.mark.parametrize("prompt", ["ein Teddybär auf dem Mond", "a 🚌, 4k", "x" * 1000, "l'été", "two red dogs"])
def test_clean_prompt_without_a_vocabulary_takes_any_text(prompt: str) -> None:
    assert clean_prompt(prompt, None) == prompt
    assert describe_prompt(prompt, None) == {"prompt": prompt}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("   \t\n", "empty"),
        ("a dog " * 2000, "11,999 characters"),
        ("x" * 1001, "1,001 characters"),
        ("a do\x00g", r"'\x00'"),
        ("a\ndog", r"'\n'"),
        ("a\tdog", r"'\t'"),
        ("a dog\x1b[31m!", r"'\x1b'"),
        ("a \x85dog", r"'\x85'"),
        ("a \ud800dog", r"'\ud800'"),
    ],
)
@pytest.mark.parametrize("vocabulary", [None, WORDS], ids=["any", "words"])
def test_clean_prompt_refuses_unusable_prompts(prompt: str, says: str, vocabulary: Vocabulary | None) -> None:
    with pytest.raises(UsageProblem) as caught:
        clean_prompt(prompt, vocabulary)
    assert says in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert caught.value.hint or len(prompt) > 1000
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("prompt", "says", "instead"),
    [
        ("a yelow dog", "this prior does not know 'yelow' (did you mean yellow?); it knows 5 kinds of", "a yellow dog"),
        ("a bus", "'bus' (did you mean school bus?)", "a school bus"),
        ("a xylophone qqqq qqqq dog", "'xylophone', 'qqqq'; it knows", "a dog"),
        ("a yellow car and a dog", "names 'car' and 'dog'", "a yellow car"),
        ("dog dog", "names 'dog' and 'dog'", "a dog"),
        ("a yellow red dog", "one colour per prompt, and this one names 'yellow' and 'red'", "a yellow dog"),
        ("a striped dog wearing a red hat", "one attribute per prompt", "a striped dog"),
        ("a dog wearing a hat", "'wearing', 'hat' (did you mean wearing a red hat?)", "a dog wearing a red hat"),
        ("b c d e f dog", "does not know 'b', 'c', 'd' and 2 more words", "a dog"),
        ("a red striped dog", "'red' together with 'striped'", "a striped dog"),
        ("an ice cream cone striped and yellow", "'yellow' together with 'striped'", "a striped ice cream cone"),
        ("red striped dog", "'red' together with 'striped'", "a striped dog"),
    ],
)
def test_clean_prompt_refuses_with_a_prompt_that_it_takes(prompt: str, says: str, instead: str) -> None:
    with pytest.raises(PromptProblem) as caught:
        clean_prompt(prompt, WORDS)
    assert says in caught.value.message
    assert caught.value.exit_code == 2
    assert caught.value.hint == shlex.join(["segdream", "generate", instead])
    assert clean_prompt(instead, WORDS) == instead


@pytest.mark.parametrize(
    ("prompt", "says"), [("a yellow", "names no thing"), ("🚌", "names no thing"), ("zzz", "'zzz'")]
)
def test_clean_prompt_lists_the_words_if_nothing_is_near(prompt: str, says: str) -> None:
    with pytest.raises(UsageProblem, match=says) as caught:
        clean_prompt(prompt, WORDS)
    assert caught.value.hint == LIST


def test_prompt_problem_survives_the_pipe_of_a_worker_process() -> None:
    """As all errors do: exceptions are pickled without their keyword arguments."""
    with pytest.raises(PromptProblem) as caught:
        clean_prompt("a red striped dog", WORDS)
    found = pickle.loads(pickle.dumps(caught.value))
    assert (str(found), vars(found)) == (str(caught.value), vars(caught.value))


def test_describe_prompt_keeps_the_prompt_as_typed(mini: Vocabulary) -> None:
    assert describe_prompt("The GREY cars", mini) == {"prompt": "The GREY cars", "prompt_read": "a gray car"}
    assert describe_prompt("A gray CAR", mini) == {"prompt": "A gray CAR"}


def test_read_negative_may_name_anything_known(mini: Vocabulary) -> None:
    assert read_negative("red striped", WORDS).text == "red striped"
    assert read_negative("", WORDS).text == ""
    reading = read_negative("grey cars and dogs", mini)
    assert (reading.text, reading.note) == (
        "gray car dog",
        "mini reads the negative prompt 'grey cars and dogs' as 'gray car dog'",
    )
    with pytest.raises(UsageProblem, match=r"'corgi' \(nearest: dog\)") as caught:
        read_negative("a corgi", mini)
    assert caught.value.hint == LIST


@pytest.mark.parametrize(
    ("word", "known", "errors"),
    [
        ("yelow", "yellow", 1),
        ("yellwo", "yellow", 1),
        ("yellov", "yellow", 1),
        ("yelllow", "yellow", 1),
        ("elehpnat", "elephant", 2),
        ("elefant", "elephant", 2),
        ("yellow", "yellow", 0),
        ("fellow", "yellow", 9),
        ("boat", "boot", 9),
    ],
)
def test_typing_errors(word: str, known: str, errors: int) -> None:
    assert typing_errors(word, known) == errors
    assert typing_errors(known, word) == errors
