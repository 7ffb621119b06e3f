"""TF Hub and Kaggle handles, parsed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import UserError
from common.sources.catalogue import user_cache


@dataclass(frozen=True)
class Handle:
    """A TF Hub or Kaggle handle: the URL that names the model, and its folder on this machine.

    Attributes:
        url: canonical URL.
        folder: its folder in the cache; the layout is tensorflow_hub's own, so both find each other's models.
    """

    url: str
    folder: Path

    @property
    def archive_url(self) -> str:
        """URL of the archive; TFHUB_ENDPOINT names a mirror with the same paths."""
        parts = urlsplit(self.url)
        if re.search(r"\.(tar|tar\.gz|tgz)$", parts.path):
            return self.url
        server = os.environ.get("TFHUB_ENDPOINT") or f"{parts.scheme}://{parts.netloc}"
        return f"{server.rstrip('/')}{parts.path}?tf-hub-format=compressed"

    @property
    def manifest(self) -> Path:
        """File beside the folder that holds the hash of every file in it."""
        return self.folder.with_name(self.folder.name + ".manifest.json")


def is_handle(text: str) -> bool:
    """Whether a text is a TF Hub or Kaggle handle rather than a folder."""
    return bool(re.match(r"https?://|kaggle:", text))


def parse_handle(text: str) -> Handle:
    """Parse a TF Hub or Kaggle handle.

    Args:
        text: `https://tfhub.dev/PUBLISHER/NAME/VERSION`, `https://www.kaggle.com/models/OWNER/MODEL/FRAMEWORK/
            VARIATION/VERSION`, its short form `kaggle:OWNER/MODEL/FRAMEWORK/VARIATION/VERSION`, or the address of
            a .tar.gz.

    Returns:
        The Handle; nothing is fetched.

    Raises:
        UserError: it cannot be read, or names a framework other than TensorFlow 2.
    """
    url = re.sub(r"^(kaggle:|https?://(www\.)?kaggle\.com/models/)", "https://www.kaggle.com/models/", text).rstrip("/")
    url = re.sub(r"^http://tfhub\.dev/", "https://tfhub.dev/", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    names = parts.path.strip("/").split("/")
    shapes = {
        "tfhub.dev": r"\w[\w.-]*(/\w[\w.-]*)+",
        "www.kaggle.com": r"models(/\w[\w.-]*){4}(/\d+)?",
    }
    shape = shapes.get(parts.netloc, r".+\.(tar|tar\.gz|tgz)")
    if not parts.netloc or not re.fullmatch(shape, "/".join(names)) or parts.query or parts.fragment:
        raise UserError(
            "The handle cannot be read. Allowed: https://tfhub.dev/PUBLISHER/NAME/VERSION, "
            "https://www.kaggle.com/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, "
            "kaggle:OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, or the address of a .tar.gz with a SavedModel. "
            f"Received: {text!r}."
        )
    if parts.netloc == "www.kaggle.com" and names[3].lower() != "tensorflow2":
        advice = "--source preset:kaggle://..." if names[3].lower() == "keras" else "its variation for TensorFlow 2"
        raise UserError(
            f"The handle does not name a TF2 SavedModel. Allowed framework: tensorFlow2. Received: {names[3]!r} in "
            f"{text!r}. Try {advice}."
        )
    return Handle(url, hub_cache() / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest())


def hub_cache() -> Path:
    """Return the folder where TF Hub models are kept: TFHUB_CACHE_DIR, else the user's cache, never a temporary one."""
    if chosen := os.environ.get("TFHUB_CACHE_DIR"):
        return Path(chosen).expanduser()
    return user_cache() / "tfhub_modules"
