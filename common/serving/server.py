"""A local stand-in for TensorFlow Serving: REST and gRPC for models in folders."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import uvicorn

from common.errors import UserError
from common.serving.batching import BatchingParameters
from common.serving.connections import TimeLimitedProtocol
from common.serving.models import ModelConfig, Models
from common.serving.rest import Limits, create_app
from common.serving.rpc import create_grpc_server

log = logging.getLogger("serving")
# Threads mostly wait, for the graph or for a batch to fill.
THREADS = 64


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Args:
        host: 127.0.0.1 accepts connections from this machine only.
        rest_port: 0 selects any free port.
        grpc_port: None disables gRPC.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500


_LOCAL, _LIMITS = Address(), Limits()


class Server:
    """Loads models and serves them until it is stopped.

    with Server([ModelConfig("digits", Path("runs/mine/serving/digits"))], Address(rest_port=0)) as server:
        print(server.url)

    Args:
        configs: the models.
        address: where to listen.
        batching: how requests are batched; None runs each alone.
        limits: of requests.
        poll_seconds: interval between checks of the folders of the models.

    Raises:
        UserError: a port is in use, or a model cannot be loaded.
    """

    def __init__(
        self,
        configs: list[ModelConfig],
        address: Address = _LOCAL,
        *,
        batching: BatchingParameters | None = None,
        limits: Limits = _LIMITS,
        poll_seconds: float = 1.0,
    ):
        self.models = Models(configs, batching=batching, poll_seconds=poll_seconds)
        # Ports before models: a port in use is reported before loading, which may take a minute.
        self._socket = _listen(address.host, address.rest_port, "--port")
        self.rest_port = self._socket.getsockname()[1]
        self.host = address.host
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="answer")
        self._grpc = self.grpc_port = None
        if address.grpc_port is not None:
            _listen(address.host, address.grpc_port, "--grpc-port").close()
            self._grpc = create_grpc_server(self.models, ThreadPoolExecutor(THREADS), limits.body_bytes)
            self.grpc_port = self._grpc.add_insecure_port(f"{address.host}:{address.grpc_port}")
        app = create_app(self.models, limits, self._threads)
        settings = dict(lifespan="off", log_config=None, access_log=False, server_header=False, timeout_keep_alive=75)
        protocol = partial(TimeLimitedProtocol, header_seconds=limits.header_seconds)
        self._rest = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", **settings))
        self._rest_thread = threading.Thread(target=self._rest.run, kwargs={"sockets": [self._socket]}, daemon=True)

    @property
    def url(self) -> str:
        """Return the address of the REST API on this machine."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.rest_port}"

    def start(self) -> Server:
        """Load the models, then serve."""
        try:
            self.models.start()
        except BaseException:
            self._socket.close()
            raise
        self._rest_thread.start()
        while not self._rest.started and self._rest_thread.is_alive():
            time.sleep(0.01)
        if self._grpc:
            self._grpc.start()
        return self

    def stop(self, seconds: float = 20.0) -> None:
        """Accept no new requests, finish the running ones within so many seconds, and unload the models."""
        log.info("stopping: no new requests are accepted, running ones are finished")
        stopped = self._grpc.stop(seconds) if self._grpc else None
        self._rest.config.timeout_graceful_shutdown = seconds
        self._rest.should_exit = True
        self._rest_thread.join()
        if stopped:
            stopped.wait()
        self._threads.shutdown()
        self.models.close()
        log.info("stopped")

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()


def _listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is in use or requires privileges, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        advice = f"Choose another port: {flag} {port + 100 if port < 60000 else port - 100}"
        if error.errno == errno.EADDRINUSE:
            advice = f"Another server uses it. {advice}"
        elif error.errno != errno.EACCES:
            advice = "Is that an address of this machine? --host 127.0.0.1 always is."
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}. {advice}") from error
    return listening


class JsonLines(logging.Formatter):
    """One JSON object per line, for log collectors."""

    _OWN = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, event, and everything passed as `extra`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in self._OWN and key != "message"}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Write the server's log as JSON lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
