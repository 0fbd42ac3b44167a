"""Settings: presets, the ways to change a setting, and every way to get one wrong."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.config import Config, DistillConfig, check_settings, flatten
from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.config.values import parse_assignments, read_toml
from segdream_cli.distill import METHODS
from segdream_cli.errors import UsageProblem
from segdream_cli.optimize.state import build_generators
from segdream_cli.priors.profile import QUALITIES, PriorProfile, ViewPhrases, preset
from segdream_cli.runs.spec import Request


def refused(overrides: dict[str, Any]) -> UsageProblem:
    with pytest.raises(UsageProblem) as caught:
        Config().set(overrides)
    return caught.value


@pytest.mark.parametrize("quality", QUALITIES)
def test_preset_builds_for_every_quality(quality: str) -> None:
    profile = PriorProfile()
    config = preset(profile, quality)
    for key, value in profile.presets[quality].items():
        assert config.flat()[key] == value
    assert Config().set(config.flat()) == config


def test_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageProblem, match=r"draft, standard, high, paper$"):
        preset(PriorProfile(), "best")


def test_preset_scales_schedules_to_its_steps() -> None:
    config = preset(PriorProfile(presets={"tiny": {"optim.steps": 50, "densify.stop": 7}}), "tiny")
    assert (config.optim.steps, config.distill.warmup_steps, config.densify.stop) == (50, 15, 7)


def test_with_steps_scales_step_settings_only() -> None:
    before, after = Config().flat(), Config().with_steps(500).flat()
    scaled = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert scaled == {
        "optim.steps": (5000, 500),
        "optim.clip_steps": (1000, 100),
        "optim.stop_every": (100, 10),
        "optim.beg_start": (1000, 100),
        "optim.beg_stop": (4500, 450),
        "distill.warmup_steps": (1500, 150),
        "camera.widen_every": (500, 50),
        "densify.start": (100, 10),
        "densify.every": (100, 10),
        "densify.stop": (3000, 300),
        "densify.prune_scale_after": (300, 30),
        "densify.reset_every": (300, 30),
    }


@given(st.integers(1, 20_000))
def test_with_steps_keeps_zero_and_at_least_one(steps: int) -> None:
    config = Config().set({"densify.reset_every": 0}).with_steps(steps)
    assert config.optim.steps == steps
    assert config.densify.reset_every == 0
    assert min(config.densify.every, config.camera.widen_every, config.distill.warmup_steps) >= 1
    assert Config().with_steps(5000) == Config()


@pytest.mark.parametrize("steps", [-1, -3])
def test_with_steps_refuses_negative_numbers(steps: int) -> None:
    with pytest.raises(UsageProblem, match=r"optim\.steps"):
        Config().with_steps(steps)


def test_with_steps_of_zero_keeps_the_schedules() -> None:
    config = Config().with_steps(0)
    assert config == Config().set({"optim.steps": 0})
    assert config.with_steps(5000) == Config()


def test_flat_round_trips_through_json() -> None:
    config = Config().set(
        {"distill.sctd.segments": 4, "camera.fill": [0.5, 0.75], "camera.backgrounds": {"white": 1.0}}
    )
    assert Config().set(json.loads(json.dumps(config.flat()))) == config
    assert config != Config()
    assert Config() == Config().set({})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("distill.segmnts", "distill.sctd.segments"),
        ("segments", "distill.sctd.segments"),
        ("optim.t_tau", "distill.sctd.t_tau"),
        ("camera.fov", "camera.fov_rad"),
        ("", ""),
        ("distill", "distill."),
    ],
)
def test_set_names_the_nearest_key(key: str, nearest: str) -> None:
    problem = refused({key: 1})
    assert repr(key) in problem.message
    assert nearest in (problem.hint or "")
    assert problem.without == (f"--set {key}",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distill.sctd.segments", 2.5),
        ("distill.sctd.segments", "4"),
        ("distill.sctd.segments", True),
        ("distill.sctd.segments", None),
        ("distill.sctd.guidance_scale", "high"),
        ("distill.sctd.guidance_scale", float("nan")),
        ("distill.sctd.guidance_scale", float("inf")),
        ("distill.sctd.loss", "eq11"),
        ("distill.sctd.loss", ["eq10"]),
        ("distill.perp_neg", 1),
        ("distill.perp_neg", "yes"),
        ("camera.radius", 5),
        ("camera.radius", [5]),
        ("camera.radius", [5, 6, 7]),
        ("camera.radius", [5, "6"]),
        ("camera.backgrounds", ["black"]),
        ("camera.backgrounds", {"blak": 1}),
        ("camera.backgrounds", {"black": "much"}),
        ("camera.backgrounds", {}),
        ("camera.backgrounds", {"black": 0}),
        ("camera.backgrounds", {"black": 2, "white": -1}),
        ("densify.cap", "many"),
        ("init.shape", 3),
        ("prior.model", 3),
        ("prior.dtype", "fp8"),
    ],
)
def test_set_refuses_a_wrong_type_with_a_working_hint(key: str, value: Any) -> None:
    problem = refused({key: value})
    assert key in problem.message
    assert problem.exit_code == 2
    Config().set(parse_assignments([example(problem)]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.steps", -1),
        ("camera.batch", 0),
        ("camera.batch", -4),
        ("camera.image_size", 0),
        ("distill.sctd.segments", 0),
        ("distill.sctd.min_gap", -1),
        ("distill.sctd.s_margin", -1),
        ("distill.warmup_steps", -1),
        ("distill.sctd.t_min", -1),
        ("distill.sctd.t_max", 1001),
        ("distill.sctd.t_tau", -5),
        ("distill.sctd.guidance_scale", -1.0),
        ("distill.disparity_probability", 1.5),
        ("distill.flip_probability", -0.1),
        ("view.negative_weight", 0.5),
        ("view.overhead_elevation_deg", 91),
        ("camera.azimuth_deg", 200),
        ("camera.elevation_deg", [-100, 10]),
        ("camera.elevation_deg", [30, 10]),
        ("camera.radius", [0, 5]),
        ("camera.radius", [5, 4]),
        ("camera.fov_rad", [0.3, 4]),
        ("camera.fov_rad", [0.6, 0.3]),
        ("camera.fill", [0.8, 0.5]),
        ("init.count", 0),
        ("init.sh_degree", 4),
        ("init.sh_degree", -1),
        ("init.opacity", 1.0),
        ("init.gray", 2),
        ("optim.means_lr", [0, 1e-3]),
        ("optim.betas", [0.9, 1.0]),
        ("optim.scale_range", [0.1, 0.01]),
        ("densify.every", 0),
        ("densify.cap", 0),
        ("densify.reset_opacity", 0),
        ("loss.scale", -1),
        ("output.checkpoint_every", -1),
        ("output.preview_size", 0),
    ],
)
def test_set_refuses_out_of_range_with_a_working_hint(key: str, value: Any) -> None:
    problem = refused({key: value})
    assert key in problem.message
    assert example(problem).startswith(f"{key}=")
    Config().set(parse_assignments([example(problem)]))


def example(problem: UsageProblem) -> str:
    """The assignment that a hint proposes, as a shell would hand it over."""
    option, assignment = shlex.split(problem.hint or "")
    assert option == "--set"
    return assignment


@pytest.mark.parametrize(
    "overrides",
    [
        {"distill.sctd.t_min": 500},
        {"distill.sctd.t_high": 990},
        {"distill.sctd.t_high": 21},
        {"distill.sctd.t_max": 400},
        {"distill.sctd.t_min": 600, "distill.sctd.t_high": 500},
    ],
)
def test_set_refuses_a_window_without_timesteps(overrides: dict[str, Any]) -> None:
    problem = refused(overrides)
    assert "distill.sctd.t_min, t_high and t_max must increase" in problem.message
    settings = re.findall(r"--set (\S+)", problem.hint or "")
    assert Config().set(overrides | parse_assignments(settings)) == Config()


def test_set_checks_related_settings_together() -> None:
    config = Config().set({"distill.sctd.t_min": 550, "distill.sctd.t_high": 990, "distill.sctd.t_max": 999})
    assert config.distill.sctd.t_min == 550


def test_set_accepts_rates_in_either_direction() -> None:
    assert Config().set({"optim.means_lr": [1e-3, 1e-2]}).optim.means_lr == (1e-3, 1e-2)


def test_set_converts_values_to_the_setting_type() -> None:
    config = Config().set(
        {
            "distill.sctd.guidance_scale": 10,
            "camera.radius": [3, 4],
            "densify.cap": "none",
            "distill.sctd.cross_weight": None,
        }
    )
    assert isinstance(config.distill.sctd.guidance_scale, float)
    assert config.camera.radius == (3.0, 4.0)
    assert config.densify.cap is None


def test_parse_assignments_reads_toml_or_text() -> None:
    assert parse_assignments(
        [
            "distill.sctd.segments=4",
            " distill.sctd.guidance_scale = 7.5 ",
            "distill.perp_neg=true",
            "camera.radius=[3, 4.5]",
            "camera.backgrounds={black=1, white=2}",
            'prior.model="a b"',
            "prior.model=org/name=1",
            "init.shape=C:\\a b.ply",
            "densify.cap=",
        ]
    ) == {
        "distill.sctd.segments": 4,
        "distill.sctd.guidance_scale": 7.5,
        "distill.perp_neg": True,
        "camera.radius": [3, 4.5],
        "camera.backgrounds": {"black": 1, "white": 2},
        "prior.model": "org/name=1",
        "init.shape": "C:\\a b.ply",
        "densify.cap": "",
    }


def test_parse_assignments_refuses_a_missing_equals_sign() -> None:
    with pytest.raises(UsageProblem, match=r"'distill\.sctd\.segments' has no '='"):
        parse_assignments(["distill.sctd.segments"])


@pytest.mark.parametrize("text", ["1\nseed=2", "1\nvalue=2", "[1,\n2]\nx=3"])
def test_parse_assignments_keeps_multiline_text(text: str) -> None:
    assert parse_assignments([f"init.shape={text}"])["init.shape"] == text


def test_flatten_reaches_the_settings_of_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "night run.toml"
    path.write_text(
        "[distill]\nt_tau = 90\n[distill.sds]\nt_min = 30\n"
        '[camera]\nradius = [3, 4]\nbackgrounds = {white = 1}\n[init]\nshape = "bøx"\n'
    )
    assert flatten(read_toml(path)) == {
        "distill.t_tau": 90,
        "distill.sds.t_min": 30,
        "camera.radius": [3, 4],
        "camera.backgrounds": {"white": 1},
        "init.shape": "bøx",
    }


def test_read_toml_reads_a_run_record(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"prompt": "a dog", "config": Config().flat()}))
    assert Config().set(read_toml(path)) == Config()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.toml", b"distill.sctd.segments = \n"),
        ("twice.toml", b"[init]\n[init]\n"),
        ("deep.toml", b"a = " + b"[" * 100_000),
        ("deep.json", b"[" * 100_000),
        ("latin1.toml", b'[init]\nshape = "b\xf8x"\n'),
        ("broken.json", b"{"),
        ("list.json", b"[1, 2]"),
        ("other.json", b'{"a": 1}'),
        ("number.json", b'{"config": 3}'),
    ],
)
def test_read_toml_refuses_other_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageProblem, match="is not a configuration") as caught:
        read_toml(tmp_path / name)
    assert name in caught.value.message


def test_read_toml_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UsageProblem, match="Is a directory"):
        read_toml(tmp_path)


def test_profile_from_json() -> None:
    profile = PriorProfile.from_json(
        {
            "title": "toy",
            "views": {"front": "from the front", "ring": ["n", "e"]},
            "negative_prompt": "",
            "batch": 3,
            "vocabulary": {
                "objects": ["dog"],
                "attributes": ["red"],
                "excluded": [["blue", "red"]],
                "synonyms": {"dog": "puppy, pup"},
                "concepts": {"dog": "wolf", "": "moon"},
                "ignored": "the, a photo of",
            },
            "presets": {"draft": {"optim.steps": 9}},
        }
    )
    assert profile.views == ViewPhrases(front="from the front", ring=("n", "e"))
    assert profile.batch == 3
    assert profile.vocabulary is not None
    assert profile.vocabulary.objects == ("dog",)
    assert profile.vocabulary.excluded == (("blue", "red"),)
    assert "blue" not in profile.vocabulary.phrases
    assert profile.vocabulary.synonyms == (("dog", ("puppy", "pup")),)
    assert profile.vocabulary.concepts == (("dog", ("wolf",)), ("", ("moon",)))
    assert profile.vocabulary.ignored == ("the", "a photo of")
    assert profile.vocabulary.title == "toy"
    assert preset(profile, "draft").optim.steps == 9
    assert PriorProfile.from_json({}) == PriorProfile()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"title": 3}, "title"),
        ({"negative_prompt": None}, "negative_prompt"),
        ({"views": {"up": "x"}}, "up"),
        ({"views": {"front": 3}}, "front"),
        ({"views": {"ring": "front"}}, "ring"),
        ({"views": ["front"]}, "list"),
        ({"vocabulary": {"attributes": ["red"]}}, "objects"),
        ({"vocabulary": {"objects": "dog"}}, "objects"),
        ({"vocabulary": {"objects": ["dog", 3]}}, "objects"),
        ({"vocabulary": {"objects": ["dog"], "excluded": "red"}}, "excluded"),
        ({"vocabulary": {"objects": ["dog"], "excluded": [["red"]]}}, "excluded"),
        ({"vocabulary": {"objects": ["dog"], "excluded": [["red", 3]]}}, "excluded"),
        ({"vocabulary": {"objects": ["dog"], "synonyms": {"cat": "kitty"}}}, "'cat', which is not in the vocabulary"),
        ({"vocabulary": {"objects": ["dog"], "synonyms": {"": "kitty"}}}, "'', which is not in the vocabulary"),
        ({"vocabulary": {"objects": ["dog"], "synonyms": "dog"}}, "synonyms"),
        ({"vocabulary": {"objects": ["dog"], "concepts": {"dog": ["wolf"]}}}, "concepts of 'dog'"),
        ({"vocabulary": {"objects": ["dog"], "ignored": ["the"]}}, "ignored"),
        ({"vocabulary": {"objects": ["dog"], "title": "toy"}}, "title"),
        ({"presets": {"draft": {"distill.segmnts": 3}}}, "draft"),
        ({"presets": {"draft": {"camera.batch": 0}}}, "camera.batch"),
        ({"batch": 0}, "batch"),
        ({"batch": "2"}, "batch"),
        ({"presets": 3}, "int"),
        ({"presets": {"draft": 3}}, "int"),
    ],
)
def test_profile_from_json_refuses_bad_fields(data: dict[str, Any], says: str) -> None:
    """AttributeError too, which the reader of the file takes for the same."""
    with pytest.raises((KeyError, TypeError, AttributeError), match=says):
        PriorProfile.from_json(data)


def test_short_keys_mean_the_chosen_method() -> None:
    assert Config().set({"distill.guidance_scale": 5.0}).distill.sctd.guidance_scale == 5.0
    changed = Config().set({"distill.guidance_scale": 5.0, "distill.method": "sds"})
    assert (changed.distill.sds.guidance_scale, changed.distill.sctd.guidance_scale) == (5.0, 7.5)
    assert changed.set({"distill.t_min": 30}).distill.sds.t_min == 30
    assert check_settings({"distill.t_min": 30}, "sds") == {"distill.sds.t_min": 30}


def test_short_keys_of_another_method_are_refused() -> None:
    with pytest.raises(UsageProblem, match=r"'distill\.segments'") as caught:
        Config().set({"distill.method": "sds", "distill.segments": 3})
    assert caught.value.hint == "--set distill.sctd.segments=3"


def test_every_method_has_a_section() -> None:
    sections = {item.name for item in dataclasses.fields(DistillConfig) if dataclasses.is_dataclass(item.default)}
    assert sections == set(METHOD_NAMES) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_refinement_of_an_asset_keeps_the_timesteps_of_every_method_low(name: str) -> None:
    """Its coarse shape and colours are to stay."""
    config = Config().set({"distill.method": name, "optim.steps": 50}).for_refinement()
    method, generators = METHODS[name](config), build_generators(0)  # type: ignore[index]
    state = method.init_state((2, 1, 1, 1), generators)
    draws = [method.describe(method.draw(step, (2, 1, 1, 1), state, generators)) for step in range(1, 51)]
    times = torch.tensor([draw["t"] for draw in draws])
    assert 200 < int(times.max()) <= 300


def test_refinement_of_an_asset_does_not_sharpen_unless_asked() -> None:
    profile = PriorProfile(settings={"refine.sharpen": 1.0})
    weights = [
        Request(refines=refines, settings=settings).resolve(profile).refine.sharpen
        for refines, settings in ((False, {}), (True, {}), (True, {"refine.sharpen": 0.5}))
    ]
    assert weights == [1.0, 0.0, 0.5]


def test_set_refuses_a_reversed_sds_range() -> None:
    problem = refused({"distill.sds.t_min": 990})
    assert "distill.sds.t_min must not exceed t_max" in problem.message


def test_short_keys_of_a_record_without_a_method_mean_sctd(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": {"distill.segments": 3}}))
    config = Request(file=path, settings={"distill.method": "sds"}).resolve(PriorProfile())
    assert (config.distill.method, config.distill.sctd.segments) == ("sds", 3)


def test_short_keys_mean_the_method_of_a_profile() -> None:
    profile = PriorProfile(settings={"distill.method": "sds"})
    config = Request(settings={"distill.guidance_scale": 7}).resolve(profile)
    assert (config.distill.sds.guidance_scale, config.distill.sctd.guidance_scale) == (7.0, 7.5)


def test_named_prior_takes_the_place_of_a_model_in_the_file(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[prior]\nmodel = "somebody/something"\ndtype = "fp32"\n')
    prior = Request(file=path, settings={"prior.name": "mini"}).prior()
    assert (prior.name, prior.model, prior.dtype) == ("mini", None, "fp32")
    assert Request(file=path).prior().model == "somebody/something"


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"optim.steps": 0}, {"distill.sctd.segments", "distill.sds.t_min", "optim.beg_start", "optim.stop_every"}),
        (
            {"init.shape": "box", "optim.beg": True},
            {"init.copies", "init.fill_gaps", "distill.sds.t_min", "optim.stop_every"},
        ),
        ({"init.shape": "a.ply", "distill.method": "sds"}, {"init.copies", "init.count", "distill.sctd.segments"}),
    ],
)
def test_idle_names_the_settings_without_effect(settings, idle):
    keys = [
        "distill.sctd.segments",
        "distill.sds.t_min",
        "optim.beg_start",
        "optim.stop_every",
        "init.copies",
        "init.fill_gaps",
    ]
    keys += ["init.count", "refine.enabled", "loss.scale"]
    found = Config().set({"refine.enabled": True} | settings).idle(keys)
    assert idle <= set(found)
    assert "refine.enabled" not in found
    assert ("loss.scale" in found) == (settings.get("optim.steps") == 0)
