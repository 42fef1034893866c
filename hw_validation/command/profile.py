"""`moesim-hw profile`: a workload under a profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    context: typer.Context,
    tool: Annotated[str, typer.Argument(help="torch, rocprofv3, nsys or ncu.")],
    out: Annotated[Path, typer.Option(help="Folder for the outputs and profile.json.")] = Path("profile"),
    rocpd: Annotated[bool, typer.Option(help="rocprofv3: write SQLite (rocpd) instead of CSV.")] = False,
    launch_skip: Annotated[int, typer.Option(help="ncu: kernels to pass over first.")] = 0,
    launch_count: Annotated[int, typer.Option(help="ncu: kernels to measure (0: all).")] = 0,
    pmc: Annotated[
        list[str] | None, typer.Option(help="rocprofv3: counters of one pass, by commas (repeat for passes).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, run nothing.")] = False,
) -> None:
    """Run a command under a profiler: moesim-hw profile ncu --out DIR -- python -m hw_validation.vllm_sweep ...

    Where the tool's first call fails (counters closed on a virtual machine), torch.profiler stands in, and
    profile.json says so.
    """
    import shlex

    from hw_validation.profilers.passes import EXECUTABLES, ROCPROF_COUNTERS, ProfileOptions, passes
    from hw_validation.profilers.profile import profile_workload
    from moesim.errors import InputError, nearest

    workload = [word for place, word in enumerate(context.args) if word != "--" or place]
    if tool not in EXECUTABLES:
        raise InputError(f"tool: unknown {tool!r}; {nearest(tool, EXECUTABLES)}")
    if not workload:
        raise InputError("workload: give the command to profile after --")
    options = ProfileOptions(
        out=out,
        rocprof_format="rocpd" if rocpd else "csv",
        counters=tuple(tuple(group.split(",")) for group in pmc) if pmc else ROCPROF_COUNTERS,
        launch_skip=launch_skip,
        launch_count=launch_count,
    )
    if dry_run:
        for item in passes(tool, workload, options):  # pyright: ignore[reportArgumentType]
            typer.echo(shlex.join(item.command))
        return
    manifest = profile_workload(tool, workload, options)  # pyright: ignore[reportArgumentType]
    stood_in = f" in place of {manifest.asked} ({manifest.reason})" if manifest.reason else ""
    typer.echo(f"{manifest.used}{stood_in}: {out / 'profile.json'}")
