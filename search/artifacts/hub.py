"""Checkpoints to the Hub and back."""

import contextlib
import glob
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import sha, validate_repo_id

from ..errors import UserError
from ..files import replace_folder, reported
from .checkpoint import check_checkpoint
from .integrity import inspect


def push(
    folder: Path,
    repo_id: str,
    private: bool,
    dry_run: bool = True,
    revision: str | None = None,
    replace: bool = False,
) -> str:
    """Uploads a checkpoint to the Hub, without what lies in folders beneath it (fine-tuned checkpoints).

    All files come in one commit, so an upload that was cut off left nothing, and the same call does it again; what the
    Hub has already is not sent twice.

    Args:
        private: Of a new repository.
        dry_run: Only say what would be done, without asking the Hub.
        revision: Branch, made where there is none; the main one by default.
        replace: Whether a repository of other files may be emptied for this checkpoint. The Hub keeps their revision.

    Returns:
        What was done, or with `dry_run` what would be, as text for the screen.

    Raises:
        UserError: The folder is no checkpoint or damaged, the id is not one, other files are there, the repository is
            public but shall be private, or the Hub refuses.
    """
    folder, api = Path(folder), HfApi()
    files = check_checkpoint(folder)
    check_repo_id(repo_id)
    findings = inspect(folder)
    wrong = [finding for finding in findings if finding.ok is False]
    if wrong:
        raise UserError(f"{folder} is not whole: {'; '.join(f'{one.question}: {one.text}' for one in wrong)}")
    sizes = {file: (folder / file).stat().st_size for file in files}
    lines = [f"  {file:32} {size / 1e6:10.3f} MB" for file, size in sizes.items()]
    where = f"{api.endpoint}/{repo_id}{f', revision {revision}' if revision else ''}"
    what = (
        f"{len(files)} files, {sum(sizes.values()) / 1e6:.1f} MB, to the {'private' if private else 'public'} {where}"
    )
    lines += ["", *map(str, findings), ""]
    if dry_run:
        return "\n".join([f"Would upload {what}:", *lines, "Nothing was uploaded; --push does it."])
    with hub_errors(api.endpoint, repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.repo_info(repo_id)
        if private and not info.private:
            raise UserError(f"{where} is there already and is public; make it private first, or leave --private out")
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.repo_info(repo_id, revision=revision)
        there = {entry.path: entry for entry in api.list_repo_tree(repo_id, recursive=True, revision=info.sha)
                 if isinstance(entry, RepoFile) and entry.path != ".gitattributes"}  # fmt: skip
        if there and not replace and not _same_weights(folder, files, there):
            some = ", ".join(sorted(there)[:3]) + (" and more" if len(there) > 3 else "")
            raise UserError(f"{where} holds something else ({some}); with --replace this checkpoint takes its place")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(file) for file in files],
            delete_patterns="*" if replace else None,
            commit_message=f"Upload {folder.resolve().name}",
            revision=revision,
            parent_commit=info.sha,  # nobody has written since it was looked at
        )
    gone = sorted(set(there) - set(files)) if replace else []
    lines += [f"Removed what was there before: {', '.join(gone)}"] if gone else []
    return "\n".join([f"Uploaded {what}:", *lines, f"  {commit.commit_url}"])


def _same_weights(folder: Path, files: list[str], there: dict[str, RepoFile]) -> bool:
    """Whether a repository holds this very model, so that only what is said about it may change."""
    weights = [file for file in files if file.endswith(".safetensors") and file.startswith("model")]
    return all(file in there and _same(folder / file, there[file]) for file in weights)


def _same(path: Path, entry: RepoFile) -> bool:
    if entry.lfs is None:
        return sha.git_hash(path.read_bytes()) == entry.blob_id
    with path.open("rb") as file:
        return sha.sha_fileobj(file).hex() == entry.lfs.sha256


def pull(repo_id: str, revision: str | None = None, output: Path | None = None) -> Path:
    """Downloads a checkpoint from the Hub, what is there already not again; returns its folder.

    Args:
        revision: Branch, tag or commit.
        output: A new folder or an empty one; by default the cache of huggingface_hub, where `from_pretrained` looks.

    Raises:
        UserError: There is no such repository or revision, the Hub cannot be reached, or `output` holds something.
    """
    check_repo_id(repo_id)
    if output is not None and output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"{output} exists; name a new folder or an empty one")
    with hub_errors(HfApi().endpoint, repo_id, revision):
        folder = Path(snapshot_download(repo_id, revision=revision))
    if output is None:
        return folder
    with reported(output), replace_folder(output) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)  # of links into the cache, what they point to
    return output


def check_repo_id(repo_id: str) -> None:
    """UserError where it is none."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"repo id {repo_id!r}: {error}") from None


@contextlib.contextmanager
def hub_errors(endpoint: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub refuses into a UserError of one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of huggingface_hub, its HTTP client or the system, each with classes of its own
        raise UserError(_reason(error, endpoint, repo_id, revision)) from error


def _reason(error: Exception, endpoint: str, repo_id: str, revision: str | None) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = f"run `hf auth login`, or set HF_TOKEN, with a token of {endpoint}/settings/tokens"
    if isinstance(error, RevisionNotFoundError):
        return f"{endpoint}/{repo_id} has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError) and status != 401:
        return f"{endpoint} has no {repo_id}; if it is private, {login} that may read it"
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return f"{endpoint} wants to know who asks for {repo_id}: {login} that may do so"
    if status == 403:
        return f"{endpoint} does not let this token do that to {repo_id}; see `hf auth whoami`"
    if status == 412:
        return f"{endpoint}/{repo_id} was changed by somebody else meanwhile; look at it, then do the same again"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{endpoint} cannot be reached, and {repo_id} is not in the cache; the same command goes on later"
    lines = [line.strip("- ") for line in str(error).strip().splitlines() if line.strip("- ")]
    return f"{endpoint}: {repo_id}: {' '.join(lines[:2]) or type(error).__name__}"
