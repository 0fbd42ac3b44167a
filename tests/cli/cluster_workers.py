"""The actors of the tests of `--ray`: a prior in closed form, steps that take a while, and faults.

They stand in a file of their own because the processes of the cluster import it.
"""

import errno
import os
import time
from pathlib import Path

from fakes import AnalyticPrior

from segdream_cli.runs.cluster import Actor

CALLS = 20
"""Calls of the prior before a worker pauses; an asset takes about fifty."""


class TestActor(Actor):
    """Says where its process is, in the folder `FAULTS`, and obeys the files there.

    `hold`: the worker pauses in the middle of its first asset. `slow-PID`: each call of the prior takes longer.
    `full-NODE`: no asset can be written on that machine. `blind-NODE`: it does not see the folder of the assets.
    `poison`: the prompt whose process dies.
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
        from segdream_cli.priors.stable_diffusion import DiffusionPrior

        faults, node, write = self.faults, self.node, formats.write

        class Faulty(AnalyticPrior):
            calls = 0

            def predict_noise(self, latents, timesteps, text):
                self.calls += 1
                if (faults / f"slow-{os.getpid()}").exists():
                    time.sleep(0.4)
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
            return write(path, splats, *arguments, **options)

        formats.write = write_or_fail
        DiffusionPrior.load = lambda checkpoint, *_, **__: Faulty(profile=checkpoint.profile)
        super()._do_tasks()
