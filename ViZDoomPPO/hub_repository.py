"""A repository on the Hugging Face Hub to upload into: checked and made before the work, filled after it.

Knows tokens, names and who may see a repository, not what is uploaded. `hub_upload.py` is its counterpart for stages 2
to 6, which stage 1 does not import. Used by both scripts of this folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console import BadInput

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def open_repository(repo_id: str, *, flag: str, repo_type: str, is_public: bool) -> None:
    """Makes a repository, or finds it there, so that an upload can fail only for what happens later.

    flag: that named it. repo_type: `model` or `dataset`. Raises BadInput without a token, without the right to write,
    without a connection, and where what is there is public though it should be private, or the other way round."""
    if not HUB_ID.fullmatch(repo_id):
        raise BadInput(f"{flag} {repo_id}: not a name on the Hub; give OWNER/NAME, your user's or organization's")
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise BadInput(f"{flag} {repo_id}: HF_HUB_OFFLINE is set, nothing can be uploaded; unset it")
    if get_token() is None:
        raise BadInput(f"{flag} {repo_id}: there is no token for the Hub; {LOG_IN}")
    api = HfApi()
    with _explained(f"{flag} {repo_id}"):
        api.whoami()
        api.create_repo(repo_id, repo_type=repo_type, private=not is_public, exist_ok=True)
        api.auth_check(repo_id, repo_type=repo_type, write=True)
        is_private = api.repo_info(repo_id, repo_type=repo_type).private
    if is_private == is_public:
        there, wanted = ("private", "leave out --hub_public") if is_private else ("public", "add --hub_public")
        raise BadInput(f"{flag} {repo_id}: is there already and {there}; {wanted}, or name another")


def upload(folder: Path, repo_id: str, *, repo_type: str, message: str, allow_patterns: list[str] | None = None) -> str:
    """Uploads what is in `folder`; returns the repository's address. Raises BadInput when it cannot be done."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(f"uploading to {repo_id}"):
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=repo_type,
            commit_message=message,
            allow_patterns=allow_patterns,
        )
    return f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What the Hub's client raises, as one line with the cure."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise BadInput(f"{what}: the Hub does not know the token; {LOG_IN}") from None
        if status == 403:
            raise BadInput(f"{what}: the token may not write there; {LOG_IN}, or name another owner") from None
        raise BadInput(f"{what}: the Hub answered {status} ({_last_line(error)}); try again later") from None
    except Exception as error:  # dozens of kinds; to the user all mean that the Hub was not reached
        reason = f"{type(error).__name__}: {_last_line(error)}"
        raise BadInput(f"{what}: the Hub cannot be reached ({reason}); check the connection") from None


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
