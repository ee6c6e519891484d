"""The way of a checkpoint to the Hub."""

import glob
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from .checkpoint import check_checkpoint


def push(folder: Path, repo_id: str, private: bool, dry_run: bool = True) -> str:
    """Uploads a checkpoint to the Hub, without what lies in folders beneath it (fine-tuned checkpoints).

    Returns:
        What was done, or with `dry_run` what would be, as text for the screen.

    Raises:
        UserError: The folder is no checkpoint, the id is not one, or the Hub refuses.
    """
    folder, api = Path(folder), HfApi()
    files = check_checkpoint(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"repo id {repo_id!r}: {error}") from None
    sizes = {file: (folder / file).stat().st_size for file in files}
    lines = [f"  {file:32} {size / 1e6:10.3f} MB" for file, size in sizes.items()]
    kind = "private" if private else "public"
    what = f"{len(files)} files, {sum(sizes.values()) / 1e6:.1f} MB, to the {kind} {api.endpoint}/{repo_id}"
    if dry_run:
        return "\n".join([f"Would upload {what}:", *lines, "Nothing was uploaded; --push does it."])
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(file) for file in files],
            commit_message=f"Upload {folder.resolve().name}",
        )
    except Exception as error:  # of huggingface_hub, its HTTP client or the system, each with classes of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401 or isinstance(error, LocalTokenNotFoundError):
            raise UserError(
                f"{api.endpoint} wants to know who uploads {repo_id}: run `hf auth login`, or set HF_TOKEN, with a "
                f"token of {api.endpoint}/settings/tokens that may write"
            ) from error
        if status == 403:
            raise UserError(
                f"{api.endpoint} does not let this token write to {repo_id}; see `hf auth whoami`"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{api.endpoint} did not take {repo_id}: {reason}") from error
    return "\n".join([f"Uploaded {what}:", *lines, f"  {commit.commit_url}"])
