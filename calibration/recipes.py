"""How a shipped parameter set is made: which data, on which priors, what is free, and which sets come out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from calibration.run_fit import Column
from moesim.errors import InputError, nearest
from moesim.specs.loading import config_root, load
from moesim.specs.parameters import PARAMETER_NAMES

_ANY = "*"
MACHINE_CONSTANTS = (
    "host_step_s",
    "host_sequence_s",
    "host_concurrent_s",
    "host_lockstep_s",
    "host_launch_s",
    "host_layer_s",
    "host_uncaptured_s",
    "host_exchange_s",
    "host_piece_s",
    "graph_replay_s",
    "host_eager_op_s",
    "server_request_s",
    "server_token_s",
    "server_response_s",
)
"""Constants of a machine's host, which differ between hosts of one accelerator (measured: up to 2.3 times)."""


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A parameter set to write: for which accelerators, and with the constants of which sites ("*": all).

    `strange_hosts`: sites whose hosts say nothing about the host of a query that names none.
    """

    accelerators: tuple[str, ...]
    sites: tuple[str, ...] = ()
    strange_hosts: tuple[str, ...] = ()


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One joint fit.

    `base`: parameter set of the priors, shipped or made by an earlier recipe. `kernels`, `runs` and `profiles`
    (profilers' files): relative to the data folders. `accelerators`: rows of others are left out. `free`: constants
    fitted to runs (the general ones; `sites` lists those that belong to a machine, "*" standing for every other
    machine in the data).
    `prior_log_sd`: doubt about the base, by constant or
    constant@site. `guesses`: where the fit begins, by constant@site, if the base is so far off that no slope points to
    the answer. `outputs`: sets by name. `transfer_from`: the set that stands in when this accelerator's own
    data are left out.
    """

    name: str
    base: str
    engine: str
    accelerators: tuple[str, ...]
    outputs: dict[str, Output]
    engine_version: str = ""
    after: tuple[str, ...] = ()
    transfer_from: str = ""
    kernels: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    sites: dict[str, tuple[str, ...]] = {}
    prior_log_sd: dict[str, float] = {}
    guesses: dict[str, float] = {}
    notes: str = ""

    def columns(self, sites: Iterable[str]) -> list[Column]:
        """What the runs of machines called `sites` fit."""
        named = {site: self.sites.get(site, self.sites.get(_ANY, ())) for site in sorted(set(sites)) if site}
        general = [Column(name) for name in self.free]
        return general + [Column(name, site) for site, names in named.items() for name in names]


def load_recipe(path: Path) -> Recipe:
    """Read and check one recipe. Raises InputError naming file and field."""
    recipe = load(path, Recipe)
    named = [("free", name) for name in recipe.free]
    named += [(f"sites.{site}", name) for site, names in recipe.sites.items() for name in names]
    for field, name in named:
        if name not in PARAMETER_NAMES:
            raise InputError(f"{path}: {field}: unknown constant {name!r}; {nearest(name, PARAMETER_NAMES)}")
    fitted = [column.key for column in recipe.columns(recipe.sites)]
    for key in recipe.guesses:
        if "@" not in key or key not in fitted:
            raise InputError(f"{path}: guesses: {key!r} is no fitted constant of a site; {nearest(key, fitted)}")
    for name, output in recipe.outputs.items():
        for site in (*output.sites, *output.strange_hosts):
            if site not in recipe.sites and _ANY not in recipe.sites:
                raise InputError(f"{path}: outputs.{name}: unknown site {site!r}; {nearest(site, recipe.sites)}")
    return recipe


def shipped_recipes() -> list[Recipe]:
    """The recipes of the shipped sets, those that others build on first."""
    recipes = [load_recipe(path) for path in sorted((config_root() / "calibration").glob("*.yaml"))]
    return in_order(recipes)


def in_order(recipes: list[Recipe]) -> list[Recipe]:
    """Recipes after those they name in `after`. Raises InputError for a circle."""
    done: list[Recipe] = []
    left = list(recipes)
    while left:
        names = {recipe.name for recipe in left}
        ready = [recipe for recipe in left if not names & set(recipe.after)]
        if not ready:
            raise InputError(f"calibrate: recipes wait for each other: {', '.join(sorted(names))}")
        done += ready
        left = [recipe for recipe in left if recipe not in ready]
    return done
