"""`resolve` finds, downloads and verifies a prior, against a loopback server that answers like the Hub."""

import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build, edit_json, edit_weights, write_json
from hub_server import COMMIT, Hub, point_to, serving
from huggingface_hub import constants

from segdream_cli.config import MINI, SD21_MODEL, PriorConfig
from segdream_cli.errors import EnvironmentProblem, UsageProblem, WeightsUnavailable
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors import published
from segdream_cli.priors.profile import PROFILE_FILE, PriorProfile
from segdream_cli.util import hashes
from segdream_cli.util.hub import HubModel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    with serving({"org/tiny": tiny}) as (handler, address):
        point_to(address, tmp_path / "hub", monkeypatch)
        yield handler


def resolve(
    model: str | Path, *, offline: bool = False, said: list[str] | None = None, cuda: bool = False, **prior: Any
):
    announced = [] if said is None else said
    config = PriorConfig(model=str(model), **prior)
    return weights.resolve(config, cuda=cuda, offline=offline, announce=announced.append)


def test_choose_auto_depends_on_cuda() -> None:
    with_cuda, without = weights.choose("auto", cuda=True), weights.choose("auto", cuda=False)
    assert "/" in weights.PRIORS[with_cuda]
    assert not Path(weights.PRIORS[with_cuda]).exists()
    assert (Path(weights.PRIORS[without]) / "model_index.json").is_file()
    assert weights.choose(with_cuda, cuda=False) == with_cuda


def test_choose_refuses_an_unknown_prior() -> None:
    with pytest.raises(UsageProblem, match="'sdxl'") as caught:
        weights.choose("sdxl", cuda=True)
    assert caught.value.hint == "--prior auto"


def test_resolve_finds_the_packaged_prior_offline() -> None:
    said: list[str] = []
    checkpoint = weights.resolve(PriorConfig(), cuda=False, offline=True, announce=said.append)
    assert checkpoint.name == weights.choose("auto", cuda=False)
    assert checkpoint.profile.vocabulary is not None
    assert "school bus" in checkpoint.profile.vocabulary.objects
    assert len(checkpoint.profile.views.ring) == 8
    assert len(said) == 1
    assert "no CUDA" in said[0]
    assert "--prior" in said[0]


def test_resolve_uses_a_folder_with_the_default_profile(tiny: Path) -> None:
    said: list[str] = []
    checkpoint = resolve(tiny, said=said)
    assert checkpoint.folder == tiny
    assert checkpoint.profile == PriorProfile()
    assert said == []


def test_resolve_reads_the_profile_in_the_folder(copy: Path) -> None:
    write_json(copy / PROFILE_FILE, {"title": "mine", "negative_prompt": "bad", "views": {"front": "seen from afar"}})
    profile = resolve(copy).profile
    assert (profile.title, profile.negative_prompt, profile.views.front) == ("mine", "bad", "seen from afar")


@pytest.mark.parametrize("content", ['{"titel": "x"}', '{"presets": {"draft": {"no.such": 1}}}', "[]", "{"])
def test_resolve_refuses_a_damaged_profile(copy: Path, content: str) -> None:
    (copy / PROFILE_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match=PROFILE_FILE):
        resolve(copy)


def test_resolve_digest_depends_only_on_the_weights(tiny: Path, copy: Path) -> None:
    before = resolve(tiny).digest
    write_json(copy / PROFILE_FILE, {"title": "other"})
    assert resolve(copy).digest == before
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert resolve(copy).digest != before


def test_resolve_downloads_only_needed_files_once(
    hub: type[Hub], tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extended = Path(shutil.copytree(tiny, tmp_path / "extended"))
    for name in ("v2-1.ckpt", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors"):
        (extended / name).write_bytes(bytes(100))
    hub.models["org/tiny"] = extended
    said: list[str] = []
    checkpoint = resolve("org/tiny", said=said)
    wanted = [path.relative_to(tiny) for path in tiny.rglob("*") if path.is_file()]
    got = {path.relative_to(checkpoint.folder) for path in checkpoint.folder.rglob("*") if path.is_file()}
    assert got == set(wanted)
    size = sum((tiny / path).stat().st_size for path in wanted if path.suffix == ".safetensors")
    assert len(said) == 2
    assert "org/tiny: SHA-256 of 12 files recorded in" in said[1]
    assert f"downloading org/tiny, {size / 1e6:.1f} MB" in said[0]
    assert checkpoint.digest == resolve(tiny).digest
    capfd.readouterr()

    hub.requests.clear()
    again = resolve("org/tiny", said=said)
    assert again == checkpoint
    assert hub.requests == []
    assert len(said) == 2
    assert resolve("org/tiny", offline=True) == checkpoint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("cuda", "dtype", "expected"),
    [(True, "auto", "fp16"), (False, "fp16", "fp16"), (False, "auto", None), (True, "fp32", None)],
)
def test_resolve_prefers_half_precision_files_for_half_precision(
    hub: type[Hub], tiny: Path, tmp_path: Path, cuda: bool, dtype: str, expected: str | None
) -> None:
    both = Path(shutil.copytree(tiny, tmp_path / "both"))
    build(tmp_path / "half", variant="fp16")
    for path in (tmp_path / "half").rglob("*.fp16.safetensors"):
        shutil.copy(path, both / path.relative_to(tmp_path / "half"))
    hub.models["org/both"] = both
    checkpoint = resolve("org/both", cuda=cuda, dtype=dtype)
    assert checkpoint.variant == expected
    assert len(list(checkpoint.folder.rglob("*.safetensors"))) == 3


def flip(path: Path, place: int = -1) -> os.stat_result:
    """Flips a bit of a file, and keeps its times; returns its state."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return before


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded prior and of the list of its hashes, in the place of the original."""
    folder = Path(weights.PRIORS[MINI])
    shutil.copy(folder.with_name("mini.sha256"), tmp_path)
    monkeypatch.setattr(weights, "PRIORS", {**weights.PRIORS, MINI: str(tmp_path / "mini")})
    return Path(shutil.copytree(folder, tmp_path / "mini"))


def test_resolve_notices_a_flipped_bit_in_each_file_of_the_embedded_prior(embedded: Path) -> None:
    names = [path.relative_to(embedded) for path in embedded.rglob("*") if path.is_file()]
    assert len(names) == 15
    for name in names:
        flip(embedded / name, len((embedded / name).read_bytes()) // 2)
        with pytest.raises(WeightsUnavailable, match=rf"differs from .*mini.sha256: {name.as_posix()}$") as caught:
            weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=print)
        assert caught.value.hint == "pip install --force-reinstall --no-deps segdream"
        flip(embedded / name, len((embedded / name).read_bytes()) // 2)
    assert weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=print).folder == embedded


@pytest.mark.parametrize("byte", [0, 100, -3])
def test_profile_of_notices_a_flipped_bit_before_it_reads_words(embedded: Path, byte: int) -> None:
    flip(embedded / "segdream.json", byte)
    with pytest.raises(WeightsUnavailable, match=r"differs from .*mini.sha256: segdream.json$") as caught:
        weights.profile_of(PriorConfig(name=MINI), cuda=False)
    assert caught.value.hint == "pip install --force-reinstall --no-deps segdream"
    flip(embedded / "segdream.json", byte)
    assert weights.profile_of(PriorConfig(name=MINI), cuda=False).vocabulary


def test_resolve_blames_the_limit_on_open_files_and_not_the_prior(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(hashes, "file_sha256", refuse)
    with pytest.raises(EnvironmentProblem, match="too many open files") as caught:
        weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=print)
    assert caught.value.hint == "ulimit -n 4096"


@pytest.mark.parametrize("content", [b"", b"mini/unet", b"\xff\xfe", b"00  mini/none\n"])
def test_resolve_refuses_a_damaged_list_of_hashes(embedded: Path, content: bytes) -> None:
    embedded.with_name("mini.sha256").write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"differs from .*mini\.sha256"):
        weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=print)


def test_resolve_hashes_large_files_of_the_hub_once(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    first = resolve("org/tiny")
    assert len(hashed) == 3
    assert resolve("org/tiny") == first
    assert len(hashed) == 3
    path = (first.folder / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    os.utime(path, ns=(0, 0))
    assert resolve("org/tiny") == first
    assert hashed[3:] == [path.name]


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"]
)
def test_resolve_notices_a_flipped_bit_in_the_cache_of_the_hub(hub: type[Hub], name: str) -> None:
    before = resolve("org/tiny")
    path = before.folder / name
    flip(path.resolve())
    hashes.forget_hashes()  # the times are as before
    with pytest.raises(
        WeightsUnavailable, match="is damaged: its content does not have the hash in its name"
    ) as caught:
        resolve("org/tiny")
    assert f"rm {path.resolve()}" in str(caught.value.hint)
    path.resolve().unlink()
    assert resolve("org/tiny") == before
    assert path.is_file()


def test_resolve_names_a_damaged_reference_in_the_cache_of_the_hub(hub: type[Hub]) -> None:
    before = resolve("org/tiny")
    ref = before.folder.parents[1] / "refs" / "main"
    ref.write_bytes(b"\xb2" + ref.read_bytes()[1:])
    with pytest.raises(WeightsUnavailable, match="refs/main is damaged") as caught:
        resolve("org/tiny")
    assert caught.value.hint == f"rm {ref}"
    ref.unlink()
    assert resolve("org/tiny") == before


def test_resolve_refuses_other_files_than_at_the_first_use(hub: type[Hub], copy: Path, tmp_path: Path) -> None:
    said: list[str] = []
    resolve("org/tiny", said=said)
    assert sum("later uses must match" in line for line in said) == 1
    edit_weights(copy / "unet" / "diffusion_pytorch_model.safetensors", drop=None, extra=torch.ones(2))
    hub.models["org/tiny"] = copy
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(WeightsUnavailable, match="of org/tiny has changed since its first use here") as caught:
        resolve("org/tiny", said=said)
    record = tmp_path / "cache" / "first-use" / "org--tiny@main.json"
    assert caught.value.hint == f"rm {record}  # to trust the new files"
    record.unlink()
    resolve("org/tiny", said=said)
    assert sum("later uses must match" in line for line in said) == 2


def test_hash_files_refuses_other_files_than_the_published(hub: type[Hub], tiny: Path) -> None:
    model = HubModel(id="org/tiny", marker="model_index.json", fallback_hint="", pinned={"model_index.json": "0" * 64})
    with pytest.raises(WeightsUnavailable, match="instead of the published 000"):
        model.hash_files(tiny, ["model_index.json"], print)


@pytest.fixture
def official(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the hub serves as Stable Diffusion 2.1-base; its files are the published ones."""
    folder = Path(shutil.copytree(tiny, tmp_path / "official"))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    sums = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    monkeypatch.setattr(published, "REVISION", COMMIT)
    monkeypatch.setattr(published, "SHA256", sums)
    with serving({SD21_MODEL: folder}) as (_, address):
        point_to(address, tmp_path / "hub", monkeypatch)
        yield folder


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"])
def test_resolve_refuses_other_files_of_stable_diffusion_than_the_published(
    official: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.resolve(PriorConfig(), cuda=True, offline=False, announce=str).folder.name == COMMIT
    shutil.rmtree(tmp_path / "hub")
    shutil.rmtree(tmp_path / "cache")  # with the hashes of the first use
    if name.endswith(".json"):
        edit_json(official / name, beta_start=0.1)
    else:
        edit_weights(official / name, drop=None, extra=torch.ones(2))
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror")
    with pytest.raises(WeightsUnavailable, match=f"{name} of {SD21_MODEL} has SHA-256 .* instead of the pub") as caught:
        weights.resolve(PriorConfig(), cuda=True, offline=False, announce=str)
    assert str(caught.value.hint).endswith(" && unset HF_ENDPOINT")
    named = PriorConfig(revision="main")  # a revision of the user's own has no published hashes
    assert weights.resolve(named, cuda=True, offline=False, announce=str).folder.name == COMMIT


def test_published_has_a_hash_of_each_file_that_the_loader_reads() -> None:
    assert weights._absent_files(published.SHA256) == []
    assert {name for half in (None, "fp16") for name in weights._files(published.SHA256, half)} == set(published.SHA256)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in published.SHA256.values())


def test_resolve_downloads_the_revision(hub: type[Hub]) -> None:
    assert resolve("org/tiny", revision=COMMIT).folder.name == COMMIT
    with pytest.raises(WeightsUnavailable, match="no revision 'v9'") as caught:
        resolve("org/tiny", revision="v9")
    assert caught.value.hint == "--set prior.revision=main"


@pytest.mark.parametrize(
    ("model", "sentence", "step"),
    [
        ("org/gone", "the Hub has no org/gone", "--prior"),
        ("org/gated", "is gated", "hf auth login"),
        ("org/token", "refused the access token", "hf auth login"),
        ("org/down", "answered 503", "--prior mini"),
        ("bad repo!!", "neither a folder nor a Hub id", "--prior mini"),
        ("./no/such", "there is no folder ./no/such", "--prior mini"),
        ("/no/such", "there is no folder /no/such", "--prior"),
    ],
)
def test_resolve_translates_errors_of_the_hub(hub: type[Hub], model: str, sentence: str, step: str) -> None:
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=sentence) as caught:
        resolve(model)
    assert step in str(caught.value.hint)
    assert caught.value.exit_code == 4
    assert time.monotonic() - began < 5


def test_resolve_fails_at_once_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", tmp_path / "hub", monkeypatch)
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"can't be reached: .*refused") as caught:
        weights.resolve(PriorConfig(), cuda=True, offline=False, announce=lambda _: None)
    assert time.monotonic() - began < 2
    assert f"--prior {weights.choose('auto', cuda=False)}" in str(caught.value.hint)


@pytest.mark.parametrize("by_environment", [False, True])
def test_resolve_offline_makes_no_requests(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by_environment)
    with pytest.raises(WeightsUnavailable, match="is not in the local cache") as caught:
        resolve("org/tiny", offline=not by_environment)
    assert "--offline" in str(caught.value.hint)
    assert hub.requests == []


def test_resolve_completes_a_partial_snapshot_online_only(hub: type[Hub]) -> None:
    whole = resolve("org/tiny")
    link = whole.folder / "vae" / "diffusion_pytorch_model.safetensors"
    link.resolve().unlink()
    with pytest.raises(WeightsUnavailable, match="only partly") as caught:
        resolve("org/tiny", offline=True)
    assert "--offline" in str(caught.value.hint)
    assert resolve("org/tiny") == whole


def test_resolve_names_a_full_disk(hub: type[Hub], monkeypatch: pytest.MonkeyPatch, other_disk: Path) -> None:
    import huggingface_hub

    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(WeightsUnavailable, match="can't be stored: No space left") as caught:
        resolve("org/tiny")
    assert f"HF_HOME={other_disk / 'segdream-cache'}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model_index.json", "no model_index.json"),
        ("unet/diffusion_pytorch_model.safetensors", "no unet/diffusion_pytorch_model.safetensors"),
        ("vae/config.json", "no vae/config.json"),
        ("text_encoder/model.safetensors", "no text_encoder/model.safetensors"),
        ("scheduler/scheduler_config.json", "no scheduler/scheduler_config.json"),
        ("tokenizer/merges.txt", "no tokenizer/merges.txt"),
    ],
)
def test_resolve_names_a_missing_file(copy: Path, name: str, sentence: str) -> None:
    (copy / name).unlink()
    with pytest.raises(WeightsUnavailable, match=sentence):
        resolve(copy)


def test_resolve_refuses_a_missing_tokenizer_before_the_download(hub: type[Hub], copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    hub.models["org/mute"] = copy
    with pytest.raises(WeightsUnavailable, match=r"no tokenizer/vocab\.json, tokenizer/merges\.txt"):
        resolve("org/mute")
    assert not any(".safetensors" in request for request in _downloads(hub))


def test_resolve_refuses_pickled_weights(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(WeightsUnavailable, match="only pickled weights"):
        resolve(copy)


def test_resolve_refuses_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "v2-1.safetensors").write_bytes(b"")
    with pytest.raises(WeightsUnavailable, match="is a single file"):
        resolve(tmp_path / "v2-1.safetensors")


@pytest.mark.parametrize("length", [0, 5, 8, 200, -1, 1])
def test_resolve_refuses_truncated_or_padded_weights(copy: Path, length: int) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content + b"\0" if length == 1 else content[:length])
    with pytest.raises(WeightsUnavailable, match=r"model\.safetensors is not a whole safetensors file") as caught:
        resolve(copy)
    assert str(path) in str(caught.value.hint)


def test_resolve_refuses_an_error_page_as_weights(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_text("<html>404 not found</html>" * 9)
    with pytest.raises(WeightsUnavailable, match="not a whole safetensors file"):
        resolve(copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "has a text_enc"),
        ("model_index.json", {"unet": ["diffusers", "FluxTransformer2DModel"]}, "its unet is FluxTransformer2DModel"),
        ("model_index.json", {"unet": [None, None]}, "its unet is missing"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels, not the autoencoder's 4"),
        ("unet/config.json", {"num_class_embeds": 1000}, "num_class_embeds"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "text of width 2048, not 32"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "has 500 timesteps"),
    ],
)
def test_resolve_refuses_another_architecture(
    hub: type[Hub], copy: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    edit_json(copy / file, **changes)
    with pytest.raises(WeightsUnavailable, match=reason):
        resolve(copy)
    hub.models["org/other"] = copy
    with pytest.raises(WeightsUnavailable, match=f"org/other is not a Stable Diffusion .*{reason}"):
        resolve("org/other")
    assert not any(".safetensors" in request for request in _downloads(hub))


def _downloads(hub: type[Hub]) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
