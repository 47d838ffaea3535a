"""Repositories of Hugging Face: which GGUF file of one is meant, asked with huggingface_hub.

The list of files, their checksums, tokens and addresses are huggingface_hub's work. The bytes are fetched as those of
registries are, into our own store: huggingface_hub's cache belongs to its programs, and its download compares sizes
alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from ..errors import AccessDeniedError, LoomError, ModelNotFoundError, PullError, RegistryError, UnsupportedModelError
from ..library.loose import PREFERRED, is_projector, quantization
from ..library.names import HUGGING_FACE, TAG, Name, lower
from ..split import Files, models_of
from .download import Checksum, RemoteFile
from .plan import Environ, Plan
from .transport import Session, TryAgainError, origin

DEFAULT_ENDPOINT = "https://huggingface.co"
_SHOWN = 20  # choices that an error names
_TOKEN_HINT = "set HF_TOKEN to a token of yours, or run `hf auth login`"


def endpoint(environ: Environ) -> str:
    """Where the hub is."""
    return (environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def origin_of(environ: Environ) -> str:
    """The origin of the hub, which may be a mirror that the user's environment names."""
    try:
        return origin(httpx.URL(endpoint(environ)))
    except httpx.InvalidURL:
        raise PullError(f"HF_ENDPOINT is no address: {endpoint(environ)!r:.200}") from None


def look_up(session: Session, name: Name, environ: Environ) -> Plan:
    """The file that a name means; its tag is a quantization or a file's name, else the usual one is taken."""
    repository = f"{name.namespace}/{name.model}"
    at = endpoint(environ)
    token = _token()
    if token:
        session.tokens[origin(httpx.URL(at))] = token
    info = session.trying(lambda: _info(session, repository, at, token), f"the list of files of {repository}")
    files = {str(sibling.rfilename): sibling for sibling in info.siblings or ()}
    tag, chosen = choose(repository, files, name.tag)
    remote = []
    for part in chosen.parts:
        file = part.as_posix()
        remote.append(_remote(files[file], file, _url(repository, file, info.sha, at), f"{file} of {repository}"))
    namespace, _, model = str(info.id or repository).partition("/")  # as it is really written
    if lower(f"{namespace}/{model}") != lower(repository):  # it was renamed
        namespace, model = name.namespace, name.model
    return Plan(replace(name, host=HUGGING_FACE, namespace=namespace, model=model, tag=tag), tuple(remote))


def choose(repository: str, files: Iterable[str], tag: str) -> tuple[str, Files]:
    """The GGUF file, or the parts of one, that a tag means, and the tag that tells it from the others."""
    paths = [Path(file) for file in sorted(files) if file.lower().endswith(".gguf") and _is_sane(file)]
    models = [found for found in models_of(paths) if not is_projector(found.stem) and not _is_matrix(found.stem)]
    if not models:
        raise UnsupportedModelError(
            f"{repository} has no GGUF file, and nothing else is run here: look for a repository of the same model "
            f"with GGUF in its name"
        )
    tags: dict[str, Files] = {}
    for found in models:
        tags.setdefault(_tag(found), found)
    wanted = lower(tag)
    if wanted == TAG:
        usual = next((each for each in PREFERRED if each in tags), next(iter(tags)))
        return usual, _whole(tags[usual], repository)
    for each, found in tags.items():
        if lower(each) == wanted or lower(found.path.name) == wanted or lower(found.stem) == wanted:
            return each, _whole(found, repository)
    others = [found for found in models if wanted in (lower(found.path.name), lower(found.stem))]
    if others:  # a second file of the same quantization
        return _sanitized(others[0].stem), _whole(others[0], repository)
    shown = ", ".join(list(tags)[:_SHOWN]) + (", ..." if len(tags) > _SHOWN else "")
    raise ModelNotFoundError(f"{repository} has no GGUF file {tag!r:.100}: it has {shown}")


def _tag(files: Files) -> str:
    return quantization(files.stem) or _sanitized(files.stem)


def _sanitized(stem: str) -> str:
    """A tag of a name that is no quantization."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip("-.")[-80:].lstrip("-.") or TAG


def _whole(files: Files, repository: str) -> Files:
    if files.missing:
        raise ModelNotFoundError(
            f"{repository} lacks parts of {files.stem}: {', '.join(map(str, files.missing))}. Take another file of it"
        )
    return files


def _is_sane(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in file


def _is_matrix(stem: str) -> bool:
    """Importance matrices are GGUF files too."""
    return "imatrix" in stem.lower()


def _remote(sibling: Any, file: str, url: str, what: str) -> RemoteFile:
    lfs = sibling.lfs
    sha256 = None if lfs is None else lfs["sha256"]
    size = sibling.size if lfs is None else lfs["size"]
    if isinstance(size, int) and size >= 0:
        if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
            return RemoteFile(url, size, Checksum("sha256", sha256), what)
        if isinstance(sibling.blob_id, str) and re.fullmatch("[0-9a-f]{40}", sibling.blob_id) and lfs is None:
            return RemoteFile(url, size, Checksum("git", sibling.blob_id), what)
    raise RegistryError(f"the hub does not tell the size and checksum of {file}: take another file")


# -- huggingface_hub ------------------------------------------------------------------------------------------------


def _info(session: Session, repository: str, at: str, token: str | None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        api = HfApi(endpoint=at, token=token or False)
        return api.model_info(repository, files_metadata=True, timeout=session.patience.read)
    except GatedRepoError:
        raise AccessDeniedError(
            f"{repository} is given only to those who agreed to its terms: do that at {at}/{repository}, then "
            f"{_TOKEN_HINT}"
        ) from None
    except RepositoryNotFoundError:
        raise _no_repository(repository, at) from None
    except OfflineModeIsEnabled:
        raise PullError("HF_HUB_OFFLINE is set: nothing is fetched. Unset it to pull") from None
    except HFValidationError as error:
        raise ModelNotFoundError(f"{repository!r:.200} is no repository's name: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise _no_repository(repository, at) from None
        if status in (408, 425, 429) or status >= 500:
            raise TryAgainError(f"{at} answers with status {status}") from None
        if status in (401, 403):
            raise AccessDeniedError(f"{at} does not show {repository} (status {status}): {_TOKEN_HINT}") from None
        raise RegistryError(f"{at} refuses {repository} with status {status}") from None
    except LoomError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        # Versions of huggingface_hub differ in the client below them, and so in its exceptions.
        if isinstance(error, OSError):
            raise TryAgainError(f"no connection to {at}: {error}") from None
        raise RegistryError(f"{at} sends nonsense about {repository}: {error}") from None
    except Exception as error:
        raise TryAgainError(f"no connection to {at} ({type(error).__name__})") from None


def _no_repository(repository: str, at: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{at} has no repository {repository}, or it is private. Check the name; for a private one {_TOKEN_HINT}"
    )


def _url(repository: str, file: str, revision: str | None, at: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, revision=revision or "main", endpoint=at)


def _token() -> str | None:
    from huggingface_hub import get_token

    token = get_token()
    return token if token and token.isascii() and token.isprintable() else None
