"""The procedural world: distances against sampled surfaces, images against projection by hand, captions, the bank."""

import math
from functools import cache
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from scipy.ndimage import label
from scipy.spatial import cKDTree

from training.bank import render_bank
from training.models import MAX_TOKENS, make_tokenizer, vocabulary
from training.world.camera import Lens, Light, backgrounds, look_at, random_views
from training.world.catalog import (
    ATTRIBUTES,
    COLORS,
    HAT,
    OBJECTS,
    OVERHEAD,
    Combination,
    build,
    combinations,
    contradictions,
    natural_colors,
)
from training.world.layout import LOOK_COLUMNS, PAINT, RGB
from training.world.render import draw, sample_surface
from training.world.sculptor import Sculptor, about_x, about_y, about_z
from training.world.tracer import bricks, candidates, distance, field, gold

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ONE = np.array([0])


def records(make) -> np.ndarray:
    """Primitives of one instance before it is scaled."""
    sculptor = Sculptor(1, np.random.default_rng(0))
    make(sculptor)
    return np.stack(sculptor._records, 1)[0].astype(np.float32)


def angles(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, 2 * np.pi, n), rng.uniform(-1, 1, n)


def ball_surface(radius: float, n: int, rng: np.random.Generator) -> np.ndarray:
    around, height = angles(n, rng)
    flat = np.sqrt(1 - height**2)
    return radius * np.stack([flat * np.cos(around), height, flat * np.sin(around)], -1)


def box_surface(half: tuple[float, float, float], n: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.uniform(-1, 1, (n, 3))
    face = rng.integers(3, size=n)
    points[np.arange(n), face] = np.sign(points[np.arange(n), face])
    return points * half


def torus_surface(ring: float, tube: float, n: int, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.uniform(0, 2 * np.pi, (2, n))
    return np.stack(
        [(ring + tube * np.cos(b)) * np.cos(a), tube * np.sin(b), (ring + tube * np.cos(b)) * np.sin(a)], -1
    )


def frustum_surface(bottom: float, top: float, half: float, n: int, rng: np.random.Generator) -> np.ndarray:
    around, height = angles(n, rng)
    radius = (bottom + top) / 2 + (top - bottom) / 2 * height
    height = height * half
    caps = n // 3
    radius[:caps] = bottom * np.sqrt(rng.uniform(0, 1, caps))
    height[:caps] = -half
    radius[caps : 2 * caps] = top * np.sqrt(rng.uniform(0, 1, caps))
    height[caps : 2 * caps] = half
    return np.stack([radius * np.cos(around), height, radius * np.sin(around)], -1)


SURFACES = {
    "ball": (lambda o: o.ellipsoid((0, 0, 0), 0.6), lambda n, rng: ball_surface(0.6, n, rng)),
    "box": (
        lambda o: o.box((0, 0, 0), (0.3, 0.5, 0.7), rounding=0.0),
        lambda n, rng: box_surface((0.3, 0.5, 0.7), n, rng),
    ),
    "torus": (lambda o: o.torus((0, 0, 0), 0.6, 0.2), lambda n, rng: torus_surface(0.6, 0.2, n, rng)),
    "frustum": (
        lambda o: o.cylinder((0, 0, 0), 0.6, 0.4, top=0.3, rounding=0.0),
        lambda n, rng: frustum_surface(0.6, 0.3, 0.4, n, rng),
    ),
}


@pytest.mark.parametrize("name", SURFACES)
def test_distance_matches_a_sampled_surface(name: str) -> None:
    rng = np.random.default_rng(1)
    make, surface = SURFACES[name]
    part = records(make)[0]
    sampled = cKDTree(surface(300_000, rng))
    points = rng.uniform(-1, 1, (300, 3))
    nearest, _ = sampled.query(points)
    traced = np.array([distance(part, *point) for point in points])
    # Far away a frustum's estimate may be too long, which the tracer's shorter steps make up for.
    assert (np.abs(traced) < 1.25 * nearest + 0.01).all()
    np.testing.assert_allclose(np.abs(traced)[nearest < 0.15], nearest[nearest < 0.15], atol=0.03)


def test_capsule_is_the_union_of_balls() -> None:
    part = records(lambda o: o.capsule((-0.4, 0.1, 0.2), (0.5, 0.3, -0.1), 0.3, 0.1))[0]
    a, b = np.array([-0.4, 0.1, 0.2]), np.array([0.5, 0.3, -0.1])
    share = np.linspace(0, 1, 4001)[:, None]
    centers, radii = a + share * (b - a), 0.3 - 0.2 * share[:, 0]
    points = np.random.default_rng(2).uniform(-1, 1, (200, 3))
    wanted = (np.linalg.norm(points[:, None] - centers, axis=-1) - radii).min(1)
    outside = wanted > 0
    traced = np.array([distance(part, *point) for point in points])
    np.testing.assert_allclose(traced[outside], wanted[outside], atol=1e-4)
    assert (traced[~outside] <= 1e-4).all()


def test_prism_matches_its_planes() -> None:
    part = records(lambda o: o.prism((0, 0, 0), 0.8, 0.2, 0.5, 0.3, rounding=0.0))[0]
    points = np.random.default_rng(3).uniform(-1, 1, (2000, 3))
    x, y, z = points.T
    width = 0.5 - 0.6 * y  # 0.8 at y = -0.5, 0.2 at y = 0.5
    inside = (np.abs(y) < 0.5) & (np.abs(z) < 0.3) & (np.abs(x) < width)
    traced = np.array([distance(part, *point) for point in points])
    assert ((traced < 0) == inside).all()


def test_carve_subtracts_and_blend_adds() -> None:
    def make(o: Sculptor, blend: float) -> None:
        o.ellipsoid((-0.3, 0, 0), 0.4)
        o.ellipsoid((0.3, 0, 0), 0.4, blend=blend)
        o.box((0, 0.5, 0), (0.1, 0.5, 0.5), carve=True)

    sharp, soft = (records(lambda o, blend=blend: make(o, blend)) for blend in (0.0, 0.3))
    assert field(sharp, 7, 0.0, -0.32, 0.0)[0] > 0 > field(soft, 7, 0.0, -0.32, 0.0)[0]
    assert field(sharp, 3, 0.0, 0.1, 0.0)[0] < 0 < field(sharp, 7, 0.0, 0.1, 0.0)[0]
    assert field(sharp, 7, -0.101, 0.1, 0.0)[1] == 2  # the cut has the carving part's colour


@pytest.mark.parametrize(
    ("turn", "start", "end"),
    [(about_x, (0, 1, 0), (0, 0, 1)), (about_y, (0, 0, 1), (1, 0, 0)), (about_z, (1, 0, 0), (0, 1, 0))],
)
def test_rotations_are_right_handed(turn, start, end) -> None:
    np.testing.assert_allclose(turn(90.0) @ start, end, atol=1e-12)
    assert np.linalg.det(turn(33.0)) == pytest.approx(1)


def ball(radius: float, rgb: tuple[float, float, float] | None, place=(0.0, 0.0, 0.0)) -> np.ndarray:
    return records(lambda o: o.ellipsoid(place, radius, rgb))[None]


def test_draw_ball_covers_its_tangent_cone() -> None:
    views = look_at(ONE, np.array([40.0]), np.array([20.0]), np.array([0.4]), np.array([3.0]))
    image = draw(ball(0.7, (1, 0, 0)), np.zeros((1, LOOK_COLUMNS), np.float32), views, 128, CPU)[0]
    radius = math.tan(math.asin(0.7 / 3)) / 0.4  # in half images
    assert image[..., 3].float().mean() / 255 == pytest.approx(math.pi * radius**2 / 4, rel=0.02)
    assert (image[..., 1:3] == 0).all()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "place", "row", "column"),
    [
        (0, 0, (0.5, 0, 0), 32, 48),  # from the front, the object's left is on the right
        (90, 0, (0, 0, 0.5), 32, 16),  # from its left, the front is on the left
        (180, 0, (0.5, 0, 0), 32, 16),
        (0, 0, (0, 0.5, 0), 16, 32),
        (0, 90, (0, 0, 0.5), 48, 32),  # from above, the front points down
    ],
)
def test_cameras_look_from_their_angles(azimuth, elevation, place, row, column) -> None:
    views = look_at(ONE, np.array([azimuth]), np.array([elevation]), np.array([0.1]), np.array([10.0]))
    image = draw(ball(0.1, (1, 1, 1), place), np.zeros((1, LOOK_COLUMNS), np.float32), views, 64, CPU)[0, ..., 3]
    y, x = (image > 128).nonzero().float().mean(0) + 0.5
    assert (y.item(), x.item()) == pytest.approx((row, column), abs=1)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_fit_the_unit_sphere(name: str) -> None:
    rng = np.random.default_rng(5)
    directions = ball_surface(1.06, 400, rng)
    for attribute in ("", HAT):
        primitives, _ = build([Combination(name, "blue", attribute)] * 2, rng)
        assert np.isfinite(primitives).all()
        every = (1 << primitives.shape[1]) - 1
        assert min(field(parts, every, *point)[0] for parts in primitives for point in directions) > 0


@numba.njit
def distances(parts: np.ndarray, side: int) -> np.ndarray:
    """The field on a grid over the cube that holds the unit sphere, [side side side]; as rays see it, in columns."""
    grid, step = np.empty((side, side, side)), 2 / (side - 1)
    for i in range(side):
        for j in range(side):
            x, y = i * step - 1, j * step - 1
            met = candidates(parts, x, y, -1.0, 0.0, 0.0, 1.0, 0.0)
            for k in range(side):
                grid[i, j, k] = field(parts, met, x, y, k * step - 1)[0]
    return grid


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_of_one_piece(name: str) -> None:
    primitives, _ = build([Combination(name, "blue", "")] * 3, np.random.default_rng(7))
    for parts in primitives:
        _, pieces = label(distances(parts, 81) < 0, np.ones((3, 3, 3)))
        assert pieces == 1


@pytest.mark.slow
def test_objects_mostly_show_the_named_colour() -> None:
    magenta, shares = np.array([1.0, 0.0, 1.0]), {}
    for name in OBJECTS:
        primitives, looks = build([Combination(name, "blue", "")], np.random.default_rng(6))
        looks[:, PAINT : PAINT + 3] = magenta
        azimuths = np.array([20.0, 110.0, 200.0, 290.0])
        views = look_at(np.zeros(4, int), azimuths, np.full(4, 15.0), np.full(4, 0.35), np.full(4, 3.2))
        images = draw(primitives, looks, views, 64, CPU).float()
        seen = images[..., 3] > 250
        main = (images[..., 1] < 30) & (images[..., 0] > 100) & (images[..., 2] > 100)
        shares[name] = (main & seen).sum().item() / seen.sum().item()
    assert {name: share for name, share in shares.items() if share < 0.35} == {}
    assert np.mean(list(shares.values())) > 0.65


def test_held_out_list_matches_the_combinations() -> None:
    path = Path(__file__).parents[2] / "training" / "heldout.txt"
    listed = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    every = list(combinations())
    held = [one for one in every if one.held_out]
    assert listed == [one.caption() for one in held]
    assert len(held) / len(every) == pytest.approx(0.15, abs=0.01)
    seen = [one for one in every if not one.held_out]
    assert {one.object for one in seen} == {one.object for one in held} == set(OBJECTS)
    assert {one.color for one in seen} == {one.color for one in held} == set(COLORS)
    assert {one.attribute for one in seen} == {one.attribute for one in held} == set(ATTRIBUTES)
    assert len(OBJECTS) >= 48
    assert len(COLORS) >= 12


@pytest.mark.parametrize(
    ("combination", "how", "caption"),
    [
        (Combination("duck", "blue", "striped"), {"view": "back view"}, "a striped blue duck, back view"),
        (Combination("duck", "blue", "striped"), {"color_first": True}, "a blue striped duck"),
        (Combination("owl", "orange", ""), {}, "an orange owl"),
        (Combination("owl", "red", ""), {"named_color": False}, "an owl"),
        (Combination("dog", "brown", HAT), {}, "a brown dog wearing a red hat"),
        (Combination("owl", "yellow", "made of gold"), {}, "an owl made of gold"),
        (Combination("owl", "red", "made of bricks"), {}, "a red owl made of bricks"),
        (
            Combination("car", "red", "with white spots"),
            {"view": OVERHEAD},
            "a red car with white spots, overhead view",
        ),
    ],
)
def test_caption_of_a_combination(combination: Combination, how: dict[str, object], caption: str) -> None:
    assert combination.caption(**how) == caption


def test_contradictions_are_the_pairs_that_no_caption_names() -> None:
    captions = [one.caption() for one in combinations() if one.object == "teapot"]
    unnamed = {
        (color, attribute)
        for color in COLORS
        for attribute in ATTRIBUTES
        if not any(attribute in text and color in text.replace(attribute or ",", "").split() for text in captions)
    }
    assert set(contradictions()) == unnamed
    assert ("white", "with white spots") in unnamed
    assert ("blue", "made of gold") in unnamed
    assert ("white", "made of bricks") not in unnamed


def test_natural_colors_are_of_combinations() -> None:
    every = set(combinations())
    for name in OBJECTS:
        for attribute in ATTRIBUTES:
            colors = natural_colors(name, attribute)
            assert colors
            assert {Combination(name, color, attribute) for color in colors} <= every
    assert natural_colors("castle", "") == ("gray",)
    assert natural_colors("castle", "made of wood") == ("brown",)
    assert natural_colors("snowman", "striped") == ("white",)
    assert set(natural_colors("snowman", "covered in snow")) == set(COLORS) - {"white"}


def three_views() -> np.ndarray:
    """Views of instance 0 from three sides."""
    azimuths, elevations = np.array([30.0, 140.0, 250.0]), np.array([15.0, 25.0, 5.0])
    return look_at(np.zeros(3, int), azimuths, elevations, np.full(3, 0.36), np.full(3, 3.3))


@cache
def shown(name: str, color: str, attribute: str) -> np.ndarray:
    """Images of an instance whose shape is the same for every attribute but the hat, [3 32 32 4] in 0..255."""
    primitives, looks = build([Combination(name, color, attribute)], np.random.default_rng(3))
    return draw(primitives, looks, three_views(), 32, CPU).numpy().astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("attribute", [name for name in ATTRIBUTES if name not in ("", HAT)])
def test_attributes_show_on_every_object(attribute: str) -> None:
    least = 0.25 if attribute.startswith("made of") else 0.08
    color = "yellow" if attribute == "made of gold" else "blue"
    shares = {}
    for name in OBJECTS:
        plain, painted = (shown(name, color, one) for one in ("", attribute))
        changed = np.abs(painted - plain)[..., :3].max(-1) > 20
        shares[name] = changed[plain[..., 3] > 250].mean()
    assert {name: share for name, share in shares.items() if share < least} == {}


def test_hat_shows_on_every_object() -> None:
    shares = {}
    for name in OBJECTS:
        primitives, looks = build([Combination(name, "blue", HAT)], np.random.default_rng(3))
        primitives[0, -3:, RGB : RGB + 3] = 1, 0, 1
        images = draw(primitives, looks, three_views(), 64, CPU).numpy().astype(int)
        magenta = (images[..., 1] < 30) & (images[..., 0] > 150) & (images[..., 2] > 150)
        shares[name] = magenta.sum() / (images[..., 3] > 250).sum()
    assert {name: share for name, share in shares.items() if share < 0.08} == {}


@pytest.mark.slow
def test_undersides_are_readable() -> None:
    """The same surface is at most a third darker when it looks down than when it looks to the side."""
    parts = records(lambda o: o.box((0, 0, 0), (0.5, 0.5, 0.5), (0.8, 0.8, 0.8), rounding=0.0))[None]
    looks = np.zeros((1, LOOK_COLUMNS), np.float32)
    views, _, _ = random_views(np.zeros(200, int), np.random.default_rng(0), Lens(below=1.0), Light())
    images = draw(parts, looks, views, 64, CPU).numpy().astype(float)
    seen = images[images[..., 3] > 254][:, 0]
    assert seen.min() > 0.66 * 0.8 * 255


def test_random_views_show_undersides_in_a_share() -> None:
    lens = Lens()
    _, _, elevation = random_views(np.zeros(20_000, int), np.random.default_rng(0), lens, Light())
    below = elevation < -20
    assert below.mean() == pytest.approx(0.12, abs=0.01)
    assert elevation[below].min() >= -50
    assert elevation[~below].min() >= -15
    assert elevation[~below].mean() == pytest.approx(25, abs=1)


@pytest.mark.parametrize("normal", [(0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_bricks_repeat_in_running_bond(normal: tuple[int, int, int]) -> None:
    u, v = np.meshgrid(np.arange(0.001, 1, 0.002), np.arange(0.001, 1, 0.002))  # v counts the courses
    flat = np.full_like(u, 0.3)
    x, y, z = {(0, 0, 1): (u, v, flat), (1, 0, 0): (flat, v, u), (0, 1, 0): (u, flat, v)}[normal]
    mortar = np.array([bricks(*normal, *point)[0] for point in zip(x.flat, y.flat, z.flat, strict=True)]) > 0
    mortar = mortar.reshape(u.shape)
    np.testing.assert_array_equal(mortar[:400], mortar[100:])  # two courses of 0.1
    np.testing.assert_array_equal(mortar[:, :400], mortar[:, 100:])  # one brick of 0.2
    np.testing.assert_array_equal(mortar[:450, :450], mortar[50:, 50:])  # half a brick aside, one course up
    assert mortar.mean() == pytest.approx(1 - (1 - 0.024 / 0.1) * (1 - 0.024 / 0.2), abs=0.01)


def test_gold_has_dark_and_bright_bands_and_is_saturated() -> None:
    rng = np.random.default_rng(0)
    points = ball_surface(0.7, 2000, rng)
    colors = np.array([gold(y / 0.7, x, y, z) for x, y, z in points])
    assert colors.min() >= 0
    assert colors.max() <= 1
    red, green, blue = colors.T
    assert (red > green).all()
    assert (green > blue).all()
    brightness = colors @ [0.3, 0.6, 0.1]
    assert np.quantile(brightness, 0.9) - np.quantile(brightness, 0.1) > 0.25


def test_captions_have_one_token_per_word_and_fit(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, vocabulary())
    longest = max((one.caption(view="front right view") for one in combinations()), key=lambda text: text.count(" "))
    words = longest.replace(",", " ,").split()
    ids = tokenizer(longest).input_ids
    assert [tokenizer.convert_ids_to_tokens(i).removesuffix("</w>") for i in ids[1:-1]] == words
    assert len(ids) <= MAX_TOKENS


def test_bank_depends_on_the_seed_and_matches_its_labels() -> None:
    wanted = [Combination("ball", color, "") for color in ("red", "green", "blue", "white", "black")]
    bank, again, other = (render_bank(20, seed, CPU, combinations=wanted, size=32) for seed in (1, 1, 2))
    assert torch.equal(bank.rgba, again.rgba)
    assert not torch.equal(bank.rgba, other.rgba)
    assert len(bank) == len(bank.azimuth_deg) >= 20
    assert bank.instances.tolist() == [i // 2 for i in range(len(bank))]
    alpha = bank.rgba[..., 3:].float()
    seen = (bank.rgba[..., :3] * (alpha > 250)).sum((1, 2)) / (alpha > 250).sum((1, 2)) / 255
    table = torch.tensor(list(COLORS.values()))
    assert (torch.cdist(seen.float(), table).argmin(1) == bank.colors).float().mean() > 0.85


def test_bank_shows_each_attribute_equally_often() -> None:
    bank = render_bank(1600, 1, CPU, combinations=[one for one in combinations() if one.object == "ball"], size=8)
    shares = torch.bincount(bank.attributes, minlength=len(ATTRIBUTES)) / len(bank)
    hat = list(ATTRIBUTES).index(HAT)
    assert shares[0].item() == pytest.approx(0.5, abs=0.06)
    others = shares[[i for i in range(1, len(ATTRIBUTES)) if i != hat]]
    assert others.tolist() == pytest.approx([0.066] * len(others), abs=0.035)


def test_over_backgrounds_stays_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = render_bank(8, 1, CPU, combinations=[Combination("mug", "red", "")], size=32)
    images = bank.over_backgrounds(torch.arange(8), generator)
    assert images.shape == (8, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    behind = backgrounds(300, 8, generator)
    white = (behind == 1).all(1).all(1).all(1).float().mean()
    plain = (behind.amax((2, 3)) == behind.amin((2, 3))).all(1).float().mean()
    assert 0.15 < white < 0.35
    assert 0.45 < plain < 0.75


@pytest.mark.slow
def test_sample_surface_spreads_points_by_area() -> None:
    half = np.array([0.2, 0.3, 0.5])
    parts = records(lambda o: o.box((0.1, 0.0, -0.1), tuple(half), (0.2, 0.4, 0.6), rounding=0.0))[None]
    looks = np.zeros((1, LOOK_COLUMNS), np.float32)
    points, colors = sample_surface(parts, looks, 6000, torch.Generator().manual_seed(0))
    offset = np.abs(points[0].numpy() - [0.1, 0.0, -0.1]) / half
    np.testing.assert_allclose(offset.max(1), 1, atol=0.01)
    areas = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    shares = np.bincount(offset.argmax(1), minlength=3) / 6000
    np.testing.assert_allclose(shares, areas / areas.sum(), atol=0.02)
    torch.testing.assert_close(colors[0], torch.tensor([0.2, 0.4, 0.6]).expand(6000, 3))


def test_sample_surface_of_a_thin_object_is_never_empty() -> None:
    parts = records(lambda o: o.capsule((0, -0.9, 0), (0, 0.9, 0), 0.01))[None]
    points, _ = sample_surface(parts, np.zeros((1, LOOK_COLUMNS), np.float32), 500, torch.Generator().manual_seed(0))
    assert (points[0, :, ::2].norm(dim=-1) < 0.02).all()
    assert points.shape == (1, 500, 3)
