"""Finds a diffusion prior's files, downloads them if necessary, and verifies them before they are loaded.

`from_pretrained` of the model libraries replaces a missing tokenizer or weight with made-up values, without error, and
waits minutes for an unreachable Hub. So these libraries only see a local folder that `resolve` has verified.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segdream_cli.config import AUTO, MINI, SD21, SD21_MODEL, PriorConfig
from segdream_cli.errors import UsageProblem, WeightsUnavailable
from segdream_cli.priors import published
from segdream_cli.priors.profile import PROFILE_FILE, PriorProfile
from segdream_cli.util.download import file_sha256
from segdream_cli.util.files import parse_json
from segdream_cli.util.hashes import check_sums
from segdream_cli.util.home import abbreviate, expand
from segdream_cli.util.hub import HubDownload, HubModel, first_line, removal

PRIORS: Mapping[str, str] = {SD21: SD21_MODEL, MINI: str(Path(__file__).resolve().parents[1] / "data" / "mini")}
"""Hub id or folder of each known prior."""

TIMESTEPS = 1000
"""Training timesteps of every supported prior: times are 0..999."""

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
FALLBACK_HINT = f"--prior {MINI}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified folder in the Stable Diffusion layout."""

    folder: Path
    name: str
    """A prior's name, a Hub id or a folder, with `~` for the user's home."""
    profile: PriorProfile
    digest: str
    """SHA-256 over the networks, tokenizer and scheduler files; the same in the Hub's cache and in a copied folder."""
    variant: str | None = None
    """Variant of the weight files to load: "fp16" or None."""


def choose(name: str, *, cuda: bool) -> str:
    """The prior that `name` means: "auto" is Stable Diffusion with CUDA, else the small prior.

    Raises:
        UsageProblem: the name is unknown.
    """
    if name == AUTO:
        return SD21 if cuda else MINI
    if name not in PRIORS:
        raise UsageProblem(f"there is no prior {name!r}", hint=f"--prior {AUTO}")
    return name


def resolve(prior: PriorConfig, *, cuda: bool, offline: bool, announce: Callable[[str], None]) -> Checkpoint:
    """Finds the prior's folder, or downloads it from the Hub, and verifies its files.

    A complete cached copy is used without the network. Half-precision weight files are preferred if the networks will
    compute in half precision.

    Args:
        prior: the prior or model.
        cuda: whether the networks will run on CUDA.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line about the choice for "auto", and one with the size before a download starts.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the files can't be found, downloaded, read or used.
    """
    chosen = choose(prior.name, cuda=cuda)
    if prior.name == AUTO and prior.model is None:
        reason, other = ("CUDA is present", MINI) if cuda else ("there is no CUDA", SD21)
        announce(f"prior {chosen}, because {reason} (--prior {other} to change it)")
    model = prior.model or PRIORS[chosen]
    half = _computes_in_half(prior, cuda=cuda)
    folder = expand(model)
    if folder.is_dir():
        known = check_sums(folder)
        return _verify(
            folder, abbreviate(folder) if prior.model else chosen, partial(_hash_folder, known=known), half=half
        )
    _refuse_paths(model, folder)
    remote = _hub_model(model, prior)
    folder = remote.locate(_is_complete, lambda: _plan(remote, half=half), offline=offline, announce=announce)
    return _verify(folder, prior.model or chosen, partial(remote.hash_files, announce=announce), half=half)


def profile_of(prior: PriorConfig, *, cuda: bool) -> PriorProfile:
    """The profile in a prior's folder, without its networks; the default one if the prior is not a folder.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the profile is damaged, or the prior is a path and no folder is there.
    """
    model = prior.model or PRIORS[choose(prior.name, cuda=cuda)]
    folder = expand(model)
    if folder.is_dir():
        check_sums(folder, only=PROFILE_FILE)
        return _read_profile(folder)
    _refuse_paths(model, folder)
    return PriorProfile()


@contextmanager
def read_errors(title: str, hint: str = FALLBACK_HINT) -> Iterator[None]:
    """Turns errors of the model libraries in the block, which reads the part `title`, into `WeightsUnavailable`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as problem:  # the Rust parts of the libraries raise bare Exceptions
        raise WeightsUnavailable(f"{title} can't be read: {first_line(problem)}", hint=hint) from problem


def check_keys(title: str, info: Mapping[str, Collection[Any]], hint: str = FALLBACK_HINT) -> None:
    """Refuses a network if some weights are not from the file.

    Args:
        title: what the error calls the network.
        info: the loading info that `from_pretrained` returns.
        hint: hint of the error.

    Raises:
        WeightsUnavailable: a weight is missing or has another shape; the library has filled it with random numbers.
    """
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
    if wrong:
        raise WeightsUnavailable(f"{title} lacks {len(wrong)} weights, the first is {wrong[0]}", hint=hint)


def _refuse_paths(model: str, folder: Path) -> None:
    """Refuses a model that looks like a path, so that the Hub is not asked for it."""
    if folder.is_file():
        raise WeightsUnavailable(f"{model} is a single file, a folder with {_INDEX} is needed", hint=FALLBACK_HINT)
    if model.startswith((".", "/", "~")) or folder.is_absolute() or model.count("/") > 1 or "\\" in model:
        raise WeightsUnavailable(f"there is no folder {model}", hint=FALLBACK_HINT)


def plan_download(prior: PriorConfig, *, cuda: bool) -> HubDownload | None:
    """The files that `resolve` would download from the Hub; None if all of them are on this machine.

    Raises:
        UsageProblem: the prior's name is unknown.
        WeightsUnavailable: the Hub can't be reached, or its files can't be used.
    """
    model = prior.model or PRIORS[choose(prior.name, cuda=cuda)]
    if expand(model).is_dir():
        return None
    remote = _hub_model(model, prior)
    cached = remote.local_folder()
    if cached is not None and _is_complete(cached):
        return None
    return _plan(remote, half=_computes_in_half(prior, cuda=cuda))


def _hub_model(model: str, prior: PriorConfig) -> HubModel:
    """The model on the Hub; Stable Diffusion 2.1-base is the commit whose hashes are published."""
    revision = prior.revision or (published.REVISION if model == SD21_MODEL else None)
    pinned = published.SHA256 if (model, revision) == (SD21_MODEL, published.REVISION) else {}
    return HubModel(id=model, revision=revision, marker=_INDEX, fallback_hint=FALLBACK_HINT, pinned=pinned)


def _computes_in_half(prior: PriorConfig, *, cuda: bool) -> bool:
    return prior.dtype == "fp16" or (prior.dtype == "auto" and cuda)


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot in the Hub's cache has all files; even of one that can be missing, a link may lead nowhere."""
    return not _absent_files(_names(folder)) and not any(
        name in _files([name], None) and not name.endswith(".safetensors") for name in _names(folder, dangling=True)
    )


def _plan(remote: HubModel, *, half: bool) -> HubDownload:
    """The download of a checkpoint; puts its small files into the cache."""
    patterns = [*_SMALL, *_weight_files(None), *_weight_files(_HALF)]
    folder = remote.fetch_small(_SMALL)
    listed = remote.list_files(patterns)
    _check_complete(listed, remote.id)
    _check_architecture(folder, remote.id)  # before a useless download of gigabytes
    return remote.select(listed, _files(listed, _variant(listed, half=half)))


def _weight_files(variant: str | None) -> list[str]:
    infix = f".{variant}" if variant else ""
    return [f"{part}/{stem}{infix}.safetensors" for part, stem in _WEIGHTS.items()]


def _variant(names: Collection[str], *, half: bool) -> str | None:
    """The variant of weight files to load: the requested precision if `names` has it, else the other."""
    full, fp16 = (all(name in names for name in _weight_files(variant)) for variant in (None, _HALF))
    return _HALF if fp16 and (half or not full) else None


def _files(names: Collection[str], variant: str | None) -> set[str]:
    """Selects the files of a checkpoint that are needed, out of all its files."""
    exact = {_INDEX, PROFILE_FILE, *_CONFIGS, *_weight_files(variant)}
    return {name for name in names if name in exact or re.fullmatch(r"tokenizer/[^/]*\.(json|txt)", name)}


def _names(folder: Path, *, dangling: bool = False) -> set[str]:
    """The files of a folder and of its components, relative to it, or the dangling links of a damaged cache instead."""
    paths = [path for at in ("", *_CLASSES) for path in (folder / at).glob("*")]
    found = (path for path in paths if (path.is_symlink() and not path.exists() if dangling else path.is_file()))
    return {path.relative_to(folder).as_posix() for path in found}


def _absent_files(names: Collection[str]) -> list[str]:
    """The files that a checkpoint needs and lacks."""
    weights = _weight_files(_variant(names, half=False))
    absent = [name for name in (_INDEX, *_CONFIGS, *weights) if name not in names]
    if not any(all(name in names for name in kind) for kind in _TOKENIZERS):
        absent += [name for name in _TOKENIZERS[0] if name not in names]
    return absent


def _check_complete(names: Collection[str], source: str) -> None:
    """Refuses a checkpoint that lacks a file."""
    if not (absent := _absent_files(names)):
        return
    if _INDEX in absent:
        raise WeightsUnavailable(
            f"{source} is not a Stable Diffusion checkpoint: it has no {_INDEX}",
            hint=FALLBACK_HINT,
        )
    pickled = any(name.endswith((".bin", ".ckpt", ".pt")) for name in names)
    why = " (only pickled weights, which segdream does not read)" if pickled else ""
    raise WeightsUnavailable(f"{source} is incomplete: it has no {', '.join(absent)}{why}", hint=FALLBACK_HINT)


def _verify(
    folder: Path, name: str, hash_files: Callable[[Path, Collection[str]], Mapping[str, str]], *, half: bool
) -> Checkpoint:
    """The checkpoint in a folder, after a check of each of its files."""
    names = _names(folder)
    _check_complete(names, name)
    variant = _variant(names, half=half)
    files = sorted(_files(names, variant))
    hashes = hash_files(folder, files)  # first, so that a damaged file is called that
    _check_architecture(folder, name)
    for file in files:
        if file.endswith(".safetensors"):
            _check_safetensors(folder / file)
    digest = _digest({file: hashes[file] for file in files if file not in (_INDEX, PROFILE_FILE)})
    return Checkpoint(folder=folder, name=name, profile=_read_profile(folder), digest=digest, variant=variant)


def _read_profile(folder: Path) -> PriorProfile:
    """The profile in a folder; the default is that of Stable Diffusion."""
    if not (folder / PROFILE_FILE).is_file():
        return PriorProfile()
    try:
        return PriorProfile.from_json(_json(folder / PROFILE_FILE))
    except (KeyError, TypeError, AttributeError) as problem:
        raise WeightsUnavailable(
            f"{folder / PROFILE_FILE} is not a prior's profile: {problem}", hint=removal(folder / PROFILE_FILE)
        ) from problem


def _check_architecture(folder: Path, source: str) -> None:
    """Refuses models of another family; the error names the reasons."""
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
        reasons = list(_differences(unet, vae, text, scheduler))
    if reasons:
        raise WeightsUnavailable(
            f"{source} is not a Stable Diffusion 1.x or 2.x text-to-image model but {kind}: {', '.join(reasons)}",
            hint=f"--prior {SD21}",
        )


def _differences(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the reasons why the configurations of the components don't make a supported prior."""
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
    """Reads a JSON file that holds an object."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise WeightsUnavailable(f"{path} can't be read: {problem}", hint=removal(path)) from problem
    if not isinstance(data, dict):
        raise WeightsUnavailable(f"{path} holds no JSON object", hint=removal(path))
    return data


def _check_safetensors(path: Path) -> None:
    """Refuses a weight file whose header is damaged or promises another length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as problem:
        raise WeightsUnavailable(
            f"{path} is not a whole safetensors file: {first_line(problem)}",
            hint=f"{removal(path)}  # then download or copy it again",
        ) from problem


def _hash_folder(folder: Path, names: Collection[str], known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of files of a folder; those in `known` need not be computed again."""
    return {name: known.get(name) or file_sha256(folder / name) for name in names}


def _digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the names of files and their SHA-256."""
    total = hashlib.sha256()
    for name, content in sorted(hashes.items()):
        total.update(f"{name} {content}\n".encode())
    return total.hexdigest()
