"""Query a served model over TensorFlow Serving's REST API.

Needs only Python 3.9 or newer: copy this file to wherever the model is queried from.

    python client.py photo.jpg other.png                    # files, if the model takes images or sound
    python client.py "what a day" "never again"             # sentences, if it takes text
    cat sentences.txt | python client.py -                  # one sentence per line
    python client.py --url http://SERVER:8501 --json photo.jpg > answers.jsonl

Prints one line per input: its name, the label, the probability. An input that fails is reported on stderr without
affecting the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit

MODEL = ""

KINDS = ("image", "audio", "text")  # inputs that this client can fill
FILLABLE = [[(kind, "DT_STRING")] for kind in KINDS]
BATCH_BYTES = 16 * 2**20  # many servers refuse requests larger than some tens of MB
PAUSES = (0.5, 1.0, 2.0)  # seconds before each retry
# Statuses that one input may cause; after any other the next request would fail too.
ABOUT_THE_INPUTS = (400, 413, 422, 500, 501)


class Trouble(Exception):
    """No further input can be answered; the message says why, and what to do."""


class HungUp(Trouble):
    """The server closed the connection during a request; it may still answer others."""


def main(arguments=None) -> int:
    """Print one line per input; return 1 where any failed."""
    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):  # file names may hold characters that the terminal's encoding lacks
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    failed = 0
    try:
        kind, outputs = look_up_signature(options)
        for batch in batches(read(options.inputs, kind), options.batch):
            for name, answer, problem in answer_batch(options, kind, outputs, batch):
                if problem:
                    failed += 1
                    print(f"{name}: {problem}", file=sys.stderr, flush=True)
                elif options.json:
                    print(json.dumps({"input": name, **answer}, ensure_ascii=False), flush=True)
                else:
                    print(f"{short(name, kind)}  {in_words(answer)}", flush=True)
    except Trouble as trouble:
        print(f"client.py: {trouble}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; Python would raise again at its final flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


def parse(arguments=None) -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="client.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_TEXT", help="- reads sentences from stdin, one per line")
    parser.add_argument("--url", default="http://127.0.0.1:8501", help="of the REST API (default: %(default)s)")
    parser.add_argument("--model", default=MODEL, help=f"name on the server (default: {MODEL or 'none'})")
    parser.add_argument("--version", type=int, help="number of the version (default: the newest)")
    parser.add_argument("--label", help="label of the version, such as stable; instead of --version")
    parser.add_argument("--signature", default="serving_default", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print all outputs, one JSON object per line")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for an answer (default: 60)")
    parser.add_argument("--batch", type=int, default=8, help="inputs per request (default: 8)")
    options = parser.parse_args(arguments)
    options.url = options.url.rstrip("/")
    try:
        parts = urlsplit(options.url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        parser.error(f"--url is {options.url!r}; it must look like http://127.0.0.1:8501")
    if options.version is not None and options.label:
        parser.error("--version and --label both name the version; use one of them")
    if options.version is not None and options.version < 0:
        parser.error(f"--version is {options.version}; it must be 0 or more")
    if not options.timeout > 0:
        parser.error(f"--timeout is {options.timeout:g}; it must be more than 0 seconds")
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}; it must be 1 or more")
    if not options.model:
        parser.error("the name of the model is required: --model NAME")
    return options


def read(arguments, kind):
    """Yield (name, content to send, reason why it cannot be read) for each input.

    Args:
        arguments: files, or sentences; "-" is every line of stdin, for text.
        kind: "image" and "audio" are files, "text" are sentences.
    """
    for argument in arguments:
        if kind != "text":
            try:
                with open(argument, "rb") as file:
                    content = file.read()
            except OSError as error:
                yield argument, None, error.strerror or str(error)
                continue
            # The server decodes base64 exactly once.
            yield argument, {"b64": base64.b64encode(content).decode("ascii")}, ""
        elif argument != "-":
            yield argument, argument, ""
        else:
            for number, line in enumerate(sys.stdin.buffer, 1):
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield f"line {number}", None, f"is not UTF-8: {error.reason} at byte {error.start}"
                    continue
                if text.strip():
                    yield text, text, ""


def batches(items, most):
    """Yield lists of at most so many items, or fewer where they are large."""
    batch, size = [], 0
    for item in items:
        sent = item[1]
        batch.append(item)
        size += len(sent["b64"]) if isinstance(sent, dict) else len(sent or "")
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def model_url(options, with_version=True) -> str:
    """Return the address of the model, or of one version of it."""
    url = f"{options.url}/v1/models/{quote(options.model, safe='')}"
    if with_version and options.version is not None:
        return f"{url}/versions/{options.version}"
    if with_version and options.label:
        return f"{url}/labels/{quote(options.label, safe='')}"
    return url


def look_up_signature(options):
    """Return (the name of the signature's input, the names of its outputs).

    Raises:
        Trouble: no server, no such model or signature, or one that takes other inputs than files or sentences.
    """
    status, content = ask(options, f"{model_url(options)}/metadata")
    if status != 200:
        raise Trouble(why_no_model(options, status, content))
    try:
        signatures = content["metadata"]["signature_def"]["signature_def"]
        inputs = {name: {key: info["dtype"] for key, info in one["inputs"].items()} for name, one in signatures.items()}
        outputs = {name: sorted(one["outputs"]) for name, one in signatures.items()}
    except (KeyError, TypeError, AttributeError):
        raise Trouble(
            f"{options.url} does not describe its signatures as TensorFlow Serving does: {json.dumps(content)[:200]}"
        ) from None
    return choose_signature(options, inputs, outputs)


def choose_signature(options, inputs, outputs):
    """Return (the name of the chosen signature's input, the names of its outputs).

    Args:
        options: with the name of the `signature`.
        inputs: of each signature, their types by their names.
        outputs: of each signature, their names.

    Raises:
        Trouble: there is no such signature, or it takes other inputs than files or sentences.
    """
    theirs = sorted(name for name in inputs if not name.startswith("__"))  # those are the loader's own
    usable = [name for name in theirs if list(inputs[name].items()) in FILLABLE]
    best = "serving_default" if "serving_default" in usable else next(iter(usable), "")
    advice = f" Type --signature {best}" if usable else ""
    if options.signature not in theirs:
        raise Trouble(
            f"the model {options.model!r} has no signature {options.signature!r}; it has: {', '.join(theirs)}.{advice}"
        )
    if options.signature not in usable:
        takes = ", ".join(f"{name} ({dtype})" for name, dtype in sorted(inputs[options.signature].items()))
        raise Trouble(
            f"the signature {options.signature!r} takes {takes}; this client can fill one input of DT_STRING named "
            f"{', '.join(KINDS)}.{advice}"
        )
    return next(iter(inputs[options.signature])), outputs[options.signature]


def why_no_model(options, status, content) -> str:
    """Return what the server has instead of the requested model or version."""
    said = f"{options.url} answers {status}: {error_of(content)}"
    if status != 404:
        return said
    status, content = ask(options, model_url(options, with_version=False))
    if status == 200:
        versions = content.get("model_version_status") or []
        there = ", ".join(str(one.get("version")) for one in versions if one.get("state") == "AVAILABLE")
        return f"{said}. The model {options.model!r} has the versions: {there or 'none available'}."
    return f"{options.url} has no model {options.model!r}: {error_of(content)} Name another one with --model."


def answer_batch(options, kind, outputs, batch):
    """Return (name, outputs, problem) for each item of a batch, in order; the problem is "" where there is none."""
    answered = iter(predict(options, kind, outputs, [sent for _, sent, problem in batch if not problem]))
    return [(name, None, problem) if problem else (name, *next(answered)) for name, _, problem in batch]


def predict(options, kind, outputs, contents):
    """Return (outputs, problem) for each content. Contents of a refused batch are sent again one by one.

    Raises:
        Trouble: the server cannot answer anything now.
    """
    if not contents:
        return []
    url = f"{model_url(options)}:predict"
    request = {"signature_name": options.signature, "instances": [{kind: content} for content in contents]}
    try:
        status, content = ask(options, url, request)
    except HungUp as trouble:  # some servers refuse large requests this way
        status, content = 413, {"error": str(trouble)}
    if status == 200:
        rows = content.get("predictions")
        if not isinstance(rows, list) or len(rows) != len(contents):
            raise Trouble(f"{url} does not answer each input with one of 'predictions': {json.dumps(content)[:200]}")
        # A model's only output comes without its name.
        return [({outputs[0]: row} if len(outputs) == 1 else row, "") for row in rows]
    if status not in ABOUT_THE_INPUTS:
        raise Trouble(f"{url} answers {status}: {error_of(content)}")
    if len(contents) == 1:
        return [(None, error_of(content))]
    return [predict(options, kind, outputs, [one])[0] for one in contents]


def ask(options, url, content=None):
    """Return (HTTP status, JSON object) of a GET, or of a POST of JSON; transient failures are retried.

    Raises:
        Trouble: there is no server, it is not a model server, or (HungUp) it closes the connection.
    """
    body = None if content is None else json.dumps(content).encode("ascii")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for pause in (*PAUSES, None):
        try:
            status, said = send(request, options.timeout)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # of urllib's own error
            if pause is None or not isinstance(reason, ConnectionResetError):
                hung_up = isinstance(reason, (ConnectionResetError, BrokenPipeError))
                raise (HungUp if hung_up else Trouble)(why_no_answer(options, reason)) from None
        else:
            if pause is None or status != 503:
                return status, as_object(url, status, said)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def send(request, timeout):
    """Return (HTTP status, body) of one request."""
    # A proxy of the environment cannot reach a server on this machine.
    here = urlsplit(request.full_url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def as_object(url, status, said) -> dict:
    """Return the JSON object of an answer.

    Raises:
        Trouble: a success without JSON: this is no model server.
    """
    try:
        content = json.loads(said)
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    text = " ".join(said.decode("utf-8", "replace").split())[:200] or "nothing"
    if status != 200:  # mostly of a proxy in between
        return {"error": text}
    raise Trouble(f"{url} returned no JSON object, but {text!r}. Is this the REST API of a model server? See --url")


def error_of(content) -> str:
    """Return the error message of a server, on one line."""
    return " ".join(str(content.get("error") or json.dumps(content)[:200]).split())


def why_no_answer(options, reason) -> str:
    """Return why there is no answer, and what to do."""
    if isinstance(reason, ConnectionRefusedError):
        return (
            f"no server listens at {options.url}. Start one: `python -m recipes serve RUN`, or TensorFlow Serving with "
            f"docker (see model_card.md); or name another one with --url"
        )
    if isinstance(reason, TimeoutError) or "timed out" in str(reason):  # another class before Python 3.10
        return f"{options.url} did not answer within {options.timeout:g} seconds. Wait longer with --timeout"
    if isinstance(reason, http.client.BadStatusLine) and not isinstance(reason, ConnectionResetError):
        return f"{options.url} does not speak HTTP. Is this the gRPC port (8500)? REST is usually on port 8501: --url"
    if isinstance(reason, (ConnectionResetError, BrokenPipeError)):
        return f"{options.url} closed the connection: {reason}. Was the request too large?"
    return f"{options.url} cannot be reached: {str(reason) or type(reason).__name__}. See --url"


def short(name, kind) -> str:
    """Return the name of an input on one line; a long sentence is shortened."""
    name = " ".join(name.splitlines())
    return name if kind != "text" or len(name) <= 60 else name[:59] + "…"


def in_words(outputs) -> str:
    """Return the outputs for one input as readable text."""
    try:
        if "label" in outputs:
            return f"{outputs['label']}" + (
                f"  {max(outputs['probabilities']):.4f}" if "probabilities" in outputs else ""
            )
        if "text" in outputs:
            return f"{outputs['text']}" + (f"  {outputs['confidence']:.4f}" if "confidence" in outputs else "")
        if outputs.keys() >= {"boxes", "labels", "scores"}:
            return boxes_in_words(outputs)
    except (TypeError, ValueError, IndexError):
        pass  # known names with unexpected values
    return json.dumps(outputs, ensure_ascii=False, separators=(",", ":"))


def boxes_in_words(outputs) -> str:
    """Return the detections of one image: label, score and edges of each box."""
    count = int(outputs.get("count", len(outputs["scores"])))
    found = [
        f"; {outputs['labels'][place]} {outputs['scores'][place]:.2f} "
        f"[{' '.join(f'{edge:.4g}' for edge in outputs['boxes'][place])}]"
        for place in range(count)
    ]
    return f"{count} found" + "".join(found)


if __name__ == "__main__":
    sys.exit(main())
