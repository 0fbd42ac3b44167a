"""The prompt as a prior reads it: any text or, for a prior with a vocabulary, a caption of its known phrases.

Such a prior was trained on captions such as "a striped blue duck" and on nothing else. A prompt of known phrases in the
order of a caption is read as it stands. Of another one, plurals and synonyms become known phrases, words without effect
are left out, and the phrases are put in order. A prompt that still has an unknown word, or too many things, is refused
with one that the prior reads.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from segdream_cli.config import SD21
from segdream_cli.errors import PromptProblem, UsageProblem
from segdream_cli.priors.profile import Vocabulary
from segdream_cli.util.text import strip_ansi

MAX_PROMPT = 1000
MAX_QUOTED = 60
"""Characters of a prompt that messages quote."""
CONTROL = ("Cc", "Cs")
"""Unicode categories of characters that no prompt has: control characters and lone surrogates."""
EXAMPLE = "a yellow school bus"
WORDS_HINT = "segdream generate --list-words"
SEVERAL = re.compile(
    r"\d{1,3}x?|x\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|hundred|dozens?|several|many|"
    r"multiple|both|few|couple|pairs?|groups?|bunch|herd|flock|pile|stack|collection|various|different"
)
"""Words that ask for several things."""
NEGATION = re.compile(r"not|no|without|nor|never|\w+n't")

Role: TypeAlias = Literal["objects", "colors", "attributes", "fillers", "near", "several", "unknown"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt as a prior reads it.

    Args:
        text: the text for the prior's text encoder.
        phrases: the phrases of the vocabulary in it, in order; empty for a prior that takes any text.
        note: one line on how the text differs from the prompt; None if only in case, spaces and punctuation.
    """

    text: str
    phrases: tuple[str, ...] = ()
    note: str | None = None


class Meaning(NamedTuple):
    """The role of words in a prompt, and the phrase of the vocabulary that they stand for ("" if none)."""

    role: Role
    phrase: str


class Part(NamedTuple):
    """Words of a prompt that belong together, with their meaning."""

    words: str
    role: Role
    phrase: str


NAMED: tuple[Role, ...] = ("objects", "colors", "attributes")
UNKNOWN: tuple[Role, ...] = ("near", "unknown")
NO_MEANING = Meaning("near", "")


def read_prompt(prompt: str, vocabulary: Vocabulary | None) -> Reading:
    """The prompt as the prior reads it.

    A prior that takes any text reads the prompt without surrounding space.

    Raises:
        UsageProblem: the prompt is empty, too long, or has control characters. For a prior with a vocabulary: it has
            unknown words, not exactly one object, more than one colour or attribute, or a colour and an attribute
            that contradict each other.
    """
    text = _strip_text(prompt, "prompt")
    if not text:
        raise PromptProblem("the prompt is empty", prompt=prompt, instead=EXAMPLE)
    if vocabulary is None:
        return Reading(text)
    exact = find_phrases(text, vocabulary)
    if exact is not None and _is_caption(exact, vocabulary):
        return Reading(" ".join(exact), exact)
    parts = _parse(text, vocabulary)
    if (reason := _refusal(parts, vocabulary)) is not None:
        near = _correct(parts, vocabulary)
        instead = None if near is None else " ".join(near)
        raise PromptProblem(reason, prompt=prompt, instead=instead, hint=WORDS_HINT)
    phrases = _caption([Meaning(part.role, part.phrase) for part in parts], vocabulary)
    caption = " ".join(phrases)
    return Reading(caption, phrases, f"{vocabulary.title} reads {_quote(text)} as {caption!r}")


def clean_prompt(prompt: str, vocabulary: Vocabulary | None) -> str:
    """The text of `read_prompt`; raises its errors."""
    return read_prompt(prompt, vocabulary).text


def read_negative(negative: str, vocabulary: Vocabulary | None) -> Reading:
    """The negative prompt as the prior reads it; it may be empty, and may name any number of objects.

    Raises:
        UsageProblem: it is too long, or has control characters or words that the prior does not know.
    """
    text = _strip_text(negative, "negative prompt")
    if vocabulary is None:
        return Reading(text)
    exact = find_phrases(text, vocabulary)
    if exact is not None:
        return Reading(" ".join(exact), exact)
    parts = _parse(text, vocabulary)
    if any(part.role in (*UNKNOWN, "several") for part in parts):
        raise UsageProblem(_unknown_words(parts, vocabulary), hint=WORDS_HINT)
    phrases = tuple(part.phrase for part in parts if part.phrase)
    read = " ".join(phrases)
    return Reading(read, phrases, f"{vocabulary.title} reads the negative prompt {_quote(text)} as {read!r}")


def describe_prompt(
    prompt: str, vocabulary: Vocabulary | None, tell: Callable[[str], object] = lambda _: None
) -> dict[str, str]:
    """The provenance of a prompt: as typed and, if the prior reads something else, as read, which `tell` is told.

    Raises:
        UsageProblem: see `read_prompt`.
    """
    reading = read_prompt(prompt, vocabulary)
    if reading.note is None:
        return {"prompt": prompt}
    tell(reading.note)
    return {"prompt": prompt, "prompt_read": reading.text}


def find_phrases(text: str, vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """The phrases of the vocabulary that make up a text, in order; None if it has other words."""
    phrases = sorted(vocabulary.phrases, key=len, reverse=True)
    known = re.compile(r"\b(?:" + "|".join(map(re.escape, phrases)) + r")\b")
    text = " ".join(text.lower().split())
    return None if re.search(r"\w", known.sub(" ", text)) else tuple(known.findall(text))


def _strip_text(text: str, name: str) -> str:
    """The text without surrounding space.

    Raises:
        UsageProblem: it is too long or has control characters.
    """
    given, text = text, text.strip()
    if len(text) > MAX_PROMPT:
        message = f"the {name} has {len(text):,} characters, but the limit is {MAX_PROMPT:,}"
        raise PromptProblem(message, prompt=given)
    odd = next((character for character in text if unicodedata.category(character) in CONTROL), None)
    if odd is not None:
        plain = "".join(
            " " if unicodedata.category(character) in CONTROL else character for character in strip_ansi(text)
        )
        raise PromptProblem(
            f"the {name} has the control character {odd!r}", prompt=given, instead=" ".join(plain.split()) or EXAMPLE
        )
    return text


def _split(text: str) -> list[str]:
    """The words and emoji of a text in lower case; hyphens separate words."""
    text = re.sub(r"[-_/\ufe0f]", " ", text.lower().replace("\u2019", "'"))
    found: list[str] = re.findall(r"\w+(?:'\w+)?|[^\w\s]", text)
    return [each for each in found if each[0].isalnum() or unicodedata.category(each) == "So"]


@lru_cache(maxsize=8)
def _meanings(vocabulary: Vocabulary) -> dict[tuple[str, ...], Meaning]:
    """The meaning of each known text, by its words: the vocabulary's own phrases, synonyms, concepts, plurals."""
    own = {phrase: role for role in (*NAMED, "fillers") for phrase in _of(role, vocabulary)}
    texts = [(phrase, Meaning(role, phrase)) for phrase, role in own.items()]
    texts += [(text, Meaning(own[phrase], phrase)) for phrase, synonyms in vocabulary.synonyms for text in synonyms]
    texts += [(text, Meaning("fillers", "")) for text in vocabulary.ignored]
    texts += [(text, Meaning("near", phrase)) for phrase, concepts in vocabulary.concepts for text in concepts]
    table: dict[tuple[str, ...], Meaning] = {}
    for text, meaning in texts:
        table.setdefault(tuple(_split(text)), meaning)
    for words, meaning in list(table.items()):
        if meaning.role != "fillers" and own.get(meaning.phrase) == "objects":
            for plural in _plurals(words[-1]):
                table.setdefault((*words[:-1], plural), meaning)
    return table


def _of(role: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The phrases of the vocabulary in a role."""
    phrases: tuple[str, ...] = getattr(vocabulary, role)
    return phrases


def _plurals(noun: str) -> Iterator[str]:
    """Possible spellings of a noun's plural."""
    yield noun + ("es" if re.search(r"(s|x|z|ch|sh|o)$", noun) else "s")
    if noun.endswith("o"):
        yield noun + "s"
    for end, plural in (("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men")):
        if noun.endswith(end):
            yield noun.removesuffix(end) + plural


def _parse(text: str, vocabulary: Vocabulary) -> list[Part]:
    """The parts of a text, from the left, each as long as the known texts allow."""
    table, words, parts = _meanings(vocabulary), _split(text), list[Part]()
    longest = max(map(len, table))
    while words:
        n = next((n for n in range(min(longest, len(words)), 0, -1) if tuple(words[:n]) in table), 1)
        role: Role = "several" if SEVERAL.fullmatch(words[0]) else "unknown"
        meaning = table.get(tuple(words[:n]), Meaning(role, ""))
        parts.append(Part(" ".join(words[:n]), *meaning))
        words = words[n:]
    return _drop_repeats([part for part in parts if part.words[0].isalnum() or part.phrase])


def _drop_repeats(parts: Sequence[Part]) -> list[Part]:
    """The parts without emoji beside a named object, and without the second of two words for one thing: a kitty cat."""
    named = any(part.role == "objects" and part.words[0].isalnum() for part in parts)
    kept: list[Part] = []
    for part in parts:
        repeats = bool(kept) and part[1:] == kept[-1][1:] and part.phrase != "" and part.words != kept[-1].words
        if not repeats and (part.words[0].isalnum() or not named):
            kept.append(part)
    return kept


def _known_parts(phrases: Sequence[str], vocabulary: Vocabulary) -> list[Part]:
    """The parts of a text that has known phrases only."""
    table = _meanings(vocabulary)
    return [Part(phrase, *table[tuple(_split(phrase))]) for phrase in phrases]


def _is_caption(phrases: tuple[str, ...], vocabulary: Vocabulary) -> bool:
    """Whether known phrases are a caption, with its article or without it; "a blue striped duck" is one too."""
    parts = _known_parts(phrases, vocabulary)
    if _refusal(parts, vocabulary) is not None:
        return False
    named = _order_phrases([Meaning(part.role, part.phrase) for part in parts], vocabulary)
    orders = [named, (named[1], named[0], *named[2:])] if named[1:] and named[1] in vocabulary.colors else [named]
    return (phrases[1:] if phrases[0] in vocabulary.fillers else phrases) in orders


def _refusal(parts: Sequence[Part], vocabulary: Vocabulary) -> str | None:
    """Why the prior can't read the parts; None if it can."""
    title = vocabulary.title
    objects, colors, attributes, several, others = (
        [part for part in parts if part.role in roles]
        for roles in (("objects",), ("colors",), ("attributes",), ("several",), UNKNOWN)
    )
    if others:
        return _unknown_words(parts, vocabulary)
    if several:
        return f"{title} makes one thing at a time, and {several[0].words!r} asks for several"
    if len(objects) > 1:
        return f"{title} makes one thing at a time, and the prompt names {_names(objects)}"
    if not objects:
        return f"the prompt names no thing; {title} {_knowledge(vocabulary)}"
    if len(colors) > 1:
        return f"{title} reads one colour per prompt, and this one names {_names(colors)}"
    if len(attributes) > 1:
        return f"{title} reads one attribute per prompt, and this one names {_names(attributes)}"
    for color, attribute in vocabulary.excluded:
        if colors and attributes and (color, attribute) == (colors[0].phrase, attributes[0].phrase):
            return f"{title} does not know {color!r} together with {attribute!r}"
    return None


def _names(parts: Sequence[Part]) -> str:
    return " and ".join(repr(part.phrase) for part in parts)


def _knowledge(vocabulary: Vocabulary) -> str:
    """The end of a sentence: how much the prior knows, and which one takes any text."""
    counts = [
        (vocabulary.objects, "kinds of things"),
        (vocabulary.colors, "colours"),
        (vocabulary.attributes, "attributes"),
    ]
    known = [f"{len(phrases)} {name}" for phrases, name in counts if phrases]
    *others, last = known
    return f"knows {' and '.join([', '.join(others), last]) if others else last}; free text needs --prior {SD21}"


def _unknown_words(parts: Sequence[Part], vocabulary: Vocabulary) -> str:
    """A sentence on the first unknown words, with the nearest known phrases, and on the vocabulary."""
    unknown = list({part.words: part for part in _before_negation(parts) if part.role in UNKNOWN}.values())
    described = []
    for part in unknown[:3]:
        phrase = _suggest(part, vocabulary).phrase
        near = f"nearest: {phrase}" if part.role == "near" else f"did you mean {phrase}?"
        described.append(_quote(part.words) + (f" ({near})" if phrase else ""))
    more = f" and {len(unknown) - 3} more words" if len(unknown) > 3 else ""
    return f"{vocabulary.title} does not know {', '.join(described)}{more}; it {_knowledge(vocabulary)}"


def _before_negation(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts up to the first negation, which says what the thing does not have."""
    return parts[: next((i for i, part in enumerate(parts, 1) if NEGATION.fullmatch(part.words)), len(parts))]


def _suggest(part: Part, vocabulary: Vocabulary) -> Meaning:
    """The known phrase that is nearest to unknown words: by meaning, as their noun, or as the word without typos."""
    table = _meanings(vocabulary)
    if part.role == "near":
        return table.get(tuple(_split(part.phrase)), NO_MEANING)
    own = [(tuple(_split(phrase)), table[tuple(_split(phrase))]) for phrase in vocabulary.phrases]
    for words, meaning in own:
        if part.words == words[-1]:
            return meaning
    near = [(typing_errors(part.words, word), meaning) for words, meaning in own for word in words]
    errors, meaning = min(near, key=lambda pair: pair[0])
    return meaning if 0 < errors <= (2 if len(part.words) > 7 else 1) else NO_MEANING


def typing_errors(word: str, known: str) -> int:
    """The number of letters to insert, delete, replace or swap with a neighbour between two words.

    This is the optimal string alignment distance. It is 9 for words that do not begin alike or are too short, since
    most of those are other words and not misspelt ones.
    """
    if word[0] != known[0] or min(len(word), len(known)) < 5 or abs(len(word) - len(known)) > 2:
        return 9
    rows = [list(range(len(known) + 1))]
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, other in enumerate(known, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other)))
            if i > 1 and j > 1 and (letter, word[i - 2]) == (known[j - 2], other):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def _correct(parts: Sequence[Part], vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """The phrases of a prompt that the prior reads, near the given one; None if nothing near is known."""
    kept = _first_thing(_before_negation(parts))
    known = [Meaning(part.role, part.phrase) for part in kept]
    meanings = known + [_suggest(part, vocabulary) for part in kept if part.role in UNKNOWN]
    if not any(meaning.role == "objects" for meaning in meanings):
        return None
    return _caption(meanings, vocabulary)


def _first_thing(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts that describe the first of several objects: those before the article or "and" of the second."""
    places = [i for i, part in enumerate(parts) if part.role == "objects"]
    if len(places) < 2:
        return parts
    breaks = [i for i in range(places[0], places[1]) if parts[i].role in ("fillers", "several")]
    return parts[: min(breaks, default=places[1])]


def _caption(meanings: Sequence[Meaning], vocabulary: Vocabulary) -> tuple[str, ...]:
    """The phrases of `_order_phrases` with their article."""
    phrases = _order_phrases(meanings, vocabulary)
    article = "an" if phrases[0][0] in "aeiou" else "a"
    return (article, *phrases) if article in vocabulary.fillers else phrases


def _order_phrases(meanings: Sequence[Meaning], vocabulary: Vocabulary) -> tuple[str, ...]:
    """The phrases in the order of the prior's captions: the first object, colour and attribute that agree.

    As in English, an attribute of one word stands before its noun ("striped"), a longer one after it ("made of wood").
    """
    first: dict[Role, str] = {}
    for meaning in meanings:
        first.setdefault(meaning.role, meaning.phrase)
    color, attribute = first.get("colors", ""), first.get("attributes", "")
    if (color, attribute) in vocabulary.excluded:
        color = ""
    before, after = ("", attribute) if " " in attribute else (attribute, "")
    return tuple(phrase for phrase in (before, color, first["objects"], after) if phrase)


def _quote(text: str) -> str:
    """The text in quotes, shortened to a readable length."""
    return repr(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "...")
