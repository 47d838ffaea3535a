"""How a model is to be loaded, when a request says some of it and the server's settings the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..requests import LoadParams
from ..settings import ServerSettings


@dataclass(frozen=True)
class LoadWishes:
    """What a request says of it. None: as it is loaded already, else as the server is set."""

    n_ctx: int | None = None  # tokens
    n_ubatch: int | None = None  # tokens
    n_gpu_layers: int | None = None
    device: str | None = None  # as in Placement
    n_threads: int | None = None


def load_params(
    path: Path, wishes: LoadWishes, settings: ServerSettings, n_ctx_train: int | None, loaded: LoadParams | None
) -> LoadParams:
    """`n_ctx_train`: the model's own length, where its file tells it. `loaded`: how it is loaded now, if it is."""
    before = loaded or LoadParams(
        path=path,
        n_ctx=settings.ctx,
        n_parallel=settings.parallel,
        precision=settings.precision,
        device=settings.device,
        split_mode=settings.split_mode,
        main_gpu=settings.main_gpu,
        tensor_split=settings.tensor_split,
        max_waiting=settings.queue,
    )
    params = replace(before, **{name: value for name, value in asdict(wishes).items() if value is not None})
    return params if n_ctx_train is None else replace(params, n_ctx=min(params.n_ctx, n_ctx_train))
