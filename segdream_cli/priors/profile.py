"""The differences between diffusion priors: vocabulary, view phrases and presets."""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from segdream_cli.config import Config, OptimConfig
from segdream_cli.errors import UsageProblem

PROFILE_FILE = "segdream.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPhrases:
    """A prior's phrases for the directions from which an object is seen."""

    front: str = "front view"
    side: str = "side view"
    back: str = "back view"
    overhead: str = "overhead view"
    ring: tuple[str, ...] = ()
    """Phrases for equally spaced azimuths from the front towards the object's left; empty: front, side, back, side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The only phrases that a prior knows: a prompt has one object, at most one colour and at most one attribute."""

    objects: tuple[str, ...]
    colors: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    fillers: tuple[str, ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()
    """Pairs of a colour and an attribute that contradict each other, such as white with white spots."""
    synonyms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Phrases of the prior, each with other texts that it reads as this phrase: airplane with plane and jet."""
    concepts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Phrases of the prior, each with texts that it does not know and for which it is suggested: dog with corgi. The
    phrase "" stands for no suggestion, not even as the correction of a typing error."""
    ignored: tuple[str, ...] = ()
    """Texts without effect, such as "the", "cute" and "a photo of"."""
    title: str = "this prior"
    """Name of the prior in messages."""

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase that the prior knows."""
        return (*self.objects, *self.colors, *self.attributes, *self.fillers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorProfile:
    """A prior's differences from Stable Diffusion 2.1, read from `segdream.json` beside its `model_index.json`.

    The defaults apply to every folder without such a file.
    """

    title: str = "Stable Diffusion"
    views: ViewPhrases = ViewPhrases()
    negative_prompt: str = (
        "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, low-resolution, oversaturation."
    )
    vocabulary: Vocabulary | None = None
    """The phrases that the prior knows; None means any text."""
    point_e: str | None = None
    """Sub-folder with the prior's own Point-E, which uses the prior's text encoder; None means the official one."""
    batch: int = 1
    """Assets optimised at once on CUDA, by default."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the defaults in every preset, by dotted name."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PRESETS)
    """Preset -> further settings that it changes."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads the content of a `segdream.json`.

        Raises:
            KeyError, TypeError: a field is unknown or has the wrong type.
        """
        fields = dict(data)
        for name in {"title", "negative_prompt", "point_e"} & fields.keys():
            if not isinstance(fields[name], str):
                raise TypeError(f"{name} can't be {fields[name]!r}")
        if type(fields.get("batch", 1)) is not int or fields.get("batch", 1) < 1:
            raise TypeError(f"batch can't be {fields['batch']!r}")
        if "views" in fields:
            fields["views"] = _read_texts(ViewPhrases, fields["views"])
        if fields.get("vocabulary"):
            title = fields.get("title", "this prior")
            fields["vocabulary"] = _read_vocabulary(fields["vocabulary"], title)
        common = fields.get("settings", {})
        for name, changes in fields.get("presets", {"settings": {}}).items():
            try:
                Config().set({**common, **changes})
            except UsageProblem as problem:
                raise TypeError(f"preset {name!r}: {problem.message}") from problem
        return cls(**fields)


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "draft": {"optim.steps": 1200, "densify.cap": 100_000, "init.copies": 10, "init.count": 40_000},
        "standard": {"densify.cap": 200_000, "view.overhead_elevation_deg": 60.0},
        "high": {
            "optim.steps": 8000,
            "densify.cap": 500_000,
            "distill.perp_neg": True,
            "view.overhead_elevation_deg": 60.0,
        },
        "paper": {},
    }
)
"""Presets of Stable Diffusion as changes to the defaults, which are `paper`."""

QUALITIES = ("draft", "standard", "high", "paper")


def preset(profile: PriorProfile, quality: str) -> Config:
    """The configuration of a preset, with schedules scaled to its number of steps.

    Raises:
        UsageProblem: the prior has no such preset.
    """
    if quality not in profile.presets:
        known = ", ".join(profile.presets)
        raise UsageProblem(f"{profile.title} has no preset {quality!r}, only {known}", hint="--quality standard")
    overrides = {**profile.settings, **profile.presets[quality]}
    config = Config().with_steps(overrides.pop("optim.steps", OptimConfig().steps))
    return config.set(overrides)


def _read_vocabulary(data: Mapping[str, Any], title: str) -> Vocabulary:
    """Reads the vocabulary of a prior from JSON.

    Raises:
        TypeError: a field is unknown or has the wrong type, an excluded pair has other than two texts, or a table has
            a phrase that is not in the vocabulary.
    """
    if "title" in data:
        raise TypeError("the title stands outside the vocabulary")
    phrases = {key: data[key] for key in data.keys() - {"excluded", "synonyms", "concepts", "ignored"}}
    pairs = data.get("excluded", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in pairs
    ):
        raise TypeError(f"excluded can't be {pairs!r}")
    vocabulary: Vocabulary = _read_texts(Vocabulary, phrases)
    return dataclasses.replace(
        vocabulary,
        excluded=tuple((color, attribute) for color, attribute in pairs),
        synonyms=_read_table("synonyms", data, vocabulary.phrases),
        concepts=_read_table("concepts", data, ("", *vocabulary.phrases)),
        ignored=_split_texts("ignored", data.get("ignored", "")),
        title=title,
    )


def _read_table(
    name: str, data: Mapping[str, Any], phrases: Collection[str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Reads a table of a vocabulary, from phrases to texts.

    Raises:
        TypeError: it is something else, or a phrase of it is not one of `phrases`.
    """
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise TypeError(f"{name} can't be {table!r}")
    if unknown := [phrase for phrase in table if phrase not in phrases]:
        raise TypeError(f"{name} has {unknown[0]!r}, which is not in the vocabulary")
    return tuple((phrase, _split_texts(f"{name} of {phrase!r}", texts)) for phrase, texts in table.items())


def _split_texts(name: str, texts: Any) -> tuple[str, ...]:
    """The texts between the commas of a text.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(texts, str):
        raise TypeError(f"{name} can't be {texts!r}")
    return tuple(text.strip() for text in texts.split(",") if text.strip())


def _read_texts(kind: Any, data: Mapping[str, Any]) -> Any:
    """Reads a dataclass, whose fields are texts and tuples of texts, from JSON.

    Raises:
        TypeError: a field is unknown or has the wrong type.
    """
    for key, value in data.items():
        texts = [value] if typing.get_type_hints(kind).get(key) is str else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{key} can't be {value!r}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
