"""Clusters of the tests of `--ray`, and their actors: a prior in closed form, steps that take a while, and faults.

They stand in a file of their own because the processes of the cluster import it.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import AnalyticPrior

from segdream_cli.runs.cluster import Actor

TESTS = Path(__file__).resolve().parents[1]
CALLS = 10
"""Calls of the prior before a worker pauses; an asset takes 24."""
STORE = 80 * 2**20
"""Bytes of a machine's object store; Ray wants that many at least."""
HEALTH = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}
PATHS = [str(TESTS.parent), str(TESTS), str(TESTS / "cli")]
DRIVER = f"""
import sys
sys.path[:0] = {PATHS!r}
import cluster_workers
from segdream_cli.runs import cluster, dispatcher
cluster.Actor = cluster_workers.TestActor
dispatcher.MOVE_S = dispatcher.START_S = 1.0
cluster.SHIP_S, cluster.BYTES_PER_S = 0.0, float("inf")
from segdream_cli.cli import main
main()
"""
"""A program with segdream's command line, whose workers are `TestActor`s: assets move soon, each checkpoint travels."""
ALONE = f"""
import sys
sys.path[:0] = {PATHS!r}
import cluster_workers
from segdream_cli.cli import main
cluster_workers.replace_prior()
main()
"""
"""The same without workers."""


def patiently(start: Callable[[], Any]) -> Any:
    """What `start` returns; Ray gives a machine 30 s to start, which a busy host may not have."""
    for attempt in range(5):
        try:
            return start()
        except Exception:  # Ray raises no narrower class
            if attempt == 4:
                raise


def start_head() -> Any:
    """A cluster whose head computes nothing; its processes look for faults in `SEGDREAM_FAULTS`."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "_system_config": HEALTH}
    return patiently(lambda: Cluster(initialize_head=True, head_node_args=head))


def add_machine(cluster: Any) -> Any:
    """A machine of one CPU joins."""
    return patiently(lambda: cluster.add_node(num_cpus=1, object_store_memory=STORE))


def settings(faults: Path) -> dict[str, str]:
    """The environment of a cluster and its drivers."""
    return {
        "PYTHONPATH": os.pathsep.join(PATHS),
        "SEGDREAM_FAULTS": str(faults),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def replace_prior(kind: type[AnalyticPrior] = AnalyticPrior) -> None:
    """Puts a prior into the place of the networks, whose imports take longer than a test."""
    from segdream_cli.optimize.pipeline import Pipeline
    from segdream_cli.runs import session

    session.load_pipeline = lambda config, checkpoint, device, reporter, clouds, assets: Pipeline(
        config, kind(profile=checkpoint.profile), device, clouds
    )


class TestActor(Actor):
    """Says where its process is, in the folder `FAULTS`, and obeys the files there.

    `hold`: the worker pauses in the middle of its first asset. `slow-PID`: each call of the prior takes longer.
    `full-NODE`: no asset can be written on that machine. `blind-NODE`: it does not see the folder of the assets.
    `poison`: the prompt whose process dies. Each asset that was written is a line of `written`.
    """

    __test__ = False

    def __init__(self, *arguments) -> None:
        import ray

        self.faults = Path(os.environ["SEGDREAM_FAULTS"])
        self.node = ray.get_runtime_context().get_node_id()
        super().__init__(*arguments)
        self._shares = self._shares and not (self.faults / f"blind-{self.node}").exists()
        (self.faults / f"worker-{os.getpid()}").write_text(self.node)

    def _do_tasks(self) -> None:
        from segdream_cli import formats

        faults, node, write = self.faults, self.node, formats.write

        class Faulty(AnalyticPrior):
            calls = 0

            def predict_noise(self, latents, timesteps, text):
                self.calls += 1
                if (faults / f"slow-{os.getpid()}").exists():
                    time.sleep(4.0)
                while self.calls == CALLS and (faults / "hold").exists():
                    (faults / f"held-{os.getpid()}").touch()
                    time.sleep(0.02)
                return super().predict_noise(latents, timesteps, text)

            def encode_text(self, texts):
                if (faults / "poison").exists() and (faults / "poison").read_text() in texts[0]:
                    os._exit(9)
                return super().encode_text(texts)

        def write_or_fail(path, splats, *arguments, **options):
            if (faults / f"full-{node}").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            found = write(path, splats, *arguments, **options)
            with (faults / "written").open("a") as stream:
                stream.write(f"{path.name}\n")
            return found

        formats.write = write_or_fail
        replace_prior(Faulty)
        super()._do_tasks()
