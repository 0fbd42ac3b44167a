"""Jobs and their settings as plain values, which can be pickled and sent to another process or machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from segdream_cli.config import AUTO, Config, PriorConfig, check_settings, flatten
from segdream_cli.config.values import read_toml
from segdream_cli.errors import OptionProblem, UsageProblem
from segdream_cli.priors.profile import preset
from segdream_cli.runs.jobs import FileJob, Job
from segdream_cli.util.text import join_names

if TYPE_CHECKING:
    from segdream_cli.priors.profile import PriorProfile

LOW_VRAM_CAP = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Settings and hardware, before the prior is known.

    Args:
        quality: the preset.
        settings: dotted settings, which override the file; an entry that is None does not count.
        options: setting -> the option of the command line that gave it.
        file: TOML file of settings or a `run.json`, which overrides the preset.
        device: auto, cpu, cuda or cuda:N.
        offline: never ask the network.
        refines: the jobs refine given assets, so the preset's settings change as `Config.for_refinement` says.
    """

    quality: str = "standard"
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    device: str = AUTO
    offline: bool = False
    refines: bool = False

    def _overrides(self, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the file, and those of `settings`; `method` is the default for short keys.

        Raises:
            UsageProblem: an unknown setting or a value that does not fit.
            OptionProblem: an option contradicts a setting of another spelling.
        """
        file = flatten(read_toml(self.file)) if self.file else {}
        given = self._given()
        method = (file | given).get("distill.method", method)
        others = check_settings({key: value for key, value in given.items() if key not in self.options}, method)
        for key, option in self.options.items():
            for full, value in check_settings({key: given[key]}, method).items():
                if others.get(full, value) != value:
                    text = f"{option} {given[key]} and --set {full}={others[full]}"
                    raise OptionProblem(f"{text} contradict each other", without=[option])
        try:
            file = check_settings(file, method)
        except UsageProblem as problem:  # which no option cures
            raise UsageProblem(f"{self.file}: {problem.message}") from problem
        given = check_settings(given, method)
        if "prior.name" in given and "prior.model" not in given:
            file.pop("prior.model", None)  # which would take the place of the prior that was asked for
        return file, given

    def _given(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings.items() if value is not None}

    def notes_on_idle(self, config: Config) -> list[str]:
        """Notes on settings that have no effect in the resolved `config`.

        Raises:
            OptionProblem: an option of the command line has none.
        """
        named = {
            check: key
            for key in self._given()
            for check in check_settings({key: self.settings[key]}, config.distill.method)
        }
        reasons = config.idle(named)
        if self.refines:
            reasons |= {key: "a refinement starts from its asset" for key in named if key.startswith("init.")}
        idle: dict[str, list[str]] = {}
        for key, reason in reasons.items():
            option = self.options.get(named[key])
            if option and all(each in reasons for each in named if self.options.get(named[each]) == option):
                idle.setdefault(reason, []).append(option)
        for reason, found in idle.items():
            options = list(dict.fromkeys(found))
            verb = "has" if len(options) == 1 else "have"
            raise OptionProblem(f"{join_names(options)} {verb} no effect: {reason}", without=options)
        return [f"{key} has no effect: {reason}" for key, reason in reasons.items() if named[key] not in self.options]

    def prior(self) -> PriorConfig:
        """Name of the requested prior."""
        file, given = self._overrides(Config().distill.method)
        return PriorConfig(
            **{key.removeprefix("prior."): value for key, value in (file | given).items() if key.startswith("prior.")}
        )

    def resolve(self, profile: "PriorProfile") -> Config:
        """The configuration for a prior: preset < changes for a refinement < file < settings.

        A level that changes the number of steps scales the schedules of the levels below it. With little memory, the
        limit on Gaussians is lower unless `settings` names one.
        """
        config = preset(profile, self.quality)
        file, given = self._overrides(config.distill.method)
        if self.refines:
            config = config.for_refinement()
            if "optim.steps" not in given:
                file = {"optim.steps": 0, **file}
        for overrides in (file, given):
            config = config.with_steps(overrides.get("optim.steps", config.optim.steps)).set(overrides)
        if config.prior.low_vram and "densify.cap" not in given:
            config = config.set({"densify.cap": min(config.densify.cap or LOW_VRAM_CAP, LOW_VRAM_CAP)})
        return config


class Work(Protocol):
    """Does one `FileJob` after another on a worker; it can be pickled."""

    def __call__(self, job: FileJob, device: str, note: Callable[[str], None]) -> object:
        """The result of a job, which can be pickled.

        Args:
            job: the job, whose files are where `FileJob.here` says.
            device: computes.
            note: receives messages for the user.

        Raises:
            SegdreamError: the job failed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Jobs that share a request, for any backend.

    Args:
        request: settings and hardware.
        jobs: the assets to make.
        negative_prompt: replaces the prior's own negative prompt.
        batch: how many assets to make at once; None leaves it to the prior and the device.
        force: replace what exists.
        as_list: skip what exists, resume what was stopped, and continue after a failure; otherwise the first failure
            ends all.
        skip_existing: skip what exists and resume what was stopped; the first failure ends all.
        live: serve a page that shows the first asset of those that are being made.
        work: does the jobs, each of which is a `FileJob`; None makes assets.
    """

    request: Request
    jobs: tuple[Job, ...]
    negative_prompt: str | None = None
    batch: int | None = None
    force: bool = False
    as_list: bool = False
    skip_existing: bool = False
    live: bool = False
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many jobs of a spec were made, skipped because their asset exists, or failed."""

    made: int = 0
    skipped: int = 0
    failed: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.made + other.made, self.skipped + other.skipped, self.failed + other.failed)
