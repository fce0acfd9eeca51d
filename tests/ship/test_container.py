"""What can be said of Dockerfile, compose.yaml and .dockerignore without an engine."""

from __future__ import annotations

import fnmatch
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ship.serve.standin import Fault, StandIn

ROOT = Path(__file__).parents[2]
HOSTS = re.compile(r"https?://(?!127\.0\.0\.1)|\b[a-z0-9-]+\.(?:org|io|com|net)/")


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and what follows them, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    parted = [line.split(maxsplit=1) for line in joined if line.strip()]
    return [(words[0], words[1]) for words in parted]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def one(name: str) -> str:
    """What follows the only instruction of that name in the last stage."""
    (rest,) = [rest for own, rest in stages()[-1] if own == name]
    return rest


def sources() -> list[str]:
    """What is copied from the project."""
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    return [source for *given, _ in copied for source in given]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that fits it or a folder above it decides."""
    above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    left_out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        patterns = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        at_root = [own for own in above if "/" not in own]
        candidates = above if pattern.startswith("**/") else at_root
        if any(fnmatch.fnmatch(own.rsplit("/", 1)[-1], last) for own in candidates for last in patterns):
            left_out = not line.startswith("!")
    return not left_out


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_the_image_runs_as_nobody_in_particular() -> None:
    last = [name for name, _ in stages()[-1]]
    user, _, group = one("USER").partition(":")
    assert int(user) >= 1000 and int(group) >= 1000
    assert not {"RUN", "COPY", "ADD"} & set(last[last.index("USER") :])
    assert "ADD" not in [name for name, _ in instructions()]
    assert not any(re.search(r"\b(curl|wget|sudo|apt|apt-get)\b", rest) for _, rest in instructions())
    assert not any(
        re.search(r"(?i)token|password|secret", rest) for name, rest in instructions() if name in ("ARG", "ENV")
    )


def test_what_is_copied_is_there_and_nothing_else() -> None:
    assert set(sources()) == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "posology"}
    assert all((ROOT / source).exists() and in_context(source) for source in sources())
    package = [path.relative_to(ROOT) for path in (ROOT / "posology").rglob("*") if path.is_file()]
    assert {str(path) for path in package if in_context(str(path))} == {
        str(path) for path in package if path.suffix != ".pyc" and "__pycache__" not in path.parts
    }
    for other in (".git/config", ".venv/bin/python", "artifacts/deid/posology.json", "tokens.txt", "notes.jsonl",
                  "ledger.db", "tests/data.py", "demo/ledger.db", "docs/LOG.md"):  # fmt: skip
        assert not in_context(other), other


def test_every_installation_is_pinned() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip" in rest]
    assert len(installs) == 2 and all("install --constraint constraints.txt " in rest for rest in installs)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", " ".join(installs))
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    wanted = [need for extra in extras.split(",") for need in project()["optional-dependencies"][extra]]
    wanted += ["torch", "transformers", "numpy", "tokenizers", "safetensors"]
    names = {re.split(r"[<>=\[]", need)[0].lower() for need in wanted}
    assert names <= pinned
    assert one("ENTRYPOINT") == '["posology"]' and "posology" in project()["scripts"]
    version = dict(rest.split("=") for name, rest in instructions() if name == "ARG" and "=" in rest)["PYTHON"]
    floor = project()["requires-python"].removeprefix(">=")
    assert [int(part) for part in version.split(".")] >= [int(part) for part in floor.split(".")]


def test_no_outside_host_is_named() -> None:
    for name in ("Dockerfile", "compose.yaml", ".dockerignore", "docs/container.md"):
        assert not HOSTS.search((ROOT / name).read_text()), name


def test_compose_takes_away_what_is_not_needed() -> None:
    (server,) = compose()["services"].values()
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in server and "network_mode" not in server and server["mem_limit"] and server["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert all(volume["read_only"] for volume in server["volumes"])
    (tmp,) = server["tmpfs"]
    assert tmp.startswith("/tmp:") and {"noexec", "nosuid", "nodev"} <= set(tmp.split(":")[1].split(","))
    environment = dict(word.split("=", 1) for word in shlex.split(one("ENV")))
    assert environment["HOME"] == "/tmp" == one("WORKDIR") and environment["HF_HUB_OFFLINE"] == "1"


def test_what_is_run_exists_and_is_guarded() -> None:
    from posology.ship.serve.command import serve

    (server,) = compose()["services"].values()
    name, *arguments = server["command"]
    options = dict(argument.removeprefix("--").split("=") for argument in arguments if argument.startswith("--"))
    known = {own.replace("_", "-") for own in inspect.signature(serve).parameters}
    assert name == "serve" == json.loads(one("CMD"))[0] and set(options) <= known
    assert options["port"] == one("EXPOSE") == server["ports"][0].rsplit(":", 1)[1]
    assert options["token-file"].removeprefix("/run/secrets/") in compose()["secrets"]  # or the address is refused
    mounted = server["volumes"][0]["target"]
    assert options["artifacts"] == mounted and arguments[0].startswith(f"{mounted}/")


def health() -> list[str]:
    return json.loads(one("HEALTHCHECK").split("CMD", 1)[1])


@pytest.mark.parametrize("status", [200, 503, None])
def test_the_health_check_tells(status: int | None) -> None:
    with StandIn() as server:
        server.faults["/readyz"] = Fault(status or 200, {}, {"status": "ready"})
        port = server.address.rsplit(":", 1)[1].rstrip("/")
        if status is None:
            server.close()
        program, *arguments = health()
        assert program == "python" and "127.0.0.1:8080/" in arguments[-1]
        arguments[-1] = arguments[-1].replace(":8080/", f":{port}/")
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=30, env=environment)
        assert (done.returncode == 0) == (status == 200)


def test_the_copied_files_are_enough(tmp_path: Path) -> None:
    """The package runs from what the Dockerfile copies alone, its page with it."""
    for path in (ROOT / "posology").rglob("*"):
        inside = path.relative_to(ROOT)
        if path.is_file() and in_context(str(inside)):
            (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / inside)
    code = "import posology, sys; from posology.cli import main; from posology.ship.serve.page import files; "
    code += f"assert posology.__file__.startswith({str(tmp_path)!r}) and '/' in files(); sys.argv = ['posology', 'serve', '--help']; main()"
    command = [sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0 and "--token-file" in done.stdout, done.stderr


def test_hadolint_agrees() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_compose_agrees() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    environment = {**os.environ, "MODEL": "deid"}
    command = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
