"""Serve the export of a run on this machine over REST and gRPC, as TensorFlow Serving would."""

from __future__ import annotations

import shlex
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.errors import UserError
from common.flags import check_range
from recipes.commands._execution import importing_tensorflow

TAKES = "RUN"


@dataclass(frozen=True)
class Config:
    """Serve exports on this machine, as TensorFlow Serving would: a stand-in for development."""

    exports: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_EXPORT")] = ()
    """Run folders (their --out), or folders NAME/NUMBER with a SavedModel"""
    port: int = 8501
    """Port of the REST API; 0 selects any free port"""
    grpc_port: int = 8500
    """Port of the gRPC API; 0 selects any free port"""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 accepts connections from this machine only, 0.0.0.0 from everywhere"""
    models_config: str | None = None
    """A models.config file of TensorFlow Serving, with models, versions and labels"""
    batching: bool = True
    """Run concurrent requests as one batch"""
    max_batch_size: int = 32
    """Maximum number of examples per batch, and per request"""
    batch_timeout_ms: float = 2.0
    """Maximum time that a request waits for its batch to fill; it waits only while other requests are in flight"""
    max_request_mb: float = 32.0
    """Maximum size of a request"""
    request_seconds: float = 30.0
    """Maximum time for a request to arrive"""
    poll_seconds: float = 1.0
    """Interval between checks for new versions"""


def main(arguments: list[str], root: Path) -> int:
    """Serve until Ctrl-C or SIGTERM, then finish the running requests and stop."""
    config = tyro.cli(Config, args=arguments, prog="python -m recipes serve")
    _check(config)  # not in __post_init__, whose message tyro would wrap in a box
    with importing_tensorflow():
        from common.serving.batching import BatchingParameters
        from common.serving.configs import configs_of_file, configs_of_folder
        from common.serving.rest import Limits
        from common.serving.server import Address, Server, log_to_stderr

    models = [model for export in config.exports for model in configs_of_folder(Path(export))]
    if config.models_config:
        models += configs_of_file(Path(config.models_config))
    batching = None
    if config.batching:
        batching = BatchingParameters(config.max_batch_size, int(1000 * config.batch_timeout_ms))
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"--host {config.host}: every client that can reach this machine can now query these models and read "
            f"/metrics. There is no password, no encryption and no limit per client. Put a proxy with these in front "
            f"of it, or omit --host."
        )
    log_to_stderr()
    server = Server(
        models,
        Address(config.host, config.port, config.grpc_port),
        batching=batching,
        limits=Limits(
            body_bytes=int(config.max_request_mb * 2**20),
            header_seconds=min(10.0, config.request_seconds),
            request_seconds=config.request_seconds,
        ),
        poll_seconds=config.poll_seconds,
    )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with server:
        _introduce(server)
        stopped.wait()
    return 0


def _check(config: Config) -> None:
    if not config.exports and not config.models_config:
        raise UserError("serve needs the folder of a run or of an export: python -m recipes serve runs/mine")
    check_range(config, 0, 65535, "port", "grpc_port")
    check_range(config, 1, 10_000, "max_batch_size")
    check_range(config, 0, 10_000, "batch_timeout_ms")
    check_range(config, 0.01, 2000, "max_request_mb")
    check_range(config, 0.05, 3600, "poll_seconds", "request_seconds")
    if config.port == config.grpc_port != 0:
        raise UserError(f"--port and --grpc-port are both {config.port}; they must differ.")


def _introduce(server) -> None:
    print("A local stand-in for TensorFlow Serving, for development. Ctrl-C stops it.")
    for name, config in server.models.configs.items():
        print(f"\n{name}")
        print(f"  REST    {server.url}/v1/models/{name}:predict")
        print(f"  gRPC    {server.host}:{server.grpc_port}, model_spec.name {name!r}")
        request = config.folder.parent / "request.json"
        if request.exists():
            print(f"  try     curl -d @{shlex.quote(_shortest(request))} {server.url}/v1/models/{name}:predict")
        else:
            print(f"  try     curl {server.url}/v1/models/{name}/metadata")
        client = config.folder.parent / "client.py"
        if client.exists():
            print(f"  client  python {shlex.quote(_shortest(client))} --url {server.url} FILE ...")
    print(f"\nmetrics   {server.url}/metrics", flush=True)


def _shortest(path: Path) -> str:
    """Return a path relative to the current directory where possible."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
