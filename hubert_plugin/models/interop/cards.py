"""Asset cards and Hugging Face hub ids: where their files are, and what to do where they cannot be fetched.

A card may point at a file of any known format, or at a folder (``checkpoint: hg://…``, a URL, or a path relative to the
card). What its configuration says and what the file says must agree.
"""

from __future__ import annotations

import json
import re
import socket
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from hashlib import sha1
from pathlib import Path
from shutil import rmtree
from typing import Final

from fairseq2.assets import (
    AssetCard,
    AssetCardError,
    AssetCardNotValidError,
    AssetDirectoryAccessor,
    AssetDownloadError,
    AssetDownloadManager,
    AssetMetadataError,
    AssetStore,
)
from fairseq2.error import OperationalError
from fairseq2.models.family import ModelFamily
from fairseq2.runtime.dependency import DependencyResolver, get_dependency_resolver
from fairseq2.utils.uri import Uri
from filelock import FileLock

from hubert_plugin.card_errors import maybe_describe_card_error
from hubert_plugin.card_files import get_local_path
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HUBERT_FAMILY
from hubert_plugin.models.hubert_ctc.config import HUBERT_CTC_FAMILY
from hubert_plugin.models.interop.keys import AnyConfig

FAMILIES: Final = (HUBERT_FAMILY, HUBERT_CTC_FAMILY)

CONNECT_SECONDS: Final = 15.0
"""How long a host may take to answer before it counts as out of reach."""

_NO_CONNECTION: Final = "There is no connection."

_HUB_FILES: Final = (
    "config.json",
    "preprocessor_config.json",
    "vocab.json",
    "model.safetensors*",
    "pytorch_model*.bin*",
)


def open_card_store(resolver: DependencyResolver | None = None) -> AssetStore:
    """Return all asset cards; fairseq2 reads their files when it is first asked.

    :raises CheckpointError: A file is broken, or two cards have one name.
    """
    try:
        return (resolver or get_dependency_resolver()).resolve(AssetStore)
    except (AssetMetadataError, OperationalError) as ex:
        sentence = maybe_describe_card_error(ex)

        raise CheckpointError(sentence or f"The asset cards cannot be read: {first_lines(ex)}") from ex


def find_card(name: str) -> AssetCard | None:
    """Return an asset card of one of our families; ``None``: there is no card of that name.

    :raises CheckpointError: It is a card of something else, or the folders of cards cannot be read.
    """
    try:
        card = open_card_store().maybe_retrieve_card(name)
    except (AssetCardError, AssetCardNotValidError) as ex:
        raise CheckpointError(f"The asset card '{name}' cannot be read: {first_lines(ex)}") from ex

    if card is None:
        return None

    try:
        family = card.field("model_family").as_(str)
    except (AssetCardError, AssetCardNotValidError) as ex:
        raise CheckpointError(f"The asset card '{name}' is not one of a model: {first_lines(ex)}") from ex

    if family not in FAMILIES:
        raise CheckpointError(
            f"The asset card '{name}' is of the model family '{family}', not of {' or '.join(map(repr, FAMILIES))}."
        )

    return card


def looks_like_path(name: str) -> bool:
    """Return whether what could be a hub id (``owner/name``) rather is the path of something that is not there."""
    path = Path(name).expanduser()

    return path.suffix in (".bin", ".ckpt", ".pt", ".pth", ".safetensors") or path.parent.is_dir()


def unknown_source_error(name: str) -> CheckpointError:
    """Return the error for a name that stands for nothing; it names cards that are spelled alike."""
    near = get_close_matches(name, list_cards(), n=3, cutoff=0.4)

    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

    hub = f" If it is a repository of the Hugging Face hub, write 'hg://{name}'." if is_hub_id(name) else ""

    return CheckpointError(f"'{name}' is neither a folder, nor a file, nor the name of an asset card.{hint}{hub}")


def list_cards(field_name: str = "model_family", families: Collection[str] = FAMILIES) -> list[str]:
    """Return the names of the cards of our families of models, or of others.

    :raises CheckpointError: The folders of cards cannot be read.
    """
    store = open_card_store()

    names = set()

    for name in store.asset_names:
        name = name.partition("@")[0]  # an environment, such as a user's

        with suppress(AssetCardError, AssetCardNotValidError):
            card = store.maybe_retrieve_card(name)

            field = card.maybe_get_field(field_name) if card is not None else None

            if field is not None and field.value in families:
                names.add(name)

    return sorted(names)


def card_config(card: AssetCard) -> AnyConfig | None:
    """Return the configuration that a card gives; ``None`` where it leaves that to the checkpoint.

    :raises CheckpointError: The configuration is not valid.
    """
    keys = ("model_arch", "model_config", "model_config_overrides", "model_config_override")

    if all(card.maybe_get_field(k) is None for k in keys):
        return None

    family = get_dependency_resolver().resolve(ModelFamily, key=card.field("model_family").as_(str))

    try:
        return family.get_model_config(card)  # type: ignore[return-value]
    except (AssetCardError, AssetCardNotValidError) as ex:
        raise CheckpointError(f"The asset card '{card.name}' cannot be used: {first_lines(ex)}") from ex


def fetch_card(card: AssetCard) -> Path:
    """Return the path of a card's checkpoint, downloaded if need be.

    :raises CheckpointError: It cannot be fetched; says which file to put where.
    """
    name = card.name

    try:
        uri = card.field("checkpoint").as_uri()
    except (AssetCardError, AssetCardNotValidError) as ex:
        raise CheckpointError(
            f"The asset card '{name}' does not say where its checkpoint is: {first_lines(ex)}"
        ) from ex

    if uri.scheme == "file":
        path = get_local_path(uri)

        if not path.exists():
            raise CheckpointError(f"The checkpoint of the asset card '{name}' is not found: there is no '{path}'.")
    elif uri.scheme == "hg":
        repo = str(uri).partition("://")[2]

        if not is_hub_id(repo):
            raise CheckpointError(
                f"The checkpoint of the asset card '{name}' is at '{uri}', but an address on the Hugging Face hub must "
                "be 'hg://OWNER/NAME': its configuration and its parameters are found by their names."
            )

        path = fetch_from_hub(repo, f"The checkpoint of the asset card '{name}'")
    else:
        path = fetch_uri(uri, f"The checkpoint of the asset card '{name}'")

    if (field := card.maybe_get_field("checkpoint_path")) is not None:
        inner = (path / field.as_(str)).resolve()

        if not inner.is_relative_to(path.resolve()):
            raise CheckpointError(f"`checkpoint_path` of the asset card '{name}' must stay inside of '{path}'.")

        path = inner

    return path


def fetch_uri(uri: Uri, what: str) -> Path:
    """Return the path of what is at an address, downloaded into fairseq2's cache if it is not there.

    :param what: What is fetched, to begin a sentence with.
    :raises CheckpointError: It cannot be fetched; says which file to put where.
    """
    resolver = get_dependency_resolver()

    manager = resolver.resolve(AssetDownloadManager)

    # Of these, fairseq2 fetches nothing: it hands on the address, for its own readers.
    schemes = manager.supported_schemes - {"s3"}

    if uri.scheme not in schemes:
        raise CheckpointError(f"{what} is at '{uri}', but only {', '.join(sorted(schemes))} addresses can be fetched.")

    # fairseq2's cache holds each file in a folder that is named for its address.
    folder = resolver.resolve(AssetDirectoryAccessor).get_cache_dir() / sha1(str(uri).encode()).hexdigest()[:24]

    try:
        # One process fetches, also where all ranks ask at once; the others find the file when it is their turn.
        with _one_at_a_time(folder), connect_timeout(), _tar_files_stay_inside():
            # What a killed process left would be taken for the file.
            if not folder.exists():
                rmtree(folder.with_suffix(".download.tmp"), ignore_errors=True)

            return manager.download_model(uri)
    except (AssetDownloadError, OperationalError, OSError, tarfile.TarError) as ex:
        raise CheckpointError(
            f"{what} cannot be downloaded: {first_lines(ex)} Without a connection, "
            f"fetch '{uri}' on another machine and put the file into the folder '{folder}' of this one; or give "
            "the path of the file instead of the name."
        ) from ex


def is_hub_id(source: str) -> bool:
    """Return whether a text has the form ``owner/name`` of the Hugging Face hub."""
    return re.fullmatch(r"(hg://)?[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None


def fetch_from_hub(repo: str, what: str) -> Path:
    """Return the folder of a Hugging Face repository, from the cache if it is there.

    :param what: What is fetched, to begin a sentence with.
    :raises CheckpointError: It cannot be fetched; says what to put where.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = list(_HUB_FILES)

    with suppress(OSError, ValueError):
        path = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True))

        if _is_complete(path):
            return path

    try:
        with connect_timeout():
            return Path(snapshot_download(repo, allow_patterns=patterns, etag_timeout=CONNECT_SECONDS, max_workers=2))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as ex:
        raise CheckpointError(
            f"{what} cannot be downloaded from the Hugging Face hub: {first_lines(ex)} Where there is no connection, "
            "fetch 'config.json', 'preprocessor_config.json' and 'model.safetensors' or 'pytorch_model.bin' of "
            f"'{repo}' on another machine, put them into one folder, and give `load_hubert` the path of that folder."
        ) from ex


def _is_complete(folder: Path) -> bool:
    """Return whether a folder of the hub's cache holds a configuration and all of the parameters."""
    if not (folder / "config.json").is_file():
        return False

    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return True

        if (index := folder / f"{name}.index.json").is_file():
            try:
                parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError):
                return False

            return all((folder / part).is_file() for part in parts)

    # Under another name: whoever reads the folder says what is missing.
    return any(p.suffix in (".safetensors", ".bin") for p in folder.iterdir())


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch what will be in ``folder``."""
    if folder.exists():  # nobody moves it there before it is whole; and the cache may be read-only
        yield

        return

    folder.parent.mkdir(parents=True, exist_ok=True)

    with FileLock(f"{folder}.lock"):
        yield


@contextmanager
def _tar_files_stay_inside() -> Iterator[None]:
    """Let the members of tar files, which fairseq2 unpacks, only be files inside of the target folder."""
    # Python 3.13 and earlier trust names such as `../../.bashrc` unless told otherwise.
    earlier = tarfile.TarFile.__dict__.get("extraction_filter")

    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)

    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = earlier


@contextmanager
def connect_timeout() -> Iterator[None]:
    """Let connections that are made meanwhile give up in time: fairseq2's downloads would wait for ever."""
    earlier = socket.getdefaulttimeout()

    socket.setdefaulttimeout(CONNECT_SECONDS)

    try:
        yield
    finally:
        socket.setdefaulttimeout(earlier)


def _tells_of_no_connection(ex: BaseException) -> bool:
    return any(sign in str(ex) for sign in ("Max retries exceeded", "Name or service not known", "NameResolutionError"))


def first_lines(ex: BaseException) -> str:
    """Return the messages of an exception and its causes in one line each."""
    messages: list[str] = []

    cause: BaseException | None = ex

    while cause is not None and len(messages) < 3:
        # What libraries say of a missing connection is long, and none of it is of use.
        text = [_NO_CONNECTION] if _tells_of_no_connection(cause) else str(cause).strip().splitlines()

        if text and text[0] not in messages:
            messages.append(text[0])

        cause = cause.__cause__

    return " ".join(m if m.endswith((".", "?", "!")) else m + "." for m in messages) or type(ex).__name__ + "."
