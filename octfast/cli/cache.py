"""`octfast cache`: see and clear the activations and the pictures of volumes that octfast keeps on disk."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from octfast.cli import options

app = typer.Typer(help="See and clear the activations and volumes that octfast keeps on disk.", no_args_is_help=True)


@app.command("list")
def list_(cache: options.Cache = None, as_json: options.Json = False) -> None:
    """List the stored activations, the last used first; then what there is of networks and volumes.

    Example:

      octfast cache list
    """
    from octfast.data.volumes.store import list_kept
    from octfast.files import cache_root
    from octfast.model.networks import list_networks
    from octfast.train.store.cache import list_stores, readable_size

    stores, networks, volumes = list_stores(cache), list_networks(cache), list_kept(cache)
    if as_json:
        rows = [
            {
                "name": store.name,
                "what": store.what,
                "bytes": store.bytes,
                "complete": store.complete,
                "made": store.made.isoformat(),
                "used": store.used.isoformat(),
                "in_use": store.in_use,
                "path": str(store.path),
            }
            for store in stores
        ]
        kept = [{"path": str(n.path), "bytes": n.bytes, "used": n.used.isoformat()} for n in networks]
        total_bytes = sum(store.bytes for store in stores)
        pictures = [{"path": str(v.path), "bytes": v.bytes, "used": v.used.isoformat()} for v in volumes]
        found = {"stores": rows, "networks": kept, "volumes": pictures}
        _print_json({"cache": str(cache_root(cache)), "bytes": total_bytes, **found})
        return
    if networks:
        typer.echo(f"networks in int8: {len(networks)}, {readable_size(sum(n.bytes for n in networks))}")
    if volumes:
        typer.echo(f"pictures of volumes: {len(volumes)} files, {readable_size(sum(v.bytes for v in volumes))}")
    if not stores and (networks or volumes):
        return
    if not stores:
        typer.echo(f"nothing is stored in {cache_root(cache)}")
        return

    from octfast.console import print_table

    shown = []
    for store in stores:
        state = ("complete" if store.complete else "incomplete") + (", in use" if store.in_use else "")
        made, used = (f"{time.astimezone():%Y-%m-%d %H:%M}" for time in (store.made, store.used))
        shown.append([store.name, store.what, readable_size(store.bytes), state, made, used])
    total = readable_size(sum(store.bytes for store in stores))
    print_table("Stored activations", ["name", "what", "size", "state", "made", "last used"], shown)
    typer.echo(f"{_counted(len(stores))}, {total} in {cache_root(cache)}")


@app.command("clear")
def clear(
    cache: options.Cache = None,
    older_than: Annotated[
        int | None,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=0,
            max=100_000,
            help="Only entries that were last used at least so many days ago.",
        ),
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Only entries that were never finished.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: options.Json = False,
) -> None:
    """Remove stored activations, networks and pictures of volumes.

    What a running process has open of activations stays, and so does every file not octfast's own. Pictures of volumes
    are made again when a command is given the volumes; a run that was trained on them needs them until then.

    Examples:

      octfast cache clear

      octfast cache clear --older-than 30 --yes
    """
    from datetime import timedelta

    from octfast.data.volumes.store import clear_kept, list_kept
    from octfast.files import cache_root
    from octfast.model.networks import clear_networks
    from octfast.train.store.cache import clear_stores, is_wanted, list_stores, readable_size

    age = None if older_than is None else timedelta(days=older_than)
    stores = list_stores(cache)
    wanted = [store for store in stores if is_wanted(store, older_than=age, incomplete_only=incomplete)]
    volumes = [] if incomplete else list_kept(cache, older_than=age)
    if (wanted or volumes) and not yes:
        size = readable_size(sum(store.bytes for store in wanted) + sum(kept.bytes for kept in volumes))
        also = f" and pictures of {_files(len(volumes))} of volumes" if volumes else ""
        what = f"{_counted(len(wanted))}{also}, {size}, in {cache_root(cache)}"
        if not _in_terminal():
            typer.echo(f"{what}: add --yes to remove without being asked, as nobody can be asked here", err=True)
            raise typer.Exit(2)
        if not typer.confirm(f"Remove {what}?", err=as_json):
            typer.echo("nothing removed", err=as_json)
            raise typer.Exit(1)
    removed, freed = clear_stores(cache, older_than=age, incomplete_only=incomplete) if wanted else (0, 0)
    # Small and made again in seconds, they need no question of their own; an unfinished one has no name yet.
    networks, more = clear_networks(cache, older_than=age) if not incomplete and (wanted or yes) else (0, 0)
    made, room = clear_kept(cache, older_than=age) if volumes else (0, 0)
    freed += more + room
    in_use = sum(store.in_use for store in stores)
    if as_json:
        _print_json(
            {
                "cache": str(cache_root(cache)),
                "removed": removed,
                "networks": networks,
                "volumes": made,
                "bytes": freed,
                "left_in_use": in_use,
            }
        )
        return
    if networks:
        typer.echo(f"removed {networks} network{'' if networks == 1 else 's'} in int8")
    if made:
        typer.echo(f"removed the pictures of {_files(made)} of volumes")
    left = f"; {_counted(in_use)} in use left alone" if in_use else ""
    if removed or left or not made:
        typer.echo(
            f"removed {_counted(removed)}, {readable_size(freed)}{left}" if removed else f"nothing to remove{left}"
        )


def _counted(stores: int) -> str:
    return f"{stores} store{'' if stores == 1 else 's'}"


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def _in_terminal() -> bool:
    return sys.stdin.isatty()


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))
