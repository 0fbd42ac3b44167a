"""The catalog of the world: objects, colours, attributes, captions, and the held-out combinations."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.world import animals, creatures, food, furniture, gadgets, household, outdoors, places, sundries, vehicles
from training.world.layout import (
    AXIS,
    BRICKS,
    GOLDEN,
    LOOK_COLUMNS,
    OFFSET,
    PAINT,
    PATTERN,
    PLAIN,
    SNOW,
    SPOTS,
    STRIPES,
    TRIM,
    WOODEN,
)
from training.world.sculptor import Sculptor

OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    **vehicles.OBJECTS,
    **animals.OBJECTS,
    **places.OBJECTS,
    **food.OBJECTS,
    **furniture.OBJECTS,
    **gadgets.OBJECTS,
    **outdoors.OBJECTS,
    **creatures.OBJECTS,
    **sundries.OBJECTS,
    **household.OBJECTS,
}

COLORS = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.98, 0.84, 0.12),
    "green": (0.18, 0.64, 0.22),
    "blue": (0.13, 0.32, 0.86),
    "purple": (0.52, 0.20, 0.72),
    "pink": (0.97, 0.55, 0.74),
    "brown": (0.46, 0.28, 0.14),
    "black": (0.12, 0.12, 0.13),
    "white": (0.95, 0.95, 0.94),
    "gray": (0.55, 0.55, 0.57),
    "cyan": (0.18, 0.80, 0.88),
}

NATURAL = {
    "school bus": ("yellow",),
    "train": ("green", "black"),
    "rocket": ("red",),
    "airplane": ("white",),
    "sailboat": ("white",),
    "submarine": ("yellow",),
    "tractor": ("green", "red"),
    "dog": ("brown",),
    "cat": ("orange", "gray"),
    "duck": ("yellow",),
    "fish": ("orange",),
    "rabbit": ("white", "gray"),
    "elephant": ("gray",),
    "pig": ("pink",),
    "turtle": ("green",),
    "penguin": ("black",),
    "owl": ("brown",),
    "giraffe": ("yellow", "orange"),
    "teddy bear": ("brown",),
    "tree": ("green",),
    "pine tree": ("green",),
    "mushroom": ("red",),
    "cactus": ("green",),
    "snowman": ("white",),
    "house": ("white",),
    "castle": ("gray",),
    "lighthouse": ("white",),
    "apple": ("red", "green"),
    "pumpkin": ("orange",),
    "pineapple": ("yellow",),
    "hamburger": ("brown", "orange"),
    "donut": ("pink", "brown"),
    "chair": ("brown",),
    "table": ("brown",),
    "guitar": ("brown", "orange"),
    "robot": ("gray",),
    "camera": ("black",),
    "telephone": ("black", "red"),
    "typewriter": ("black", "gray"),
    "crown": ("yellow",),
    "fire truck": ("red",),
    "church": ("white", "gray"),
    "palm tree": ("green",),
    "banana": ("yellow",),
    "carrot": ("orange",),
    "strawberry": ("red",),
    "horse": ("brown",),
    "cow": ("white", "brown"),
    "sheep": ("white",),
    "bear": ("brown",),
    "frog": ("green",),
    "chicken": ("white", "brown"),
    "parrot": ("red", "green"),
    "whale": ("blue", "gray"),
    "crab": ("red", "orange"),
    "snail": ("brown", "orange"),
    "dinosaur": ("green",),
    "octopus": ("purple", "pink"),
    "butterfly": ("orange", "blue"),
    "tank": ("green",),
    "flying saucer": ("gray",),
    "watermelon": ("green",),
    "fire hydrant": ("red", "yellow"),
    "traffic cone": ("orange",),
    "key": ("yellow", "gray"),
    "treasure chest": ("brown",),
    "barrel": ("brown",),
    "piano": ("black", "brown"),
    "laptop": ("gray", "black"),
    "headphones": ("black", "white"),
    "hammer": ("brown", "red"),
    "sword": ("gray",),
    "candle": ("white", "red"),
    "trophy": ("yellow",),
    "boot": ("brown", "black"),
}
"""Colours of an object if its sentence names none; objects that are not listed may have any."""

HAT = "wearing a red hat"
ATTRIBUTES = {
    "": PLAIN,
    "with white spots": SPOTS,
    "striped": STRIPES,
    "made of wood": WOODEN,
    "covered in snow": SNOW,
    HAT: PLAIN,
    "made of gold": GOLDEN,
    "made of bricks": BRICKS,
}
"""Attribute -> painted pattern; the hat is built, not painted."""
OWN_COLOR = {"made of gold": "yellow"}
"""Attributes that leave no choice of colour: captions name none, and images count as of this one."""
MATERIAL_COLORS = {**OWN_COLOR, "made of wood": "brown", "made of bricks": "red"}
"""Material -> the colour of an object made of it if its sentence names none."""
BEFORE_THE_NOUN = {"striped"}

VIEWS = (
    "front view",
    "front left view",
    "left side view",
    "back left view",
    "back view",
    "back right view",
    "right side view",
    "front right view",
)
"""Phrases of the azimuths 0, 45, ... degrees; left is the object's own."""
COARSE_VIEWS = ("front view", "side view", "back view")
OVERHEAD = "overhead view"
OVERHEAD_DEG = 48.0


@dataclass(frozen=True, slots=True, order=True)
class Combination:
    """An object in a colour, with an attribute or without ("")."""

    object: str
    color: str
    attribute: str

    def caption(self, *, view: str = "", named_color: bool = True, color_first: bool = False) -> str:
        """The caption: "a striped blue duck, back view"; `color_first`: "a blue striped duck, back view"."""
        color = [self.color] if named_color and self.attribute not in OWN_COLOR else []
        before = [self.attribute] if self.attribute in BEFORE_THE_NOUN else []
        after = [self.attribute] if self.attribute and not before else []
        words = " ".join([*(color + before if color_first else before + color), self.object, *after])
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}" + (f", {view}" if view else "")

    @property
    def held_out(self) -> bool:
        """Whether it is held out from training: 15 % of all are, chosen by a hash of the words."""
        digest = hashlib.sha256(f"{self.object}|{self.color}|{self.attribute}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < 0.15 * 2**32


def combinations() -> Iterator[Combination]:
    """Every distinguishable combination: white spots and snow do not show on white, and gold has one colour."""
    for name in OBJECTS:
        for color in COLORS:
            for attribute in ATTRIBUTES:
                if is_distinguishable(color, attribute):
                    yield Combination(name, color, attribute)


def contradictions() -> list[tuple[str, str]]:
    """Pairs of a colour and an attribute that no caption names together."""
    return [
        (color, attribute)
        for attribute in ATTRIBUTES
        for color in COLORS
        if attribute in OWN_COLOR or not is_distinguishable(color, attribute)
    ]


def natural_colors(name: str, attribute: str) -> tuple[str, ...]:
    """Colours of an object with an attribute if its sentence names none: a material's own, else the object's.

    Any that the attribute shows on, if the object has no such colour: a white house is not seen covered in snow.
    """
    if attribute in MATERIAL_COLORS:
        return (MATERIAL_COLORS[attribute],)
    own = [color for color in NATURAL.get(name, COLORS) if is_distinguishable(color, attribute)]
    return tuple(own or [color for color in COLORS if is_distinguishable(color, attribute)])


def is_distinguishable(color: str, attribute: str) -> bool:
    """Whether the world has objects of the colour with the attribute."""
    if attribute in OWN_COLOR:
        return color == OWN_COLOR[attribute]
    return color != "white" or ATTRIBUTES[attribute] not in (SPOTS, SNOW)


def view_phrase(azimuth_deg: float, elevation_deg: float, *, fine: bool) -> str:
    """The caption's phrase for a direction: one of eight by azimuth, or one of three; or the overhead phrase."""
    if elevation_deg > OVERHEAD_DEG:
        return OVERHEAD
    if fine:
        return VIEWS[round(azimuth_deg / 45) % 8]
    away = abs((azimuth_deg + 180) % 360 - 180)
    return COARSE_VIEWS[0 if away < 45 else 1 if away < 135 else 2]


def build(
    combinations: Sequence[Combination], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An instance of each combination: primitives [n k 26] and looks [n 13].

    Raises:
        ValueError: they are not all of one object, or only some wear a hat.
    """
    n = len(combinations)
    kinds = {(one.object, one.attribute == HAT) for one in combinations}
    if len(kinds) != 1:
        raise ValueError(f"instances built together are of one kind, not of {len(kinds)}")
    name, hat = kinds.pop()
    sculptor = Sculptor(n, rng)
    OBJECTS[name](sculptor)
    if hat:
        sculptor.wear_hat()
    looks = np.zeros((n, LOOK_COLUMNS), np.float32)
    looks[:, PATTERN] = pattern = np.array([ATTRIBUTES[one.attribute] for one in combinations])
    paint = np.array([COLORS[one.color] for one in combinations])
    shade = rng.uniform(-0.05, 0.05, (n, 1)) + rng.uniform(-0.015, 0.015, paint.shape)
    looks[:, PAINT : PAINT + 3] = np.clip(paint + shade, 0.03, 0.97)
    # Stripes and mortar have to show on every colour: pale ones, but darker ones on light colours.
    pale, dark = np.where(pattern == BRICKS, 0.82, 0.95), np.where(pattern == BRICKS, 0.5, 0.15)
    on_light = np.isin(pattern, (STRIPES, BRICKS)) & (paint @ [0.3, 0.6, 0.1] > 0.6)
    looks[:, TRIM : TRIM + 3] = np.where(on_light, dark, pale)[:, None]
    looks[:, AXIS : AXIS + 3] = sculptor.stripes
    looks[:, OFFSET : OFFSET + 3] = rng.uniform(0, 1, (n, 3))
    return sculptor.finish(), looks


if __name__ == "__main__":
    print("# Combinations that the embedded prior never saw in training: the prompts of its tests.")
    for held in combinations():
        if held.held_out:
            print(held.caption())
