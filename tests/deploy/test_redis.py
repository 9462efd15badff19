"""The deployment's Redis: the service's users, and data kept as the embedded one keeps it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import redis

from cogrpo_core.exchange.training_cycles import Cycles
from cogrpo_core.exchange.trajectory_consumer import TrajectoryConsumer
from cogrpo_core.exchange.trajectory_log import STREAM, connect
from cogrpo_server import redis_process
from cogrpo_server.redis_process import RedisUrls, check_redis, users
from cogrpo_server.settings import Settings, SettingsError
from tests.deploy.conftest import DEPLOY, DeployedRedis
from tests.server.process import COMMAND, Service, wait_until
from tests.server.test_redis_process import FORBIDDEN, FORBIDDEN_TO, refused

USERS = list(FORBIDDEN_TO)


def settings_of(deployed: DeployedRedis, **more: object) -> Settings:
    given = {
        "redis_url": deployed.url,
        "redis_passwords_file": deployed.secrets / "redis-passwords.json",
    }
    return Settings.model_validate({"data_dir": deployed.secrets, **given, **more})


def test_its_users_are_those_of_the_embedded_one(deployed_redis: DeployedRedis) -> None:
    acl = (deployed_redis.secrets / "redis-users.acl").read_text().splitlines()
    assert acl == ["user default off", *users(deployed_redis.passwords)]
    assert {line.split()[1] for line in acl} == {"default", *USERS}
    assert not any(
        password in "".join(acl) for password in deployed_redis.passwords.model_dump().values()
    )


@pytest.mark.parametrize("user", USERS)
def test_each_may_just_what_it_does(user: str, deployed_redis: DeployedRedis) -> None:
    with connect(deployed_redis.url_of(user)) as connection:
        assert connection.ping()
        wrong = [one for one in FORBIDDEN + FORBIDDEN_TO[user] if not refused(connection, one)]
    assert wrong == []


def test_only_server_and_trainer_append(deployed_redis: DeployedRedis) -> None:
    may = []
    for user in USERS:
        with connect(deployed_redis.url_of(user)) as connection:
            if not refused(connection, ("XADD", STREAM, "NOMKSTREAM", "*", "a", "b")):
                may.append(user)
    assert may == ["server", "trainer"]


def test_without_a_password_nobody_gets_in(deployed_redis: DeployedRedis) -> None:
    wrong = deployed_redis.url.replace("unix://", "unix://server:wrong@")
    for url in (deployed_redis.url, wrong):
        with connect(url) as connection, pytest.raises(redis.AuthenticationError):
            connection.ping()


def test_it_keeps_data_as_the_embedded_one_does() -> None:
    def directives(text: str) -> dict[str, str]:
        lines = [line.strip() for line in text.splitlines()]
        return dict(line.split(" ", 1) for line in lines if " " in line and line[0] != "#")

    embedded = directives(redis_process._CONFIG)
    places = {"port", "unixsocket", "unixsocketperm", "dir", "logfile", "user"}
    kept = {name: value for name, value in embedded.items() if name not in places}
    assert kept["appendonly"] == "yes" and len(kept) == 8
    given = directives((DEPLOY / "redis" / "redis.conf").read_text())
    assert {name: given.get(name) for name in kept} == kept


def test_each_part_of_a_service_is_its_own_user(deployed_redis: DeployedRedis) -> None:
    urls = RedisUrls.given(settings_of(deployed_redis))
    check_redis(urls)
    parts = {"log": "server"} | {name: name for name in ("shelf", "metrics", "operator", "trainer")}
    assert {part: getattr(urls, part) for part in parts} == {
        part: deployed_redis.url_of(user) for part, user in parts.items()
    }


def test_without_passwords_all_are_the_user_of_the_url(deployed_redis: DeployedRedis) -> None:
    url = deployed_redis.url_of("operator")
    urls = RedisUrls.given(settings_of(deployed_redis, redis_url=url, redis_passwords_file=None))
    assert {urls.log, urls.shelf, urls.metrics, urls.operator, urls.trainer} == {url}


def test_what_does_not_go_together_is_one_clear_error(
    deployed_redis: DeployedRedis, tmp_path: Path
) -> None:
    twice = settings_of(deployed_redis, redis_url=deployed_redis.url_of("server"))
    with pytest.raises(SettingsError, match="names a user already"):
        RedisUrls.given(twice)
    (tmp_path / "damaged").write_text("{}")
    for name, words in (("none", "cannot be used"), ("damaged", "is damaged")):
        with pytest.raises(SettingsError, match=words):
            RedisUrls.given(settings_of(deployed_redis, redis_passwords_file=tmp_path / name))
    with pytest.raises(SettingsError, match="REDIS_URL"):
        settings_of(deployed_redis, redis_url=None).check_redis_passwords()
    wrong = deployed_redis.passwords.model_copy(update={"metrics": "0" * 48})
    (tmp_path / "wrong").write_text(wrong.model_dump_json())
    with pytest.raises(SettingsError, match="AuthenticationError"):
        check_redis(
            RedisUrls.given(settings_of(deployed_redis, redis_passwords_file=tmp_path / "wrong"))
        )


def test_a_service_logs_into_it_and_operators_read_and_forget(
    deployed: Service, deployed_redis: DeployedRedis
) -> None:
    keys = json.loads((deployed_redis.secrets / "keys.json").read_text())["keys"]
    assert [(key["id"], sorted(key["scopes"])) for key in keys] == [
        ("default", ["generate"]),
        ("admin", ["admin", "generate"]),
        ("prometheus", ["admin", "generate"]),
    ]
    headers = {"Authorization": f"Bearer {keys[0]['key']}"}
    body = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}
    with connect(deployed_redis.url_of("operator")) as operator:
        there = operator.xlen(STREAM)  # other tests' services log into it too
        made = httpx.post(f"{deployed.url}/generate", json=body, headers=headers, timeout=60)
        assert made.status_code == 200
        wait_until(lambda: operator.xlen(STREAM) == there + 1)

        def cogrpo(*words: str) -> str:
            done = subprocess.run(
                [*COMMAND, *words],
                env={
                    "PYTHONPATH": ":".join(sys.path),
                    "REDIS_URL": deployed_redis.url,
                    "COGRPO_REDIS_PASSWORDS_FILE": str(
                        deployed_redis.secrets / "redis-passwords.json"
                    ),
                },
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            return done.stdout

        assert json.loads(cogrpo("trajectories", "--last=1", "--json"))["seed"] == 1
        assert "removed 0 " in cogrpo("forget", "--days=1")
        assert f"removed {there + 1} " in cogrpo("forget", "--days=0")
        assert operator.xlen(STREAM) == 0


def test_a_trainer_of_its_own_finds_redis_as_its_own_user(
    deployed: Service, deployed_redis: DeployedRedis, tiny_checkpoint: Path
) -> None:
    """As the compose file's: it is given the service's folder, and nothing else."""
    place = deployed.data_dir / "redis-trainer.url"
    assert place.read_text().strip() == deployed_redis.url_of("trainer")
    assert place.stat().st_mode & 0o777 == 0o600
    cycles = Cycles(deployed.data_dir / "training")
    assert not cycles.is_attended()
    process = subprocess.Popen(
        [
            *COMMAND,
            "trainer",
            "--data-dir",
            str(deployed.data_dir),
            "--model",
            str(tiny_checkpoint),
        ],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
    )
    try:
        wait_until(cycles.is_attended)
        with connect(place.read_text().strip()) as connection:
            assert TrajectoryConsumer(connection, "me").waiting() >= 0
    finally:
        process.terminate()
        process.wait(30)


def test_the_image_finds_it_healthy(deployed: Service) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK [^\n]*\\\n  CMD (\[.*\])$", text, re.MULTILINE)
    assert found
    command = [sys.executable, *json.loads(found.group(1))[1:]]
    for port, healthy in ((deployed.port, True), (1, False)):
        done = subprocess.run(
            command, env={"PORT": str(port)}, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode == 0) == healthy, done.stderr
