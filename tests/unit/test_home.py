"""`~` in the place of the user's home, and users without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segdream_cli.util.home import abbreviate, expand, user_cache


def test_abbreviate_is_undone_by_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "users" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for path, short in ((home / "a b" / "ü.ply", "~/a b/ü.ply"), (home, "~"), (tmp_path / "x", str(tmp_path / "x"))):
        assert abbreviate(path) == short
        assert expand(short) == path


def test_abbreviate_follows_links_to_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "me").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk" / "me")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in (tmp_path / "home" / "x", tmp_path / "disk" / "me" / "x"):
        assert abbreviate(path) == "~/x"


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become a user without a home")
def test_a_user_without_a_home_has_a_cache() -> None:
    code = """
import os
from segdream_cli.util.download import cache_folder
from segdream_cli.util.home import abbreviate, expand
from pathlib import Path
os.setuid(54321)
print(cache_folder(), expand('~/x'), abbreviate(Path('/a')))
"""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["/tmp/cache-54321/segdream", "~/x", "/a"]


def test_user_cache_ignores_a_relative_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert user_cache() == tmp_path / ".cache"
