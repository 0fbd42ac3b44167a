"""Where a diffusion prior's files come from: resolved to one folder, downloaded if need be, verified before loading.

`from_pretrained` of the model libraries answers a missing tokenizer or a missing weight with made-up values and no
error, and an unreachable Hub with a wait of minutes. So they only ever see a local folder that passed `resolve`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdream_cli.config import AUTO, MINI, SD21, SD21_MODEL, PriorConfig
from segdream_cli.errors import UsageProblem, WeightsUnavailable
from segdream_cli.priors.profile import PROFILE_FILE, PriorProfile
from segdream_cli.util import hub
from segdream_cli.util.download import file_sha256
from segdream_cli.util.hub import HubFiles

PRIORS: Mapping[str, str] = {SD21: SD21_MODEL, MINI: str(Path(__file__).resolve().parents[1] / "data" / "mini")}
"""The known priors, each with its Hub id or its folder."""

TIMESTEPS = 1000
"""Training timesteps of every prior this program can use: its times are 0..999."""

_INDEX = "model_index.json"
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_CONFIGS = (*(f"{part}/config.json" for part in _WEIGHTS), "scheduler/scheduler_config.json")
_HALF = "fp16"
_TOKENIZERS = (("tokenizer/vocab.json", "tokenizer/merges.txt"), ("tokenizer/tokenizer.json",))
_SMALL = (_INDEX, PROFILE_FILE, *_CONFIGS, "tokenizer/*.json", "tokenizer/*.txt")
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_ELSEWHERE = f"--prior {MINI} (needs no download), or --model /path/to/folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified folder in the Stable Diffusion layout."""

    folder: Path
    name: str
    """What was asked for: a prior's name, a Hub id or a folder."""
    profile: PriorProfile
    digest: str
    """SHA-256 over the networks, tokenizer and scheduler files; the same in the Hub's cache and in a copied folder."""
    variant: str | None = None
    """Infix of the weight files to load, "fp16" or none."""


def choose(name: str, *, cuda: bool) -> str:
    """The prior that `name` stands for: "auto" is Stable Diffusion where there is CUDA, else the small one.

    Raises:
        UsageProblem: there is no such prior.
    """
    if name == AUTO:
        return SD21 if cuda else MINI
    if name not in PRIORS:
        raise UsageProblem(f"there is no prior {name!r}", hint=f"--prior {'|'.join((AUTO, *PRIORS))}")
    return name


def resolve(prior: PriorConfig, *, cuda: bool, offline: bool, announce: Callable[[str], None]) -> Checkpoint:
    """Finds the prior's folder, downloading it when it is neither a folder nor in the Hub's cache, and verifies it.

    A complete cached copy is used without asking the network. Half-precision weight files are preferred where the
    networks will compute in half precision.

    Args:
        prior: which prior or model.
        cuda: whether the networks will run on CUDA.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives one line about the choice of "auto", and one with the size before a download starts.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the files can't be found, fetched, read or used; the hint says what to do.
    """
    chosen = choose(prior.name, cuda=cuda)
    if prior.name == AUTO and prior.model is None:
        reason, other = ("CUDA is present", MINI) if cuda else ("there is no CUDA", SD21)
        announce(f"prior {chosen}, because {reason} (--prior {other} to change it)")
    model = prior.model or PRIORS[chosen]
    half = _computes_in_half(prior, cuda=cuda)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        _refuse_paths(model, folder)
        folder = _whole(model, prior.revision) or _download(model, prior.revision, half, offline, announce)
    return _verified(folder, prior.model or chosen, half=half)


def profile_of(prior: PriorConfig, *, cuda: bool) -> PriorProfile:
    """The profile of a prior whose networks are not needed, read from its folder if it is on this machine.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the profile is damaged.
    """
    folder = Path(prior.model or PRIORS[choose(prior.name, cuda=cuda)]).expanduser()
    return _profile(folder) if folder.is_dir() else PriorProfile()


@contextmanager
def translate_errors(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """Turns what the model libraries raise while they read a part of a checkpoint into `WeightsUnavailable`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as problem:  # the Rust parts of the libraries raise bare Exceptions
        raise WeightsUnavailable(
            f"the {part} of {checkpoint.name} can't be read: {hub.reason(problem)}", hint=_ELSEWHERE
        ) from problem


def check_keys(checkpoint: Checkpoint, part: str, info: Mapping[str, Collection[Any]]) -> None:
    """Refuses a network that did not get all its weights from the file.

    Args:
        checkpoint: where the network was loaded from.
        part: its sub-folder.
        info: the loading info that `from_pretrained` returns.

    Raises:
        WeightsUnavailable: a weight is missing or of another shape; the library has filled it with random numbers.
    """
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
    if wrong:
        raise WeightsUnavailable(
            f"the {part} of {checkpoint.name} lacks {len(wrong)} weights, the first is {wrong[0]}", hint=_ELSEWHERE
        )


def _refuse_paths(model: str, folder: Path) -> None:
    """Refuses what is meant as a path, so that the Hub is not asked for it."""
    if folder.is_file():
        raise WeightsUnavailable(
            f"{model} is a single file, a folder with {_INDEX} is needed", hint="--model /path/to/folder"
        )
    if model.startswith((".", "/", "~")) or folder.is_absolute() or model.count("/") > 1 or "\\" in model:
        raise WeightsUnavailable(f"there is no folder {model}", hint=f"ls {folder.parent}, or {_ELSEWHERE}")


def pending(prior: PriorConfig, *, cuda: bool) -> HubFiles | None:
    """What `resolve` would download from the Hub; none if all of it is on this machine.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the Hub is out of reach, or what it has can't be used.
    """
    model = prior.model or PRIORS[choose(prior.name, cuda=cuda)]
    if Path(model).expanduser().is_dir() or _whole(model, prior.revision):
        return None
    return _from_hub(model, prior.revision, half=_computes_in_half(prior, cuda=cuda))


def _computes_in_half(prior: PriorConfig, *, cuda: bool) -> bool:
    return prior.dtype == "fp16" or (prior.dtype == "auto" and cuda)


def _whole(model: str, revision: str | None) -> Path | None:
    """The cached snapshot of a Hub model, if it lacks nothing."""
    folder = hub.cached_folder(model, revision, _INDEX, _ELSEWHERE)
    return folder if folder is not None and not _absent(_names(folder)) else None


def _download(model: str, revision: str | None, half: bool, offline: bool, announce: Callable[[str], None]) -> Path:
    """The snapshot of a Hub model, completed by a download."""
    if hub.is_offline(offline):
        partly = hub.cached_folder(model, revision, _INDEX, _ELSEWHERE) is not None
        raise hub.not_cached(model, partly=partly, elsewhere=_ELSEWHERE)
    return _from_hub(model, revision, half=half).fetch(announce)


def _from_hub(model: str, revision: str | None, *, half: bool) -> HubFiles:
    """The files of a Hub model that make a checkpoint; its small ones are in the cache afterwards."""
    patterns = [*_SMALL, *_weight_files(None), *_weight_files(_HALF)]
    folder = hub.small_files(model, revision, _SMALL, _ELSEWHERE)
    listed = hub.listing(model, revision, patterns, _ELSEWHERE)
    _check_present(listed, model)
    _check_architecture(folder, model)  # before gigabytes are fetched for nothing
    return hub.wanted_files(model, revision, listed, _files(listed, _variant(listed, half=half)), _ELSEWHERE)


def _weight_files(variant: str | None) -> list[str]:
    infix = f".{variant}" if variant else ""
    return [f"{part}/{stem}{infix}.safetensors" for part, stem in _WEIGHTS.items()]


def _variant(names: Collection[str], *, half: bool) -> str | None:
    """Which weight files to take: half-precision ones where wanted and there, full ones else, or what there is."""
    full, fp16 = (all(name in names for name in _weight_files(variant)) for variant in (None, _HALF))
    return _HALF if fp16 and (half or not full) else None


def _files(names: Collection[str], variant: str | None) -> set[str]:
    """The files of a checkpoint that are of use, out of all its files."""
    exact = {_INDEX, PROFILE_FILE, *_CONFIGS, *_weight_files(variant)}
    return {name for name in names if name in exact or re.fullmatch(r"tokenizer/[^/]*\.(json|txt)", name)}


def _names(folder: Path) -> set[str]:
    """The files of the folder and of the components in it; a dangling link of a broken cache is none."""
    files = (path for at in ("", *_CLASSES) for path in (folder / at).glob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files}


def _absent(names: Collection[str]) -> list[str]:
    """The files that a checkpoint needs and lacks."""
    weights = _weight_files(_variant(names, half=False))
    absent = [name for name in (_INDEX, *_CONFIGS, *weights) if name not in names]
    if not any(all(name in names for name in kind) for kind in _TOKENIZERS):
        absent += [name for name in _TOKENIZERS[0] if name not in names]
    return absent


def _check_present(names: Collection[str], source: str) -> None:
    """Refuses a checkpoint that lacks a file."""
    if not (absent := _absent(names)):
        return
    if _INDEX in absent:
        raise WeightsUnavailable(
            f"{source} is not a Stable Diffusion checkpoint: it has no {_INDEX}",
            hint="--model with a folder or Hub id in the diffusers layout",
        )
    pickled = any(name.endswith((".bin", ".ckpt", ".pt")) for name in names)
    why = " (only pickled weights, which are not read)" if pickled else ""
    raise WeightsUnavailable(f"{source} is incomplete: it has no {', '.join(absent)}{why}", hint=_ELSEWHERE)


def _verified(folder: Path, name: str, *, half: bool) -> Checkpoint:
    """The checkpoint in a folder, every file of it looked at."""
    names = _names(folder)
    _check_present(names, name)
    _check_architecture(folder, name)
    variant = _variant(names, half=half)
    files = sorted(_files(names, variant) - {_INDEX, PROFILE_FILE})
    for file in files:
        if file.endswith(".safetensors"):
            _check_safetensors(folder / file)
    digest = _digest(folder, files)
    return Checkpoint(folder=folder, name=name, profile=_profile(folder), digest=digest, variant=variant)


def _profile(folder: Path) -> PriorProfile:
    """The profile in a folder, or that of Stable Diffusion where there is none."""
    if not (folder / PROFILE_FILE).is_file():
        return PriorProfile()
    try:
        return PriorProfile.from_json(_json(folder / PROFILE_FILE))
    except (KeyError, TypeError, AttributeError) as problem:
        raise WeightsUnavailable(
            f"{folder / PROFILE_FILE} is not a prior's profile: {problem}", hint=f"rm {folder / PROFILE_FILE}"
        ) from problem


def _check_architecture(folder: Path, source: str) -> None:
    """Refuses models of another family, with the reason."""
    index = _json(folder / _INDEX)
    kind = index.get("_class_name", "a model of unknown class")
    classes = {
        part: value[1] for part, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    reasons = [f"it has a {part}" for part in classes if part not in (*_CLASSES, *_UNUSED)]
    for part, known in _CLASSES.items():
        if part not in classes or (known and classes[part] not in known):
            reasons.append(f"its {part} is {classes.get(part, 'missing')}")
    if not reasons:
        unet, vae, text, scheduler = (_json(folder / name) for name in _CONFIGS)
        reasons = list(_unfit(unet, vae, text, scheduler))
    if reasons:
        raise WeightsUnavailable(
            f"{source} is not a Stable Diffusion 1.x or 2.x text-to-image model but {kind}: {', '.join(reasons)}",
            hint=f"--model {SD21_MODEL}, or --prior {MINI}",
        )


def _unfit(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Iterator[str]:
    """Why four component configurations don't make a prior that this program can use."""
    channels = vae.get("latent_channels", 4)
    if unet.get("in_channels", 4) != channels:
        yield f"its unet takes {unet.get('in_channels', 4)} channels, not the autoencoder's {channels}"
    if unet.get("cross_attention_dim") != text.get("hidden_size"):
        yield f"its unet wants text of width {unet.get('cross_attention_dim')}, not {text.get('hidden_size')}"
    yield from (
        f"its unet has {name}"
        for name in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim")
        if unet.get(name) is not None
    )
    if (prediction := scheduler.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
        yield f"it predicts {prediction!r}"
    if (steps := scheduler.get("num_train_timesteps", TIMESTEPS)) != TIMESTEPS:
        yield f"it has {steps} timesteps"


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise WeightsUnavailable(f"{path} can't be read: {problem}", hint=f"rm {path.resolve()}") from problem
    if not isinstance(data, dict):
        raise WeightsUnavailable(f"{path} holds no JSON object", hint=f"rm {path.resolve()}")
    return data


def _check_safetensors(path: Path) -> None:
    """Refuses a weight file whose header is broken, or whose length is not the one that its header promises."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as problem:
        raise WeightsUnavailable(
            f"{path} is not a whole safetensors file: {hub.reason(problem)}",
            hint=f"rm {path.resolve()}  # then download or copy it again",
        ) from problem


def _digest(folder: Path, files: list[str]) -> str:
    """SHA-256 over the names and the SHA-256 of files; the Hub's cache names large files by that hash already."""
    total = hashlib.sha256()
    for name in files:
        path = (folder / name).resolve()
        if path.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", path.name):
            content = path.name
        else:
            content = file_sha256(path)
        total.update(f"{name} {content}\n".encode())
    return total.hexdigest()
