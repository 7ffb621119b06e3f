"""Serve exports with Ray Serve: several replicas of the models, on one machine or many, behind one address.

    pip install -r requirements-scale.txt
    python -m common.serving.ray_app runs/mine --max-replicas 4

On several machines without Kubernetes, each with this environment and with the run at the same path:

    ray get-auth-token --generate            # once; copy ~/.ray/auth_token to each machine
    export RAY_AUTH_MODE=token               # on each: else anyone who reaches Ray's ports can run programs there
    ray start --head                         # on the first
    ray start --address FIRST:6379           # on each other one
    python -m common.serving.ray_app runs/mine --address auto --host 0.0.0.0 --max-replicas 8   # on the first

The REST API is that of `python -m recipes serve`, URL for URL; gRPC is not served. Each replica watches the folders for
new versions and keeps its own /metrics.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from packaging.version import Version

from common.errors import UserError
from common.flags import check_range

if TYPE_CHECKING:
    from ray.serve import Application

    from common.serving.batching import BatchingParameters
    from common.serving.models import ModelConfig
    from common.serving.rest import Limits

APPLICATION = "models"
_OLDEST = "2.60"  # of Ray
_COMMON = Path(__file__).resolve().parents[1]
_OBJECT_STORE = 100 * 2**20  # bytes; requests do not pass through it, and Ray would take 30 % of the memory


@dataclass(frozen=True)
class Scaling:
    """Number of replicas, and the resources of each."""

    min_replicas: int = 1
    """Minimum number of replicas"""
    max_replicas: int = 4
    """Maximum number of replicas under load"""
    target_ongoing_requests: float = 8
    """More replicas are started above this number of concurrent requests per replica"""
    cpus_per_replica: float = 1
    """CPU cores that Ray reserves per replica; they limit the number of replicas per machine"""
    gpus_per_replica: float = 0
    """GPUs, or a fraction of one, per replica; 0 for none"""


@dataclass(frozen=True)
class Config(Scaling):
    """Serve exports with Ray: several replicas of the models, on one machine or many, behind one address."""

    exports: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_EXPORT")] = ()
    """Run folders (their --out), or folders NAME/NUMBER with a SavedModel"""
    port: int = 8501
    """Port of the REST API"""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 accepts connections from this machine only, 0.0.0.0 from everywhere"""
    address: str | None = None
    """Address of a running Ray cluster (`auto`: the one on this machine); by default one is started"""
    dashboard: bool = False
    """Start Ray's dashboard, for this machine only"""
    max_batch_size: int = 32
    """Maximum number of examples per batch"""
    batch_timeout_ms: float = 2.0
    """Maximum time that a request waits for its batch to fill; it waits only while other requests are in flight"""
    max_request_mb: float = 32.0
    """Maximum size of a request"""


def application(
    models: list[ModelConfig], scaling: Scaling, batching: BatchingParameters | None, limits: Limits
) -> Application:
    """Return what `ray.serve.run` takes: the REST API of some models, in as many processes as needed.

    Args:
        models: loaded by each replica from the same folders, on every machine.
        scaling: number of replicas.
        batching: how a replica batches requests; None runs each alone.
        limits: of requests.
    """
    from ray import serve

    from common.serving.server import THREADS

    def build():  # once per replica
        from common.serving.models import Models
        from common.serving.rest import create_app
        from common.serving.server import log_to_stderr

        log_to_stderr()
        loaded = Models(models, batching=batching)
        loaded.start()
        app = create_app(loaded, limits, ThreadPoolExecutor(THREADS, thread_name_prefix="answer"))
        return _with_name_of_replica(app, serve.get_replica_context().replica_id.unique_id)

    replicas = serve.deployment(serve.ingress(build)()).options(
        name="replica",
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
        },
        ray_actor_options={"num_cpus": scaling.cpus_per_replica, "num_gpus": scaling.gpus_per_replica},
        max_ongoing_requests=THREADS,  # beyond its own threads a replica would only queue
        max_queued_requests=16 * THREADS,  # then a client gets 503
        max_constructor_retry_count=2,  # further attempts would fail too
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return replicas.bind()


def _with_name_of_replica(app, replica: str):
    """Return an ASGI application that adds the name of the replica to each answer."""

    async def answer(scope, receive, send):
        async def send_with_name(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", replica.encode())]
            await send(message)

        await app(scope, receive, send_with_name)

    return answer


@contextmanager
def cluster(address: str | None = None, dashboard: bool = False) -> Iterator[None]:
    """Connect to a Ray cluster inside this block: to a running one, or to a new one of this process.

    Ray must not have been imported before: it reads some settings at import.

    Args:
        address: of a running cluster; None starts one on this machine, which ends with the block.
        dashboard: start the dashboard of a new cluster.

    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """
    _check_installed()
    # Ray sends usage statistics unless disabled.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        # Any client of Ray's own ports can run programs: they are opened on 127.0.0.1 only, as Ray does where it has no
        # clusters, and require a secret token, since one port of each replica is open to all.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
        inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_COMMON.parent), *inherited])
    try:
        import ray
        from ray import serve  # noqa: F401  a bare `pip install ray` lacks it
    except ImportError as error:
        raise UserError(f"Ray is incomplete ({error}). Type: pip install -r requirements-scale.txt") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        if address is None:
            # "local", or Ray would join any cluster that it detects on this machine.
            ray.init("local", include_dashboard=dashboard, object_store_memory=_OBJECT_STORE, logging_level="WARNING")
        else:
            ray.init(address, runtime_env={"py_modules": [str(_COMMON)]}, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"reached at --address {address}" if address else "started"
        raise UserError(f"Ray cannot be {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_installed() -> None:
    """Check for Ray without importing it.

    Raises:
        UserError: it is missing, or too old.
    """
    install = "Type: pip install -r requirements-scale.txt"
    try:
        found = version("ray")
    except PackageNotFoundError as error:
        raise UserError(f"Ray is not installed. {install}") from error
    if Version(found) < Version(_OLDEST):
        raise UserError(
            f"Ray {found} lets anyone who reaches a port of a replica run programs there; {_OLDEST} and newer do not. "
            f"{install}"
        )


@contextmanager
def serving(models: list[ModelConfig], config: Config) -> Iterator[str]:
    """Serve models inside this block, on the Ray cluster that this process is connected to.

    Returns:
        The address of the REST API as seen from this machine.

    Raises:
        UserError: the models cannot be loaded, or the cluster has too few cores.
    """
    import ray
    from ray import serve

    from common.serving.batching import BatchingParameters
    from common.serving.rest import Limits

    _check_resources(config, ray.cluster_resources())
    batching = BatchingParameters(config.max_batch_size, int(1000 * config.batch_timeout_ms))
    limits = Limits(body_bytes=int(config.max_request_mb * 2**20))
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config={"log_level": "WARNING"})
    try:
        try:
            serve.run(application(models, config, batching, limits), name=APPLICATION)
        except RuntimeError as error:
            raise UserError(f"the models cannot be served: {_reason(error)}") from error
        yield f"http://{'127.0.0.1' if config.host in ('0.0.0.0', '::') else config.host}:{config.port}"
    finally:
        if config.address is None:
            serve.shutdown()
        else:  # the cluster may serve other applications as well
            serve.delete(APPLICATION)


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    config = tyro.cli(Config, args=arguments, prog="python -m common.serving.ray_app")
    try:
        _serve(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(config: Config) -> None:
    _check(config)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from common.serving.configs import configs_of_folder
    from common.serving.models import Models

    models = [model for export in config.exports for model in configs_of_folder(Path(export))]
    Models(models)  # rejects folders without versions before Ray starts, which takes long
    if config.address is None:
        _check_port(config.host, config.port)
    else:
        _check_cluster(config.address)
    stopped = threading.Event()
    with cluster(config.address, config.dashboard):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        with serving(models, config) as url:
            _introduce(models, url, config)
            stopped.wait()


def _check(config: Config) -> None:
    if not config.exports:
        raise UserError("name the folder of a run or of an export: python -m common.serving.ray_app runs/mine")
    check_range(config, 1, 65535, "port")
    check_range(config, 1, 10_000, "min_replicas", "max_replicas", "max_batch_size")
    check_range(config, 0.1, 10_000, "target_ongoing_requests")
    check_range(config, 0, 10_000, "cpus_per_replica", "gpus_per_replica", "batch_timeout_ms")
    check_range(config, 0.01, 2000, "max_request_mb")
    if config.min_replicas > config.max_replicas:
        raise UserError(f"--min-replicas {config.min_replicas} must be at most --max-replicas {config.max_replicas}.")


def _check_resources(config: Config, there: dict[str, float]) -> None:
    """Refuse what a cluster cannot provide; Ray would wait for ever."""
    for kind, each, flag in (
        ("CPU", config.cpus_per_replica, "--cpus-per-replica"),
        ("GPU", config.gpus_per_replica, "--gpus-per-replica"),
    ):
        if config.min_replicas * each > there.get(kind, 0):
            raise UserError(
                f"{config.min_replicas} replicas with {each:g} {kind} each need {config.min_replicas * each:g}; Ray "
                f"has {there.get(kind, 0):g}. Reduce --min-replicas or {flag}, or add machines."
            )


def _check_cluster(address: str) -> None:
    """Refuse an address where nothing listens; Ray would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--address must be auto, or HOST:PORT as `ray start --head` prints it; received {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at --address {address}: {error.strerror or error}. Start one: ray start --head"
        ) from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror}. Name another --port or --host"
            ) from error


def _reason(error: RuntimeError) -> str:
    """Return why the replicas do not start: the UserError of one of them, extracted from Ray's traceback."""
    from ray import serve

    status = serve.status().applications.get(APPLICATION)
    messages = [deployment.message for deployment in status.deployments.values()] if status else []
    raised = [line for line in "\n".join(messages).splitlines() if f"{UserError.__name__}: " in line]
    return raised[-1].partition(f"{UserError.__name__}: ")[2] if raised else "\n".join([str(error), *messages])


def _introduce(models: list[ModelConfig], url: str, config: Config) -> None:
    print(f"{config.min_replicas} to {config.max_replicas} replicas. Ctrl-C stops them.")
    for model in models:
        request = model.folder.parent / "request.json"
        body = f"-d @{shlex.quote(str(request))} " if request.exists() else ""
        print(f"  {model.name}   curl {body}{url}/v1/models/{model.name}{':predict' if body else ''}")
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"--host {config.host}: every client that can reach this machine can query these models. There is no "
            f"password and no encryption; put a proxy with these in front of it."
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
