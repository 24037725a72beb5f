"""Uploads to the Hugging Face Hub, with the token of the standard login (`hf auth login`, or HF_TOKEN)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from diffcse_scale.foundation.errors import InputError, first_line
from diffcse_scale.foundation.model_files import CARD
from diffcse_scale.foundation.ownership import MARK, files_of
from diffcse_scale.model_folder.layout import is_model_file

# HTTPError of httpx or httpx2, whichever the library uses
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
# files of an earlier upload that this one may lack; old weights would give other vectors
OF_EARLIER_EXPORTS = [
    *("onnx/model*.onnx", "onnx/model*.onnx_data", "[0-9]*_*/config.json", "[0-9]*_*/model.safetensors"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_*"),
]
TAG = "diffcse-scale"  # tag in the cards of our models


def check_can_push(repo: str, overwrite: bool = False) -> None:
    """Check with the Hub, before anything expensive is done, that the user may upload to `repo`.

    Raises:
        InputError: `repo` is not a valid name, nobody is logged in, the token is read-only, the Hub cannot be reached,
            `repo` belongs to somebody else, or it holds a model that this program did not upload and `overwrite` is
            False.
    """
    with _mistakes_named(repo):
        validate_repo_id(repo)
        owner, slash, _ = repo.partition("/")
        if not slash:
            raise InputError(f"--push-to-hub {repo} names no owner; give user/name.")
        account = HfApi().whoami()
    allowed = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if owner not in allowed:
        raise InputError(
            f"--push-to-hub {repo}: you are logged in as {account['name']}, who may write to "
            f"{', '.join(allowed)}; give one of these before the slash."
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"--push-to-hub {repo}: the token of {account['name']} can only read; log in with another.")
    if not overwrite and _holds_another_model(repo):
        raise InputError(
            f"--push-to-hub {repo} holds a model that was not uploaded by this program; give another name, or replace "
            "it by `diffcse-scale export` with --overwrite."
        )


def _holds_another_model(repo: str) -> bool:
    with _mistakes_named(repo):
        try:
            found = HfApi().model_info(repo)
        except RepositoryNotFoundError:
            return False
    names = {file.rfilename for file in found.siblings or ()}
    return any(map(is_model_file, names - {CARD})) and MARK not in names and TAG not in (found.tags or ())


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload an exported folder as one commit to a model repository, which is created if needed.

    Files in the folder that are not part of the export are not uploaded.

    Returns:
        The repository's address.

    Raises:
        InputError: the Hub refuses the upload or cannot be reached.
    """
    with _mistakes_named(repo):
        api = HfApi()
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Exported by diffcse-scale",
            allow_patterns=[escape(name) for name in files_of(folder)],
            delete_patterns=OF_EARLIER_EXPORTS,
        )
    return str(url)


def license_on_hub(model: str) -> str | None:
    """The licence in the card of a model on the Hub.

    Raises:
        InputError: the Hub cannot be reached.
    """
    with _mistakes_named(model):
        try:
            data = HfApi().model_info(model).card_data
        except RepositoryNotFoundError:
            return None
    return str(data.license) if data is not None and data.license else None


@contextmanager
def _mistakes_named(repo: str) -> Iterator[None]:
    """Inside, errors of the Hub become an InputError in a user's words."""
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{repo} is not the name of a model on the Hub: {_first_line(error)}.") from None
    except LocalTokenNotFoundError:
        raise InputError("You are not logged in to the Hub; run `hf auth login` or set HF_TOKEN.") from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE switches the Hub off; unset it, or leave out --push-to-hub.") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise InputError("The Hub does not accept the token; run `hf auth login` again.") from None
        raise InputError(f"The Hub refuses {repo}: {_first_line(error)}.") from None
    except (TransportError, ConnectionError) as error:
        raise InputError(f"The Hub cannot be reached ({_first_line(error)}); try again later.") from None


def _first_line(error: Exception) -> str:
    return first_line(error).rstrip(".")
