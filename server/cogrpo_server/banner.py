"""What the operator reads when the service is ready: where it is, and three commands to try."""

import os
import shlex
import sys
from pathlib import Path

from cogrpo_client.types import Info
from cogrpo_server.settings import DEFAULT_MODEL, Settings

PROMPT = "a red circle left of a blue square"


def banner(settings: Settings, info: Info, keys_file: Path) -> str:
    """The text; paths are relative to the working folder where they lie in it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    keys, data = shlex.quote(_near(keys_file)), shlex.quote(_near(settings.data_dir))
    python = shlex.quote(_near(Path(sys.executable)))
    command = shlex.quote(_near(Path(sys.executable).with_name("cogrpo")))
    model = ""
    if settings.model != DEFAULT_MODEL:
        model = " --model " + shlex.quote(
            _near(Path(settings.model)) if Path(settings.model).is_dir() else settings.model
        )
    fingerprint = info.model.fingerprint[:12]
    return f"""
Co-GRPO Serve is ready.
  address  {url}
  model    {info.model.name}, fingerprint {fingerprint}, policy {info.policy_version}
  keys     {keys}
  logs     {data}/logs
  stop     Ctrl-C

Try in another terminal, in this folder:

curl -s {url}/generate -H "Authorization: Bearer $(grep -m1 -o 'cogrpo-[^"]*' {keys})" \\
  -H 'Content-Type: application/json' -H 'Accept: image/png' \\
  -d '{{"prompt": "{PROMPT}", "seed": 7}}' -o picture.png

COGRPO_KEY_FILE={keys} {python} -c 'from cogrpo_client import Client
Client("{url}").generate("{PROMPT}", seed=7).images[0].save("picture.png")'

{command} trajectories --last 3 --replay --data-dir {data}{model}
"""


def _near(path: Path) -> str:
    """The path as typed from the working folder, which a virtual environment's links stay in."""
    absolute = Path(os.path.abspath(path))
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)
